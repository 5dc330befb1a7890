//! The library's one error type: every message says what is wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. The text of each is meant for the person who typed the command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operator refused its inputs.
    #[error("{op} at {node}: {message} (inputs: {inputs})")]
    Operator {
        /// The operator's name.
        op: &'static str,
        /// The node's path in the graph, such as `layers.3.mlp.gate`.
        node: String,
        /// The inputs' dtypes and shapes.
        inputs: String,
        /// What is wrong with them.
        message: String,
    },
    /// A graph is used in a way that it does not allow.
    #[error("graph: {0}")]
    Graph(String),
    /// A shader does not parse, validate or fit its caller. Always a bug of ours.
    #[error("shader {shader}: {message}")]
    Shader {
        /// The shader's name.
        shader: String,
        /// The validator's words.
        message: String,
    },
    /// No adapter, or none that fits.
    #[error("{0}")]
    Adapter(String),
    /// The plan needs more memory than the adapter offers.
    #[error("{what} wants {wanted} bytes and {adapter} offers {had}; {advice}")]
    Memory {
        /// What was to be placed.
        what: String,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes offered.
        had: u64,
        /// The adapter's name.
        adapter: String,
        /// What would help.
        advice: String,
    },
    /// The device failed or was lost while working.
    #[error("device: {0}")]
    Device(String),
    /// A model gave no numbers where numbers are needed.
    #[error("{0}")]
    NoNumber(String),
    /// A rank failed, left, or does other than the others.
    #[error("ranks: {0}")]
    Rank(String),
    /// What another rank found that all wanted to know, in its words.
    #[error("{0}")]
    Told(String),
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "read" or "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file holds something other than it should.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it, with line or offset.
        message: String,
    },
    /// A flag, a recipe key or an argument has a value that cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Wraps an operating-system error with what was tried and where.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// Whether what was asked for is at fault, so that asking the same again is in vain: flags, or a recipe. What a device or another
    /// rank did may go well the next time, and so may what a disk or a file server did, also where a file was not there or held
    /// something else. Some of that is met as something that is missing: whoever acts on a refusal wants it said twice.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Operator { .. } | Error::Graph(_) | Error::Shader { .. } | Error::Invalid(_))
    }

    /// Whether it is what others did, or have said of themselves: what one of them failed of says more.
    pub fn is_heard(&self) -> bool {
        matches!(self, Error::Rank(_) | Error::Told(_))
    }

    /// Says what is wrong inside a file.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }
}
