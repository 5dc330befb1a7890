//! Every form says what it means: tables of records and of the conversations that they stand for.

use super::*;

fn parse(text: &str) -> Result<Example, String> {
    let record: Json = serde_json::from_str(text).unwrap();
    Form::of(&record)?.parse(&record)
}

fn chat(text: &str) -> String {
    match parse(text) {
        Ok(Example::Chat(chat)) => serde_json::to_string(&chat.messages).unwrap(),
        other => panic!("{text}: {other:?}"),
    }
}

fn said(turns: &[(&str, &str)]) -> String {
    serde_json::to_string(&turns.iter().map(|(role, content)| Message::new(role, content)).collect::<Vec<_>>()).unwrap()
}

#[test]
fn conversations_are_read_in_every_form() {
    let expected = said(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    for text in [
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        r#"{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], "system": "s"}"#,
        r#"{"conversations": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"instruction": "q", "input": " ", "output": "a", "system": "s", "id": 7}"#,
        r#"{"instruction": "q", "output": "a", "system": "s", "history": []}"#,
        r#"{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "completion": "a"}"#,
        r#"{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
    ] {
        assert_eq!(chat(text), expected, "{text}");
    }
    assert_eq!(
        chat(r#"{"instruction": "q", "input": "i", "output": "a", "history": [["b", "c"]]}"#),
        said(&[("user", "b"), ("assistant", "c"), ("user", "q\n\ni"), ("assistant", "a")])
    );
    assert_eq!(parse(r#"{"text": "t", "meta": {}}"#), Ok(Example::Text("t".into())));
    let completion = Example::Completion { prompt: "p".into(), answer: "c".into() };
    assert_eq!(parse(r#"{"prompt": "p", "completion": "c"}"#), Ok(completion));
}

#[test]
fn function_calls_become_what_templates_know() {
    let Ok(Example::Chat(chat)) = parse(
        r#"{"conversations": [{"from": "human", "value": "q"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "{\"y\": 2}"}, {"from": "gpt", "value": "a"}],
            "tools": "[{\"name\": \"f\", \"description\": \"d\", \"parameters\": {}}]"}"#,
    ) else {
        panic!("no conversation")
    };
    assert_eq!(
        serde_json::to_string(&chat.messages).unwrap(),
        r#"[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[{"id":"call00000","type":"function","function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","content":"{\"y\": 2}","name":"f","tool_call_id":"call00000"},{"role":"assistant","content":"a"}]"#
    );
    assert_eq!(
        serde_json::to_string(&chat.tools).unwrap(),
        r#"[{"type":"function","function":{"name":"f","description":"d","parameters":{}}}]"#
    );
    assert!(chat.is_answer(1) && chat.is_answer(3) && !chat.is_answer(2));
}

#[test]
fn preference_pairs_share_their_beginning() {
    let expected = [("a", "better"), ("b", "worse")];
    for text in [
        r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
        r#"{"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#,
        r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}"#,
        // Whole conversations beside what they begin with: argilla's shape; HuggingFaceH4's, where the conversation with the
        // better answer stands there too; and others like them.
        r#"{"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": "q", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}], "score_chosen": 8.0}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}], "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}]}"#,
    ] {
        let Ok(Example::Pair(both)) = parse(text) else { panic!("{text}: no pair") };
        for (side, (answer, name)) in both.iter().zip(expected) {
            let Example::Chat(chat) = side else { panic!("{name}: no conversation") };
            let messages = serde_json::to_string(&chat.messages).unwrap();
            assert_eq!((messages, chat.from), (said(&[("user", "q"), ("assistant", answer)]), 1), "{text}, {name}");
        }
    }
}

/// A beginning that is not one, and sides of which it is not clear what they answer.
#[test]
fn pairs_of_other_than_two_answers_to_one_beginning_are_refused() {
    for (text, why) in [
        (
            r#"{"chosen": "a", "rejected": "b"}"#,
            "has neither a prompt nor a beginning that \"chosen\" and \"rejected\" have in common",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "chosen": "a", "rejected": "b"}"#,
            "has an answer (message 2) before those of \"chosen\" and \"rejected\", which are to answer what was said last; leave \
             it out",
        ),
        (
            r#"{"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": "b"}"#,
            "has a whole conversation on one side and an answer alone on the other, of \"chosen\" and \"rejected\"; give both in \
             one way",
        ),
        (
            r#"{"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]}"#,
            "has conversations that differ in what is asked (message 1), and not in the answer alone",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), why, "{text}");
    }
    // A system message beside whole conversations is theirs, unless they have one.
    let sides = |first: &str| {
        let side = |answer: &str| {
            format!(
                "[{first}{{\"role\": \"user\", \"content\": \"q\"}}, {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]"
            )
        };
        format!("{{\"system\": \"s\", \"chosen\": {}, \"rejected\": {}}}", side("a"), side("b"))
    };
    for first in ["", "{\"role\": \"system\", \"content\": \"s\"}, "] {
        let Ok(Example::Pair(both)) = parse(&sides(first)) else { panic!("{first}: no pair") };
        let Example::Chat(chat) = &both[1] else { panic!("no conversation") };
        let messages = serde_json::to_string(&chat.messages).unwrap();
        assert_eq!((messages, chat.from), (said(&[("system", "s"), ("user", "q"), ("assistant", "b")]), 2));
    }
}
