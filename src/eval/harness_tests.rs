//! Scoring without a model: how prompts are put together and split, and what is made of log-probabilities.

use super::*;

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    Tokenizer::open(folder).unwrap()
}

fn item(context: &str, choices: &[&str], gold: usize) -> Item {
    let choices = choices.iter().map(|c| c.to_string()).collect();
    Item { context: context.into(), choices, delimiter: " ", gold, line: 1, cut: false }
}

#[test]
fn white_space_goes_to_the_continuation() {
    let tokenizer = tokenizer();
    let whole = tokenizer.encode_prompt("One day a fox").unwrap();
    let context = tokenizer.encode_prompt("One day a").unwrap().len();
    for (before, after) in [("One day a", " fox"), ("One day a ", "fox")] {
        assert_eq!(encode_pair(&tokenizer, before, after).unwrap(), Some((whole.clone(), context)), "{before:?}");
    }
    // Nothing before: the token that begins texts.
    let (tokens, from) = encode_pair(&tokenizer, "", "One").unwrap().unwrap();
    assert_eq!((tokens[0], from), (tokenizer.bos().unwrap(), 1));
    assert_eq!(tokens[1..], tokenizer.encode("One").unwrap());
    assert_eq!(encode_pair(&tokenizer, "One day", "").unwrap(), None);
}

#[test]
fn shots_are_others_and_always_the_same() {
    let items: Vec<Item> = (0..5).map(|i| item(&format!("Q{i}"), &["yes", "no"], i % 2)).collect();
    let task = |shots, seed| Task { file: Path::new("x"), form: Form::Arc, items: &items, limit: None, shots, seed };
    assert_eq!(task(0, 0).prompt(3), "Q3");
    let prompt = task(4, 1).prompt(2);
    let mut parts: Vec<&str> = prompt.split("\n\n").collect();
    assert_eq!(parts.pop(), Some("Q2"));
    assert_eq!(prompt, task(4, 1).prompt(2));
    let orders: std::collections::BTreeSet<String> = (0..8).map(|seed| task(4, seed).prompt(2)).collect();
    assert!(orders.len() > 1, "the seed decides");
    parts.sort();
    assert_eq!(parts, ["Q0 yes", "Q1 no", "Q3 no", "Q4 no".replace("no", "yes").as_str()]);
}

#[test]
fn accuracies_by_hand() {
    let choice = |log_prob: f64| Choice { log_prob, greedy: log_prob > -1.5 };
    // Right without a norm; right by characters only (two characters, four bytes against three); a tie, of which the
    // first counts.
    let items = [item("", &["a", "bbbb"], 0), item("", &["aaa", "éé"], 0), item("", &["a", "b"], 1)];
    let answers =
        [vec![choice(-2.0), choice(-3.0)], vec![choice(-4.0), choice(-3.0)], vec![choice(-1.0), choice(-1.0)]];
    let values: Vec<(&str, f64)> = multiple_choice(&items, &answers).iter().map(|m| (m.name, m.value)).collect();
    assert_eq!(values, [("acc", 1.0 / 3.0), ("acc_norm", 1.0 / 3.0), ("acc_bytes", 0.0)]);
    let third = multiple_choice(&items, &answers)[0].stderr.unwrap();
    // Of 1, 0, 0: the sample's variance is 1/3, over three items.
    assert!((third - 1.0 / 3.0).abs() < 1e-12, "{third}");
    assert_eq!(multiple_choice(&items[..1], &answers[..1])[0].stderr, None);

    let answers = [vec![choice(-1.0)], vec![choice(-3.0)]];
    let [acc, perplexity] = &cloze(&answers)[..] else { panic!() };
    assert_eq!((acc.value, acc.stderr), (0.5, Some(0.5)));
    assert!((perplexity.value - 2f64.exp()).abs() < 1e-12);
    assert!((perplexity.stderr.unwrap() - 2f64.exp()).abs() < 1e-12);
}
