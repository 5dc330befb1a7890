//! What of a trainer a rank writes down, and how it is put back from what these or other ranks wrote.

use super::begin::make_copies;
use super::{Progress, Trainer};
use crate::base::Axis;
use crate::error::{Error, Result};
use crate::nn::{Held, Runs};
use crate::ops::AdamW8;
use crate::optim::Optimizer;
use crate::store::snapshot::{Layout, Snapshot, StateSize, Written};
use std::ops::Range;

/// Bytes that are read at a time.
const PIECE: usize = 16 << 20;

impl Trainer {
    /// The states of those that a step changes which this rank writes down: of what several have alike the first of them, of
    /// what is shared out each its own.
    pub fn kept_states(&self) -> Vec<StateSize> {
        self.written.iter().filter(|state| self.keeps(state)).cloned().collect()
    }

    fn keeps(&self, state: &StateSize) -> bool {
        let (mesh, rank, layout) = (self.mesh, self.world.rank(), self.layout());
        let Some((_, page)) = of_page(&state.name) else { return rank == 0 };
        let shared = self.shares_out(&state.name);
        let Some(parts) = layout.parts() else { return shared || rank == 0 };
        let experts = layout.pages()[page].is_of_experts();
        // Stages that have the same parameter have it in pages of their own.
        let stretch = |rank| (mesh.place(rank, Axis::Pipeline), mesh.peers(rank, experts).place);
        let is_first = |held: &Held| match shared {
            true => !(0..rank).any(|other| stretch(other) == stretch(rank) && held.is_same(mesh, rank, other)),
            false => held.is_first(mesh, rank),
        };
        layout.specs()[layout.pages()[page].params.clone()].iter().any(|spec| is_first(parts.held(&spec.name)))
    }

    /// Whether this rank has only its part of a state.
    fn shares_out(&self, state: &str) -> bool {
        self.shards > 1 && self.shard.divides(state)
    }

    /// Of how many ranks' folders a checkpoint consists.
    pub fn writers(&self) -> usize {
        if self.shards > 1 || self.layout().parts().is_some() { self.world.size() } else { 1 }
    }

    /// Where this rank's parameters lie, for a checkpoint's manifest.
    pub fn placed(&self) -> Layout {
        Layout::of(self.layout(), self.mesh)
    }

    /// Puts everything as it was when a checkpoint was taken, whatever mesh took it. Results that were not taken are dropped.
    ///
    /// # Errors
    /// If the checkpoint holds other states than this recipe has on this adapter, or cannot be read, or the device fails.
    pub async fn restore(&mut self, snapshot: &Snapshot, progress: Progress) -> Result<()> {
        let own = self.placed();
        let written = Written::open(snapshot, &own)?;
        let pages = 0..self.layout().pages().len();
        let alike: Vec<Vec<usize>> = pages.map(|page| written.alike(&own, self.world.rank(), page)).collect();
        self.check_states(&written, &alike)?;
        while !self.under_way.is_empty() {
            self.take().await?;
        }
        while self.apply.as_ref().is_some_and(|apply| apply.pending() > 0) {
            self.apply.as_mut().expect("there is one").read(|_| ()).await?;
        }
        self.rewards.clear();
        self.given.clear();
        let mut exact = true;
        for state in &self.written {
            match of_page(&state.name) {
                None => self.copy(&written, &[0], state).await?,
                Some((_, page)) if !alike[page].is_empty() => self.copy(&written, &alike[page], state).await?,
                Some(("adam_scales", _)) => {}
                Some((kind, page)) => exact &= self.reshape(&written, state, kind, page).await?,
            }
        }
        if !exact {
            let text = "moments of eight bits were rounded anew, in the blocks that they make on this mesh: the run goes on \
                        within that rounding of what it would have been";
            self.notes.push(text.into());
        }
        make_copies(&mut self.states, &self.optimizer, &self.subject.layout).await?;
        self.loader.restore(progress.loader);
        self.submitted = progress.step;
        self.progress = progress;
        Ok(())
    }

