//! Flags of `danlu train` and keys of recipes are one list.

use super::*;
use crate::cli::finetune::DpoArgs;
use crate::model::DpoConfig;
use crate::nn::LoraConfig;
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;

/// The flags of `danlu dpo`, among which are all of `danlu train` and `danlu finetune`.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: DpoArgs,
}

/// Flags that say how this process goes about it, and nothing of the run.
const OF_THE_PROCESS: [&str; 13] = [
    "recipe",
    "resume",
    "force",
    "print_recipe",
    "quiet",
    "log_format",
    "dump",
    "profile",
    "share_adapter",
    "ranks",
    "machine",
    "rank_timeout",
    "beat_timeout",
];

/// The flag that stands for a group that is left out: a recipe without `[lora]` trains the whole model.
const OF_NO_GROUP: &str = "full";

#[test]
fn the_flag_for_the_whole_model_leaves_a_group_out() {
    let groups = |line: &[&str]| {
        let (_, kind) = Line::try_parse_from(line).unwrap().args.into_run();
        let keys = kind.recipe(None).unwrap().values().into_keys();
        keys.filter_map(|key| Some(key.split_once('.')?.0.to_string())).collect::<BTreeSet<_>>()
    };
    let (with, full) = (groups(&["danlu"]), groups(&["danlu", "--full"]));
    assert_eq!(with.difference(&full).collect::<Vec<_>>(), ["lora"]);
}

#[test]
fn every_flag_is_a_key_of_that_name() {
    // With adapters and with pairs, whose flags then change one key each.
    let base = || Recipe { lora: Some(LoraConfig::default()), dpo: Some(DpoConfig::default()), ..Recipe::default() };
    let default = base().values();
    let (keys, command) = (Recipe::keys(), Line::command());
    let mut seen = BTreeSet::new();
    let others = [&OF_THE_PROCESS[..], &[OF_NO_GROUP]].concat();
    for arg in command.get_arguments().filter(|a| !others.contains(&a.get_id().as_str())) {
        let (id, flag) = (arg.get_id().as_str(), format!("--{}", arg.get_long().expect("a long flag")));
        let named = arg.get_value_names().unwrap_or_default().iter().flat_map(|names| names.split('|'));
        // Whatever the flag takes: the first value of these with which something changes.
        let values = named.chain(["7", "0.125", "x", "6GB", "f16", "true", "data=2"]);
        let lines = values.map(|v| vec!["danlu".into(), flag.clone(), v.to_string()]);
        let changed = lines.chain([vec!["danlu".into(), flag.clone()]]).find_map(|line| {
            let (args, kind) = Line::try_parse_from(line).ok()?.args.into_run();
            let now = args.put(kind.over(base())).values();
            let all: BTreeSet<&String> = now.keys().chain(default.keys()).collect();
            let differ = |key: &&String| now.get(*key) != default.get(*key);
            let changed: Vec<String> = all.into_iter().filter(differ).cloned().collect();
            (!changed.is_empty()).then_some(changed)
        });
        let changed = changed.unwrap_or_else(|| panic!("{flag} changes no key of a recipe"));
        assert_eq!(changed.len(), 1, "{flag} changes {changed:?}");
        let key = &changed[0];
        assert!(keys.contains(key), "{flag} changes {key}");
        let last = key.rsplit('.').next().expect("a name");
        assert!(key.replace('.', "_") == id || last == id, "{flag} changes {key}, which is called otherwise");
        seen.insert(id.to_string());
    }
    assert!(["steps", "lora_rank", "beta", "loss", "label_smoothing"].iter().all(|id| seen.contains(*id)), "{seen:?}");
    assert!(seen.len() > 50, "{seen:?}");
}
