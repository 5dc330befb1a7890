//! The shapes in which examples are written, and what each says: a text, a prompt with its completion, a conversation, or
//! two answers to one prompt of which one is preferred.

use minijinja::value::{Value, ValueKind};

use super::template::{Json, Message};

/// A shape of records, told by the names of their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// `text`.
    Text,
    /// `messages`, each with `role` and `content`; `tools` beside them.
    Messages,
    /// `prompt` and `completion`, each a text or a list of messages.
    Completion,
    /// `instruction`, `input` and `output`; `system` and `history` beside them.
    Alpaca,
    /// `conversations`, each with `from` and `value`; `system` and `tools` beside them.
    ShareGpt,
    /// `chosen` and `rejected`, with a `prompt`, `messages`, `conversations` or an instruction before them; or as whole
    /// conversations, whatever stands beside them.
    Preference,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A document, all of it to be predicted.
    Text(String),
    /// A text and what follows it, without a chat template.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be predicted.
        answer: String,
    },
    /// A conversation, to be rendered by a chat template.
    Chat(Chat),
    /// The same beginning with the better answer, and with the worse.
    Pair(Box<[Example; 2]>),
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chat {
    /// Who says what.
    pub messages: Vec<Message>,
    /// Functions that the assistant may call.
    pub tools: Option<Json>,
    /// The first message whose answer is to be predicted: that of a preference pair is the last.
    pub from: usize,
}

impl Chat {
    /// Whether message `index` is an answer to be predicted.
    pub fn is_answer(&self, index: usize) -> bool {
        index >= self.from && self.messages[index].role() == "assistant"
    }
}

/// Who speaks in ShareGPT's words, and in those of chat templates. `function_call` and `observation` are LLaMA-Factory's.
const SPEAKERS: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("system", "system"),
    ("function_call", "call"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function_response", "tool"),
];

impl Form {
    /// What it is called where the person is told.
    pub fn name(self) -> &'static str {
        match self {
            Form::Text => "text",
            Form::Messages => "messages",
            Form::Completion => "prompt/completion",
            Form::Alpaca => "Alpaca",
            Form::ShareGpt => "ShareGPT",
            Form::Preference => "preference",
        }
    }

    /// The form of a record.
    ///
    /// # Errors
    /// With the fields that it has where these are of no form.
    pub fn of(record: &Json) -> Result<Form, String> {
        if record.kind() != ValueKind::Map {
            return Err(format!("is {} and no object with fields", kind(record)));
        }
        let has = |names: &[&str]| names.iter().all(|name| has(record, name));
        Ok(match () {
            () if has(&["chosen", "rejected"]) => Form::Preference,
            () if has(&["messages"]) => Form::Messages,
            () if has(&["conversations"]) => Form::ShareGpt,
            () if has(&["prompt", "completion"]) => Form::Completion,
            () if has(&["instruction", "output"]) || keyed(record, &["instruction", "output"]) => Form::Alpaca,
            () if has(&["text"]) => Form::Text,
            () => {
                let fields = keys(record).join(", ");
                return Err(format!(
                    "has the fields {}, which are of no form that is known: text; messages; prompt and completion; \
                     instruction and output (Alpaca); conversations (ShareGPT); chosen and rejected",
                    if fields.is_empty() { "{}" } else { &fields }
                ));
            }
        })
    }

    /// What a record of this form says.
    ///
    /// # Errors
    /// What is wrong with it: a field that is missing or no text, an empty answer, another form.
    pub fn parse(self, record: &Json) -> Result<Example, String> {
        let own = Form::of(record)?;
        if own != self {
            return Err(format!(
                "is in {} form, and the file began in {} form; one file has one form",
                own.name(),
                self.name()
            ));
        }
        match self {
            Form::Text => Ok(Example::Text(text(record, "text")?)),
            Form::Completion => completion(record),
            Form::Preference => preference(record),
            Form::Messages | Form::Alpaca | Form::ShareGpt => {
                let chat = conversation(record, self)?;
                check(&chat)?;
                Ok(Example::Chat(chat))
            }
        }
    }
}

impl Example {
    /// Its texts, for a tokenizer that is trained on them.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Example::Text(text) => vec![text.clone()],
            Example::Completion { prompt, answer } => vec![format!("{prompt}{answer}")],
            Example::Chat(chat) => chat.messages.iter().map(Message::content).collect(),
            Example::Pair(both) => both.iter().flat_map(Example::texts).collect(),
        }
    }
}

