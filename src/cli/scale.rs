//! `danlu plan --nodes`: a step on many ranks.

use crate::compile::human_bytes;
use crate::estimate::{
    Asked, Found, MachineFile, Mesh, Prediction, REACHED, Rate, Recompute, Setup, Storage, Zero, human_time, search,
};
use crate::model::ModelConfig;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

/// Others that are named at most.
const SHOWN: usize = 12;

/// Flags of `danlu plan` that ask for more than one adapter.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Plan for so many nodes of --machine: which mesh is best, and what a step takes on it.
    #[arg(long, value_name = "COUNT", requires = "machine", conflicts_with_all = ["measure", "list", "memory", "lora_rank"])]
    pub nodes: Option<usize>,
    /// Axes of the mesh, such as data=8,tensor=8,pipeline=2 (also expert, sequence); `auto` looks for the best.
    #[arg(long, value_name = "auto|AXES", default_value = "auto", requires = "nodes")]
    mesh: String,
    /// What is sharded over ranks with the same weights: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.
    #[arg(long, value_name = "0-3", requires = "nodes")]
    zero: Option<Zero>,
    /// What is computed again in the backward pass.
    #[arg(long, value_name = "none|selective|full", requires = "nodes")]
    recompute: Option<Recompute>,
    /// Sequences that a rank computes at a time.
    #[arg(long, value_name = "COUNT", requires = "nodes")]
    micro_batch: Option<usize>,
    /// Stages of each pipeline rank.
    #[arg(long, value_name = "COUNT", requires = "nodes")]
    interleave: Option<usize>,
    /// Formats of weights and activations: f32, as Danlu has them today, or bf16.
    #[arg(long, value_name = "f32|bf16", default_value = "f32", requires = "nodes")]
    storage: Storage,
    /// Operands of products with weights.
    #[arg(long, value_name = "f32|f16|f8", default_value = "f16", requires = "nodes")]
    products: Rate,
}

/// The run and the prices that time is multiplied with.
pub struct Run {
    pub tokens: Option<f64>,
    pub price: Option<f64>,
    pub watts: Option<f64>,
}

/// Searches and prints.
pub fn plan(
    args: &ScaleArgs,
    config: &ModelConfig,
    [batch, seq]: [usize; 2],
    machine: &MachineFile,
    run: &Run,
    as_json: bool,
) -> Result<()> {
    let nodes = args.nodes.unwrap_or(1);
    let Some(ranks) = nodes.checked_mul(machine.adapters).filter(|n| (1..=1 << 24).contains(n)) else {
        bail!("--nodes is {nodes}; it must be at least 1, and its adapters at most {}", 1 << 24);
    };
    let mesh = if args.mesh == "auto" { None } else { Some(args.mesh.parse::<Mesh>()?) };
    if let Some(mesh) = mesh.filter(|mesh| mesh.ranks() != ranks) {
        let (wanted, each) = (mesh.ranks(), machine.adapters);
        bail!("mesh {mesh} has {wanted} ranks, and {nodes} nodes of {each} have {ranks}; choose others");
    }
    let asked = Asked {
        mesh,
        zero: args.zero,
        recompute: args.recompute,
        micro_batch: args.micro_batch,
        interleave: args.interleave,
    };
    let setup = Setup {
        batch,
        seq,
        micro_batch: 1,
        interleave: 1,
        zero: Zero(0),
        recompute: Recompute::None,
        storage: args.storage,
        products: args.products,
    };
    let found = search(config, setup, asked, ranks, machine)?;
    if as_json {
        say!("{}", serde_json::to_string_pretty(&json!({"machine": machine.name, "ranks": ranks, "found": found}))?);
    } else {
        say!("{}", text(&found, config, machine, nodes, run).trim_end());
    }
    match found.best {
        Some(_) => Ok(()),
        None => bail!(
            "no way that was tried fits the memory of {}; take more nodes, or a smaller --batch or --seq",
            machine.name
        ),
    }
}

