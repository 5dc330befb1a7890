//! Frequencies against those of `transformers`.
