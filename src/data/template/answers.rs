//! Which part of a rendered conversation is the assistant's: what a model is to learn to write, and nothing else.
//!
//! A template that marks its answers (`{% generation %}`) is taken at its word. Of any other, answer i is what the text of
//! the whole conversation has beyond the prompt that the model would have been given there, up to and with the mark that
//! ends the turn. White space after such a mark belongs to the frame; so nothing is learnt that generation never asks for.
//! Templates may write a turn in another way once more turns follow (dropped reasoning, a system message that wanders); then
//! the same conversation with another answer in its place shows where it lies, and what cannot be told exactly is refused.

use std::ops::Range;

use minijinja::value::{Value, ValueKind};

use super::{ChatTemplate, Message, RenderOptions, Rendered};
use crate::error::{Error, Result};

/// Stands in place of an answer: characters that no template and, by Unicode, no text holds.
const PROBE: &str = "\u{fdef}\u{fdee}";

impl ChatTemplate {
    /// Renders a conversation with the places of those answers for which `counts` holds (given the message's index), in
    /// order. `specials` are the texts of tokens that may end a turn.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`Error::Invalid`] where the template makes it impossible to tell an answer's
    /// place exactly.
    pub fn render_answers(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        specials: &[String],
        counts: &dyn Fn(usize) -> bool,
    ) -> Result<Rendered> {
        let options = RenderOptions { add_generation_prompt: false, ..options.clone() };
        let rendered = self.render(messages, &options)?;
        let answers: Vec<usize> = (0..messages.len()).filter(|&i| messages[i].role() == "assistant").collect();
        if self.marks {
            return self.marked(rendered, &answers, counts);
        }
        let finder = Finder { template: self, messages, options: &options, specials, text: &rendered.text };
        let mut places: Vec<Range<usize>> = Vec::new();
        for index in answers.into_iter().filter(|&i| counts(i)) {
            let place = finder.place(index)?;
            if places.last().is_some_and(|last| last.end > place.start) {
                return Err(impossible(index, "overlaps the one before"));
            }
            places.push(place);
        }
        Ok(Rendered { answers: places, text: rendered.text })
    }

    /// Of a template that marks its answers, those that count: all, or as many as there are answers.
    fn marked(&self, rendered: Rendered, answers: &[usize], counts: &dyn Fn(usize) -> bool) -> Result<Rendered> {
        if answers.iter().all(|&i| counts(i)) {
            return Ok(rendered);
        }
        if rendered.answers.len() != answers.len() {
            return Err(Error::Invalid(format!(
                "the model's chat template marks {} answers of {}: which of them count cannot be told",
                rendered.answers.len(),
                answers.len()
            )));
        }
        let kept = rendered.answers.into_iter().zip(answers).filter(|(_, i)| counts(**i)).map(|(range, _)| range);
        Ok(Rendered { answers: kept.collect(), text: rendered.text })
    }
}

fn impossible(index: usize, why: &str) -> Error {
    Error::Invalid(format!(
        "with the model's chat template it cannot be told exactly which part is the answer of message {}: it {why}; \
         put {{% generation %}} and {{% endgeneration %}} around answers in the template, or count every token with \
         --loss-on all",
        index + 1
    ))
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    options: &'a RenderOptions,
    specials: &'a [String],
    text: &'a str,
}

/// The conversation with another answer in place of one.
struct Variant {
    text: String,
    /// Where that answer lies.
    probe: Range<usize>,
}

