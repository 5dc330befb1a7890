//! Just enough of GGUF for these tests: the metadata, by the format's description.

use super::Vocabulary;
use std::collections::HashMap;

enum Value {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<u64>),
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn number(&mut self, size: usize) -> u64 {
        let (now, rest) = self.0.split_at(size);
        self.0 = rest;
        now.iter().rev().fold(0, |n, &b| (n << 8) | u64::from(b))
    }

    fn text(&mut self) -> String {
        let length = self.number(8) as usize;
        let (now, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8(now.to_vec()).unwrap()
    }

    fn value(&mut self, kind: u64) -> Value {
        let size = |kind: u64| match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        match kind {
            8 => Value::Text(self.text()),
            9 => {
                let (kind, count) = (self.number(4), self.number(8));
                match kind {
                    8 => Value::Texts((0..count).map(|_| self.text()).collect()),
                    kind => Value::Numbers((0..count).map(|_| self.number(size(kind))).collect()),
                }
            }
            kind => Value::Number(self.number(size(kind))),
        }
    }
}

pub(super) fn read(path: &std::path::Path) -> Vocabulary {
    let file = std::fs::read(path).unwrap();
    let mut bytes = Bytes(&file[16..]);
    let count = bytes.number(8);
    let mut keys: HashMap<String, Value> = HashMap::new();
    for _ in 0..count {
        let key = bytes.text();
        let kind = bytes.number(4);
        keys.insert(key, bytes.value(kind));
    }
    let mut take = |key: &str| keys.remove(&format!("tokenizer.{key}"));
    let mut text = |key: &str| take(key).map(|v| if let Value::Text(t) = v { t } else { panic!("{key}") });
    let (model, pre, chat_template) = (text("ggml.model").unwrap(), text("ggml.pre"), text("chat_template"));
    let mut texts = |key: &str| take(key).map_or(vec![], |v| if let Value::Texts(t) = v { t } else { panic!("{key}") });
    let (tokens, merges) = (texts("ggml.tokens"), texts("ggml.merges"));
    let mut list =
        |key: &str| take(key).map_or(vec![], |v| if let Value::Numbers(t) = v { t } else { panic!("{key}") });
    let scores = list("ggml.scores").into_iter().map(|bits| f32::from_bits(bits as u32)).collect();
    let types = list("ggml.token_type").into_iter().map(|kind| kind as i32).collect();
    let mut number = |key: &str| take(key).map(|v| if let Value::Number(n) = v { n as u32 } else { panic!("{key}") });
    Vocabulary {
        model,
        pre,
        tokens,
        scores,
        types,
        merges,
        bos: number("ggml.bos_token_id"),
        eos: number("ggml.eos_token_id"),
        eot: number("ggml.eot_token_id"),
        unknown: number("ggml.unknown_token_id"),
        add_bos: number("ggml.add_bos_token").map(|n| n != 0),
        add_eos: number("ggml.add_eos_token").map(|n| n != 0),
        add_space_prefix: number("ggml.add_space_prefix").map(|n| n != 0),
        special_strips_right: false,
        chat_template,
    }
}
