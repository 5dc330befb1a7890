//! How byte-level vocabularies in GGUF files cut a text into words before merging: `tokenizer.ggml.pre` → expressions.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// GPT-2's words (Radford et al., 2019): contractions, letters, numbers, and the rest, each with the space before it.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's words: numbers in groups of three, line ends apart.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words: Llama 3's, with every digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words also end where lower case is followed by upper case.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek-LLM's letters: those of bicameral scripts, as its tokenizer.json lists them. Written as numbers are characters
/// that Unicode's normal forms would change.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const CJK: &str = r"[一-龥ࠀ-一가-퟿]+";

/// One way of cutting.
pub(super) struct Pre {
    /// What `tokenizer.ggml.pre` may call it.
    names: &'static [&'static str],
    /// Each cuts the pieces that the ones before it left.
    cuts: &'static [&'static str],
    /// A word that is a token is taken whole, whatever the merges say.
    pub(super) ignores_merges: bool,
    /// Whether a text begins with the beginning-of-text token where the file does not say.
    pub(super) adds_bos: bool,
}

const fn pre(names: &'static [&'static str], cuts: &'static [&'static str]) -> Pre {
    Pre { names, cuts, ignores_merges: false, adds_bos: false }
}

const KNOWN: &[Pre] = &[
    pre(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    Pre { ignores_merges: true, adds_bos: true, ..pre(&["llama-bpe", "llama3", "llama-v3"], &[LLAMA3]) },
    pre(&["smaug-bpe", "dbrx"], &[LLAMA3]),
    pre(&["qwen2", "deepseek-r1-qwen", "stablelm2"], &[QWEN2]),
    pre(&["gpt-2", "olmo", "mpt"], &[GPT2]),
    pre(&["smollm", "starcoder", "refact", "command-r", "codeshell"], &[r"\p{N}", GPT2]),
    Pre { ignores_merges: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["deepseek-llm"], &["[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, r"\p{N}+"]),
    pre(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"]),
];

impl Pre {
    /// The way of this name.
    pub(super) fn named(name: &str) -> Option<&'static Pre> {
        KNOWN.iter().find(|pre| pre.names.contains(&name))
    }

    /// The name of the way that cuts by these expressions.
    pub(super) fn called(cuts: &[String], ignores_merges: bool) -> Option<&'static str> {
        let same = |pre: &&Pre| pre.cuts == cuts && pre.ignores_merges == ignores_merges;
        KNOWN.iter().find(same).or_else(|| KNOWN.iter().find(|pre| pre.cuts == cuts)).map(|pre| pre.names[0])
    }

    /// Every name, for a message.
    pub(super) fn names() -> String {
        KNOWN.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// The cuts, and then bytes as characters.
    pub(super) fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = Vec::with_capacity(self.cuts.len() + 1);
        for cut in self.cuts {
            let pattern = SplitPattern::Regex(cut.to_string());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}
