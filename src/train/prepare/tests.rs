//! What is prepared for a model that is there: its own tokenizer or none, examples or pairs.

use super::*;
use crate::model::{DpoConfig, find_config};

fn notes() -> (impl FnMut(&Event), std::rc::Rc<std::cell::RefCell<Vec<String>>>) {
    let heard = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let into = heard.clone();
    let observer = move |event: &Event| {
        if let Event::Note { text } = event {
            into.borrow_mut().push(text.clone());
        }
    };
    (observer, heard)
}

/// A recipe for these lines of JSONL in a folder of their own.
fn recipe(folder: &Path, lines: &str) -> Recipe {
    let path = folder.join("d.jsonl");
    std::fs::write(&path, lines).unwrap();
    Recipe { data: path.into(), batch: 2, seq: 48, ..Recipe::default() }
}

#[test]
fn a_tokenizer_that_the_model_does_not_embed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), &"{\"text\": \"the cat sat on the mat\"}\n".repeat(40));
    let tokenizer = Tokenizer::train(["the cat sat on the mat"].into_iter(), 280).unwrap();
    let config = |vocab_size| ModelConfig { vocab_size, ..find_config("story-1m").unwrap() };
    let prepare = |vocab| prepare_for(&recipe, &config(vocab), &tokenizer, folder.path(), &mut |_: &Event| {});
    assert_eq!(
        prepare(tokenizer.vocab_size() - 1).unwrap_err().to_string(),
        format!(
            "the tokenizer does not match the model: it has {} tokens, and the model embeds {}; give the tokenizer that the \
             model was trained with",
            tokenizer.vocab_size(),
            tokenizer.vocab_size() - 1
        )
    );
    // Models often embed more than there is, for the device's sake.
    assert!(prepare(tokenizer.vocab_size()).is_ok() && prepare(1000).is_ok());
}

#[test]
fn pairs_are_for_preferences_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train(["the cat sat on the mat"].into_iter(), 280).unwrap();
    let config = find_config("story-1m").unwrap();
    let pair = |i: usize| format!("{{\"prompt\": \"q{i}\", \"chosen\": \"yes {i}\", \"rejected\": \"no {i}\"}}\n");
    let pairs = recipe(folder.path(), &(0..10).map(pair).collect::<String>());
    let (mut observer, heard) = notes();
    let mut loader = prepare_for(
        &Recipe { dpo: Some(DpoConfig::default()), batch: 1, ..pairs.clone() },
        &config,
        &tokenizer,
        folder.path(),
        &mut observer,
    )
    .unwrap();
    let notes = heard.borrow().join("\n");
    assert!(notes.contains("data: 10 pairs in preference form"), "{notes}");
    let mut batch = loader.empty_batch();
    for _ in 0..12 {
        loader.next_batch(&mut batch).unwrap();
        let said = |row: usize| {
            let targets = &batch.targets[row * batch.seq..(row + 1) * batch.seq];
            let ids: Vec<u32> = targets.iter().copied().filter(|&t| t != crate::data::IGNORE).collect();
            tokenizer.decode(&ids).unwrap().trim().to_string()
        };
        assert_eq!(said(0).strip_prefix("yes "), said(1).strip_prefix("no "), "{} and {}", said(0), said(1));
    }
    let error = prepare_for(&pairs, &config, &tokenizer, folder.path(), &mut |_: &Event| {}).unwrap_err().to_string();
    assert!(error.ends_with("holds preference pairs (chosen and rejected), which `danlu dpo` trains on"), "{error}");
    let other = recipe(folder.path(), &"{\"prompt\": \"q\", \"completion\": \"a\"}\n".repeat(10));
    let other = Recipe { dpo: Some(DpoConfig::default()), ..other };
    let error = prepare_for(&other, &config, &tokenizer, folder.path(), &mut |_: &Event| {}).unwrap_err().to_string();
    assert!(error.ends_with("must hold preference pairs (chosen and rejected, see docs/data.md)"), "{error}");
}
