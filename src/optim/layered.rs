//! Updates inside the backward pass: each layer's gradients are gone before those of the layer below are made, and those of
//! embedding and output exist for a few thousand words at a time.
//!
//! What must be known of all gradients before any parameter changes, their norm, takes a pass of its own, whose gradients
//! are measured and dropped; the second makes the same ones to the bit. Without clipping and its like one pass is enough.
//!
//! Where ranks share a batch, each piece of the gradient is summed over them as soon as it is there. Ranks that hold parts of the
//! parameters do the same with theirs, and judge by the norm of all.

use super::norm::Squares;
use super::optimizer::{GRADIENTS, HYPER, Optimizer, Stretch, gap_constant, output_norm};
use super::{Rule, Update};
use super::{judge, norm};
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Binary, Concat, Expr, Graph, Map, Unary, Value, gradients_in_turn, unit};
use crate::model::{EMBEDDING, OUTPUT};
use crate::nn::{ParamLayout, Params};
use crate::ops::{AllReduce, Along, Copy};
use std::ops::Range;

/// Gradients of a page, or of some words of one.
struct Piece {
    page: usize,
    /// The first element of the page.
    start: usize,
    /// Flat.
    gradient: Value,
    is_whole: bool,
}

impl Piece {
    /// Which of the page's it has the gradients of.
    fn elements(&self, g: &Graph) -> Range<usize> {
        self.start..self.start + g.ty(self.gradient).shape.elements()
    }

    /// The same of all ranks' rows, or of experts of those who hold the same.
    fn met(self, g: &mut Graph, layout: &ParamLayout, along: Option<Along>) -> Result<Piece> {
        let experts = layout.parts().filter(|_| layout.pages()[self.page].is_of_experts());
        let along = experts.map(|parts| parts.mesh.peers(parts.rank, true).along).or(along);
        let Some(along) = along.filter(|along| along.ranks > 1) else { return Ok(self) };
        let name = format!("ranks.{GRADIENTS}.{}", self.page);
        let gradient = g.scope(name, |g| g.apply1(AllReduce(along), &[self.gradient]))?;
        Ok(Piece { gradient, ..self })
    }
}

/// How much of all ranks' targets this one's are, of which it has `count`, f32 `[1]`.
fn share(g: &mut Graph, along: Along, count: Value) -> Result<Value> {
    let all = g.apply1(AllReduce(along), &[count])?;
    // Of no targets at all the share is none, and no 0/0; beside a count of some the addend vanishes.
    let all_of_them = Expr::binary(Binary::Add, Expr::Input(1), Expr::Const(1e-30));
    let root = Expr::unary(Unary::InverseSqrt, all_of_them);
    let times = |x, y| Expr::binary(Binary::Mul, x, y);
    g.apply1(Map { expr: times(times(Expr::Input(0), root.clone()), root) }, &[count, all])
}

impl Optimizer {
    /// True if a step is judged by the norm of all its gradients before any parameter changes.
    pub fn needs_norm(&self) -> bool {
        self.max_norm.is_finite() || self.outlier > 0.0 || self.loss_scaling.is_some()
    }

    /// Refuses what cannot be done layer by layer, where that is asked for.
    ///
    /// # Errors
    /// A sentence that says what, and what to do.
    pub fn check_update(&self, batches: u32, adapters: bool) -> Result<()> {
        let what = match () {
            () if self.update == Update::Step => return Ok(()),
            () if batches > 1 => {
                "accumulate is above 1, and the gradients of several batches must be kept until the last; leave one of the \
                 two out: what update = \"layer\" saves is that memory"
            }
            () if adapters => "lora is given, and adapters' gradients take next to nothing; leave update out",
            () if self.rule == Rule::Muon => "muon takes whole matrices for its steps; choose adamw, adamw8bit or sgd",
            () => return Ok(()),
        };
        Err(Error::Invalid(format!("update is layer: {what}")))
    }

