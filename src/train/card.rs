//! The model card of what was trained: README.md in Hugging Face's form. The same run gives the same bytes.

use super::{Metrics, TrainedRun};
use crate::base::count;
use crate::model::PreferenceLoss;
use crate::optim::Rule;
use std::fmt::Write;
use std::path::Path;

/// Most rows of the table of losses.
const ROWS: usize = 12;

impl TrainedRun {
    /// The card, with this name and licence, such as `apache-2.0`; `adapter`: of an adapter alone, and not of a model.
    pub fn card(&self, name: &str, licence: Option<&str>, adapter: bool) -> String {
        let recipe = &self.recipe;
        let mut card = format!("---\nlicense: {}\n", licence.unwrap_or("unknown"));
        if let Some(model) = &recipe.model {
            let _ = writeln!(card, "base_model: {}", yaml(&called(model)));
        }
        let library = if adapter { "peft" } else { "transformers" };
        let _ = write!(card, "library_name: {library}\npipeline_tag: text-generation\ntags:\n- danlu\n");
        card += if recipe.lora.is_some() { "- lora\n" } else { "" };
        let _ = write!(card, "---\n\n# {name}\n\n{}\n\n", self.what(adapter));
        let _ = write!(card, "## Data\n\n{}\n\n", self.data());
        let _ = write!(card, "## Training\n\n{}\n\n", self.training());
        card += &self.losses();
        let _ = write!(card, "## Hardware\n\n{}\n\n", self.hardware());
        let _ = write!(card, "## Recipe\n\n```toml\n{}```\n", recipe.to_toml());
        card
    }

