//! The global norm of a gradient, also of one whose parameters are in parts on several ranks: what all ranks have alike counts
//! once.

use super::optimizer::table;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::nn::{Page, ParamLayout, Parts};
use crate::ops::{AllReduce, GlobalNorm, SumParts, SumSquares};

/// Inputs of one sum.
const INPUTS: usize = 7;

/// The norm `[1]` of gradients in pages, each with its table of gaps.
pub(super) fn of(g: &mut Graph, layout: &ParamLayout, pages: &[Value], gaps: &[Vec<Value>]) -> Result<Value> {
    let squares = |g: &mut Graph, page: Value, gaps: &[Value]| g.apply1(SumSquares, &[&[page], gaps].concat());
    let Some(parts) = layout.parts() else {
        let sums = pages.iter().zip(gaps).map(|(&page, gaps)| squares(g, page, gaps)).collect::<Result<Vec<_>>>()?;
        return g.apply1(GlobalNorm, &sums);
    };
    let (mut own, mut same) = (Vec::new(), Vec::new());
    for (page, &flat) in layout.pages().iter().zip(pages) {
        for (sums, in_parts) in [(&mut own, true), (&mut same, false)] {
            let (gaps, left) = others(layout, page, parts, in_parts);
            if left {
                let gaps = table(g, &gaps);
                sums.push(squares(g, flat, &gaps)?);
            }
        }
    }
    while own.len() > 1 {
        own = own.chunks(INPUTS).map(|some| g.apply1(SumParts { root: false }, some)).collect::<Result<_>>()?;
    }
    let own = match own[..] {
        [one] if g.ty(one).shape.elements() > 1 => Some(g.apply1(SumParts { root: false }, &[one])?),
        [one] => Some(one),
        _ => None,
    };
    let all = own.map(|own| g.apply1(AllReduce(parts.along), &[own])).transpose()?;
    g.apply1(GlobalNorm, &all.into_iter().chain(same).collect::<Vec<_>>())
}

/// A page's gaps, and with them the parameters that are in parts, or those that are not; and whether any are left.
fn others(layout: &ParamLayout, page: &Page, parts: &Parts, in_parts: bool) -> (Vec<(usize, usize)>, bool) {
    let (mut gaps, mut left) = (page.gaps.clone(), false);
    for (spec, &start) in layout.specs()[page.params.clone()].iter().zip(&page.starts) {
        if parts.dim(&spec.name).is_some() == in_parts {
            left = true;
        } else {
            gaps.push((start, start + spec.shape.elements()));
        }
    }
    (gaps, left)
}
