//! Templates against golden renderings of `transformers` (tests/goldens/templates), and our own additions to them.

use super::*;
use serde_json::Value as Golden;
use std::path::Path;

/// 2026-02-03 14:05:06, as in the golden script.
const NOW: i64 = 1_770_127_506;

fn goldens(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/templates").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A conversation of cases.json, its keys in their order.
#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Option<Json>,
    add_generation_prompt: bool,
    #[serde(default)]
    extra: std::collections::BTreeMap<String, Json>,
}

#[derive(Deserialize)]
struct Cases {
    conversations: std::collections::BTreeMap<String, Case>,
    features: std::collections::BTreeMap<String, String>,
}

fn special() -> Vec<(String, String)> {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into())).to_vec()
}

fn render(source: &str, case: &Case) -> Result<Rendered> {
    let options = RenderOptions {
        add_generation_prompt: case.add_generation_prompt,
        tools: case.tools.clone(),
        now: NOW,
        variables: case.extra.clone().into_iter().collect(),
    };
    ChatTemplate::new(source, special())?.render(&case.messages, &options)
}

fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    format!("{hash:016x}")
}

#[test]
fn contents_in_parts_are_texts_or_are_refused() {
    let content = serde_json::json!([{"type": "text", "text": "y"}, {"type": "text", "text": "o"}]);
    let of =
        |content| serde_json::from_value(serde_json::json!({"role": "user", "content": content, "name": "n"})).unwrap();
    let (parts, picture): (Message, Message) = (of(content), of(serde_json::json!([{"type": "image"}])));
    let options = RenderOptions::default();
    let plain = ChatTemplate { fallback: true, ..ChatTemplate::new(FALLBACK, special()).unwrap() };
    assert_eq!(plain.render(std::slice::from_ref(&parts), &options).unwrap().text, "<s>User: yo\n");
    let refused = |template: &ChatTemplate, message: &Message| {
        template.render(&[Message::new("user", "a"), message.clone()], &options).unwrap_err().to_string()
    };
    let said = "the content of message 2 is a list of parts, of which number 1 is no text, and only text is read";
    assert_eq!(refused(&plain, &picture), said);
    // A model's own template reads the list; one that takes it for a text fails, or writes it as it is.
    let model = |source: &str| ChatTemplate::new(source, special()).unwrap();
    let reads = model("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}");
    assert_eq!(reads.render(std::slice::from_ref(&parts), &options).unwrap().text, "yo");
    let writes = model("{% for m in messages %}{{ m.content }}{% endfor %}");
    let said =
        "the content of message 2 is a list of parts, and the model's chat template takes none; write it as one text";
    let text = writes.render(&[Message::new("user", "a"), parts.clone()], &options).unwrap().text;
    assert_eq!(writes.check_parts(&[Message::new("user", "a"), parts.clone()], &text).unwrap_err().to_string(), said);
    reads.check_parts(std::slice::from_ref(&parts), "yo").unwrap();
    let fails = refused(&model("{% for m in messages %}{{ '[' + m.content }}{% endfor %}"), &parts);
    let said = "the content of message 2 is a list of parts, and the model's chat template fails, line 1: ";
    assert!(fails.starts_with(said) && fails.ends_with("; write it as one text"), "{fails}");
}

/// Where we do not follow Python, and why. Both are slips of the templates, which were not meant to come out.
const DIFFERENT: [(&str, &str); 2] = [
    // `x.items` of a dictionary is its method there, even where it has a key of that name; here it is the key.
    ("CohereForAI-c4ai-command-r-plus-tool_use.jinja", "tools offered"),
    // `"a" | safe + "<b>"` escapes what is added to a safe text as for a web page; here texts are texts.
    ("meetkai-functionary-medium-v3.1.jinja", "tools offered"),
];

