//! Texts of recipes: what is written is read back, and what is misspelt is recognised.

use super::*;

fn said(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, text).unwrap();
    Recipe::open(&path).unwrap_err().to_string()
}

#[test]
fn unknown_keys_are_told_the_nearest() {
    for (text, parts) in [
        (
            "steps = 3\nleraning_rate = 1\n",
            ["line 2, `leraning_rate = 1`", "unknown key `leraning_rate`; did you mean `lr`?"],
        ),
        ("stpes = 3\n", ["line 1", "did you mean `steps`?"]),
        ("batch-size = 3\n", ["line 1", "did you mean `batch`?"]),
        ("batch_size = 3\n", ["line 1", "here that is `batch`"]),
        ("save_steps = 3\n", ["line 1", "here that is `every` of [checkpoint]"]),
        ("[checkpoint]\nkeeep = 3\n", ["line 2", "did you mean `keep`?"]),
        ("on_divergence = \"stop\"\n", ["line 1", "it belongs below [recovery]"]),
        ("[checkpoint]\nsteps = 3\n", ["line 2", "it belongs to the top, before the first group"]),
        ("qqqq = 3\n", ["unknown key `qqqq`; there are config, model, data", "checkpoint, recovery"]),
        ("[checkpoint]\nqqqq = 3\n", ["line 2", "there are every, keep, best"]),
        ("lr = true\n", ["line 1, `lr = true`", "invalid type: boolean `true`, expected a number"]),
        (
            "steps = \"many\"\n",
            ["line 1, `steps = \"many\"`", "invalid type: string \"many\", expected a whole number"],
        ),
    ] {
        parts.iter().for_each(|part| assert!(said(text).contains(part), "{part}: {}", said(text)));
    }
}

#[test]
fn every_key_has_its_comment() {
    let keys = Recipe::keys();
    assert!(keys.len() > 30 && keys.contains(&"checkpoint.every".to_string()), "{keys:?}");
    let commented: Vec<&str> = COMMENTS.iter().map(|(key, _)| *key).collect();
    for key in &keys {
        assert!(commented.contains(&key.as_str()), "recipe_text.rs has no comment for {key}");
    }
    for key in commented.iter().chain(ALIASES.iter().map(|(_, ours)| ours)) {
        assert!(keys.iter().any(|k| k == key), "{key} is no key of a recipe");
    }
}

#[test]
fn a_commented_recipe_is_the_recipe() {
    let mut changed = Recipe {
        steps: 7,
        data: crate::data::DataSources(vec![crate::data::DataSource { path: "a \"b\".txt".into(), weight: 1.0 }]),
        lr: 1e-3,
        ..Recipe::default()
    };
    changed.checkpoint.keep = 5;
    for recipe in [Recipe::default(), changed.clone(), changed.resolved()] {
        let text = recipe.to_commented_toml(&["batch", "lr"]);
        assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe, "{text}");
        assert!(text.lines().any(|l| l.starts_with("batch = 2 ")), "{text}");
        // And with every comment taken for the key that it names: all are written as TOML wants them.
        let line = |l: &str| {
            l.strip_prefix("# ").filter(|l| !l.contains(" =  ") && !l.starts_with('[')).unwrap_or(l).to_string()
        };
        let all: String = text.lines().map(|l| line(l) + "\n").collect();
        assert_eq!(toml::from_str::<Recipe>(&all).unwrap(), recipe, "{all}");
    }
    let text = changed.to_commented_toml(&[]);
    assert!(text.contains("\nkeep = 5 ") && text.contains("\n# best = true ") && !text.contains("\n# [checkpoint]"));
}