fn text(found: &Found, config: &ModelConfig, machine: &MachineFile, nodes: usize, run: &Run) -> String {
    let parameters = config.parameters();
    let mut text = format!("{parameters} parameters on {nodes} nodes of {} x {}\n", machine.adapters, machine.name);
    if let Some(best) = &found.best {
        text += &prediction(best, machine, run);
    }
    let others = found.losers.len();
    if others > 0 {
        let tried = found.tried;
        text += &format!("\nof {tried} ways to do it, the best of each other mesh, and why it is not the best\n");
        // Those that are fastest, and those that do not fit with the fewest bytes.
        for loser in found.losers.iter().take(SHOWN) {
            let seconds = loser.seconds.map_or_else(|| "does not fit".into(), human_time);
            text += &format!("  {:<44} {seconds:>12}  {}\n", loser.mesh.to_string(), loser.why);
        }
        if others > SHOWN {
            text += &format!("  and {} more; --json tells them all\n", others - SHOWN);
        }
    }
    text
}

fn prediction(p: &Prediction, machine: &MachineFile, run: &Run) -> String {
    let (setup, ranks) = (&p.setup, p.mesh.ranks() as f64);
    let mut text = format!("\nmesh           {}\n", p.mesh);
    text += &format!(
        "how            ZeRO {}, recomputation {:?}, micro-batches of {}, {} stages a pipeline rank\n",
        setup.zero.0, setup.recompute, setup.micro_batch, setup.interleave
    );
    text += "\nbytes of the rank with most\n";
    for (name, bytes) in p.usage.kinds().into_iter().filter(|(_, bytes)| *bytes > 0) {
        text += &format!("  {name:<18} {:>12}\n", human_bytes(bytes));
    }
    text += &format!("  {:<18} {:>12}\n", "in all", human_bytes(p.usage.total()));
    let m = &p.messages;
    text += "\nbytes that a rank sends in a step\n";
    let axes = [
        ("data", m.data),
        ("tensor", m.tensor),
        ("pipeline", m.pipeline),
        ("expert", m.expert),
        ("sequence", m.sequence),
    ];
    for (axis, bytes) in axes.into_iter().filter(|(_, bytes)| *bytes > 0.0) {
        text += &format!("  {axis:<18} {:>12}\n", human_bytes(bytes as u64));
    }
    let step = p.seconds.total();
    text += "\nseconds of a step\n";
    for (name, seconds) in p.seconds.parts().into_iter().filter(|(_, seconds)| *seconds > 0.0) {
        text += &format!("  {name:<18} {seconds:>10.4}  {:>5.1} %\n", 100.0 * seconds / step);
    }
    text += &format!("  {:<18} {step:>10.4}\n", "a step");
    let per_second = p.tokens_per_rank * ranks;
    text += &format!(
        "\n{:.1} tokens a second and rank, {:.4e} a day in all; MFU {:.1} %\n",
        p.tokens_per_rank,
        per_second * 86_400.0,
        100.0 * p.mfu
    );
    let (watts, price) = (run.watts.or(machine.watts), run.price.or(machine.price));
    let hours = |tokens: f64| tokens / per_second / 3600.0 * ranks;
    let mut sums = |what: &str, tokens: f64| {
        let money = price.map(|price| format!("{:.4} to pay", price * hours(tokens)));
        let energy = watts.map(|watts| format!("{:.4} kWh", watts * hours(tokens) / 1000.0));
        let both: Vec<String> = money.into_iter().chain(energy).collect();
        if !both.is_empty() {
            text += &format!("{what}: {}\n", both.join(", "));
        }
    };
    sums("a million tokens", 1e6);
    if let Some(tokens) = run.tokens {
        let time = human_time(tokens / per_second);
        sums(&format!("the run of {tokens:.4e} tokens, {time}"), tokens);
    }
    let r = REACHED;
    text += &format!(
        "assumed of published rates, on every machine: {} of products, {} of attention, {} of memory, {} of the network\n",
        r.products, r.attention, r.memory, r.network
    );
    text
}
