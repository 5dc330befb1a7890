//! Tokens to be predicted against those that `transformers` marks, and against hand-written patterns (masks.py).

use std::collections::BTreeMap;

use super::*;
use crate::data::Message;

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Option<Json>,
}

#[derive(Deserialize)]
struct Cases {
    conversations: BTreeMap<String, Case>,
    templates: BTreeMap<String, String>,
}

/// Runs of tokens that are to be predicted, and the number of all.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Mask {
    tokens: usize,
    answers: Vec<[usize; 2]>,
}

type Masks = BTreeMap<String, BTreeMap<String, Option<Mask>>>;

#[derive(Deserialize)]
struct Golden {
    own: Masks,
    published: Masks,
}

fn golden<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/templates").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn runs(tokens: &[u32]) -> Mask {
    let mut answers: Vec<[usize; 2]> = Vec::new();
    for (i, _) in tokens.iter().enumerate().filter(|(_, token)| *token & MASKED == 0) {
        match answers.last_mut().filter(|last| last[1] == i) {
            Some(last) => last[1] = i + 1,
            None => answers.push([i, i + 1]),
        }
    }
    Mask { tokens: tokens.len(), answers }
}

/// The mask by a template, as an encoder makes it.
fn mask(tokenizer: &Tokenizer, source: &str, ends: [&str; 2], case: &Case) -> Result<Mask> {
    let special = [("bos_token", ends[0]), ("eos_token", ends[1])].map(|(name, text)| (name.into(), text.into()));
    let template = ChatTemplate::new(source, special.to_vec())?;
    // 2026-02-03 14:05:06, as in the golden script.
    let options = RenderOptions { tools: case.tools.clone(), now: 1_770_127_506, ..RenderOptions::default() };
    // A token of gpt-oss, which ends answers that are not the last.
    let rendered = template.render_answers(&case.messages, &options, &["<|end|>".into()], &|_| true)?;
    Ok(runs(&mark(tokenizer, &rendered.text, &rendered.answers)?))
}

fn tokenizer() -> Option<Tokenizer> {
    crate::shared::shared("tokenizers/llama3_1").map(|folder| Tokenizer::open(folder).unwrap())
}

/// With the marks as without them: token for token what `transformers` says.
#[test]
fn masks_are_those_of_transformers() {
    let (Some(tokenizer), cases, golden) =
        (tokenizer(), golden::<Cases>("masks_cases.json"), golden::<Golden>("masks.json"))
    else {
        return;
    };
    for (name, masks) in &golden.own {
        let marked = &cases.templates[name];
        let plain = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "");
        assert_ne!(*marked, plain);
        for (case, expected) in masks {
            for source in [marked, &plain] {
                let found =
                    mask(&tokenizer, source, ["<|begin_of_text|>", "<|end_of_text|>"], &cases.conversations[case]);
                assert_eq!(found.ok().as_ref(), expected.as_ref(), "{name}, {case}");
            }
        }
    }
}

#[test]
fn masks_of_published_templates_are_exact_or_refused() {
    let Some(folder) = crate::shared::shared("tokenizers/chat-templates") else { return };
    let (Some(tokenizer), cases, golden) =
        (tokenizer(), golden::<Cases>("masks_cases.json"), golden::<Golden>("masks.json"))
    else {
        return;
    };
    let (mut wrong, mut exact) = (Vec::new(), 0);
    for (name, masks) in &golden.published {
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        for (case, expected) in masks {
            match (mask(&tokenizer, &source, ["<s>", "</s>"], &cases.conversations[case]), expected) {
                (Ok(found), Some(expected)) if found == *expected => exact += 1,
                (Err(error), None) if error.to_string().contains("template") => {}
                (found, expected) => wrong.push(format!("{name}, {case}: expected {expected:?}, got {found:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {exact} and these:\n{}", wrong.len(), wrong.join("\n"));
    assert!(exact > 60, "{exact}");
}
