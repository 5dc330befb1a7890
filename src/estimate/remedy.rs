//! What would fit where a run does not: other sizes, and other ways to train the same model.

use super::Job;
use crate::base::{Bytes, Limits};
use crate::compile::{First, human_bytes};
use crate::nn::{BaseDtype, LoraConfig};
use crate::optim::{Rule, Update};
use crate::train::{Recipe, optimizer};

/// Fewest tokens of a sequence that are proposed.
const SHORTEST: usize = 64;

/// A sentence that says what of a model fits so many bytes, validation with it, activations computed again as far as that
/// helps: the most sequences, or else tokens, by halves of what was asked for; and as much as was asked for in ways that take
/// less, those that change least first. `None` where the job fits, cannot be planned at all, or is of several ranks.
/// Adapters are proposed where there is a model that they can be of.
pub fn remedy(job: &Job, limits: &Limits, memory: Bytes) -> Option<String> {
    let limits = Limits { memory_bytes: None, ..limits.clone() };
    let bytes = |recipe: &Recipe| {
        let of = |allowed| {
            let recipe = Recipe { memory: allowed, ..recipe.clone() };
            job.with(recipe).plans(&limits, &mut First).ok()
        };
        let whole = of(None)?;
        // Only activations can be computed again, for which there is no looking where the states alone are too many.
        let is_hopeless = whole.train.totals().state_bytes > memory.0;
        if whole.bytes() <= memory.0 || is_hopeless { Some(whole.bytes()) } else { Some(of(Some(memory))?.bytes()) }
    };
    let fits = |recipe: &Recipe| bytes(recipe).is_some_and(|bytes| bytes <= memory.0);
    if job.recipe.mesh.ranks() > 1 || bytes(&job.recipe)? <= memory.0 {
        return None;
    }
    let mut said = Vec::new();
    if let Some(Recipe { batch, seq, .. }) = smaller(&job.recipe).into_iter().find(fits) {
        said.push(format!("--batch {batch} --seq {seq} as it is"));
    }
    let ways = ways(&job.recipe);
    // Of those that train the same parameters, and of adapters, the first that does.
    for family in [false, true] {
        let way = ways.iter().find(|(_, recipe)| family == recipe.lora.is_some() && fits(recipe));
        said.extend(way.map(|(flags, _)| format!("{flags} at the sizes asked for")));
    }
    // Both, where neither alone is enough.
    if let (true, Some((flags, recipe))) = (said.is_empty(), ways.last()) {
        let flags = flags.trim_end_matches(',');
        let both = smaller(recipe).into_iter().find(fits);
        said.extend(both.map(|Recipe { batch, seq, .. }| format!("{flags} with --batch {batch} --seq {seq}")));
    }
    let all = human_bytes(memory.0);
    if !said.is_empty() {
        return Some(format!("what fits {all}: {}", said.join("; or ")));
    }
    let least = ways.last().map_or(&job.recipe, |(_, recipe)| recipe);
    let least = Recipe { batch: 1, seq: SHORTEST.min(job.recipe.seq), ..least.clone() };
    let (flags, seq) = (ways.last().map_or("as it is", |(flags, _)| flags), least.seq);
    let wanted = bytes(&least).map_or_else(|| "more".into(), human_bytes);
    let flags = flags.trim_end_matches(',');
    Some(format!("nothing fits {all}: one sequence of {seq} tokens, {flags}, takes {wanted}; choose a smaller model"))
}

/// The same with fewer sequences, and then shorter ones.
fn smaller(recipe: &Recipe) -> Vec<Recipe> {
    let Recipe { mut batch, mut seq, .. } = *recipe;
    let mut all = Vec::new();
    loop {
        match () {
            () if batch > 1 => batch /= 2,
            () if seq >= 2 * SHORTEST => seq /= 2,
            () => return all,
        }
        all.push(Recipe { batch, seq, ..recipe.clone() });
    }
}

/// Flags, and the recipe with them.
fn ways(recipe: &Recipe) -> Vec<(&'static str, Recipe)> {
    let mut all = Vec::new();
    let has_copies = optimizer(recipe).copies;
    if has_copies {
        all.push(("--weight-copies false", Recipe { weight_copies: false, ..recipe.clone() }));
    }
    if recipe.lora.is_none() {
        let eight = Recipe { optimizer: Rule::AdamW8bit, ..recipe.clone() };
        let layer = Recipe { update: Update::Layer, accumulate: 1, ..eight.clone() };
        if recipe.optimizer == Rule::AdamW {
            all.push(("--optimizer adamw8bit", eight.clone()));
            if has_copies {
                let without = Recipe { weight_copies: false, ..eight };
                all.push(("--optimizer adamw8bit --weight-copies false", without));
            }
        }
        if recipe.update == Update::Step {
            all.push(("--optimizer adamw8bit --update layer --accumulate 1", layer));
        }
    }
    let adapters = |base_dtype| {
        let lora = recipe.lora.clone().unwrap_or_default();
        Recipe { lora: Some(LoraConfig { base_dtype, ..lora }), update: Update::Step, ..recipe.clone() }
    };
    if recipe.model.is_some() && recipe.lora.is_none() {
        all.push(("--lora-rank 16, which trains adapters,", adapters(BaseDtype::Keep)));
    }
    if recipe.model.is_some() && recipe.lora.as_ref().is_none_or(|lora| lora.base_dtype != BaseDtype::Nf4) {
        all.push(("--base-dtype nf4, adapters over weights of four bits,", adapters(BaseDtype::Nf4)));
    }
    all
}
