//! Graph → [`Plan`]: expand composites, drop what nobody wants, fuse, pick kernels, lay out memory. Pure functions; no
//! device is touched.

mod expand;
mod flight;
mod fuse;
mod fused;
mod halve;
mod join;
mod join_grad;
mod layout;
mod lower;
mod memory;
mod onto;
mod pair;
mod place;
mod plan;
mod print;
mod prune;
mod recompute;

pub use flight::Phase;
pub use layout::fits_buffer;
pub use lower::{Chooser, First, Learning, settle};
pub use memory::{Block, Region, Span, pack};
pub use plan::{Binding, BufferKind, BufferSpec, Meeting, Plan, PlanDispatch, Sent, Step, Tenant, Totals, Wire};
pub use print::human_bytes;
pub use recompute::{Again, Trade, recompute};

use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, rewrite};

/// Compiles a graph for an adapter with these limits; `chooser` picks among the candidates of each step.
///
/// # Errors
/// If an operator has no kernel here, or a tensor fits no buffer of the adapter.
pub fn compile(graph: &Graph, limits: &Limits, chooser: &mut dyn Chooser) -> Result<Plan> {
    compile_steps(&optimise(graph, limits)?, limits, chooser)
}

/// The other half: a graph of [`optimise`] or [`recompute`] to its plan.
///
/// # Errors
/// As [`compile`].
pub fn compile_steps(graph: &Graph, limits: &Limits, chooser: &mut dyn Chooser) -> Result<Plan> {
    let places = place::place(graph)?;
    lower::lower(graph, &places, limits, chooser)
}

/// The graph-to-graph half of [`compile`]: what remains are the steps of the plan, in order.
///
/// # Errors
/// As [`compile`].
pub fn optimise(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let graph = prune::prune(&expanded(graph, limits)?)?;
    let graph = join::join(&graph, limits)?;
    let graph = join_grad::join_gradients(&graph, limits)?;
    let graph = prune::prune(&graph)?;
    let graph = fuse::fuse(&graph, limits)?;
    let graph = onto::add_onto(&graph, limits)?;
    let graph = prune::prune(&graph)?;
    let graph = pair::pair(&graph, limits)?;
    let graph = fuse::fuse_pairs(&graph, limits)?;
    let graph = prune::prune(&graph)?;
    halve::halve(&place::own_members(&graph)?, limits)
}

/// A graph with the parts of composite operators in their place, which is where [`optimise`] begins.
///
/// # Errors
/// If parts do not fit, which would be a bug of the operator.
pub fn expanded(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let mut graph = graph.clone();
    while let Some(expanded) = expand::expand(&graph, limits)? {
        graph = expanded;
    }
    Ok(graph)
}
