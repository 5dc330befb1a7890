//! The small language of the plot files: parsing them, and telling a story from a parsed plot.
//!
//! A file holds plots: `== name : hero any, friend animal`, then rules, then paragraphs, whose lines stay lines.
//! `[a|b]` draws one of its alternatives afresh each time. `{rule}` is drawn once a story and stays the same
//! afterwards; `{a rule}` puts "a" or "an" before it, `{the rule}` turns its article into "the", and a capital letter
//! (`{H.he}`, `{A rule}`) starts a sentence. `@rule = x | y` gives a rule; `@p, q = x ; y | z ; w` gives several that
//! are drawn together. `{h}` and `{f}` are hero and friend, with `.he .him .his .kind .near .who`.

use std::collections::HashMap;

use super::cast::{Character, Role, draw};
use crate::base::Rng;

/// A piece of a template.
#[derive(Debug)]
enum Node {
    Text(String),
    Slot { key: String, article: Article, capital: bool },
    Choice(Vec<Vec<Node>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Article {
    AsIs,
    Indefinite,
    Definite,
}

/// Names drawn together, and for each alternative one template a name.
#[derive(Debug)]
struct Rule {
    names: Vec<String>,
    alternatives: Vec<Vec<Vec<Node>>>,
}

/// One parsed plot.
#[derive(Debug)]
pub(super) struct Plot {
    pub name: String,
    hero: Role,
    friend: Role,
    rules: Vec<Rule>,
    paragraphs: Vec<Vec<Node>>,
}

/// All plots, and the rules they share.
#[derive(Debug)]
pub(super) struct Grammar {
    rules: Vec<Rule>,
    pub plots: Vec<Plot>,
}

impl Grammar {
    /// Parses the shared words and the plot files.
    pub fn parse(words: &str, plot_files: &[&str]) -> Result<Grammar, String> {
        let (rules, rest) = parse_rules(words)?;
        if !rest.trim().is_empty() {
            return Err(format!("the words hold something that is no rule: {rest}"));
        }
        let mut plots = Vec::new();
        for file in plot_files {
            for section in file.split("\n== ").skip(1) {
                plots.push(parse_plot(section)?);
            }
        }
        Ok(Grammar { rules, plots })
    }

    /// Tells one story of the plot with this number.
    pub fn tell(&self, plot: usize, rng: &mut Rng) -> Result<String, String> {
        let plot = &self.plots[plot];
        let (hero, friend) = draw(rng, plot.hero, plot.friend);
        let mut teller = Teller { grammar: self, plot, hero, friend, bound: HashMap::new(), rng };
        let mut story = String::new();
        for paragraph in &plot.paragraphs {
            let mut text = String::new();
            teller.expand(paragraph, &mut text)?;
            if !story.is_empty() {
                story.push_str("\n\n");
            }
            tidy(&text, &mut story);
        }
        Ok(story)
    }
}

/// Joins the words of each line with single spaces; an alternative left empty leaves two. Lines stay lines.
fn tidy(text: &str, into: &mut String) {
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    into.push_str(&lines.join("\n"));
}

struct Teller<'a> {
    grammar: &'a Grammar,
    plot: &'a Plot,
    hero: Character,
    friend: Character,
    bound: HashMap<&'a str, String>,
    rng: &'a mut Rng,
}

impl<'a> Teller<'a> {
    fn expand(&mut self, nodes: &'a [Node], out: &mut String) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Choice(options) => {
                    let pick = self.rng.below(options.len());
                    self.expand(&options[pick], out)?;
                }
                Node::Slot { key, article, capital } => {
                    let value = with_article(&self.value(key)?, *article);
                    match value.chars().next() {
                        Some(first) if *capital => {
                            out.push(first.to_ascii_uppercase());
                            out.push_str(&value[first.len_utf8()..]);
                        }
                        _ => out.push_str(&value),
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&mut self, key: &str) -> Result<String, String> {
        if let Some(value) = self.bound.get(key) {
            return Ok(value.clone());
        }
        let (who, field) = key.split_once('.').unwrap_or((key, ""));
        let character = match who {
            "h" => Some(&self.hero),
            "f" if self.plot.friend != Role::None => Some(&self.friend),
            _ => None,
        };
        if let Some(text) = character.and_then(|c| c.field(field)) {
            return Ok(text);
        }
        let (grammar, plot) = (self.grammar, self.plot);
        let rule = plot
            .rules
            .iter()
            .chain(&grammar.rules)
            .find(|rule| rule.names.iter().any(|name| name == key))
            .ok_or_else(|| format!("plot {}: nothing is called {{{key}}}", plot.name))?;
        let alternative = &rule.alternatives[self.rng.below(rule.alternatives.len())];
        for (name, template) in rule.names.iter().zip(alternative) {
            let mut text = String::new();
            self.expand(template, &mut text)?;
            self.bound.insert(name, text);
        }
        Ok(self.bound[key].clone())
    }
}

fn with_article(value: &str, article: Article) -> String {
    match article {
        Article::AsIs => value.to_string(),
        Article::Indefinite => {
            let vowel = value.starts_with(['a', 'e', 'i', 'o', 'u']);
            format!("{} {value}", if vowel { "an" } else { "a" })
        }
        Article::Definite => {
            let bare = value.strip_prefix("a ").or_else(|| value.strip_prefix("an ")).unwrap_or(value);
            format!("the {bare}")
        }
    }
}

fn parse_plot(section: &str) -> Result<Plot, String> {
    let (head, body) = section.split_once('\n').ok_or("a plot without a body")?;
    let (name, roles) = head.split_once(':').ok_or_else(|| format!("plot {head}: no roles"))?;
    let role = |who: &str| {
        let word = roles.split(',').find_map(|r| r.trim().strip_prefix(who)).map(str::trim);
        match word {
            Some("any") => Ok(Role::Any),
            Some("child") => Ok(Role::Child),
            Some("animal") => Ok(Role::Animal),
            Some("none") => Ok(Role::None),
            other => Err(format!("plot {name}: {who} is {other:?}")),
        }
    };
    let (hero, friend) = (role("hero")?, role("friend")?);
    let (rules, text) = parse_rules(body)?;
    let paragraphs =
        text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()).map(parse_template).collect::<Result<_, _>>()?;
    Ok(Plot { name: name.trim().to_string(), hero, friend, rules, paragraphs })
}

/// Takes the rules (`@` lines with their indented continuations) out of a text; comments (`#`) vanish.
fn parse_rules(text: &str) -> Result<(Vec<Rule>, String), String> {
    let (mut sources, mut rest): (Vec<String>, String) = (Vec::new(), String::new());
    let mut in_rule = false;
    for line in text.lines() {
        if let Some(rule) = line.strip_prefix('@') {
            sources.push(rule.to_string());
            in_rule = true;
        } else if let (true, true, Some(last)) = (in_rule, line.starts_with(' '), sources.last_mut()) {
            last.push_str(line);
        } else {
            in_rule = false;
            if !line.starts_with('#') {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    Ok((sources.iter().map(|s| parse_rule(s)).collect::<Result<_, _>>()?, rest))
}

fn parse_rule(source: &str) -> Result<Rule, String> {
    let (names, alternatives) = source.split_once('=').ok_or_else(|| format!("rule @{source} has no ="))?;
    let names: Vec<String> = names.split(',').map(|n| n.trim().to_string()).collect();
    let alternatives = split_outside(alternatives, '|')
        .into_iter()
        .map(|alternative| {
            let parts = if names.len() == 1 { vec![alternative] } else { split_outside(alternative, ';') };
            if parts.len() != names.len() {
                return Err(format!("rule @{} wants {} parts: {alternative}", names.join(", "), names.len()));
            }
            parts.into_iter().map(|part| parse_template(part.trim())).collect()
        })
        .collect::<Result<_, _>>()?;
    Ok(Rule { names, alternatives })
}

/// Splits at a separator that stands outside of all brackets.
fn split_outside(text: &str, separator: char) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_template(text: &str) -> Result<Vec<Node>, String> {
    let (mut nodes, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let open = rest.find(['[', '{']).unwrap_or(rest.len());
        if open > 0 {
            nodes.push(Node::Text(rest[..open].to_string()));
            rest = &rest[open..];
        } else if rest.starts_with('{') {
            let end = rest.find('}').ok_or_else(|| format!("an open brace in: {text}"))?;
            nodes.push(parse_slot(&rest[1..end]));
            rest = &rest[end + 1..];
        } else {
            let end = closing_bracket(rest).ok_or_else(|| format!("an open bracket in: {text}"))?;
            let options = split_outside(&rest[1..end], '|');
            nodes.push(Node::Choice(options.into_iter().map(parse_template).collect::<Result<_, _>>()?));
            rest = &rest[end + 1..];
        }
    }
    Ok(nodes)
}

fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        (depth == 0).then_some(at)
    })
}

fn parse_slot(slot: &str) -> Node {
    let capital = slot.starts_with(|c: char| c.is_ascii_uppercase());
    let lower = slot.to_ascii_lowercase();
    let (article, key) = match lower.split_once(' ') {
        Some(("a", key)) => (Article::Indefinite, key.to_string()),
        Some(("the", key)) => (Article::Definite, key.to_string()),
        _ => (Article::AsIs, lower),
    };
    Node::Slot { key, article, capital }
}
