//! The losses of a router against transformers and PyTorch (tests/goldens/router.py): values and gradients, computed by
//! the operators' references and by the device; and those of a whole Mixtral with them (tests/goldens/router_model.py).

mod common;

use common::golden::{Golden as Model, interpret, loss_and_gradients, read_numbers};
use common::interpret::Interpreter;
use common::spread::Spread;
use danlu::base::{Array, TensorType};
use danlu::compile::{First, compile};
use danlu::graph::{Graph, Value, gradients};
use danlu::nn::{Routing, load_balancing_loss, router_z_loss};
use danlu::ops::{ExpertOrder, Route};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::collections::HashMap;

struct Golden {
    json: serde_json::Value,
    sizes: [usize; 3],
}

impl Golden {
    fn open() -> Golden {
        let json: serde_json::Value = serde_json::from_str(include_str!("goldens/router.json")).unwrap();
        let sizes = ["rows", "experts", "choices"].map(|key| json[key].as_u64().unwrap() as usize);
        Golden { json, sizes }
    }

    fn layers(&self) -> Vec<Array> {
        let [rows, experts, _] = self.sizes;
        let logits = self.json["logits"].as_array().unwrap();
        logits.iter().map(|layer| Array::new(TensorType::f32([rows, experts]), numbers(layer))).collect()
    }

    /// A loss over all layers: outputs `loss`, and `grad.<layer>`.
    fn graph(&self, loss: impl Fn(&mut Graph, &[Routing]) -> Value) -> Graph {
        let [rows, experts, choices] = self.sizes;
        let mut g = Graph::new();
        let mut layers = Vec::new();
        for i in 0..self.layers().len() {
            let logits = g.input(&format!("logits.{i}"), TensorType::f32([rows, experts]));
            let ids = g.apply(Route { choices, normalise: true }, &[logits]).unwrap()[1];
            let counts = g.apply(ExpertOrder { experts, together: 1 }, &[ids]).unwrap()[2];
            layers.push(Routing { logits, counts });
        }
        let loss = loss(&mut g, &layers);
        let logits: Vec<Value> = layers.iter().map(|layer| layer.logits).collect();
        g.output("loss", loss);
        for (i, gradient) in gradients(&mut g, loss, &logits).unwrap().into_iter().enumerate() {
            g.output(&format!("grad.{i}"), gradient);
        }
        g
    }

    /// Both sides round in f32: a few operations for each of the rows and experts that a result sums.
    fn check(&self, loss: &str, name: &str, got: &[f64]) {
        let [rows, experts, _] = self.sizes;
        let expected = match name.strip_prefix("grad.") {
            None => vec![self.json[loss]["loss"].as_f64().unwrap()],
            Some(layer) => numbers(&self.json[loss]["gradients"][layer.parse::<usize>().unwrap()]),
        };
        assert_eq!(got.len(), expected.len(), "{loss} {name}");
        let largest = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let bar = 16.0 * f64::from(f32::EPSILON) * ((2 * rows * experts) as f64).sqrt() * largest;
        for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= bar, "{loss} {name}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
        }
    }
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn graphs(golden: &Golden) -> [(&'static str, Graph); 2] {
    [
        ("balance", golden.graph(|g, layers| load_balancing_loss(g, layers).unwrap())),
        ("z", golden.graph(|g, layers| router_z_loss(g, layers).unwrap())),
    ]
}

#[test]
fn losses_and_gradients_by_the_references() {
    let golden = Golden::open();
    let named = golden.layers().into_iter().enumerate().map(|(i, layer)| (format!("logits.{i}"), layer));
    let sources: HashMap<String, Array> = named.collect();
    for (loss, graph) in graphs(&golden) {
        let run = Interpreter::run(&graph, &sources);
        for (name, value) in graph.outputs() {
            golden.check(loss, name, &run.get(*value).data);
        }
    }
}

#[test]
fn losses_and_gradients_on_the_device() {
    let (gpu, golden) = (common::gpu(), Golden::open());
    for (loss, graph) in graphs(&golden) {
        let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
        let mut run = block_on(Executor::new(&gpu, &plan, &mut States::new(&gpu))).unwrap();
        for (i, layer) in golden.layers().iter().enumerate() {
            run.set(&format!("logits.{i}"), &layer.to_bytes()).unwrap();
        }
        let outputs = block_on(run.run()).unwrap();
        for name in outputs.keys() {
            let got: Vec<f64> = f32s(&outputs, name).into_iter().map(f64::from).collect();
            golden.check(loss, name, &got);
        }
    }
}

#[test]
fn even_experts_cost_what_they_are() {
    let [rows, experts] = [6, 3];
    let mut g = Graph::new();
    let logits = g.input("logits", TensorType::f32([rows, experts]));
    let counts = g.input("counts", TensorType::f32([experts]));
    let loss = load_balancing_loss(&mut g, &[Routing { logits, counts }]).unwrap();
    let even = Array::new(TensorType::f32([experts]), vec![(2 * rows / experts) as f64; experts]);
    let sources = [("logits".to_string(), Array::zeros([rows, experts])), ("counts".to_string(), even)].into();
    let run = Interpreter::run(&g, &sources);
    assert!((run.get(loss).data[0] - 2.0).abs() < 1e-6, "k where two experts a row are chosen evenly");
    let none = load_balancing_loss(&mut g, &[]).unwrap_err().to_string();
    assert!(none.contains("no layer has experts to balance"), "{none}");
}

/// Cross entropy, balance and z-loss of a Mixtral, and the gradient of every parameter.
#[test]
fn a_mixtrals_loss_with_its_routers_is_that_of_transformers() {
    let (gpu, mut model) = (common::gpu(), Model::open("families/mixtral"));
    let experts = model.config.experts.as_mut().unwrap();
    (experts.balance, experts.z) = (0.5, 0.25);
    let path = format!("{}/tests/goldens/families/mixtral/router.safetensors", env!("CARGO_MANIFEST_DIR"));
    let numbers = read_numbers(path.as_ref());
    let (tokens, targets) = (model.ids("tokens"), model.ids("targets"));
    let (graph, ..) = loss_and_gradients(&model, &tokens.ty, false);
    let mut sources = model.states();
    sources.insert("tokens".into(), tokens.clone());
    sources.insert("targets".into(), targets.clone());
    let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
    let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
    let mut states = States::new(&gpu);
    let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
    for (i, page) in model.pages.iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    run.set("tokens", &tokens.to_bytes()).unwrap();
    run.set("targets", &targets.to_bytes()).unwrap();
    let outputs = block_on(run.run()).unwrap();
    for name in outputs.keys() {
        let got: Vec<f64> = f32s(&outputs, name).into_iter().map(f64::from).collect();
        spread.check(name, &got, &numbers[name].1, numbers[&format!("distance.{name}")].1[0]);
    }
    println!("worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
}
