//! Copies in f16 of the weights that products round: made of the parameters before the first step, kept up by the update that
//! changes these, in the same dispatch, and read by the products in their place, which then load half the bytes and have nothing
//! to round.
//!
//! A copy is what its page rounds to, always: no checkpoint holds it. With the same kernels no product depends on whether there is
//! one, where an adapter reads small f16 as they are; but the kernel which is chosen for a weight in f16 may be another, which sums in
//! another order. So does the norm of what an update changed in a page with padding, which is for people to read. A parameter that
//! is no number is infinite in its copy (`lib/halves.wgsl`).

use super::{Optimizer, Rule, Update};
use crate::base::{Axis, DType, Limits, TensorType};
use crate::compile::expanded;
use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids, operator};
use crate::graph::{Graph, Kind, NodeId, Slice, Value};
use crate::model::{EMBEDDING, OUTPUT};
use crate::nn::{PARAMETERS, ParamLayout, ParamSpec, Parts};
use crate::ops::{COPIES, Cast, MatMul};
use std::ops::Range;
use std::sync::Arc;

/// The states `half.<page>` hold copies of pages.
const HALVES: &str = "half";

impl Optimizer {
    /// Which elements of a page of parameters are there in f16 as well: from one matrix that products round to the end of another
    /// or the same, so that as many more are of such matrices than between them as can be. One that is copied saves four bytes a batch
    /// and costs two a step; what lies between, such as a table that is only looked up, costs as much and saves nothing. None of
    /// experts, whose products are strict; none of a page that ranks share out, who each change a part of it; none of one where such a
    /// matrix has rows of no pairs, or begins where no binding of two bytes an element can; and with moments of eight bits none of one
    /// with padding, whose table has the binding that a copy would want.
    pub fn copied(&self, layout: &ParamLayout, page: usize) -> Option<Range<usize>> {
        let (place, specs) = (layout.pages().get(page)?, layout.specs());
        let is_shared = layout.sharers_of(page).along.ranks > 1;
        let has_no_binding = self.rule == Rule::AdamW8bit && !place.gaps.is_empty();
        if !self.copies || self.update == Update::Layer || is_shared || has_no_binding {
            return None;
        }
        // A table that is the output as well is multiplied where the last layers are.
        let is_last = |parts: &Parts| {
            let (mesh, axis) = (parts.mesh, Axis::Pipeline);
            mesh.place(parts.rank, axis) + 1 == mesh.size(axis)
        };
        let is_tied = !layout.parts().map_or(specs, Parts::whole).iter().any(|spec| spec.name == OUTPUT);
        let is_tied = is_tied && layout.parts().is_none_or(is_last);
        let is_rounded = |spec: &ParamSpec| {
            let is_matrix = spec.decay && spec.shape.rank() == 2 && !spec.is_expert();
            is_matrix && (spec.name != EMBEDDING || is_tied)
        };
        // The best that ends with this matrix, and the best of all, each with how many more elements are rounded than not.
        let (mut last, mut best) = ((0, 0..0), (0, 0..0));
        for (spec, &start) in specs[place.params.clone()].iter().zip(&place.starts).filter(|(spec, _)| is_rounded(spec))
        {
            if !start.is_multiple_of(COPIES) || !spec.shape.last().is_multiple_of(2) {
                return None;
            }
            let end = (start + spec.shape.elements()).next_multiple_of(4);
            let (more, range) = last;
            let between = start - range.end;
            let (more, first) = if more > between { (more - between, range.start) } else { (0, start) };
            last = (more + end - start, first..end);
            if last.0 > best.0 {
                best = last.clone();
            }
        }
        (best.0 > 0).then_some(best.1)
    }

    /// Whether a state of the optimizer's graphs is a copy, which follows from the parameters.
    pub fn is_copy(state: &str) -> bool {
        state.split_once('.').is_some_and(|(name, _)| name == HALVES)
    }