/// A conversation of one of the three forms that hold one, unchecked.
fn conversation(record: &Json, form: Form) -> Result<Chat, String> {
    let mut messages = Vec::new();
    if let Some(system) = optional_text(record, "system")? {
        messages.push(Message::new("system", &system));
    }
    match form {
        Form::Alpaca => {
            for turn in list(record, "history")? {
                let said = |at: usize| turn.get_item_by_index(at).ok().and_then(|v| v.as_str().map(str::to_string));
                let (Some(user), Some(answer)) = (said(0), said(1)) else {
                    return Err("has a \"history\" whose turns are not all [question, answer]".into());
                };
                messages.extend([Message::new("user", &user), Message::new("assistant", &answer)]);
            }
            messages.push(Message::new("user", &instruction(record)?));
            let output = text(record, "output")?;
            if output.trim().is_empty() {
                return Err("has an empty \"output\"; leave the example out, or fill it in".into());
            }
            messages.push(Message::new("assistant", &output));
        }
        Form::ShareGpt => {
            let turns = list(record, "conversations")?;
            for (at, turn) in turns.iter().enumerate() {
                messages
                    .push(turn_of(turn, &messages).map_err(|e| format!("turn {} of \"conversations\" {e}", at + 1))?);
            }
        }
        _ => messages.extend(messages_of(record, "messages")?),
    }
    Ok(Chat { messages, tools: tools(record)?, from: 0 })
}

/// Refuses what has no answer to learn.
fn check(chat: &Chat) -> Result<(), String> {
    let answers: Vec<usize> = (0..chat.messages.len()).filter(|&i| chat.is_answer(i)).collect();
    if answers.is_empty() {
        return Err("holds no answer: no message is the assistant's".into());
    }
    match answers.into_iter().find(|&i| chat.messages[i].is_empty()) {
        Some(at) => Err(format!("has an empty answer (message {}); leave the example out, or fill it in", at + 1)),
        None => Ok(()),
    }
}

fn instruction(record: &Json) -> Result<String, String> {
    let instruction = text(record, "instruction")?;
    Ok(match optional_text(record, "input")?.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction,
    })
}

fn completion(record: &Json) -> Result<Example, String> {
    let (prompt, completion) = (field(record, "prompt"), field(record, "completion"));
    if prompt.kind() == ValueKind::Seq || completion.kind() == ValueKind::Seq {
        let mut messages = side(record, "prompt", "user")?;
        let from = messages.len();
        messages.extend(side(record, "completion", "assistant")?);
        let chat = Chat { messages, tools: tools(record)?, from };
        check(&chat)?;
        return Ok(Example::Chat(chat));
    }
    let (prompt, answer) = (text(record, "prompt")?, text(record, "completion")?);
    if answer.trim().is_empty() {
        return Err("has an empty \"completion\"; leave the example out, or fill it in".into());
    }
    Ok(Example::Completion { prompt, answer })
}

/// A beginning and two answers. Where both sides begin as conversations do they are whole: their beginning is what they have in
/// common, and a prompt or a conversation that the record holds beside them, which says the same again, is left alone.
fn preference(record: &Json) -> Result<Example, String> {
    let sides = [side(record, "chosen", "assistant")?, side(record, "rejected", "assistant")?];
    let begins = |message: &Message| matches!(message.role().as_str(), "system" | "developer" | "user");
    let whole = begins(&sides[0][0]);
    if whole != begins(&sides[1][0]) {
        return Err(
            "has a whole conversation on one side and an answer alone on the other, of \"chosen\" and \"rejected\"; \
                    give both in one way"
                .into(),
        );
    }
    let mut before = Vec::new();
    if let Some(system) = optional_text(record, "system")?.filter(|_| sides[0][0].role() != "system") {
        before.push(Message::new("system", &system));
    }
    before.extend(match () {
        () if whole => Vec::new(),
        () if has(record, "conversations") => messages_of(record, "conversations")?,
        () if has(record, "messages") => messages_of(record, "messages")?,
        () if has(record, "prompt") => side(record, "prompt", "user")?,
        () if has(record, "instruction") => vec![Message::new("user", &instruction(record)?)],
        () => Vec::new(),
    });
    let common = match whole || before.is_empty() {
        true => sides[0].iter().zip(&sides[1]).take_while(|(a, b)| a == b).count(),
        false => 0,
    };
    if common == 0 && !whole && before.is_empty() {
        return Err("has neither a prompt nor a beginning that \"chosen\" and \"rejected\" have in common".into());
    }
    if sides.iter().any(|side| side.get(common).is_some_and(begins)) {
        let at = common + 1;
        return Err(format!(
            "has conversations that differ in what is asked (message {at}), and not in the answer alone"
        ));
    }
    let (from, tools) = (before.len() + common, tools(record)?);
    let [better, worse] = sides.map(|side| {
        let messages = before.iter().cloned().chain(side).collect();
        Chat { messages, tools: tools.clone(), from }
    });
    if better.messages[from - 1].role() == "assistant" {
        return Err(format!(
            "has an answer (message {from}) before those of \"chosen\" and \"rejected\", which are to answer what was said \
             last; leave it out"
        ));
    }
    for (name, chat) in [("chosen", &better), ("rejected", &worse)] {
        check(chat).map_err(|error| format!("{error} (of \"{name}\")"))?;
    }
    if better == worse {
        return Err("has the same answer as \"chosen\" and as \"rejected\"".into());
    }
    Ok(Example::Pair(Box::new([Example::Chat(better), Example::Chat(worse)])))
}

