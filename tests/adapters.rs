//! Every adapter of this machine gives the same log-probabilities within the bar, and the same greedy text. Where there is
//! only one, the test says so, or fails if the environment variable `DANLU_TEST_ADAPTERS` wants more, as `.ci/run` does: a
//! second one comes with Mesa's OpenGL driver (libegl1, libegl-mesa0, libgl1-mesa-dri) or with SwiftShader.

mod common;

use common::golden::{Golden, Numbers, Sources, interpret};
use common::spread::Spread;
use danlu::base::{Array, Rng, TensorType};
use danlu::compile::{First, compile};
use danlu::gpu::{Gpu, Selector, list};
use danlu::graph::Graph;
use danlu::infer::{Generator, Sampling};
use danlu::model::Llama;
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::path::Path;

const LENGTH: usize = 40;

/// The log-probability of each token but the first, from the logits of all.
fn log_probabilities(logits: &[f64], tokens: &[u32], vocab: usize) -> Vec<f64> {
    let of = |(row, &next): (&[f64], &u32)| {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row[next as usize] - most - row.iter().map(|x| (x - most).exp()).sum::<f64>().ln()
    };
    logits.chunks(vocab).zip(&tokens[1..]).map(of).collect()
}

fn logits_graph(golden: &Golden) -> Graph {
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let tokens = g.input("tokens", TensorType::u32([1, LENGTH]));
    let logits = Llama::new(golden.config.clone()).logits(&mut g, &params, tokens).unwrap();
    g.output("logits", logits);
    g
}

fn logits_on(gpu: &Gpu, golden: &Golden, graph: &Graph, tokens: &[u32]) -> Vec<f64> {
    let mut states = States::new(gpu);
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    let plan = compile(graph, gpu.limits(), &mut First).unwrap();
    let mut run = block_on(Executor::new(gpu, &plan, &mut states)).unwrap();
    run.set("tokens", tokens).unwrap();
    f32s(&block_on(run.run()).unwrap(), "logits").into_iter().map(f64::from).collect()
}

/// All adapters, opened.
fn adapters() -> Vec<Gpu> {
    let found = block_on(list());
    let open = |i: usize| block_on(Gpu::open(&Selector::from(i.to_string().as_str()))).unwrap();
    let gpus: Vec<Gpu> = (0..found.len()).map(open).collect();
    let wanted =
        std::env::var("DANLU_TEST_ADAPTERS").map_or(1, |n| n.parse().expect("DANLU_TEST_ADAPTERS is a number"));
    assert!(gpus.len() >= wanted, "{} adapters where {wanted} are wanted", gpus.len());
    if gpus.len() == 1 {
        println!("only one adapter ({}): nothing to compare it with", gpus[0].report().line());
    }
    gpus
}

#[test]
fn log_probabilities_agree_on_every_adapter() {
    let golden = Golden::open("gqa");
    let vocab = golden.config.vocab_size;
    let mut rng = Rng::new(11, 0);
    let tokens: Vec<u32> = (0..LENGTH).map(|_| rng.below(vocab) as u32).collect();
    let graph = logits_graph(&golden);
    let mut sources: Sources = golden.states();
    let ids = tokens.iter().map(|&t| f64::from(t)).collect();
    sources.insert("tokens".into(), Array::new(TensorType::u32([1, LENGTH]), ids));
    let mut spread = Spread::new(|noise| {
        let numbers: Numbers = interpret(&graph, &sources, noise);
        Numbers::from([("log_probabilities".into(), log_probabilities(&numbers["logits"], &tokens, vocab))])
    });
    let exact = spread.exact["log_probabilities"].clone();
    for gpu in adapters() {
        let got = log_probabilities(&logits_on(&gpu, &golden, &graph, &tokens), &tokens, vocab);
        spread.check("log_probabilities", &got, &exact, 0.0);
        println!("{}: worst so far {:.3} of its bar", gpu.report().line(), spread.worst.0);
    }
}

#[test]
fn greedy_text_is_the_same_on_every_adapter() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let text = |gpu: Gpu| {
        let mut generator = block_on(Generator::open(&gpu, &folder, 64)).unwrap();
        let mut text = Vec::new();
        let receive = |token| {
            text.push(token);
            Ok(true)
        };
        block_on(generator.generate(&[5, 6, 7, 8, 9, 10, 11], 40, &Sampling::greedy(), receive)).unwrap();
        (gpu.report().line(), text)
    };
    let texts: Vec<_> = adapters().into_iter().map(text).collect();
    assert!(texts[0].1.len() > 5, "{:?}", texts[0]);
    for other in &texts[1..] {
        assert_eq!(other.1, texts[0].1, "{} against {}", other.0, texts[0].0);
    }
}
