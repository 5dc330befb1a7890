//! Where a file keeps a parameter: families and formats pack, name and order their tensors each in its own way.

use std::ops::Range;

/// Rows of a stored tensor. A parameter is what its sources hold, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's name for the tensor.
    pub tensor: String,
    /// Which of its rows, counted over all dims but the innermost (a vector's rows are its elements); all without it.
    pub rows: Option<Range<usize>>,
    /// Where the rows are heads stored for interleaved rotation, as GGUF has them for some families: this many heads, in
    /// each of which row 2·i + h (h = 0, 1) is what we keep as row h·C/2 + i.
    pub interleaved_heads: Option<usize>,
}

impl Source {
    /// All of a tensor.
    pub fn whole(tensor: impl Into<String>) -> Source {
        Source { tensor: tensor.into(), rows: None, interleaved_heads: None }
    }

    /// Some rows of a tensor.
    pub fn rows(tensor: impl Into<String>, rows: Range<usize>) -> Source {
        Source { rows: Some(rows), ..Source::whole(tensor) }
    }

    /// The same, stored for interleaved rotation.
    pub fn interleaved(self, heads: usize) -> Source {
        Source { interleaved_heads: Some(heads), ..self }
    }
}
