//! One step's tokens, what they are to predict, and where the documents of packed rows begin.
//! Legend: B rows, T tokens a row.

/// The target of a token that predicts nothing: the one that `ops::CrossEntropyLoss` leaves out.
pub const IGNORE: u32 = crate::ops::IGNORE;

/// `[B,T]` of everything, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Tokens per row, T.
    pub seq: usize,
    /// The tokens, u32 `[B,T]`; 0 where a row is filled up.
    pub tokens: Vec<u32>,
    /// For each token the one after it, u32 `[B,T]`, or [`IGNORE`] where none is to be predicted.
    pub targets: Vec<u32>,
    /// For each token the index in its row at which its document begins, u32 `[B,T]`: rows of several documents.
    /// All 0 for a row that is one document, or a window of running text.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Room for `batch` rows of `seq` tokens.
    pub fn new(batch: usize, seq: usize) -> Batch {
        let all = || vec![0; batch * seq];
        Batch { seq, tokens: all(), targets: all(), starts: all() }
    }

    /// Makes room for rows of `seq` tokens, as many as there are, whose content is then to be filled.
    pub(super) fn reshape(&mut self, seq: usize) {
        let all = self.rows() * seq;
        self.seq = seq;
        [&mut self.tokens, &mut self.targets, &mut self.starts].into_iter().for_each(|part| part.resize(all, 0));
    }

    /// Rows, B.
    pub fn rows(&self) -> usize {
        self.tokens.len() / self.seq.max(1)
    }

    /// How many targets count: what a mean over this batch is weighted by among others.
    pub fn counted(&self) -> u64 {
        self.targets.iter().filter(|&&target| target != IGNORE).count() as u64
    }

    /// Row `b`, to be filled.
    pub(super) fn row(&mut self, b: usize) -> Row<'_> {
        let range = b * self.seq..(b + 1) * self.seq;
        Row {
            tokens: &mut self.tokens[range.clone()],
            targets: &mut self.targets[range.clone()],
            starts: &mut self.starts[range],
        }
    }
}

/// One row of a batch, `[T]` each.
pub(super) struct Row<'a> {
    pub tokens: &'a mut [u32],
    pub targets: &'a mut [u32],
    pub starts: &'a mut [u32],
}
