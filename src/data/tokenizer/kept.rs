//! Tokenizers that were trained here and are kept: the same texts and size give the same one, and training takes seconds.

use std::path::Path;

use tokenizers::Tokenizer as Inner;

use super::{MOST_BYTES, Tokenizer};
use crate::base::read_bytes;
use crate::data::corpus::Corpus;
use crate::data::hash::{Hasher, hash};
use crate::error::{Error, Result};
use crate::store::atomic::write_file;

/// At most this much of the texts is trained on, spread over all of them.
const SAMPLE: u64 = 16 << 20;

/// Raised when the same texts come to give another tokenizer: those that were kept before are then trained anew.
const TRAINING: u64 = 1;

impl Tokenizer {
    /// [`Tokenizer::train`] on samples of these corpora, each of the same size; or what that gave before, from `folder`, where
    /// it is unharmed.
    ///
    /// # Errors
    /// Those of [`Tokenizer::train`] and of the corpora.
    pub fn cached(folder: &Path, corpora: &[&Corpus], vocab_size: usize) -> Result<Tokenizer> {
        let mut hasher = Hasher::new();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        let contents = corpora.iter().map(|corpus| corpus.content_hash());
        for word in [TRAINING, SAMPLE, vocab_size as u64].into_iter().chain(contents) {
            hasher.update(&word.to_le_bytes());
        }
        let path = folder.join(format!("{:016x}.tokenizer", hasher.finish()));
        if let Some(kept) = read_bytes(&path, MOST_BYTES).ok().and_then(|bytes| unpack(&bytes)) {
            return Ok(kept);
        }
        let share = SAMPLE / corpora.len().max(1) as u64;
        let samples = corpora.iter().map(|corpus| corpus.sample(share)).collect::<Result<Vec<_>>>()?;
        let trained = Tokenizer::train(samples.into_iter().flatten(), vocab_size)?;
        let made = std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e));
        if let Err(error) = made.and_then(|()| write_file(&path, &pack(&trained)?)) {
            tracing::warn!("the tokenizer was not kept, and is trained again at the next start: {error}");
        }
        Ok(trained)
    }
}

/// The tokenizer.json behind its hash.
fn pack(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let text = tokenizer.inner.to_string(false).map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
    Ok([&hash(text.as_bytes()).to_le_bytes(), text.as_bytes()].concat())
}

/// What [`pack`] has written, unharmed.
fn unpack(bytes: &[u8]) -> Option<Tokenizer> {
    let (sum, text) = bytes.split_first_chunk()?;
    let inner = (u64::from_le_bytes(*sum) == hash(text)).then(|| Inner::from_bytes(text).ok())?;
    Tokenizer::of_trained(inner?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_trained_and_nothing_else_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (corpus, other) = (Corpus::stories(1, 200), Corpus::stories(2, 200));
        let cached = |corpora: &[&Corpus], size| Tokenizer::cached(folder.path(), corpora, size).unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        let trained = cached(&[&corpus], 600);
        // Where training gives another one, as another version of its library may, TRAINING is to be raised.
        assert_eq!(trained.content_hash(), 0x4483_2ea1_1850_cc96);
        let made = files();
        assert_eq!(made.len(), 1);
        let path = &made[0];
        let whole = std::fs::read(path).unwrap();
        let kept = unpack(&whole).unwrap();
        let text = corpus.sample(1000).unwrap().concat();
        assert_eq!(kept.encode_prompt(&text).unwrap(), trained.encode_prompt(&text).unwrap());
        assert_eq!(kept.files(8).unwrap(), trained.files(8).unwrap());
        let said = |t: &Tokenizer| (t.content_hash(), t.bos(), t.eos(), t.vocab_size(), t.document_prefix());
        assert_eq!(said(&kept), said(&trained));
        // It is read: a file in its place is what comes.
        std::fs::write(path, pack(&cached(&[&corpus], 500)).unwrap()).unwrap();
        assert_eq!(cached(&[&corpus], 600).vocab_size(), 500);
        // Another text, another size and several texts are others; one that is damaged is trained anew.
        let hashes = [cached(&[&other], 600), cached(&[&corpus, &other], 600)].map(|t| t.content_hash());
        assert!(hashes[0] != hashes[1] && !hashes.contains(&trained.content_hash()));
        assert_eq!(files().len(), 4);
        for at in [0, 8, whole.len() / 2, whole.len() - 1] {
            let mut hurt = whole.clone();
            hurt[at] ^= 1;
            std::fs::write(path, &hurt).unwrap();
            assert_eq!(said(&cached(&[&corpus], 600)), said(&trained), "byte {at}");
            assert_eq!(std::fs::read(path).unwrap(), whole);
        }
        // Where nothing can be kept it is trained all the same.
        assert_eq!(said(&Tokenizer::cached(path, &[&corpus], 600).unwrap()), said(&trained));
    }
}