/// Compares with what the golden script wrote: a text, its length and hash, a refusal, or null where Python itself failed.
fn compare(what: &str, golden: &Golden, rendered: Result<Rendered>) -> Result<(), String> {
    let complain = |got: String| Err(format!("{what}: expected {golden}, got {got}"));
    match (golden.get("error"), rendered) {
        (Some(Golden::Null), Err(_)) => Ok(()),
        (Some(words), Err(error)) => {
            let expected = words.as_str().unwrap_or_default();
            let expected = format!("the model's chat template refuses the conversation: {expected}");
            if error.to_string() == expected { Ok(()) } else { complain(error.to_string()) }
        }
        (Some(_), Ok(rendered)) => complain(rendered.text),
        (None, Err(error)) => complain(error.to_string()),
        (None, Ok(rendered)) => {
            let spans: Vec<Vec<usize>> = rendered.answers.iter().map(|span| vec![span.start, span.end]).collect();
            let expected: Vec<Vec<usize>> =
                golden.get("spans").map_or(vec![], |spans| serde_json::from_value(spans.clone()).unwrap());
            let same = match golden.get("text") {
                Some(text) => text == rendered.text.as_str(),
                None => golden["bytes"] == rendered.text.len() && golden["fnv1a"] == fnv1a(&rendered.text),
            };
            if same && spans == expected { Ok(()) } else { complain(format!("{spans:?} of {}", rendered.text)) }
        }
    }
}