    /// [`Optimizer::train_step`] by layers, of a [`ParamLayout::by_block`]: the loss, and how many targets count, `[1]`, are made by
    /// `loss`, twice where the step is judged by its norm. Where ranks share the batch `along` an axis, it is that of the rank's own
    /// rows, and targets of all weigh the same; of a layout of parts the norm is that of all. Gradients of embedding and output are made for `words` words at a time. Inputs, states and
    /// outputs are those of [`Optimizer::train_step`], and so are all numbers, but that the norm is summed up in another order.
    ///
    /// Where the step is not judged by its norm, one whose gradients are no numbers cannot be left out: the parameters are
    /// none any more.
    ///
    /// # Errors
    /// If the loss does not depend on every parameter.
    pub fn layered_step(
        &self,
        g: &mut Graph,
        layout: &ParamLayout,
        params: &Params,
        words: usize,
        along: Option<Along>,
        loss: &mut dyn FnMut(&mut Graph) -> Result<[Value; 2]>,
    ) -> Result<()> {
        let hyper = g.input(HYPER, TensorType::f32([1]));
        let scale = match &self.loss_scaling {
            None => unit(g),
            // Judging changes it for the next step, and both passes are to have this one's.
            Some(_) => {
                let scale = judge::scale(g)?;
                g.scope("loss_scale", |g| g.apply1(Copy, &[scale]))?
            }
        };
        // The loss, and what its gradient is scaled by; and of ranks that share a batch this one's part of it.
        type Scaled = ([Value; 2], Option<(Along, Value)>);
        let mut loss = |g: &mut Graph| -> Result<Scaled> {
            let [loss, count] = loss(g)?;
            let Some(along) = along else { return Ok(([loss, scale], None)) };
            g.scope("ranks", |g| {
                let share = share(g, along, count)?;
                Ok(([loss, g.mul(scale, share)?], Some((along, share))))
            })
        };
        let mut tables = Vec::new();
        for (i, page) in layout.pages().iter().enumerate() {
            tables.push(g.scope(format!("optimizer.{i}"), |g| gap_constant(g, &page.gaps)));
        }
        let mut squares = Squares::of(layout);
        let add = |squares: &mut Squares, g: &mut Graph, piece: &Piece| {
            let table = if piece.is_whole { tables[piece.page].as_slice() } else { &[] };
            let Piece { page, gradient, .. } = *piece;
            g.scope(format!("optimizer.{page}"), |g| squares.add(g, page, &piece.elements(g), gradient, table))
        };
        let known = if self.needs_norm() {
            let (scaled, _) = loss(g)?;
            pieces(g, layout, params, scaled, words, &mut |g, piece| {
                let piece = piece.met(g, layout, along)?;
                add(&mut squares, g, &piece)
            })?;
            g.scope("optimizer", |g| squares.norm(g))?
        } else {
            // Of no norm nothing follows but the counts of the step.
            g.constant("optimizer.norm", TensorType::f32([1]), vec![0; 4])
        };
        let judged = g.scope("optimizer", |g| self.judge(g, &[known, hyper]))?;
        let told = judged[1];
        let (scaled, part) = loss(g)?;
        let loss = match part {
            None => scaled[0],
            Some((along, share)) => g.scope("ranks", |g| {
                let own = g.mul(scaled[0], share)?;
                g.apply1(AllReduce(along), &[own])
            })?,
        };
        let mut added = Vec::new();
        pieces(g, layout, params, scaled, words, &mut |g, piece| {
            let piece = piece.met(g, layout, along)?;
            if !self.needs_norm() {
                add(&mut squares, g, &piece)?;
            }
            let (i, page) = (piece.page, &layout.pages()[piece.page]);
            let table = if piece.is_whole { tables[i].as_slice() } else { &[] };
            let elements = piece.elements(g);
            let rest = [&[piece.gradient, told], table].concat();
            added.push(g.scope(format!("optimizer.{i}"), |g| {
                let sums = self.plain(g, Stretch { elements, ..Stretch::whole(i, page, params.pages[i]) }, &rest)?;
                // At once, for all of them would be kept to the end of the step.
                norm::one(g, vec![sums])
            })?);
            Ok(())
        })?;
        let size = if self.needs_norm() { judged[0] } else { g.scope("optimizer", |g| squares.norm(g))? };
        g.output("loss", loss);
        g.output("grad_norm", size);
        if layout.parts().is_none() {
            output_norm(g, &added)?;
        }
        for (i, page) in layout.pages().iter().enumerate() {
            let rest = [&[told], tables[i].as_slice()].concat();
            g.scope(format!("optimizer.{i}"), |g| self.average(g, i, page, params.pages[i], &rest))?;
        }
        Ok(())
    }
}

/// Appends a backward pass, and what `then` makes of each piece of the gradient as soon as it is there.
fn pieces(
    g: &mut Graph,
    layout: &ParamLayout,
    params: &Params,
    [loss, scale]: [Value; 2],
    words: usize,
    then: &mut dyn FnMut(&mut Graph, Piece) -> Result<()>,
) -> Result<()> {
    let mut waiting: Vec<Option<Value>> = vec![None; layout.specs().len()];
    gradients_in_turn(g, loss, scale, &params.views, &mut |g, n, gradient| {
        let spec = &layout.specs()[n];
        let (p, start) = layout.place(&spec.name).expect("it is of the layout");
        let page = &layout.pages()[p];
        let dims = spec.shape.dims();
        // Blocks of an optimizer's packed state begin at multiples of 256 elements.
        let splits = [EMBEDDING, OUTPUT].contains(&spec.name.as_str())
            && page.params.len() == 1
            && (words * dims[1]).is_multiple_of(256);
        if splits && dims[0] > words {
            for first in (0..dims[0]).step_by(words) {
                let rows = first..dims[0].min(first + words);
                let part = gradient.rows(g, rows.clone())?;
                let gradient = g.reshape(part, [rows.len() * dims[1]])?;
                then(g, Piece { page: p, start: start + first * dims[1], gradient, is_whole: false })?;
            }
            return Ok(());
        }
        waiting[n] = Some(gradient.whole());
        let Some(all) = waiting[page.params.clone()].iter().copied().collect::<Option<Vec<Value>>>() else {
            return Ok(());
        };
        let concat = Concat { starts: page.starts.clone(), elements: page.elements };
        let gradient = g.scope(format!("optimizer.{p}"), |g| g.apply1(concat, &all))?;
        then(g, Piece { page: p, start: 0, gradient, is_whole: true })
    })
}
