//! A recipe as a text for people: which keys there are, what each is for, and which one was meant by a word that is none.

use super::Recipe;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What each key is for, as a recipe's comments say it; groups before their keys.
const COMMENTS: &[(&str, &str)] = &[
    ("config", "a preset, a config.json, or a folder that holds one"),
    ("model", "a model to go on with: a Hugging Face folder or a GGUF file"),
    ("data", "text, JSONL, JSON, Parquet, a folder of them, or a hub name; without it, embedded stories"),
    ("pack", "whether documents are packed into full rows"),
    ("lengths", "not packed: at most so many lengths of rows; 1: all are seq"),
    ("loss_on", "of conversations: \"assistant\", or \"all\""),
    ("overlong", "examples longer than a row: \"truncate\", \"drop\" or \"split\""),
    ("tokenizer", "a tokenizer.json, or a GGUF file; without it, a BPE is trained on the data"),
    ("stories", "embedded stories to write; only without data"),
    ("steps", "optimizer steps"),
    ("batch", "sequences of a batch, or pairs"),
    ("accumulate", "batches of a step"),
    ("seq", "tokens of a sequence"),
    ("memory", "most device memory, such as \"6GB\"; without it, what the adapter has"),
    ("precision", "\"f32\", or \"mixed\": products of f16 operands, summed in f32"),
    ("loss_scale_interval", "mixed: steps without an overflow after which the scale doubles"),
    ("weight_copies", "mixed: weights are kept in f16 as well, for products to read; 2 bytes a parameter"),
    ("adapter", "a number of `danlu doctor`'s list, or part of a name"),
    ("mesh", "axes along which ranks share the work, such as \"data=4\""),
    ("interleave", "with a pipeline: stages of each rank"),
    ("shard", "what ranks share out: \"none\", \"optimizer\" (moments), \"gradients\" too, or \"parameters\" too"),
    ("expert_capacity", "slots that a rank takes of another, in multiples of their mean; without it all"),
    ("router_aux_loss", "share of the experts' balance in the loss; without it the configuration's"),
    ("router_z_loss", "share of the routers' z-loss; without it the configuration's"),
    ("compare_every", "steps after which ranks compare what must be the same on all; 0: never"),
    ("tune", "kernels: \"full\" measures them once, \"cached\" measures nothing, \"off\" takes the first"),
    ("optimizer", "\"adamw\", \"adamw8bit\" whose moments take a byte each, \"muon\" or \"sgd\""),
    ("update", "\"step\": all gradients are kept, then parameters change; \"layer\": they change layer by layer"),
    ("lr", "highest learning rate"),
    ("schedule", "after the warm-up: \"constant\", \"linear\", \"cosine\" or \"wsd\""),
    ("lr_floor", "where the rate ends, as a share of the highest"),
    ("warmup", "steps over which the rate rises; without it, a twentieth of all"),
    ("decay_steps", "wsd: steps in which the rate falls; without it, a fifth of all"),
    ("restarts", "how often linear and cosine begin again"),
    ("weight_decay", "of matrices, times the rate"),
    ("beta1", "decay of the first moment"),
    ("beta2", "decay of the second moment"),
    ("epsilon", "added to the root of the second moment"),
    ("momentum", "of muon and sgd"),
    ("clip", "the gradient is scaled down to this global norm; 0: never"),
    ("ema", "decay of an average of the parameters, which is what is written; 0: none"),
    ("groups", "parameters with a rate or decay of their own: [{ params = \"PATTERN\", lr = 1e-3 }]"),
    ("seed", "of weights, data order and samples"),
    ("eval_every", "steps between validations; without it, a tenth of all"),
    ("val_fraction", "share of the tokens held out"),
    ("val_sequences", "most sequences of a validation"),
    ("patience", "validations without a lower loss that end the run; 0: never"),
    ("prompt", "what samples go on from"),
    ("prompts", "further texts, each with a sample of its own"),
    ("eval_tasks", "files of items as `danlu eval --items` takes them, scored after each validation"),
    ("eval_limit", "most items of each of them"),
    ("out", "the run's folder: model, checkpoints, metrics"),
    ("checkpoint.every", "steps between checkpoints; without it, as validation; 0: none"),
    ("checkpoint.keep", "how many of the last stay; the very last does also with 0"),
    ("checkpoint.best", "whether the best by validation stays besides"),
    (
        "checkpoint.neighbour_copies",
        "folder of each machine's own, such as one in /dev/shm, for a copy of a neighbour's part (shard)",
    ),
    ("recovery.on_divergence", "\"rollback\" to a checkpoint, or \"stop\""),
    ("recovery.skipped", "steps in a row left out that are a divergence"),
    ("recovery.outlier", "a gradient this many times its running mean is left out; 0: none"),
    ("recovery.rate", "what a rollback multiplies the learning rate by"),
    ("recovery.most", "most rollbacks of a whole run"),
    ("lora.rank", "rank of the adapters"),
    ("lora.alpha", "what they add is scaled by this over the rank"),
    ("lora.dropout", "share of their inputs that is left out in training"),
    ("lora.targets", "layers that get them, by name or pattern"),
    ("lora.rslora", "scale by the root of the rank"),
    ("lora.dora", "train magnitudes apart from directions"),
    ("dpo.beta", "preference pairs: how dearly it pays to move away from the model that training began with"),
    ("dpo.loss", "\"sigmoid\", \"ipo\" or \"hinge\""),
    ("dpo.label_smoothing", "sigmoid: the share of pairs taken to be the wrong way round"),
    ("lora.base_dtype", "dtype of the model's own weights: \"nf4\" for QLoRA, \"keep\" as they came"),
];

