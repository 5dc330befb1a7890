//! Flags of `danlu train` and keys of recipes are one list.

use super::*;
use crate::nn::LoraConfig;
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: TrainArgs,
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

#[test]
fn every_flag_is_a_key_of_that_name() {
    // With adapters, whose flags then change one key each.
    let base = || Recipe { lora: Some(LoraConfig::default()), ..Recipe::default() };
    let default = base().values();
    let (keys, command) = (Recipe::keys(), Line::command());
    let mut seen = 0;
    for arg in command.get_arguments().filter(|a| !OF_THE_PROCESS.contains(&a.get_id().as_str())) {
        let (id, flag) = (arg.get_id().as_str(), format!("--{}", arg.get_long().expect("a long flag")));
        let named = arg.get_value_names().unwrap_or_default().iter().flat_map(|names| names.split('|'));
        // Whatever the flag takes: the first value of these with which something changes.
        let values = named.chain(["7", "0.125", "x", "6GB", "f16", "true", "data=2"]);
        let lines = values.map(|v| vec!["danlu".into(), flag.clone(), v.to_string()]);
        let changed = lines.chain([vec!["danlu".into(), flag.clone()]]).find_map(|line| {
            let now = Line::try_parse_from(line).ok()?.args.put(base()).values();
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
        seen += 1;
    }
    assert!(seen > 15, "{seen} flags");
}