/// One side of a record: a text that `role` says, a message of either convention, or a list of them.
fn side(record: &Json, name: &str, role: &str) -> Result<Vec<Message>, String> {
    let value = field(record, name);
    match value.kind() {
        ValueKind::Seq => messages_of(record, name),
        ValueKind::Map => Ok(vec![turn_of(&value, &[]).map_err(|error| format!("\"{name}\" {error}"))?]),
        _ => Ok(vec![Message::new(role, &text(record, name)?)]),
    }
}

fn messages_of(record: &Json, name: &str) -> Result<Vec<Message>, String> {
    let mut messages: Vec<Message> = Vec::new();
    for (at, turn) in list(record, name)?.iter().enumerate() {
        let message = turn_of(turn, &messages).map_err(|error| format!("message {} of \"{name}\" {error}", at + 1))?;
        messages.push(message);
    }
    if messages.is_empty() { Err(format!("has no messages in \"{name}\"")) } else { Ok(messages) }
}

/// A message in either convention: `role` and `content`, or `from` and `value`.
fn turn_of(turn: &Json, before: &[Message]) -> Result<Message, String> {
    if turn.kind() != ValueKind::Map {
        return Err(format!("is {} and no object", kind(turn)));
    }
    if !has(turn, "from") {
        let message = Message::try_from(turn.clone()).map_err(|_| "has no \"role\" that is a text".to_string())?;
        let said = ["content", "tool_calls", "reasoning_content", "thinking", "reasoning"];
        if !said.iter().any(|name| has(turn, name)) {
            return Err("has neither \"content\" nor \"tool_calls\"".into());
        }
        let content = message.field("content");
        if !matches!(content.kind(), ValueKind::String | ValueKind::Seq | ValueKind::None | ValueKind::Undefined) {
            return Err(format!("has a \"content\" that is {} and no text", kind(&content)));
        }
        return Ok(message);
    }
    let (from, value) = (text(turn, "from")?, field(turn, "value"));
    let Some((_, role)) = SPEAKERS.iter().find(|(name, _)| *name == from) else {
        let known: Vec<&str> = SPEAKERS.iter().map(|(name, _)| *name).collect();
        return Err(format!("is \"from\" \"{from}\", which is none of {}", known.join(", ")));
    };
    match *role {
        "call" => calls(&value, before),
        "tool" => {
            let fields = [("role", Value::from("tool")), ("content", Value::from(text(turn, "value")?))];
            // Some templates want to know whose result it is.
            let last = before.last().map(|message| message.field("tool_calls")).unwrap_or_default();
            let call = last.get_item_by_index(0).unwrap_or_default();
            let name = call.get_attr("function").and_then(|function| function.get_attr("name")).unwrap_or_default();
            let id = call.get_attr("id").unwrap_or_default();
            let more = [("name", name), ("tool_call_id", id)].into_iter().filter(|(_, value)| !value.is_undefined());
            Message::try_from(Value::from_pairs(fields.into_iter().chain(more)))
        }
        role => Ok(Message::new(role, &text(turn, "value")?)),
    }
}

