//! Perplexity of a text by a window that slides over it, as `transformers` describes it ("Perplexity of fixed-length
//! models"): the window moves on by `stride` tokens, and of each window only those count that none before held.

use crate::data::{StreamDecoder, Tokenizer};
use crate::error::{Error, Result};
use crate::infer::{Passage, Scorer};
use serde::Serialize;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens that the model sees at once.
    pub context: usize,
    /// Tokens between the beginnings of two windows: every scored token has at least `context - stride` before it, but
    /// those of the first window. At `context` itself windows do not overlap, and the first token of each is not scored;
    /// neither do its bytes and words count.
    pub stride: usize,
}

impl Windows {
    /// # Errors
    /// If a model of so many tokens cannot see such a window, or the window would not move or leave gaps.
    pub fn check(self, most: usize) -> Result<()> {
        let Windows { context, stride } = self;
        if context < 2 || context > most {
            return Err(Error::Invalid(format!(
                "a window of {context} tokens cannot be used: with this model --context is 2 to {most}"
            )));
        }
        if stride == 0 || stride > context {
            return Err(Error::Invalid(format!(
                "a window of {context} tokens cannot move by {stride}: --stride is 1 to {context}"
            )));
        }
        Ok(())
    }

    /// Windows over so many tokens: begin, end, and the first token that counts.
    pub fn over(self, tokens: usize) -> Vec<(usize, usize, usize)> {
        let (mut windows, mut scored) = (Vec::new(), 1);
        for begin in (0..tokens).step_by(self.stride) {
            let end = tokens.min(begin + self.context);
            let first = scored.max(begin + 1);
            if first < end {
                windows.push((begin, end, first));
            }
            scored = end;
            if end == tokens {
                break;
            }
        }
        windows
    }
}

/// What a text costs a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Bytes of the text that these tokens are.
    pub bytes: usize,
    /// Words of the text, parted by white space, that begin in these tokens.
    pub words: usize,
    /// Sum of -ln p over the tokens.
    pub nats: f64,
    /// exp(nats / tokens).
    pub perplexity: f64,
    /// Standard error of the perplexity, as if tokens were independent; of a single one it cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_stderr: Option<f64>,
    /// nats / ln 2 / bytes.
    pub bits_per_byte: f64,
    /// exp(nats / words).
    pub word_perplexity: f64,
    /// The window.
    pub context: usize,
    /// What it moved by.
    pub stride: usize,
}

/// Scores a text, or its first `limit` windows. `progress` hears how many windows of how many are done.
///
/// # Errors
/// If the text has fewer than two tokens, the windows do not fit the model, or the device failed.
pub async fn perplexity(
    scorer: &mut Scorer,
    tokenizer: &Tokenizer,
    text: &str,
    windows: Windows,
    limit: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    windows.check(scorer.model().config().max_context())?;
    let tokens = tokenizer.encode_prompt(text)?;
    let mut parts = windows.over(tokens.len());
    let all = parts.len();
    parts.truncate(limit.unwrap_or(usize::MAX));
    let Some(&(_, end, _)) = parts.last() else {
        return Err(Error::Invalid(format!(
            "the text has {} tokens; two are the least that can be scored",
            tokens.len()
        )));
    };
    let passage = |&(begin, end, first): &(usize, usize, usize)| Passage {
        tokens: tokens[begin..end].to_vec(),
        from: first - begin,
    };
    let passages: Vec<Passage> = parts.iter().map(passage).collect();
    let scores = scorer.score(&passages, progress).await?;
    // Without the tokens after the last window, the text is shorter.
    let part = if parts.len() < all { tokenizer.decode(&tokens[..end])? } else { text.to_string() };
    let nats: Vec<f64> = scores.iter().flatten().map(|s| -s.log_prob).collect();
    let (bytes, words) = unscored(tokenizer, &tokens[..end], &parts)?;
    let words = part.split_whitespace().count().saturating_sub(words);
    Ok(Perplexity::of(&nats, part.len().saturating_sub(bytes), words, windows))
}

/// Bytes of the tokens that no window scores, and words that begin in them.
fn unscored(tokenizer: &Tokenizer, tokens: &[u32], windows: &[(usize, usize, usize)]) -> Result<(usize, usize)> {
    let mut scored = vec![false; tokens.len()];
    windows.iter().for_each(|&(_, end, first)| scored[first..end].fill(true));
    let mut stream = StreamDecoder::new(tokenizer, &[]);
    let (mut bytes, mut words, mut apart) = (0, 0, true);
    for (&token, scored) in tokens.iter().zip(scored) {
        let piece = stream.push(token)?;
        bytes += if scored { 0 } else { piece.len() };
        for c in piece.chars() {
            words += usize::from(apart && !c.is_whitespace() && !scored);
            apart = c.is_whitespace();
        }
    }
    Ok((bytes, words))
}

