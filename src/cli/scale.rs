//! `danlu plan --nodes`: a step on many ranks.

use crate::base::count;
use crate::compile::human_bytes;
use crate::estimate::{
    Asked, Found, MachineFile, Mesh, Prediction, REACHED, Rate, Recompute, Setup, Storage, human_time, search,
    significant,
};
use crate::model::ModelConfig;
use crate::optim::Shard;
use crate::train::Recipe;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

/// Others that are named at most.
const SHOWN: usize = 12;

/// Flags of `danlu plan` that ask for more than one adapter.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Plan for so many nodes of --machine: which mesh is best, and what a step of AdamW takes on it, by --products and --storage. Of
    /// several machines one count for all, or one for each, separated by commas.
    #[arg(long, value_name = "COUNT", value_delimiter = ',', requires = "machine", conflicts_with_all = ["measure", "list", "memory", "lora_rank", "base_dtype", "precision", "optimizer", "update", "clip", "ema", "pack", "lengths", "dpo", "adapter"])]
    pub nodes: Vec<usize>,
    /// Axes of the mesh, such as data=8,tensor=8,pipeline=2 (also expert, sequence). With --nodes `auto` looks for the best
    /// [the default]; without, the plan is that of one of its ranks, as `danlu train` runs it.
    #[arg(long, value_name = "auto|AXES")]
    mesh: Option<String>,
    /// What ranks with the same weights share out, as `danlu train` has it; or ZeRO's stages, 0 to 3.
    #[arg(long, alias = "zero", value_name = "none|optimizer|gradients|parameters", conflicts_with = "measure")]
    pub shard: Option<Shard>,
    /// What is computed again in the backward pass.
    #[arg(long, value_name = "none|selective|full", requires = "nodes")]
    recompute: Option<Recompute>,
    /// Sequences that a rank computes at a time.
    #[arg(long, value_name = "COUNT", requires = "nodes")]
    micro_batch: Option<usize>,
    /// Stages of each pipeline rank.
    #[arg(long, value_name = "COUNT", conflicts_with = "measure")]
    pub interleave: Option<usize>,
    /// Formats of weights and activations: f32, as Danlu has them today, or bf16.
    #[arg(long, value_name = "f32|bf16", default_value = "f32", requires = "nodes")]
    storage: Storage,
    /// Operands of products with weights.
    #[arg(long, value_name = "f32|f16|f8", default_value = "f16", requires = "nodes")]
    products: Rate,
}

impl ScaleArgs {
    /// The mesh that is asked for; nothing where the best is to be found.
    pub fn mesh(&self) -> Result<Option<Mesh>> {
        if self.nodes.is_empty() && self.mesh.as_deref() == Some("auto") {
            bail!(
                "--mesh auto looks for the best mesh of many nodes: add --nodes and --machine, or write axes as in data=4,tensor=2"
            );
        }
        Ok(self.mesh.as_deref().filter(|mesh| *mesh != "auto").map(str::parse).transpose()?)
    }
}

/// The run and the prices that time is multiplied with.
pub struct Run {
    pub tokens: Option<f64>,
    pub price: Option<f64>,
    pub watts: Option<f64>,
}

/// Searches and prints: one machine in all detail, several side by side.
pub fn plan(
    args: &ScaleArgs,
    config: &ModelConfig,
    recipe: &Recipe,
    machines: &[MachineFile],
    run: &Run,
    as_json: bool,
) -> Result<()> {
    let nodes = match (args.nodes.as_slice(), machines.len()) {
        ([all], n) => vec![*all; n],
        (each, n) if each.len() == n => each.to_vec(),
        (each, n) => bail!("--nodes gives {} counts for {n} machines; give one for all, or one for each", each.len()),
    };
    let mut sides = Vec::new();
    for (machine, nodes) in machines.iter().zip(nodes) {
        let (found, ranks) = find(args, config, recipe, machine, nodes)?;
        sides.push(Side { machine, nodes, ranks, found });
    }
    match sides.as_slice() {
        _ if as_json => {
            let value = |s: &Side| json!({"machine": s.machine.name, "ranks": s.ranks, "found": s.found});
            let values: Vec<_> = sides.iter().map(value).collect();
            let text = match values.as_slice() {
                [one] => serde_json::to_string_pretty(one)?,
                all => serde_json::to_string_pretty(all)?,
            };
            say!("{text}");
        }
        [one] => say!("{}", text(&one.found, config, one.machine, one.nodes, run).trim_end()),
        _ => say!("{}", side_by_side(&sides, config, run).trim_end()),
    }
    match sides.iter().find(|side| side.found.best.is_none()) {
        None => Ok(()),
        Some(side) => bail!(
            "no way that was tried fits the memory of {}; take more nodes, or a smaller --batch or --seq",
            side.machine.name
        ),
    }
}