/// LLaMA-Factory's `function_call`: an object with name and arguments, or a list of them, as JSON in a text.
fn calls(value: &Json, before: &[Message]) -> Result<Message, String> {
    let parsed = match value.as_str() {
        Some(text) => serde_json::from_str::<Value>(text)
            .map_err(|error| format!("is a function call that is no JSON: {}", place_in_text(&error)))?,
        None => value.clone(),
    };
    let all: Vec<Value> = match parsed.kind() {
        ValueKind::Seq => parsed.try_iter().map(Iterator::collect).unwrap_or_default(),
        _ => vec![parsed],
    };
    let earlier: usize = before.iter().filter_map(|message| message.field("tool_calls").len()).sum();
    let mut calls = Vec::new();
    for call in all {
        let name = field(&call, "name");
        if name.kind() != ValueKind::String {
            return Err("is a function call without a \"name\"".into());
        }
        let function = Value::from_pairs([("name", name), ("arguments", field(&call, "arguments"))]);
        // Nine letters and digits, which is what Mistral's templates ask for.
        let id = Value::from(format!("call{:05}", (earlier + calls.len()) % 100_000));
        calls.push(Value::from_pairs([("id", id), ("type", Value::from("function")), ("function", function)]));
    }
    let fields = [("role", Value::from("assistant")), ("content", Value::from("")), ("tool_calls", Value::from(calls))];
    Message::try_from(Value::from_pairs(fields))
}

/// Functions that may be called: a list, or one as JSON in a text; functions that stand alone get OpenAI's frame.
fn tools(record: &Json) -> Result<Option<Json>, String> {
    let value = field(record, "tools");
    let value = match value.as_str() {
        Some(text) if text.trim().is_empty() => return Ok(None),
        Some(text) => serde_json::from_str::<Value>(text)
            .map_err(|error| format!("has \"tools\" that are no JSON: {}", place_in_text(&error)))?,
        None => value,
    };
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => Ok(None),
        ValueKind::Seq => {
            let frame = |tool: Value| match has(&tool, "function") || !has(&tool, "name") {
                true => tool,
                false => Value::from_pairs([("type", Value::from("function")), ("function", tool)]),
            };
            let tools: Vec<Value> = value.try_iter().map(|tools| tools.map(frame).collect()).unwrap_or_default();
            Ok(if tools.is_empty() { None } else { Some(Value::from(tools)) })
        }
        _ => Err(format!("has \"tools\" that are {} and no list", kind(&value))),
    }
}

/// Where in a text JSON breaks off.
fn place_in_text(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

fn field(record: &Json, name: &str) -> Value {
    record.get_attr(name).unwrap_or_default()
}

fn has(record: &Json, name: &str) -> bool {
    let value = field(record, name);
    !value.is_undefined() && !value.is_none()
}

/// Whether it has these fields, be they null.
fn keyed(record: &Json, names: &[&str]) -> bool {
    names.iter().all(|name| !field(record, name).is_undefined())
}

/// The names of the fields, with what counts for nothing said to be null.
fn keys(record: &Json) -> Vec<String> {
    let told = |key: Value| {
        let null = record.get_item(&key).is_ok_and(|value| value.is_none());
        format!("{key}{}", if null { " (null)" } else { "" })
    };
    record.try_iter().map(|keys| keys.map(told).collect()).unwrap_or_default()
}

fn text(record: &Json, name: &str) -> Result<String, String> {
    let value = field(record, name);
    match value.as_str() {
        Some(text) => Ok(text.to_string()),
        None if value.is_undefined() => Err(format!("has no \"{name}\"")),
        None => Err(format!("has a \"{name}\" that is {} and no text", kind(&value))),
    }
}

fn optional_text(record: &Json, name: &str) -> Result<Option<String>, String> {
    if has(record, name) { text(record, name).map(Some) } else { Ok(None) }
}

fn list(record: &Json, name: &str) -> Result<Vec<Value>, String> {
    let value = field(record, name);
    match value.kind() {
        ValueKind::Seq => Ok(value.try_iter().map(Iterator::collect).unwrap_or_default()),
        ValueKind::None | ValueKind::Undefined => Ok(Vec::new()),
        _ => Err(format!("has \"{name}\" that is {} and no list", kind(&value))),
    }
}

fn kind(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Map => "an object".into(),
        ValueKind::Seq => "a list".into(),
        ValueKind::String => "a text".into(),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests;
