//! The operator library.

mod copy;

pub use copy::Copy;