    /// Refuses a checkpoint of other states, as far as they are taken as they are; what fills up pages that ranks share out may
    /// differ.
    fn check_states(&self, written: &Written, alike: &[Vec<usize>]) -> Result<()> {
        let parts = written.first().manifest().parts;
        for state in &self.written {
            let ranks = match of_page(&state.name) {
                Some((_, page)) if alike[page].is_empty() => continue,
                Some((_, page)) => &alike[page][..],
                None => &[0],
            };
            let most = parts.max(self.shards);
            let slack = if most > 1 { most as u64 * Optimizer::block_bytes(&state.name) } else { 0 };
            let shares = match of_page(&state.name).filter(|_| self.shares_out(&state.name)) {
                Some((_, page)) => self.layout().sharers_of(page).along.ranks as u64,
                None => 1,
            };
            let own = state.bytes * shares;
            if written.bytes(ranks, &state.name).abs_diff(own) > slack {
                let message = format!(
                    "holds no state {} of {own} bytes, which this run has: it is a checkpoint of another recipe, or of an \
                     adapter with other limits",
                    state.name
                );
                return Err(Error::file(written.first().folder(), message));
            }
        }
        Ok(())
    }

    /// Takes a state as it is from those that had the same.
    async fn copy(&self, written: &Written, ranks: &[usize], state: &StateSize) -> Result<()> {
        let mut bytes = vec![0; (state.bytes as usize).min(PIECE)];
        for start in (0..state.bytes).step_by(PIECE) {
            let piece = &mut bytes[..((state.bytes - start) as usize).min(PIECE)];
            let count = written.copy(ranks, &state.name, state.first + start, piece)?;
            if count > 0 {
                self.states.write(&state.name, start, &piece[..count]).await?;
            }
        }
        Ok(())
    }

    /// Puts a state of this rank together of what others wrote of its parameters; false if something was rounded anew.
    async fn reshape(&self, written: &Written, state: &StateSize, kind: &str, page: usize) -> Result<bool> {
        let (first, bytes) = (state.first as usize, state.bytes as usize);
        if kind == "adam_codes" {
            // Two bytes an element.
            let read = |kind: &str| self.values(written, kind, page, first / 2..(first + bytes) / 2);
            let (m, v) = (read("adam_m")?, read("adam_v")?);
            let (of_m, of_v) = (read("adam_m_scale")?, read("adam_v_scale")?);
            let (codes, scales, exact) = AdamW8::pack([&m, &of_m], [&v, &of_v]);
            self.states.write(&state.name, 0, bytemuck::cast_slice(&codes)).await?;
            self.states.write(&format!("adam_scales.{page}"), 0, bytemuck::cast_slice(&scales)).await?;
            return Ok(exact);
        }
        let values = self.values(written, kind, page, first / 4..(first + bytes) / 4)?;
        self.states.write(&state.name, 0, bytemuck::cast_slice(&values)).await?;
        Ok(true)
    }

    /// These elements of a page, of parameters or of a moment.
    fn values(&self, written: &Written, kind: &str, page: usize, elements: Range<usize>) -> Result<Vec<f32>> {
        let (layout, mut values) = (self.layout(), vec![0.0; elements.len()]);
        let own = &layout.pages()[page];
        for (spec, &start) in layout.specs()[own.params.clone()].iter().zip(&own.starts) {
            let (from, to) = (start.max(elements.start), (start + spec.shape.elements()).min(elements.end));
            if from >= to {
                continue;
            }
            let whole = layout.parts().and_then(|parts| Some((parts.spec(&spec.name)?, parts)));
            let part = match whole {
                Some((whole, parts)) => {
                    let runs = parts.runs(whole, parts.rank);
                    written.read(kind, &spec.name, whole.shape.dims(), &runs)?
                }
                None => {
                    let runs = Runs { starts: vec![0], length: spec.shape.elements() };
                    written.read(kind, &spec.name, spec.shape.dims(), &runs)?
                }
            };
            values[from - elements.start..to - elements.start].copy_from_slice(&part[from - start..to - start]);
        }
        Ok(values)
    }
}

/// Of a state in pages its kind and its page.
pub(super) fn of_page(state: &str) -> Option<(&str, usize)> {
    let (kind, page) = state.split_once('.')?;
    Some((kind, page.parse().ok()?))
}
