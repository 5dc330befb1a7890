//! An operator from outside the crate: GELU, with its own WGSL, its own gradient and its own proof.
//!
//!     cargo run --release --example custom_operator
//!
//! An operator whose kernel is not elementwise brings a shader file instead: see docs/adding-an-operator.md.

use danlu::base::{Array, Limits, Rng, TensorType, Tolerance};
use danlu::error::Result;
use danlu::gpu::{Gpu, Selector};
use danlu::graph::{Cost, Dispatch, Graph, Hook, Io, Kernel, Op, OpNode, Operand, Value, gradients, spread};
use danlu::run::run_kernel;

/// y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel, 2016).
#[derive(Debug)]
struct Gelu;

/// dx = dy · y'(x); inputs are x and dy.
#[derive(Debug)]
struct GeluGrad;

const ROOT: f64 = 0.797_884_560_802_865_4;

fn inner(x: f64) -> f64 {
    ROOT * (x + 0.044_715 * x * x * x)
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + inner(x).tanh())
}

fn gelu_grad(x: f64) -> f64 {
    let tanh = inner(x).tanh();
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * ROOT * (1.0 + 3.0 * 0.044_715 * x * x)
}

/// (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel where tanh is near -1. The clamp keeps e finite.
const WGSL: &str = "
fn share(x: f32) -> f32 {
    let u = 0.7978845608 * (x + 0.044715 * x * x * x);
    return 1.0 / (1.0 + exp(-2.0 * clamp(u, -40.0, 40.0)));
}
";

/// One dispatch of `map.wgsl` with this body in place of the fuser's; `e0`, `e1`, … are the inputs.
fn elementwise(io: &Io, limits: &Limits, body: &str) -> Vec<Kernel> {
    const WORKGROUP: usize = 64;
    let count = io.outputs[0].shape.elements();
    let reads = (0..io.inputs.len()).map(|k| (format!("e{k}"), "f32")).collect();
    let code = format!("{WGSL} fn map(i: u32) -> f32 {{ {body} }}");
    let mut dispatch = Dispatch::new(spread(count.div_ceil(WORKGROUP), limits))
        .bind("y", Operand::Output(0), 0, io.outputs[0].bytes())
        .param("start", 0usize)
        .param("count", count);
    for (k, ty) in io.inputs.iter().enumerate() {
        dispatch = dispatch.bind(format!("e{k}"), Operand::Input(k), 0, ty.bytes());
    }
    let mut kernel = Kernel::new("map", "custom").constant("WORKGROUP", WORKGROUP).dispatch(dispatch);
    kernel.hooks.push(Hook { name: "map", code, reads });
    vec![kernel]
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        Ok(vec![(*x).clone()])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.apply1(GeluGrad, &[node.inputs[0], dy])?)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        elementwise(io, limits, "return e0[i] * share(e0[i]);")
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 16 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        vec![Array::new(x.ty.clone(), x.data.iter().map(|&x| gelu(x)).collect())]
    }
}

impl Op for GeluGrad {
    fn name(&self) -> &'static str {
        "gelu_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x, dy] if x == dy => Ok(vec![(*x).clone()]),
            _ => Err("takes x and dy of one type".into()),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let body = "let x = e0[i]; let s = share(x);
            return e1[i] * (s + x * s * (1.0 - s) * 1.5957691216 * (1.0 + 0.134145 * x * x));";
        elementwise(io, limits, body)
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 24 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, dy) = (&inputs[0], &inputs[1]);
        let data = x.data.iter().zip(&dy.data).map(|(&x, dy)| dy * gelu_grad(x)).collect();
        vec![Array::new(x.ty.clone(), data)]
    }
}

/// Every kernel of an operator against its reference, at an odd size, with a printed seed.
async fn prove(gpu: &Gpu, op: impl Op, inputs: usize) -> anyhow::Result<()> {
    let (seed, ty) = (7, TensorType::f32([3, 7, 11]));
    let io = Io { inputs: vec![ty.clone(); inputs], outputs: vec![ty.clone()] };
    let draw = |k: usize| {
        let mut rng = Rng::new(seed, k as u64);
        Array::new(ty.clone(), (0..ty.shape.elements()).map(|_| f64::from(rng.normal() as f32)).collect())
    };
    let arrays: Vec<Array> = (0..inputs).map(draw).collect();
    let expected = op.reference(&arrays);
    for kernel in op.kernels(&io, gpu.limits()) {
        let got = run_kernel(gpu, &kernel, &io, &arrays, &[]).await?;
        Tolerance::f32(1).check(&got[0], &expected[0]).map_err(anyhow::Error::msg)?;
        println!("{} {}: meets the bar (seed {seed})", op.name(), kernel.variant);
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    // The gradient is right if it is what differences of the reference say.
    for x in [-4.0, -0.7, 0.0, 0.3, 2.5] {
        let h = 1e-5;
        let difference = (gelu(x + h) - gelu(x - h)) / (2.0 * h);
        anyhow::ensure!((difference - gelu_grad(x)).abs() < 1e-9, "gradient at {x}");
    }
    // The operator takes part in differentiation like any other.
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4, 8]));
    let y = g.apply1(Gelu, &[x])?;
    let loss = g.sum_to(y, &TensorType::f32([1]))?;
    let dx = gradients(&mut g, loss, &[x])?[0];
    g.output("dx", dx);
    println!("{g}");
    pollster::block_on(async {
        let gpu = Gpu::open(&Selector::Automatic).await?;
        println!("{}", gpu.report().line());
        prove(&gpu, Gelu, 1).await?;
        prove(&gpu, GeluGrad, 2).await
    })
}