/// What other trainers call our keys.
const ALIASES: &[(&str, &str)] = &[
    ("preset", "config"),
    ("dataset", "data"),
    ("train_file", "data"),
    ("max_steps", "steps"),
    ("iterations", "steps"),
    ("batch_size", "batch"),
    ("per_device_train_batch_size", "batch"),
    ("seq_len", "seq"),
    ("context", "seq"),
    ("max_length", "seq"),
    ("block_size", "seq"),
    ("dtype", "precision"),
    ("learning_rate", "lr"),
    ("min_lr", "lr_floor"),
    ("warmup_steps", "warmup"),
    ("wd", "weight_decay"),
    ("eps", "epsilon"),
    ("max_grad_norm", "clip"),
    ("grad_clip", "clip"),
    ("eval_steps", "eval_every"),
    ("eval_interval", "eval_every"),
    ("early_stopping", "patience"),
    ("output", "out"),
    ("output_dir", "out"),
    ("save_steps", "checkpoint.every"),
    ("save_total_limit", "checkpoint.keep"),
    ("gradient_accumulation_steps", "accumulate"),
    ("grad_accum", "accumulate"),
    ("optim", "optimizer"),
    ("lr_scheduler_type", "schedule"),
    ("packing", "pack"),
    ("loss_type", "dpo.loss"),
];

/// Words less alike than this are not taken for each other (Jaro and Winkler's measure, 0 to 1).
const ALIKE: f64 = 0.82;

/// The word of a list that was most likely meant by `word`.
pub fn nearest<'a>(word: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let likeness = |other: &str| strsim::jaro_winkler(&word, &other.to_lowercase());
    let scored = among.into_iter().map(|other| (likeness(other), other)).filter(|(likeness, _)| *likeness >= ALIKE);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

/// The keys that a group of a recipe has, the whole recipe being the group without a name; none if it is no group.
fn keys_of(group: &str) -> Vec<String> {
    // Data may be a table, and a list of them: these keys are a source's, and not the recipe's.
    if toml::from_str::<Recipe>(&format!("{group} = [\"?\"]")).is_ok() {
        return Vec::new();
    }
    // The types themselves say which keys they take, when they are shown one that they cannot.
    let text = if group.is_empty() { "\"?\" = 0".into() } else { format!("[{group}]\n\"?\" = 0") };
    match toml::from_str::<Recipe>(&text) {
        Err(error) => unknown(error.message()).map_or(Vec::new(), |(_, keys)| keys),
        Ok(_) => Vec::new(),
    }
}

/// The key that serde does not know, and those that it would have taken, by its message.
fn unknown(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    Some((key.into(), rest.split('`').skip(1).step_by(2).map(String::from).collect()))
}

/// What the parser calls a kind of value, and what people do.
const KINDS: [(&str, &str); 4] =
    [("u64", "a whole number"), ("u32", "a whole number"), ("usize", "a whole number"), ("f64", "a number")];

