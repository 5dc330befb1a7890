//! The training loop: steps, validation, samples, what is told about them, and what is saved.

mod recipe;

pub use recipe::Recipe;