    fn what(&self, adapter: bool) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let by = format!("by Danlu {version}, whose every number is computed by WGSL shaders through wgpu");
        match (&self.recipe.model, &self.recipe.lora) {
            (None, _) => format!("A language model, trained from nothing {by}."),
            (Some(model), None) => format!("{}, trained further {by}.", called(model)),
            (Some(model), Some(_)) if adapter => format!("An adapter of {}, trained {by}.", called(model)),
            (Some(model), Some(_)) => {
                format!("{} with an adapter, which was trained {by}, made part of its weights.", called(model))
            }
        }
    }

    fn data(&self) -> String {
        let recipe = &self.recipe;
        let paths: Vec<String> = recipe.data.0.iter().map(|source| format!("`{}`", source.path.display())).collect();
        let what = match paths.is_empty() {
            false => paths.join(" and "),
            true => format!("{} stories of the grammar that Danlu holds", recipe.stories),
        };
        let share = 100.0 * recipe.val_fraction;
        let sum = self
            .about
            .as_ref()
            .map_or(String::new(), |a| format!(" The hash of its tokens is `{}`.", a.content.tokens));
        format!("{what}, of which {share} % were held out.{sum}")
    }

    fn training(&self) -> String {
        let recipe = &self.recipe;
        let step = self.step.map_or_else(|| "up to".into(), |step| format!("{step} of"));
        let tokens = self.metrics.iter().filter_map(|m| m.tokens).next_back();
        let tokens = tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens with what fills rows up"));
        let rule = match recipe.optimizer {
            Rule::AdamW => "AdamW",
            Rule::AdamW8bit => "AdamW with moments of eight bits",
            Rule::Muon => "Muon",
            Rule::Sgd => "SGD",
        };
        let mut text = format!(
            "{step} {} of {} of {}{tokens}; {rule}, highest learning rate {:e}, seed {}.",
            count(recipe.steps as usize, "step"),
            count(recipe.sequences() * recipe.accumulate as usize, "sequence"),
            count(recipe.seq, "token"),
            recipe.lr,
            recipe.seed
        );
        let done = self.about.as_ref().map(|about| about.progress.step).filter(|done| Some(*done) > self.step);
        if let Some(done) = done {
            let _ =
                write!(text, " The run went on to step {done}, which lowered the loss on what is held out no more.");
        }
        if let Some(lora) = &recipe.lora {
            let kind = match (lora.dora, lora.rslora) {
                (true, _) => "DoRA",
                (_, true) => "rsLoRA",
                _ => "LoRA",
            };
            let targets = if lora.targets.is_empty() { "every linear layer".into() } else { lora.targets.join(", ") };
            let _ = write!(
                text,
                " {kind} of rank {} and alpha {} in {targets}; the model's own weights were held {}.",
                lora.rank,
                lora.alpha,
                match lora.base_dtype {
                    crate::nn::BaseDtype::Keep => "as they came".to_string(),
                    dtype => format!("as {dtype}"),
                }
            );
        }
        if let Some(dpo) = &recipe.dpo {
            let (loss, smoothing) = match (dpo.loss, dpo.label_smoothing) {
                (PreferenceLoss::Ipo, _) => ("IPO's", String::new()),
                (PreferenceLoss::Hinge, _) => ("a hinge", String::new()),
                (PreferenceLoss::Sigmoid, 0.0) => ("DPO's", String::new()),
                (PreferenceLoss::Sigmoid, share) => ("DPO's", format!(", labels smoothed by {share}")),
            };
            let _ = write!(
                text,
                " Preference pairs, each of two of the sequences: {loss} loss with beta {}{smoothing}.",
                dpo.beta
            );
        }
        text
    }

    /// A table of the losses: every validation, or as many of them as are easily read.
    fn losses(&self) -> String {
        let with = |m: &&Metrics| m.validation_loss.is_some();
        let all: Vec<&Metrics> = self.metrics.iter().filter(with).collect();
        let Some(last) = all.last() else { return String::new() };
        let every = all.len().div_ceil(ROWS);
        let mut rows: Vec<&Metrics> = all.iter().copied().skip(every - 1).step_by(every).collect();
        if rows.last().is_none_or(|row| row.step != last.step) {
            rows.push(last);
        }
        let trained = |step: u64| self.metrics.iter().filter(|m| m.step == step).find_map(|m| m.smoothed_loss);
        let (what, figure) = match last.validation_rewards.is_some() {
            true => ("Mean loss of preference pairs", "pairs right"),
            false => ("Cross entropy in nats a token", "perplexity"),
        };
        let mut text = format!("## Losses\n\n{what}; in training smoothed over some fifty steps.\n\n");
        let _ = write!(text, "| step | training | held out | {figure} |\n|---|---|---|---|\n");
        for row in rows {
            let loss = row.validation_loss.unwrap_or_default();
            let training = trained(row.step).map_or(String::new(), |loss| format!("{loss:.4}"));
            let figure = row.validation_rewards.map_or(loss.exp(), |rewards| rewards.accuracy);
            let _ = writeln!(text, "| {} | {training} | {loss:.4} | {figure:.3} |", row.step);
        }
        text + "\n"
    }

    fn hardware(&self) -> String {
        match &self.about {
            Some(about) => {
                let (adapter, hours) = (&about.adapter, about.progress.seconds / 3600.0);
                let ranks = match about.recipe.mesh.ranks() {
                    1 => String::new(),
                    ranks => format!("{ranks} ranks ({}), the first of them on ", about.recipe.mesh),
                };
                format!("{ranks}{} ({}, {}), {hours:.2} hours.", adapter.name, adapter.backend, adapter.driver)
            }
            None => "Not written down.".into(),
        }
    }
}

/// What others may call a model: its name on the hub, or of one that lies here the name of its folder or file.
fn called(model: &str) -> String {
    let path = Path::new(model);
    let here = path.is_absolute() || model.starts_with(['.', '~']) || path.exists();
    match path.file_name().filter(|_| here) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => model.into(),
    }
}

/// A string as YAML has it: JSON's strings are YAML's.
fn yaml(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::called;

    #[test]
    fn models_that_lie_here_are_called_by_their_folder() {
        for (model, name) in [
            ("/home/me/models/story", "story"),
            ("./models/story.gguf", "story.gguf"),
            ("../story/", "story"),
            ("org/model", "org/model"),
            ("org/model:file.gguf", "org/model:file.gguf"),
            // The tests run where it is.
            ("src/train", "train"),
        ] {
            assert_eq!(called(model), name);
        }
    }
}