#[test]
fn every_feature_is_rendered_as_jinja_does() {
    let cases: Cases = serde_json::from_str(&goldens("cases.json")).unwrap();
    let golden: Golden = serde_json::from_str(&goldens("golden.json")).unwrap();
    let mut wrong = Vec::new();
    for (name, source) in &cases.features {
        for (case, expected) in golden["features"][name].as_object().unwrap() {
            let rendered = render(source, &cases.conversations[case]);
            wrong.extend(compare(&format!("{name}, {case}"), expected, rendered).err());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn published_templates_are_rendered_as_transformers_does() {
    let Some(folder) = crate::shared::shared("tokenizers/chat-templates") else { return };
    let cases: Cases = serde_json::from_str(&goldens("cases.json")).unwrap();
    let golden: Golden = serde_json::from_str(&goldens("golden.json")).unwrap();
    let mut wrong = Vec::new();
    for (file, conversations) in golden["published"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(file)).unwrap();
        for (case, expected) in conversations.as_object().unwrap() {
            if expected.get("error").is_some_and(Golden::is_null) {
                continue; // such as `for x in none`, which fails in Python and is empty here
            }
            let rendered = render(&source, &cases.conversations[case]);
            let same = compare(&format!("{file}, {case}"), expected, rendered);
            if DIFFERENT.contains(&(file, case)) {
                assert!(same.is_err(), "{file}, {case}: no longer different");
            } else {
                wrong.extend(same.err());
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Each tag begins and ends where the engine finds it, and the ranges are right whatever a message holds.
#[test]
fn generation_blocks_are_found_among_other_tags() {
    let rendered = |source: &str, content: &str| {
        let template = ChatTemplate::new(source, vec![]).unwrap();
        template.render(&[Message::new("user", content)], &RenderOptions::default()).unwrap()
    };
    let block = "{% generation %}{{ messages[0].content }}{% endgeneration %}";
    for (around, content, text, answer) in [
        ("a{}b{# {% #}", "x", "axb", 1..2),
        ("a{# {% #}{}", "x", "ax", 1..2),
        ("a{{ '{%' }}{}", "x", "a{%x", 3..4),
        ("{{ \"%}\\\"{%\" }}{}b", "x", "%}\"{%xb", 5..6),
        ("{% set a = '%}' %}{{ {'b': {'c': 1}}.b.c }}{}", "x", "1x", 1..2),
        ("{a}{}{", "x", "{a}x{", 3..4),
        ("a{}b", "\u{fdd1}x\u{fdd0}\u{fdd2}", "a\u{fdd1}x\u{fdd0}\u{fdd2}b", 1..11),
        ("a{{ messages[0].content }}{}", "\u{fdd0}", "a\u{fdd0}\u{fdd0}", 4..7),
        ("{% macro m() %}{}{% endmacro %}a{{ m() }}", "x", "ax", 1..2),
    ] {
        let source = around.replacen("{}", block, 1);
        assert_eq!(rendered(&source, content), Rendered { text: text.into(), answers: vec![answer] }, "{source}");
    }
    let all: String = MARKS.collect();
    let error = ChatTemplate::new("", vec![]).unwrap();
    let error = error.render(&[Message::new("user", &all)], &RenderOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the conversation holds all of U+FDD0 to U+FDEF, which are no characters");
}

#[test]
fn what_is_no_template_is_refused_with_a_line() {
    let error = |source: &str| match ChatTemplate::new(source, vec![]) {
        Err(error) => error.to_string(),
        Ok(template) => {
            template.render(&[Message::new("user", "x")], &RenderOptions::default()).unwrap_err().to_string()
        }
    };
    assert_eq!(
        error("a\n{% for m in messages %}"),
        "the model's chat template fails, line 2: unexpected end of input, expected end of block"
    );
    assert_eq!(
        error("a{% if x"),
        "the model's chat template fails, line 1: unexpected end of input, expected end of block"
    );
    assert_eq!(
        error("a\nb\n{{ messages | nonsense }}"),
        "the model's chat template fails, line 3: filter nonsense is unknown"
    );
    assert_eq!(
        error("{{ {} | tojson(spaces=3) }}"),
        "the model's chat template fails, line 1: unknown keyword argument 'spaces'"
    );
    for endless in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ] {
        let said = error(endless);
        assert!(said.starts_with("the model's chat template fails"), "{said}");
    }
}

#[test]
fn the_fallback_reads_like_a_play() {
    let tokenizer = Tokenizer::train(["a b"].iter(), 300).unwrap();
    let template = ChatTemplate::of(&tokenizer, false).unwrap();
    assert!(template.is_fallback());
    let messages = [("system", "Be kind. "), ("user", " Hi\n"), ("assistant", "Hello."), ("user", "Bye")]
        .map(|(role, content)| Message::new(role, content));
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    assert_eq!(
        template.render(&messages, &options).unwrap().text,
        "<|endoftext|>Be kind.\n\nUser: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:"
    );
}

#[test]
fn templates_come_from_the_configuration_or_from_files() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in Tokenizer::train(["a b"].iter(), 300).unwrap().files(8).unwrap() {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let say = |tools| {
        let template = ChatTemplate::of(&Tokenizer::open(dir.path()).unwrap(), tools).unwrap();
        template.render(&[Message::new("user", "x")], &RenderOptions::default()).unwrap().text
    };
    let config = |template: Golden| {
        let config = serde_json::json!({
            "bos_token": {"content": "<|endoftext|>", "lstrip": false},
            "pad_token": "<pad>",
            "chat_template": template,
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    };
    config(Golden::Null);
    assert_eq!(say(false), "<|endoftext|>User: x\n");
    config("{{ bos_token }}{{ pad_token }}{{ unk_token }}".into());
    assert_eq!(say(true), "<|endoftext|><pad>");
    config(serde_json::json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]));
    assert_eq!((say(false).as_str(), say(true).as_str()), ("plain", "tools"));
    std::fs::write(dir.path().join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!((say(false).as_str(), say(true).as_str()), ("file", "file"));
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join("additional_chat_templates/tool_use.jinja"), "other").unwrap();
    assert_eq!((say(false).as_str(), say(true).as_str()), ("file", "other"));
}

#[test]
fn messages_are_objects_with_a_role() {
    let message: Message =
        serde_json::from_str(r#"{"role": "user", "content": [{"text": "a"}, {"type": "image"}, {"text": "b"}]}"#)
            .unwrap();
    assert_eq!((message.role().as_str(), message.content().as_str()), ("user", "ab"));
    let again = serde_json::to_string(&message).unwrap();
    assert_eq!(again, r#"{"role":"user","content":[{"text":"a"},{"type":"image"},{"text":"b"}]}"#);
    for text in ["[]", "{}", r#"{"role": 3}"#, "7"] {
        let error = serde_json::from_str::<Message>(text).unwrap_err().to_string();
        assert!(error.starts_with("a message is an object with a \"role\" of text"), "{error}");
    }
}
