//! The global norm of a gradient, also of one whose parameters are in parts on several ranks: what ranks have alike counts once.

use super::optimizer::gap_constant;
use crate::base::{Axis, TensorType};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::nn::{Page, ParamLayout, Parts};
use crate::ops::{AllReduce, Along, GlobalNorm, SumParts, SumSquares};
use crate::parallel::Peers;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Inputs of one sum.
const INPUTS: usize = 7;

/// Sums of squares of a gradient on their way to its norm: by the axes along which the parameters are in parts.
pub(super) struct Squares<'a> {
    layout: &'a ParamLayout,
    /// A rank without any of a class has to meet the others all the same.
    classes: BTreeMap<BTreeSet<Axis>, Vec<Value>>,
}

impl<'a> Squares<'a> {
    /// None yet, of parameters that lie so.
    pub fn of(layout: &'a ParamLayout) -> Squares<'a> {
        let classes = match layout.parts() {
            None => BTreeSet::from([BTreeSet::new()]),
            Some(parts) => parts.whole().iter().map(|spec| axes(parts, &spec.name)).collect(),
        };
        Squares { layout, classes: classes.into_iter().map(|class| (class, Vec::new())).collect() }
    }

    /// Those of the gradient of a page's elements, with the table of gaps among them.
    pub fn add(
        &mut self,
        g: &mut Graph,
        page: usize,
        elements: &Range<usize>,
        flat: Value,
        gaps: &[Value],
    ) -> Result<()> {
        let Some(parts) = self.layout.parts() else {
            let sums = self.classes.values_mut().next().expect("there is one");
            sums.push(g.apply1(SumSquares, &[&[flat], gaps].concat())?);
            return Ok(());
        };
        let page = &self.layout.pages()[page];
        for (class, sums) in &mut self.classes {
            let (gaps, left) = others(self.layout, page, parts, class);
            if left {
                let gaps = gap_constant(g, &Page { gaps, ..page.clone() }.gaps_in(elements));
                sums.push(g.apply1(SumSquares, &[&[flat], gaps.as_slice()].concat())?);
            }
        }
        Ok(())
    }

    /// The norm `[1]`, the same on all ranks.
    pub fn norm(&self, g: &mut Graph) -> Result<Value> {
        let mut all = Vec::new();
        for (class, sums) in &self.classes {
            // No page holds experts and anything else.
            let own = over_sharers(g, self.layout.sharers(class.contains(&Axis::Expert)), sums.clone())?;
            let Some(parts) = self.layout.parts().filter(|_| !class.is_empty()) else {
                all.extend(own);
                continue;
            };
            let mut sum = one(g, own)?;
            for &axis in class {
                sum = g.apply1(AllReduce(Along { axis, ranks: parts.mesh.size(axis) }), &[sum])?;
            }
            all.push(sum);
        }
        g.apply1(GlobalNorm, &all)
    }
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