/// The best mesh of so many nodes of a machine, and how many ranks they are.
fn find(
    args: &ScaleArgs,
    config: &ModelConfig,
    recipe: &Recipe,
    machine: &MachineFile,
    nodes: usize,
) -> Result<(Found, usize)> {
    let Some(ranks) = nodes.checked_mul(machine.adapters).filter(|n| (1..=1 << 24).contains(n)) else {
        bail!("--nodes is {nodes}; it must be at least 1, and its adapters at most {}", 1 << 24);
    };
    if !machine.knows_messages(ranks, machine.adapters) {
        bail!(
            "what messages between ranks of {} cost is not known: its file has no [[levels]], which those of machines/ show",
            machine.name
        );
    }
    if machine.memory.is_none() {
        tell!("danlu: nothing is known of the memory of {}, so everything is taken to fit", machine.name);
    }
    if let Some(most) = args.micro_batch.filter(|&sequences| sequences > 1 << 24) {
        bail!("--micro-batch is {most}; it must be at most {}", 1 << 24);
    }
    let mesh = args.mesh()?;
    if let Some(mesh) = mesh.filter(|mesh| mesh.ranks() != ranks) {
        let (wanted, each) = (mesh.ranks(), machine.adapters);
        let (wanted, nodes) = (count(wanted, "rank"), count(nodes, "node"));
        bail!("the mesh {mesh} is of {wanted}, and the ranks of {nodes} of {each} are {ranks}; choose others");
    }
    let asked = Asked {
        mesh,
        shard: args.shard,
        recompute: args.recompute,
        micro_batch: args.micro_batch,
        batches: None,
        interleave: args.interleave,
    };
    let setup = Setup {
        batch: recipe.batch * recipe.accumulate as usize,
        seq: recipe.seq,
        micro_batch: 1,
        interleave: 1,
        shard: Shard::None,
        recompute: Recompute::None,
        storage: args.storage,
        products: args.products,
    };
    // Ranks of one processor share it.
    let each = if machine.levels.is_empty() { machine.among(ranks) } else { machine.clone() };
    Ok((search(config, recipe, setup, asked, ranks, &each)?, ranks))
}

/// One machine among others.
struct Side<'a> {
    machine: &'a MachineFile,
    nodes: usize,
    ranks: usize,
    found: Found,
}

/// A row for each machine; and what an hour of the others must cost for their tokens to cost as much as the first's, and a
/// sixth of that.
fn side_by_side(sides: &[Side], config: &ModelConfig, run: &Run) -> String {
    let mut text = format!("{} parameters, side by side\n\n", config.parameters());
    let heads = ["ranks", "tokens/s each", "tokens a day", "MFU %", "kWh a million", "price a million", "of the first"];
    text += &format!("{:<46}", "machine");
    text += &heads.map(|head| format!(" {head:>15}")).concat();
    text.push('\n');
    // Of a million tokens.
    let hours = |p: &Prediction| 1e6 / p.tokens_per_rank / 3600.0;
    let price = |s: &Side, p: &Prediction| run.price.or(s.machine.price).map(|price| price * hours(p));
    let first = sides.first().and_then(|s| price(s, s.found.best.as_ref()?));
    for side in sides {
        let Some(p) = &side.found.best else {
            text += &format!("{:<46} {:>15} fits in no way that was tried\n", side.machine.name, side.ranks);
            continue;
        };
        let known = |value: Option<f64>| value.map_or("?".into(), significant);
        let paid = price(side, p);
        let cells = [
            side.ranks.to_string(),
            format!("{:.1}", p.tokens_per_rank),
            format!("{:.3e}", p.tokens_per_rank * side.ranks as f64 * 86_400.0),
            format!("{:.1}", 100.0 * p.mfu),
            known(run.watts.or(side.machine.watts).map(|watts| watts * hours(p) / 1000.0)),
            known(paid),
            known(paid.zip(first).map(|(paid, first)| paid / first)),
        ];
        text += &format!("{:<46}", side.machine.name);
        text += &cells.map(|cell| format!(" {cell:>15}")).concat();
        text += &format!("\n  {}\n", p.mesh);
    }
    let Some(first) = first else { return text };
    for side in &sides[1..] {
        let Some(p) = &side.found.best else { continue };
        let hour = first / hours(p);
        let of = (run.price.or(side.machine.price)).map_or(String::new(), |own| format!(" (it is {own:.3})"));
        text += &format!(
            "\n{}: a token costs as much as the first's at {hour:.3} an hour, and a sixth of it at {:.3}{of}",
            side.machine.name,
            hour / 6.0
        );
    }
    text
}

fn text(found: &Found, config: &ModelConfig, machine: &MachineFile, nodes: usize, run: &Run) -> String {
    let parameters = config.parameters();
    let mut text =
        format!("{parameters} parameters on {} of {} x {}\n", count(nodes, "node"), machine.adapters, machine.name);
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
    let stages = match p.mesh.pipeline {
        1 => String::new(),
        _ => format!(", {} a pipeline rank", count(setup.interleave, "stage")),
    };
    text += &format!(
        "how            shared out: {}, recomputed: {}, micro-batches of {}{stages}\n",
        setup.shard,
        setup.recompute,
        count(setup.micro_batch, "sequence")
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
        let money = price.map(|price| format!("{} to pay", significant(price * hours(tokens))));
        let energy = watts.map(|watts| format!("{} kWh", significant(watts * hours(tokens) / 1000.0)));
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