impl Finder<'_> {
    fn place(&self, index: usize) -> Result<Range<usize>> {
        let start = self.start(index)?;
        let end = self.end(index, start)?;
        if start >= end {
            return Err(impossible(index, "is not rendered at all"));
        }
        self.check(index, &self.text[start..end])?;
        Ok(start..end)
    }

    /// Refuses a template that leaves out what an answer says: a model would learn to say nothing, or half of it.
    fn check(&self, index: usize, place: &str) -> Result<()> {
        let message = &self.messages[index];
        let left_out = |what: &str| {
            Err(Error::Invalid(format!("the model's chat template leaves out {what} of message {}", index + 1)))
        };
        let calls = message.field("tool_calls").try_iter().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        for call in calls {
            let function = call.get_attr("function").ok().filter(|f| !f.is_undefined()).unwrap_or(call);
            let name = function.get_attr("name").unwrap_or_default();
            if !name.as_str().is_none_or(|name| place.contains(name)) {
                return left_out("the function calls");
            }
            let arguments = function.get_attr("arguments").unwrap_or_default();
            // Often JSON in a text.
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            if !says(place, &parsed.unwrap_or(arguments)) {
                return left_out("arguments of the function calls");
            }
        }
        let content = message.content();
        // Thoughts that stand before the words are left out of earlier turns on purpose (Qwen3's template, DeepSeek-R1's).
        let words = content.rsplit("</think>").next().unwrap_or(&content);
        if words.lines().all(|line| place.contains(line.trim())) { Ok(()) } else { left_out("words") }
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let options = RenderOptions { add_generation_prompt, ..self.options.clone() };
        Ok(self.template.render(messages, &options)?.text)
    }

    /// Renders `before`, then `PROBE` as the answer, then `after`; nothing where the template leaves it out.
    fn variant(&self, before: &[Message], like: &Message, after: &[Message]) -> Option<Variant> {
        let probe = [like.with_content(PROBE)];
        let text = self.render(&[before, &probe, after].concat(), false).ok()?;
        let at = text.find(PROBE)?;
        Some(Variant { probe: at..at + PROBE.len(), text })
    }

    /// The whole conversation with a plain answer at `index`, without calls and reasoning.
    fn replaced(&self, index: usize) -> Option<Variant> {
        let plain = Message::new("assistant", "");
        self.variant(&self.messages[..index], &plain, &self.messages[index + 1..])
    }

    fn start(&self, index: usize) -> Result<usize> {
        let before = &self.messages[..index];
        let prompt = self.render(before, true)?;
        if self.text.starts_with(&prompt) {
            return Ok(prompt.len());
        }
        // A prompt may begin the answer, as with "<think>", in a way that is not kept in the conversation.
        let variant = self.replaced(index);
        let bare = self.render(before, false)?;
        let common = common_prefix(self.text, &prompt);
        let in_variant = variant.as_ref().map(|variant| (common_prefix(self.text, &variant.text), variant.probe.start));
        if common >= bare.trim_end().len() && prompt.starts_with(bare.trim_end()) {
            return Ok(in_variant.map_or(common, |(shared, _)| common.min(shared)));
        }
        match (self.after_last_words(index, &prompt), in_variant) {
            (Some(at), _) => Ok(at),
            // A space before the words may be the answer's own.
            (None, Some((shared, probe))) if shared == probe && !self.text[..shared].ends_with(' ') => Ok(shared),
            _ => Err(impossible(index, "begins in another way than the prompt for it ends")),
        }
    }

    /// The end of the one place where the text says what the prompt for an answer ends with, from its last words on.
    fn after_last_words(&self, index: usize, prompt: &str) -> Option<usize> {
        let said = index.checked_sub(1).map(|before| self.messages[before].content()).unwrap_or_default();
        let tail = prompt.rfind(said.trim()).filter(|_| !said.trim().is_empty()).map(|at| &prompt[at..]);
        let mut places = tail.into_iter().flat_map(|tail| self.text.match_indices(tail));
        match (places.next(), places.next()) {
            (Some((at, tail)), None) => Some(at + tail.len()),
            _ => None,
        }
    }

    fn end(&self, index: usize, start: usize) -> Result<usize> {
        let (before, own) = (&self.messages[..index], &self.messages[index]);
        let upto = self.render(&self.messages[..=index], false)?;
        let closing = self.template.closing(self.options).ok_or_else(|| {
            impossible(index, "ends in a way that what follows it may share, so that the end of a turn cannot be seen")
        })?;
        // Where calls of functions end in another way than words, the mark is all but white space.
        let closed = |text: &str| match text.strip_suffix(&closing.frame) {
            Some(content) => content.len() + closing.mark.len(),
            None => text.trim_end().len(),
        };
        if self.text.starts_with(&upto) && upto.len() >= start {
            return Ok(closed(&upto).max(start));
        }
        // The same answer after another beginning.
        let prompt = self.render(before, true)?;
        if let Some(answer) = upto.strip_prefix(&prompt) {
            let answer = &answer[..closed(answer)];
            if !answer.is_empty() && self.text[start..].starts_with(answer) {
                return Ok(start + answer.len());
            }
        }
        let (plain, after) = (Message::new("assistant", ""), &self.messages[index + 1..]);
        for like in [own, &plain] {
            let Some(variant) = self.variant(before, like, after) else { continue };
            if !self.text.ends_with(variant.frame()) {
                continue;
            }
            let content = self.text.len() - variant.frame().len();
            // Calls may stand between the words and the end of the turn.
            let own_frame = self.variant(before, like, &[]).map(|last| last.frame().to_string());
            let calls = own_frame.as_ref().and_then(|frame| frame.strip_suffix(&closing.frame)).unwrap_or("");
            if content < start || !self.text[content..].starts_with(calls) {
                continue;
            }
            let content = content + calls.len();
            let marks = self.specials.iter().chain([&closing.mark]).filter(|mark| !mark.is_empty());
            let found = marks.filter(|mark| self.text[content..].starts_with(mark.as_str())).map(String::len).max();
            if let Some(len) = found {
                return Ok(content + len);
            }
        }
        Err(impossible(index, "neither ends as the last answer of a conversation does, nor with a special token"))
    }
}

