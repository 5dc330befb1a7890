//! What models are built of: parameters and where they lie, and layers as functions over a graph.

mod params;

pub use params::{Init, Page, ParamLayout, ParamSpec, Params};
