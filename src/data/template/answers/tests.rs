//! Answers lie where a template says, and of one that does not say where the same template with marks would have said.

use super::*;

const CHATML: &str = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}\
    {%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}\
    {%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

/// Trims, ends with the end of text, has no prompt for answers, and tells the system's words before the last question.
const WANDERING: &str = "{{- '<s>' }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' }}\
    {%- if loop.last or (messages | length > loop.index and loop.index0 == messages | length - 2) %}\
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}{%- endif %}\
    {{- m.content + ' [/INST]' }}\
    {%- elif m.role == 'assistant' %}{% generation %}{{- ' ' + m.content | trim + '</s>' }}{% endgeneration %}{%- endif %}\
    {%- endfor %}";

/// Ends no turn with anything but white space, and drops reasoning from all answers but the last.
const BARE: &str = "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- 'A:' }}{% generation %}\
    {%- if loop.last and m.reasoning_content %}{{- ' (' + m.reasoning_content + ')' }}{%- endif %}\
    {{- ' ' + m.content + '\n\n' }}{% endgeneration %}{%- else %}{{- 'Q: ' + m.content + '\n\n' }}{%- endif %}\
    {%- endfor %}{%- if add_generation_prompt %}{{- 'A:' }}{%- endif %}";

/// Calls functions, and ends the last answer with another token than the others; the prompt begins a thought.
const CALLING: &str = "{%- for m in messages %}{{- '<' + m.role + '>' }}{%- if m.role == 'assistant' %}{% generation %}\
    {{- m.content }}{%- for c in m.tool_calls or [] %}{{- '<call>' + c.function | tojson + '</call>' }}{%- endfor %}\
    {{- '<return>' if loop.last else '<end>' }}{% endgeneration %}\
    {%- else %}{{- m.content + '<end>' }}{%- endif %}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<assistant><think>' }}{%- endif %}";

fn conversations() -> Vec<(Vec<Message>, &'static str)> {
    let message = |text: &str| serde_json::from_str::<Message>(text).unwrap();
    let turns = |turns: &[(&str, &str)]| turns.iter().map(|(role, text)| Message::new(role, text)).collect::<Vec<_>>();
    vec![
        (turns(&[("user", "Hi"), ("assistant", "Hello")]), "one"),
        (turns(&[("user", "Hi"), ("assistant", "Hello"), ("user", "Hello"), ("assistant", "Hello")]), "the same again"),
        (turns(&[("user", "1"), ("assistant", "<im"), ("user", "2"), ("assistant", "é 你好"), ("user", "3")]), "open"),
        (turns(&[("system", "S"), ("user", "1"), ("assistant", "A"), ("user", "2"), ("assistant", "B")]), "system"),
        (
            vec![
                Message::new("user", "q"),
                message(r#"{"role": "assistant", "content": "a", "reasoning_content": "r"}"#),
                Message::new("user", "p"),
                message(r#"{"role": "assistant", "content": "b", "reasoning_content": "s"}"#),
            ],
            "reasoning",
        ),
        (
            vec![
                Message::new("user", "q"),
                message(
                    r#"{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}"#,
                ),
                Message::new("tool", "7"),
                Message::new("assistant", "a"),
                Message::new("user", "p"),
                Message::new("assistant", "b"),
            ],
            "calls",
        ),
    ]
}

fn answers(source: &str, messages: &[Message], specials: &[String]) -> Result<Rendered> {
    let special = vec![("bos_token".to_string(), "<s>".to_string())];
    let template = ChatTemplate::new(source, special)?;
    template.render_answers(messages, &RenderOptions::default(), specials, &|_| true)
}

#[test]
fn answers_are_found_where_marks_would_be() {
    let specials = ["<end>", "<return>", "</s>", "<|im_end|>"].map(String::from);
    for (name, marked) in [("chatml", CHATML), ("wandering", WANDERING), ("bare", BARE), ("calling", CALLING)] {
        let plain = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "");
        for (messages, what) in conversations() {
            if what == "calls" && name != "calling" {
                let error = answers(&plain, &messages, &specials).unwrap_err().to_string();
                assert!(
                    error.starts_with("the model's chat template leaves out the function calls"),
                    "{name}: {error}"
                );
                continue;
            }
            let expected = answers(marked, &messages, &specials).unwrap();
            let found = answers(&plain, &messages, &specials);
            let found = found.unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            let said = |r: &Rendered| r.answers.iter().map(|a| r.text[a.clone()].to_string()).collect::<Vec<_>>();
            assert_eq!(said(&found), said(&expected), "{name}, {what}");
            assert_eq!(found, expected, "{name}, {what}");
        }
    }
}

#[test]
fn only_what_counts_is_given() {
    let messages = &conversations()[1].0;
    for source in [CHATML.to_string(), CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")] {
        let template = ChatTemplate::new(&source, vec![]).unwrap();
        let last = |index: usize| index == 3;
        let rendered = template.render_answers(messages, &RenderOptions::default(), &[], &last).unwrap();
        assert_eq!(rendered.answers.len(), 1);
        assert_eq!(rendered.answers[0].end + 1, rendered.text.len());
    }
}

/// A template that says an answer in another way than it was given, so that nothing shows where it lies.
#[test]
fn what_cannot_be_told_exactly_is_refused() {
    let source = "{%- for m in messages %}{{- m.role if loop.last else m.role | upper }}{{- ': ' }}\
                  {{- m.content | upper if loop.last else 'nothing' }}{{- '\n' }}{%- endfor %}";
    let messages = &conversations()[1].0;
    let error = answers(source, messages, &[]).unwrap_err().to_string();
    assert!(error.starts_with("with the model's chat template it cannot be told exactly"), "{error}");
    assert!(error.contains("--loss-on all"), "{error}");
    let refusal = answers("{{ raise_exception('no') }}", messages, &[]).unwrap_err().to_string();
    assert_eq!(refusal, "the model's chat template refuses the conversation: no");
}

/// A template that says half of an answer is refused, in whatever form it writes the other half; thoughts may go.
#[test]
fn no_part_of_an_answer_is_left_out_unsaid() {
    let call = |arguments: &str| {
        let call = format!(r#"[{{"function": {{"name": "f", "arguments": {arguments}}}}}]"#);
        let text = format!(r#"{{"role": "assistant", "content": "one\n two", "tool_calls": {call}}}"#);
        vec![Message::new("user", "q"), serde_json::from_str(&text).unwrap()]
    };
    let (object, text) =
        (r#"{"place": "Bern \"old\"", "days": [3, {"x": true}]}"#, r#""{\"place\": \"Bern\", \"days\": 3}""#);
    let template = |content: &str, call: &str| {
        format!(
            "{{%- for m in messages %}}{{{{- '<' + m.role + '>' }}}}{{%- if m.tool_calls %}}{{{{- {content} }}}}\
             {{%- for c in m.tool_calls %}}{{{{- {call} }}}}{{%- endfor %}}{{%- else %}}{{{{- m.content }}}}{{%- endif %}}\
             {{{{- '<end>' }}}}{{%- endfor %}}{{%- if add_generation_prompt %}}{{{{- '<assistant>' }}}}{{%- endif %}}"
        )
    };
    let whole = "m.content";
    for (content, written, arguments, left_out) in [
        (whole, "c.function | tojson", object, None),
        (whole, "c.function | tojson", text, None),
        (whole, "c.function.name + '(' + (c.function.arguments | tojson | tojson) + ')'", object, None),
        (whole, "c.function.name", object, Some("arguments of the function calls")),
        (whole, "c.function.name", text, Some("arguments of the function calls")),
        (
            whole,
            "c.function.name + ' place ' + c.function.arguments.place",
            object,
            Some("arguments of the function calls"),
        ),
        (whole, "c.function.name", "{}", None),
        ("m.content.split('\n')[-1]", "c.function | tojson", object, Some("words")),
        ("m.content.split('\n')[0]", "c.function | tojson", object, Some("words")),
    ] {
        let said = answers(&template(content, written), &call(arguments), &[]).err().map(|error| error.to_string());
        let expected = left_out.map(|what| format!("the model's chat template leaves out {what} of message 2"));
        assert_eq!(said, expected, "{content}, {written}, {arguments}");
    }
    let thinking = [Message::new("user", "q"), Message::new("assistant", "<think>\nlong\n</think>\n\none\ntwo")];
    for (content, said) in [("m.content.split('</think>')[-1] | trim", true), ("m.content.split('\n')[-1]", false)] {
        let template = template("''", "''").replace("m.content }}", &format!("({content}) }}}}"));
        assert_eq!(answers(&template, &thinking, &[]).is_ok(), said, "{content}");
    }
}
