//! Chat templates: a conversation → the text that the model was trained to go on from, by the model's own Jinja template,
//! rendered as `transformers` renders it. Which tokens that text becomes is the tokenizer's matter.

mod answers;
mod date;
mod indent;
mod json;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State, context};
use serde::{Deserialize, Serialize};
use std::ops::{Range, RangeInclusive};
use std::sync::OnceLock;

use super::Tokenizer;
use crate::error::{Error, Result};
use date::strftime;

/// A value of any shape that JSON has, its keys in the order they were given in.
pub type Json = Value;

/// For models without a template: names before the turns, as in a play. It is no format that any model was trained on, so
/// whoever uses it should say so.
const FALLBACK: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content | trim + '\\n\\n' -}}
{%- else -%}
{{- message.role | capitalize + ': ' + message.content | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}";

/// What one rendering may compute, about as many steps of a template: far above any conversation, and still a bound on
/// what a template from somewhere can do.
const FUEL: u64 = 20_000_000;

/// Two of these, which Unicode keeps from ever being characters, stand around what `{% generation %}` blocks give until the
/// text is whole: two that the conversation does not hold, since a text may hold anything.
const MARKS: RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Names of a message's chain of thought; templates read the first or the second (as `transformers` fills them in).
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn: a role, its content, and whatever else a template may read, such as `tool_calls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct Message(Json);

impl Message {
    /// A turn of plain text.
    pub fn new(role: &str, content: &str) -> Message {
        Message(Value::from_pairs([("role", role), ("content", content)]))
    }

    /// Who speaks: "system", "user", "assistant", or what else the template knows.
    pub fn role(&self) -> String {
        self.field("role").to_string()
    }

    /// What is said, as text. A content of several parts gives the text of the parts.
    pub fn content(&self) -> String {
        let content = self.field("content");
        match content.kind() {
            ValueKind::String => content.to_string(),
            ValueKind::Seq => content
                .try_iter()
                .map(|parts| parts.map(|part| part.get_attr("text").unwrap_or_default().to_string()).collect())
                .unwrap_or_default(),
            _ => String::new(),
        }
    }

    pub(super) fn field(&self, name: &str) -> Value {
        self.0.get_attr(name).unwrap_or_default()
    }

    /// Whether it says nothing: neither words nor calls of functions.
    pub fn is_empty(&self) -> bool {
        self.content().trim().is_empty() && self.field("tool_calls").len().is_none_or(|calls| calls == 0)
    }

    /// Whether its content is a list of parts, as of models that also see.
    fn has_parts(&self) -> bool {
        let content = self.field("content");
        content.kind() == ValueKind::Seq && content.len().is_some_and(|parts| parts > 0)
    }

    /// The same with the texts of its parts as one.
    ///
    /// # Errors
    /// With the first part that is no text.
    fn joined(&self) -> Result<Message, String> {
        if !self.has_parts() {
            return Ok(self.clone());
        }
        let parts = self.field("content").try_iter().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        let is_text = |part: &Value| part.get_attr("text").is_ok_and(|text| text.kind() == ValueKind::String);
        if let Some(at) = parts.iter().position(|part| !is_text(part)) {
            return Err(format!("is a list of parts, of which number {} is no text, and only text is read", at + 1));
        }
        let mut fields = self.fields();
        fields
            .iter_mut()
            .filter(|(key, _)| key.as_str() == Some("content"))
            .for_each(|(_, v)| *v = self.content().into());
        Ok(Message(Value::from_pairs(fields)))
    }

    fn fields(&self) -> Vec<(Value, Value)> {
        let keys = self.0.try_iter().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        keys.into_iter().map(|key| (key.clone(), self.0.get_item(&key).unwrap_or_default())).collect()
    }

    /// The message as templates see it: without what is null, and with the reasoning under each of its names.
    fn plain(&self) -> Value {
        let mut fields = self.fields();
        fields.retain(|(_, value)| !value.is_none());
        let reasoning = REASONING.iter().map(|name| self.field(name)).find(|v| !v.is_none() && !v.is_undefined());
        if let Some(reasoning) = reasoning {
            if fields.iter().all(|(key, _)| key.as_str() != Some("thinking")) {
                fields.insert(0, (Value::from("thinking"), reasoning.clone()));
            }
            fields.retain(|(key, _)| key.as_str() != Some("reasoning_content"));
            fields.push((Value::from("reasoning_content"), reasoning));
        }
        Value::from_pairs(fields)
    }
}

impl TryFrom<Json> for Message {
    type Error = String;

    fn try_from(value: Json) -> Result<Message, String> {
        let message = Message(value);
        match message.0.kind() {
            ValueKind::Map if message.field("role").kind() == ValueKind::String => Ok(message),
            _ => Err("a message is an object with a \"role\" of text, and usually a \"content\"".into()),
        }
    }
}

impl From<Message> for Json {
    fn from(message: Message) -> Json {
        message.0
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with whatever begins an answer.
    pub add_generation_prompt: bool,
    /// Functions that the model may call, as a list of JSON schemas.
    pub tools: Option<Json>,
    /// Now, in seconds since the beginning of 1970: what a template that writes the date writes. It is the caller's, so
    /// that the same conversation gives the same text.
    pub now: i64,
    /// Further variables that a template may know, such as `enable_thinking`.
    pub variables: Vec<(String, Json)>,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens written out; to be encoded without adding any.
    pub text: String,
    /// Where in it the assistant speaks (bytes), if the template marks that with `{% generation %}`.
    pub answers: Vec<Range<usize>>,
}

/// A compiled template with the special tokens that it may write.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Vec<(String, String)>,
    fallback: bool,
    marks: bool,
    closing: OnceLock<Option<answers::Closing>>,
}

impl ChatTemplate {
    /// Compiles a template. `special` are names and texts of special tokens, such as `bos_token`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with line and reason if the text is no template.
    pub fn new(source: &str, special: Vec<(String, String)>) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| explain(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("indent", indent::indent);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise);
        let called = with_calls(source);
        let marks = called != source;
        environment.add_template_owned("chat", called).map_err(|error| explain(&error))?;
        Ok(ChatTemplate { environment, special, fallback: false, marks, closing: OnceLock::new() })
    }

    /// The template that a model came with, or a plain one if it came with none. Some models have one of their own for
    /// conversations with tools.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::new`].
    pub fn of(tokenizer: &Tokenizer, tools: bool) -> Result<ChatTemplate> {
        let special = tokenizer.special_tokens();
        match tokenizer.chat_template(tools) {
            Some(source) => Self::new(source, special),
            None => Ok(ChatTemplate { fallback: true, ..Self::new(FALLBACK, special)? }),
        }
    }

    /// Its text.
    pub fn source(&self) -> String {
        self.environment.get_template("chat").map_or_else(|_| String::new(), |t| t.source().to_string())
    }

    /// True for the plain template of a model that came with none.
    pub fn is_fallback(&self) -> bool {
        self.fallback
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Invalid`] in the template's own words where it refuses the conversation (roles that do not alternate, a
    /// system message it has no place for), and with the line where it fails.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        let mut variables: Vec<(String, Value)> =
            self.special.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        // The plain template writes texts; a model's own may know what to do with parts, such as pictures.
        let seen = |(at, message): (usize, &Message)| match self.fallback {
            true => message.joined().map(|message| message.plain()).map_err(|error| content_of(at, &error)),
            false => Ok(message.plain()),
        };
        let parts = if self.fallback { None } else { messages.iter().position(Message::has_parts) };
        let told = messages.iter().enumerate().map(seen).collect::<Result<Vec<Value>>>()?;
        let now = options.now;
        let clock = Value::from_function(move |format: &str| strftime(format, now));
        variables.extend(
            [
                ("messages", Value::from(told)),
                ("tools", options.tools.clone().unwrap_or(Value::from(()))),
                ("documents", Value::from(())),
                ("add_generation_prompt", Value::from(options.add_generation_prompt)),
                ("strftime_now", clock),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        variables.extend(options.variables.iter().cloned());
        let variables = Value::from_pairs(variables);
        let mut environment = self.environment.clone();
        let marks = unused_marks(&[serde_json::to_string(&variables).unwrap_or_default(), self.source()])?;
        environment.add_function("generation", move |state: &mut State, arguments: Kwargs| {
            let body = arguments.get::<Value>("caller")?.call(state, &[])?;
            Ok::<_, minijinja::Error>(format!("{}{body}{}", marks[0], marks[1]))
        });
        let template = environment.get_template("chat").map_err(|error| explain(&error))?;
        let marked = template.render(context! { ..variables }).map_err(|error| match (explain(&error), parts) {
            (Error::Invalid(why), Some(at)) => content_of(at, &format!("is a list of parts, and {why}; {ONE_TEXT}")),
            (error, _) => error,
        })?;
        Ok(unmark(&marked, marks))
    }

    /// Refuses what a template made of contents that it took for texts, of which it writes brackets and all. So does
    /// `transformers`, but nobody wants to learn that.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first such message.
    pub fn check_parts(&self, messages: &[Message], rendered: &str) -> Result<()> {
        let written =
            |message: &Message| message.has_parts() && rendered.contains(&message.field("content").to_string());
        match messages.iter().position(written) {
            Some(at) => {
                let why = format!("is a list of parts, and the model's chat template takes none; {ONE_TEXT}");
                Err(content_of(at, &why))
            }
            None => Ok(()),
        }
    }
}

/// What helps where a template does not read parts.
const ONE_TEXT: &str = "write it as one text";

/// Something that is wrong with the content of a message.
fn content_of(index: usize, message: &str) -> Error {
    Error::Invalid(format!("the content of message {} {message}", index + 1))
}

/// The words of `raise_exception`, carried through the engine's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// Two marks that none of the texts holds.
fn unused_marks(texts: &[String]) -> Result<[char; 2]> {
    let mut unused = MARKS.filter(|mark| texts.iter().all(|text| !text.contains(*mark)));
    match (unused.next(), unused.next()) {
        (Some(open), Some(close)) => Ok([open, close]),
        _ => Err(Error::Invalid("the conversation holds all of U+FDD0 to U+FDEF, which are no characters".into())),
    }
}

/// A template whose `{% generation %}` blocks are calls of the function of that name: the engine knows no further tags, and
/// a call has the same scope and the same white space around it.
fn with_calls(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        rest = tag;
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag[2..].find("#}").map(|at| at + 4),
            Some(b'{') => closing(tag, b"}}"),
            Some(b'%') => closing(tag, b"%}"),
            _ => Some(1),
        };
        // What is not closed is the engine's to complain of.
        let Some(end) = end else { break };
        let (tag, after) = tag.split_at(end);
        let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replace(word, " call generation() ")),
            "endgeneration" => out.push_str(&tag.replace(word, " endcall ")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Where a tag ends, if it does. Texts in quotes may hold what looks like an end.
fn closing(tag: &str, mark: &[u8]) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, byte) in tag.bytes().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if tag.as_bytes()[at..].starts_with(mark) => return Some(at + mark.len()),
            None => {}
        }
    }
    None
}

/// Takes the marks out and keeps where they were.
fn unmark(marked: &str, [open, close]: [char; 2]) -> Rendered {
    let mut rendered = Rendered { text: String::with_capacity(marked.len()), answers: Vec::new() };
    let mut start = None;
    for c in marked.chars() {
        match c {
            c if c == open => start = Some(rendered.text.len()),
            c if c == close => rendered.answers.extend(start.take().map(|start| start..rendered.text.len())),
            c => rendered.text.push(c),
        }
    }
    rendered
}

/// The engine's error as a sentence of ours.
fn explain(error: &minijinja::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(now) = cause {
        if let Some(Refusal(words)) = now.downcast_ref() {
            return Error::Invalid(format!("the model's chat template refuses the conversation: {words}"));
        }
        cause = now.source();
    }
    let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    Error::Invalid(format!("the model's chat template fails{line}: {detail}"))
}

#[cfg(test)]
mod tests;
