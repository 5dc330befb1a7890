//! Items: each form as its file writes it, and what is wrong with a line.

use super::*;

fn read(lines: &str, limit: Option<usize>) -> Result<(Form, Vec<Item>), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("items.jsonl");
    std::fs::write(&file, lines).unwrap();
    let start = format!("{}: ", file.display());
    read_items(&file, limit).map_err(|e| e.to_string().replace(&start, ""))
}

#[test]
fn forms() {
    let hellaswag = r#"{"ctx_a": "A man sits on a roof.", "ctx_b": "he Starts", "activity_label": "Roof [substep] work",
        "endings": ["pulls up.", "is  using [wrap] it.", "[header] Do it [title] now [a] [b"], "label": "1"}"#;
    let arc = r#"{"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#;
    let item = |context: &str, choices: &[&str], delimiter, gold| Item {
        context: context.into(),
        choices: choices.iter().map(|c| c.to_string()).collect(),
        delimiter,
        gold,
        line: 1,
        cut: false,
    };
    for (line, form, expected) in [
        (
            hellaswag,
            Form::HellaSwag,
            // By the harness's own function.
            item(
                "Roof work: A man sits on a roof. He starts",
                &["pulls up.", "is using it.", " Do it. now [b"],
                " ",
                1,
            ),
        ),
        (arc, Form::Arc, item("Question: Why?\nAnswer:", &["x", "y"], " ", 1)),
        (r#"{"context": "It is a", "continuation": "cat"}"#, Form::Lambada, item("It is a", &["cat"], " ", 0)),
        (r#"{"context": "It is a ", "continuation": "cat"}"#, Form::Lambada, item("It is a ", &["cat"], "", 0)),
        (r#"{"text": "It is a cat"}"#, Form::Lambada, Item { cut: true, ..item("It is a", &["cat"], " ", 0) }),
    ] {
        let line = line.replace('\n', "");
        assert_eq!(read(&line, None).unwrap(), (form, vec![expected]), "{line}");
        let three = format!("{line}\n\n{line}\n{line}");
        let (_, items) = read(&three, Some(2)).unwrap();
        assert_eq!(items.iter().map(|i| i.line).collect::<Vec<_>>(), [1, 3]);
    }
}

#[test]
fn what_is_wrong_with_a_line() {
    for (lines, expected) in [
        ("", "holds no items; one JSON object a line is expected"),
        ("[1]", "line 1: is not a JSON object (invalid type: sequence, expected a map at line 1 column 0)"),
        (
            r#"{"prompt": "a", "answer": "b"}"#,
            "line 1: has the keys answer, prompt, which is no form that is known: HellaSwag has ctx_a, ctx_b, activity_label, \
             endings and label; ARC question, choices and answerKey; LAMBADA text, or context and continuation",
        ),
        (
            "{\"text\": \"a b\"}\n{\"text\": \"a\"}",
            "line 2: has fewer than two words under \"text\", as LAMBADA items have it",
        ),
        (
            "{\"question\": \"q\", \"choices\": {\"text\": [\"a\"], \"label\": [\"A\"]}, \"answerKey\": \"A\"}\n{\"text\": \"a b\"}",
            "line 2: has no list of texts under \"choices.text\", as ARC items have it",
        ),
        (
            r#"{"question": "", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#,
            "line 1: has no choice labelled \"B\", as ARC items have it",
        ),
        (
            r#"{"question": "", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}"#,
            "line 1: has 2 texts and 1 labels under \"choices\", as ARC items have it",
        ),
        (
            r#"{"question": "", "choices": ["a"], "answerKey": "B"}"#,
            "line 1: has no list of texts under \"choices.text\", as ARC items have it",
        ),
        (
            r#"{"ctx_a": "", "ctx_b": "", "activity_label": "", "endings": ["a"], "label": ""}"#,
            "line 1: has no number under \"label\", as HellaSwag items have it",
        ),
        (
            r#"{"ctx_a": "", "ctx_b": "", "activity_label": "", "endings": ["a"], "label": 1}"#,
            "line 1: has an empty choice, or no choice number 1, as HellaSwag items have it",
        ),
        (
            r#"{"context": "a", "continuation": ""}"#,
            "line 1: has an empty choice, or no choice number 0, as LAMBADA items have it",
        ),
    ] {
        assert_eq!(read(lines, None).unwrap_err(), expected, "{lines}");
    }
    let endless = format!("{{\"text\": \"a b\"}}\n{}", "x".repeat((16 << 20) + 1));
    assert_eq!(read(&endless, None).unwrap_err(), "line 2: is longer than 16777216 bytes, which no item is");
    assert_eq!(read(&endless, Some(1)).unwrap().1.len(), 1);
}