    /// The copy of a page, where there is one, and the first element that it is of.
    pub(super) fn copy(&self, g: &mut Graph, layout: &ParamLayout, page: usize) -> Option<(usize, Value)> {
        let copied = self.copied(layout, page)?;
        let ty = TensorType { shape: [copied.len()].into(), dtype: DType::F16 };
        Some((copied.start, g.state(&format!("{HALVES}.{page}"), ty)))
    }

    /// The graph that makes all copies of the parameters; none where there are no copies.
    ///
    /// # Errors
    /// If a copy does not fit its page, which would be a bug.
    pub fn make_copies(&self, layout: &ParamLayout) -> Result<Option<Graph>> {
        let mut g = Graph::new();
        for (i, page) in layout.pages().iter().enumerate() {
            if let Some((start, copy)) = self.copy(&mut g, layout, i) {
                let p = g.state(&format!("{PARAMETERS}.{i}"), TensorType::f32([page.elements]));
                g.scope(format!("copy.{i}"), |g| g.apply(Cast { start }, &[copy, p]))?;
            }
        }
        Ok((!g.nodes().is_empty()).then_some(g))
    }

    /// A graph of training whose products of f16 operands read copies of weights in the place of these, as far as there are any. It
    /// has no composite operators any more: they are expanded for an adapter with these limits.
    ///
    /// # Errors
    /// As [`expanded`].
    pub fn read_copies(&self, graph: &Graph, layout: &ParamLayout, limits: &Limits) -> Result<Graph> {
        if (0..layout.pages().len()).all(|page| self.copied(layout, page).is_none()) {
            return Ok(graph.clone());
        }
        let graph = expanded(graph, limits)?;
        let mut rewrite = Rewrite::new(&graph);
        for id in ids(&graph) {
            let node = graph.node(id);
            let part = self.in_copy(&graph, layout, id);
            let copy = part.and_then(|(page, start)| Some((self.copy(&mut rewrite.new, layout, page)?.1, start)));
            if let (Some(op), Some((copy, start))) = (node.op(), copy) {
                let (x, weight) = (rewrite.value(node.inputs[0]), node.inputs[1]);
                let view = Slice { start, shape: graph.ty(weight).shape.clone() };
                let name = format!("{}.half", graph.node(weight.node).name);
                let half = rewrite.new.apply_named(Arc::new(view), &[copy], name)?[0];
                let outputs = rewrite.new.apply_named(op.clone(), &[x, half], node.name.clone())?;
                rewrite.set(id, &outputs);
            } else if matches!(node.kind, Kind::State) {
                // It may be there already.
                let state = rewrite.new.state(&node.name, node.outputs[0].clone());
                rewrite.set(id, &[state]);
            } else {
                rewrite.copy(id)?;
            }
        }
        Ok(rewrite.finish())
    }

    /// Of a product that rounds a weight of which there is a copy: the page, and where in the copy the weight begins.
    fn in_copy(&self, graph: &Graph, layout: &ParamLayout, product: NodeId) -> Option<(usize, usize)> {
        operator::<MatMul>(graph, product).filter(|product| product.operands.are_half())?;
        let weight = graph.node(product).inputs[1];
        let (page, start) = in_page(graph, weight)?;
        let (copied, shape) = (self.copied(layout, page)?, &graph.ty(weight).shape);
        let first = start.checked_sub(copied.start)?;
        let is_inside = start + shape.elements() <= copied.end;
        (is_inside && first.is_multiple_of(COPIES) && shape.last().is_multiple_of(2)).then_some((page, first))
    }
}

/// Which page of parameters a value is a view of, and from which element on.
fn in_page(graph: &Graph, value: Value) -> Option<(usize, usize)> {
    if let Some(slice) = operator::<Slice>(graph, value.node) {
        let (page, start) = in_page(graph, graph.node(value.node).inputs[0])?;
        return Some((page, start + slice.start));
    }
    let node = graph.node(value.node);
    let page = node.name.strip_prefix(PARAMETERS)?.strip_prefix('.')?.parse().ok()?;
    matches!(node.kind, Kind::State).then_some((page, 0))
}
