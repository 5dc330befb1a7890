//! Danlu trains and runs LLaMA-family language models on any vendor's GPU: every number is computed by WGSL compute
//! shaders dispatched through wgpu. See ARCHITECTURE.md for the way through.

#![warn(missing_docs)]

pub mod base;
pub mod error;
pub mod gpu;
pub mod shader;
pub mod graph;
pub mod ops;
pub mod parallel;
pub mod compile;
pub mod comm;
pub mod run;
pub mod nn;
pub mod model;
pub mod store;
pub mod data;
pub mod optim;
pub mod infer;
pub mod eval;
pub mod train;
pub mod bench;
pub mod cli;

#[cfg(test)]
#[path = "../tests/common/shared.rs"]
mod shared;
