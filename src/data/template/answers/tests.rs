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