/// How a turn of the assistant ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closing {
    /// All that stands after the words of the last answer.
    frame: String,
    /// As much of it as ends the turn, wherever it stands; or all but white space, where the last ends in its own way.
    mark: String,
}

impl ChatTemplate {
    /// How a turn ends, found out once; nothing if it cannot be.
    fn closing(&self, options: &RenderOptions) -> Option<&Closing> {
        self.closing.get_or_init(|| self.find_closing(options)).as_ref()
    }

    fn find_closing(&self, options: &RenderOptions) -> Option<Closing> {
        let after = |more: &[Message]| {
            let turns = [&[Message::new("user", "1"), Message::new("assistant", PROBE)], more].concat();
            let text = self.render(&turns, options).ok()?.text;
            text.split_once(PROBE).map(|(_, frame)| frame.to_string())
        };
        let (last, within) = (after(&[])?, after(&[Message::new("user", "2")])?);
        let closing = |mark: &str| Some(Closing { frame: last.clone(), mark: mark.to_string() });
        let trimmed = last.trim_end();
        let eos = self.special.iter().find(|(name, _)| name == "eos_token").map_or("", |(_, text)| text);
        let bare = trimmed.strip_suffix(eos).map_or("", str::trim_end);
        match () {
            // Where nothing but white space ends a turn, that is its mark.
            () if trimmed.is_empty() => closing(&last).filter(|_| within.starts_with(&last) && !last.is_empty()),
            () if within.starts_with(trimmed) => closing(trimmed),
            // The end of the text after the end of the last turn.
            () if !bare.is_empty() && within.starts_with(bare) => closing(bare),
            // The last turn has an end of its own.
            () if first_token(trimmed) != first_token(&within) => closing(trimmed),
            () => None,
        }
    }
}

/// Whether a text holds what arguments are called and the words and whole numbers in them, between whatever signs: templates write
/// them as JSON, as JSON in a text, as Python's keywords or in tags.
fn says(text: &str, arguments: &Value) -> bool {
    let has = |words: &str| words.split(|c: char| !c.is_alphanumeric()).all(|word| text.contains(word));
    let all =
        |holds: &dyn Fn(&Value) -> bool| arguments.try_iter().is_ok_and(|mut parts| parts.all(|part| holds(&part)));
    match arguments.kind() {
        ValueKind::Map => all(&|key| has(&key.to_string()) && says(text, &arguments.get_item(key).unwrap_or_default())),
        ValueKind::Seq => all(&|part| says(text, part)),
        ValueKind::String => has(arguments.as_str().unwrap_or_default()),
        ValueKind::Number if arguments.is_integer() => has(&arguments.to_string()),
        _ => true,
    }
}

/// What begins a text: a token in brackets as templates write them, or a character.
fn first_token(text: &str) -> &str {
    let close = match text.as_bytes().first() {
        Some(b'<') => '>',
        Some(b'[') => ']',
        _ => return text.get(..text.chars().next().map_or(0, char::len_utf8)).unwrap_or(""),
    };
    text.find(close).map_or(text, |at| &text[..=at])
}

impl Variant {
    /// What stands after the answer.
    fn frame(&self) -> &str {
        &self.text[self.probe.end..]
    }
}

impl Message {
    /// The same with other words.
    fn with_content(&self, content: &str) -> Message {
        let keys: Vec<Value> = self.0.try_iter().map(Iterator::collect).unwrap_or_default();
        let others = keys.into_iter().filter(|key| key.as_str() != Some("content"));
        let mut fields: Vec<(Value, Value)> =
            others.map(|key| (key.clone(), self.0.get_item(&key).unwrap_or_default())).collect();
        let content = match self.field("content").kind() {
            ValueKind::Seq => {
                Value::from(vec![Value::from_pairs([("type", Value::from("text")), ("text", Value::from(content))])])
            }
            _ => Value::from(content),
        };
        fields.push((Value::from("content"), content));
        Message(Value::from_pairs(fields))
    }
}

/// How far two texts are the same, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=same).rev().find(|&at| a.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