/// What is said of a recipe's text that cannot be read, by the message of its parser.
pub fn explain(message: &str) -> String {
    let Some((key, known)) = unknown(message) else {
        let message = message.replace('\n', "; ");
        let kind = KINDS.iter().find_map(|(kind, called)| Some((message.strip_suffix(kind)?, called)));
        return kind.map_or(message.clone(), |(rest, called)| format!("{rest}{called}"));
    };
    let all = Recipe::keys();
    let last = |full: &str| full.rsplit('.').next().map(String::from).unwrap_or_default();
    let alias = |word: &str| ALIASES.iter().find(|(theirs, _)| *theirs == word).map(|(_, ours)| ours.to_string());
    let at = |full: &str| match full.rsplit_once('.') {
        Some((group, key)) => format!("`{key}` of [{group}]"),
        None => format!("`{full}`"),
    };
    // The same name in another group, another trainer's name, the most alike here, the most alike anywhere.
    let elsewhere = all.iter().find(|full| last(full) == key).map(|full| match full.rsplit_once('.') {
        Some((group, _)) => format!("it belongs below [{group}]"),
        None => "it belongs to the top, before the first group".into(),
    });
    let theirs = || alias(&key).map(|ours| format!("here that is {}", at(&ours)));
    let here = || nearest(&key, known.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
    let names = || ALIASES.iter().map(|(theirs, _)| *theirs).chain(all.iter().map(String::as_str));
    let anywhere = || {
        let near = nearest(&key, names())?;
        Some(format!("did you mean {}?", at(&alias(near).unwrap_or_else(|| near.into()))))
    };
    let hint = elsewhere
        .or_else(theirs)
        .or_else(here)
        .or_else(anywhere)
        .unwrap_or_else(|| format!("there are {}", known.join(", ")));
    format!("unknown key `{key}`; {hint}")
}

impl Recipe {
    /// All keys, those of groups with the group's name and a dot before them, in the order of their declaration.
    pub fn keys() -> Vec<String> {
        fn walk(group: &str, into: &mut Vec<String>) {
            for key in keys_of(group) {
                let full = if group.is_empty() { key } else { format!("{group}.{key}") };
                let before = into.len();
                walk(&full, into);
                if into.len() == before {
                    into.push(full);
                }
            }
        }
        let mut keys = Vec::new();
        walk("", &mut keys);
        keys
    }

    /// The values of all keys that have one, as TOML writes them; keys named as in [`Recipe::keys`].
    pub fn values(&self) -> BTreeMap<String, String> {
        Recipe::flat(toml::Value::try_from(self).expect("a recipe is always valid TOML"))
    }

    /// The keys and values of a recipe's text, whatever keys those are.
    pub(super) fn flat(recipe: toml::Value) -> BTreeMap<String, String> {
        fn walk(prefix: &str, value: toml::Value, into: &mut BTreeMap<String, String>) {
            match value {
                toml::Value::Table(table) => {
                    table.into_iter().for_each(|(key, value)| walk(&format!("{prefix}{key}."), value, into));
                }
                value => drop(into.insert(prefix.trim_end_matches('.').to_string(), value.to_string())),
            }
        }
        let mut values = BTreeMap::new();
        walk("", recipe, &mut values);
        values
    }

    /// The recipe as TOML with a comment for every key. Keys that have their default value stand as comments, but for
    /// those of `shown`.
    pub fn to_commented_toml(&self, shown: &[&str]) -> String {
        let (values, defaults) = (self.values(), Recipe::default().values());
        let (mut text, mut group) = (String::new(), String::new());
        let mut keys = Recipe::keys();
        // Keys of no group first: TOML takes what follows a group's name for the group's.
        keys.sort_by_key(|key| key.contains('.'));
        for key in keys {
            let (its, name) = key.rsplit_once('.').unwrap_or(("", &key));
            let (value, default) = (values.get(&key), defaults.get(&key));
            if its != group {
                let inside = values.keys().any(|other| other.starts_with(&format!("{its}.")));
                let _ = writeln!(text, "\n{}[{its}]", if inside { "" } else { "# " });
                group = its.to_string();
            }
            let live = value.is_some() && (value != default || shown.contains(&key.as_str()));
            let mark = if live { "" } else { "# " };
            let line = format!("{mark}{name} = {}", value.map_or("", String::as_str));
            let comment = COMMENTS.iter().find(|(commented, _)| *commented == key).map_or("", |(_, comment)| comment);
            let _ = writeln!(text, "{}", format!("{line:<32}  # {comment}").trim_end_matches(['#', ' ']));
        }
        text
    }
}

#[cfg(test)]
#[path = "recipe_text_tests.rs"]
mod tests;