impl Perplexity {
    fn of(nats: &[f64], bytes: usize, words: usize, windows: Windows) -> Perplexity {
        let (tokens, sum) = (nats.len(), nats.iter().sum::<f64>());
        let mean = sum / tokens as f64;
        Perplexity {
            tokens,
            bytes,
            words,
            nats: sum,
            perplexity: mean.exp(),
            // The error of a function is that of its argument times its slope.
            perplexity_stderr: super::harness::standard_error(nats).map(|error| mean.exp() * error),
            bits_per_byte: sum / std::f64::consts::LN_2 / bytes as f64,
            word_perplexity: (sum / words as f64).exp(),
            context: windows.context,
            stride: windows.stride,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_of_the_documentation() {
        // transformers: max_length 4, stride 2, ten tokens.
        let windows = Windows { context: 4, stride: 2 }.over(10);
        assert_eq!(windows, [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 10, 8)]);
        assert_eq!(Windows { context: 4, stride: 4 }.over(10), [(0, 4, 1), (4, 8, 5), (8, 10, 9)]);
        assert_eq!(Windows { context: 4, stride: 4 }.over(9), [(0, 4, 1), (4, 8, 5)]);
        assert_eq!(Windows { context: 4, stride: 1 }.over(3), [(0, 3, 1)]);
        assert_eq!(Windows { context: 4, stride: 1 }.over(1), []);
    }

    proptest! {
        #[test]
        fn each_token_counts_once_with_enough_before_it(tokens in 0usize..200, context in 2usize..40, part in 0usize..40) {
            let stride = 1 + part % context;
            let mut counted = vec![0; tokens];
            for (begin, end, first) in (Windows { context, stride }).over(tokens) {
                prop_assert!(begin < first && first < end && end <= tokens && end - begin <= context);
                prop_assert!(begin == 0 || first - begin >= (context - stride).max(1));
                counted[first..end].iter_mut().for_each(|c| *c += 1);
            }
            for (token, count) in counted.into_iter().enumerate() {
                let alone = token == 0 || (stride == context && token % stride == 0);
                prop_assert_eq!(count, usize::from(!alone), "token {}", token);
            }
        }
    }

    #[test]
    fn windows_that_cannot_be() {
        for (context, stride, message) in [
            (0, 0, "a window of 0 tokens cannot be used: with this model --context is 2 to 8"),
            (100_000, 50_000, "a window of 100000 tokens cannot be used: with this model --context is 2 to 8"),
            (8, 0, "a window of 8 tokens cannot move by 0: --stride is 1 to 8"),
            (4, 5, "a window of 4 tokens cannot move by 5: --stride is 1 to 4"),
        ] {
            assert_eq!(Windows { context, stride }.check(8).unwrap_err().to_string(), message);
        }
        Windows { context: 8, stride: 8 }.check(8).unwrap();
    }

    /// Beginning of text, and then a token a byte: what is scored of each text, and what is not.
    #[test]
    fn bytes_and_words_are_those_of_scored_tokens() {
        let tokenizer = Tokenizer::train(["a"].iter(), 257).unwrap();
        for (text, stride, bytes, words) in [
            // ^on |two|: "t" begins the second window.
            ("on two", 4, 1, 1),
            ("on two", 3, 0, 0),
            // ^one| two|: a space does.
            ("one two", 4, 1, 0),
            // ^aé| b: "é" is two tokens, and its second half begins no window.
            ("aé b", 4, 1, 0),
            // ^abé : "é" is whole with its second half, which begins one.
            ("abé cd", 4, 2, 0),
        ] {
            let tokens = tokenizer.encode_prompt(text).unwrap();
            assert_eq!(tokens.len(), text.len() + 1);
            let windows = Windows { context: 4, stride }.over(tokens.len());
            assert_eq!(unscored(&tokenizer, &tokens, &windows).unwrap(), (bytes, words), "{text:?} by {stride}");
        }
    }

    #[test]
    fn sums() {
        let p = Perplexity::of(&[1.0, 2.0, 3.0], 9, 2, Windows { context: 4, stride: 2 });
        assert_eq!((p.tokens, p.words, p.bytes, p.nats), (3, 2, 9, 6.0));
        assert!((p.perplexity - 2f64.exp()).abs() < 1e-12);
        assert!((p.perplexity_stderr.unwrap() - 2f64.exp() / 3f64.sqrt()).abs() < 1e-12);
        let one = Perplexity::of(&[1.0], 3, 1, Windows { context: 4, stride: 2 });
        assert_eq!(one.perplexity_stderr, None, "of one token nothing is known of the deviation");
        assert!((p.bits_per_byte - 6.0 / 2f64.ln() / 9.0).abs() < 1e-12);
        assert!((p.word_perplexity - 3f64.exp()).abs() < 1e-12);
    }
}
