//! The global norm of a gradient, also of one whose parameters are in parts on several ranks: what ranks have alike counts once.

use super::optimizer::gap_constant;
use crate::base::{Axis, TensorType};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::nn::{Page, ParamLayout, Parts};
use crate::ops::{AllReduce, Along, GlobalNorm, SumParts, SumSquares};
use crate::parallel::Peers;
use std::collections::BTreeSet;

/// Inputs of one sum.
const INPUTS: usize = 7;

/// The norm `[1]` of gradients in pages, of those that ranks share out this rank's part, each with its table of gaps.
pub(super) fn of(g: &mut Graph, layout: &ParamLayout, pages: &[Value], gaps: &[Vec<Value>]) -> Result<Value> {
    let squares = |g: &mut Graph, page: Value, gaps: &[Value]| g.apply1(SumSquares, &[&[page], gaps].concat());
    let Some(parts) = layout.parts() else {
        let sums = pages.iter().zip(gaps).map(|(&page, gaps)| squares(g, page, gaps)).collect::<Result<Vec<_>>>()?;
        let sums = over_sharers(g, layout.sharers(false), sums)?;
        return g.apply1(GlobalNorm, &sums);
    };
    let classes: BTreeSet<BTreeSet<Axis>> = parts.whole().iter().map(|spec| axes(parts, &spec.name)).collect();
    let mut all = Vec::new();
    for class in classes {
        let mut own = Vec::new();
        for (i, (page, &flat)) in layout.pages().iter().zip(pages).enumerate() {
            let (gaps, left) = others(layout, page, parts, &class);
            if left {
                let part = layout.sharers_of(i).part(page.elements);
                let gaps = gap_constant(g, &Page { gaps, ..page.clone() }.gaps_in(&part));
                own.push(squares(g, flat, &gaps)?);
            }
        }
        // No page holds experts and anything else.
        let own = over_sharers(g, layout.sharers(class.contains(&Axis::Expert)), own)?;
        if class.is_empty() {
            all.extend(own);
            continue;
        }
        // A rank without any of these has to meet the others all the same.
        let mut sum = one(g, own)?;
        for axis in class {
            sum = g.apply1(AllReduce(Along { axis, ranks: parts.mesh.size(axis) }), &[sum])?;
        }
        all.push(sum);
    }
    g.apply1(GlobalNorm, &all)
}

/// Sums over all who share pages out, of what each has of its part; as they are where nobody does.
pub(super) fn over_sharers(g: &mut Graph, peers: Peers, sums: Vec<Value>) -> Result<Vec<Value>> {
    if peers.along.ranks == 1 {
        return Ok(sums);
    }
    let own = one(g, sums)?;
    Ok(vec![g.apply1(AllReduce(peers.along), &[own])?])
}

/// The axes along which squares of a parameter are added up.
fn axes(parts: &Parts, name: &str) -> BTreeSet<Axis> {
    parts.held(name).axes(parts.mesh)
}

/// The sum of sums, `[1]`.
pub(super) fn one(g: &mut Graph, mut sums: Vec<Value>) -> Result<Value> {
    if sums.is_empty() {
        let zero = TensorType::f32([1]);
        return Ok(g.constant("none", zero, 0f32.to_le_bytes().to_vec()));
    }
    while sums.len() > 1 {
        sums = sums.chunks(INPUTS).map(|some| g.apply1(SumParts { root: false }, some)).collect::<Result<_>>()?;
    }
    let is_one = g.ty(sums[0]).shape.elements() == 1;
    if is_one { Ok(sums[0]) } else { g.apply1(SumParts { root: false }, &sums) }
}

/// A page's gaps, and with them the parameters that this rank does not count in this class; and whether any are left.
fn others(layout: &ParamLayout, page: &Page, parts: &Parts, class: &BTreeSet<Axis>) -> (Vec<(usize, usize)>, bool) {
    let (mut gaps, mut left) = (page.gaps.clone(), false);
    let stage = parts.mesh.place(parts.rank, Axis::Pipeline);
    for (spec, &start) in layout.specs()[page.params.clone()].iter().zip(&page.starts) {
        // What several stages have counts at the first of them.
        let counts = parts.held(&spec.name).stages.first().is_none_or(|first| *first == stage);
        if counts && axes(parts, &spec.name) == *class {
            left = true;
        } else {
            gaps.push((start, start + spec.shape.elements()));
        }
    }
    (gaps, left)
}
