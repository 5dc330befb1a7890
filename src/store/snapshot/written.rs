//! A training checkpoint as all of its ranks wrote it: any stretch of any parameter, or of a moment of it, whichever ranks have
//! it and wherever it lies there. So any other mesh reads it, and one device.

use super::{Layout, Placed, Series, Snapshot, StateSize};
use crate::error::{Error, Result};
use crate::nn::Runs;
use crate::ops::AdamW8;
use std::ops::Range;

/// Moments of eight bits: the states of their codes and scales.
const PACKED: [&str; 2] = ["adam_codes", "adam_scales"];
/// What is read of them as if it were states: both moments, and the scales that each element has.
const OF_PACKED: [&str; 4] = ["adam_m", "adam_v", "adam_m_scale", "adam_v_scale"];

/// The folders of a checkpoint, of all ranks that wrote one.
#[derive(Debug)]
pub struct Written {
    ranks: Vec<Rank>,
}

#[derive(Debug)]
struct Rank {
    snapshot: Snapshot,
    layout: Layout,
    /// Where in a page what it wrote begins.
    states: Vec<StateSize>,
}

impl Written {
    /// Opens them all, the first being this. Manifests before layouts were in them are those of ranks that have all parameters
    /// in the places that `usual` says.
    ///
    /// # Errors
    /// If a rank's folder is missing or damaged.
    pub fn open(first: &Snapshot, usual: &Layout) -> Result<Written> {
        let series = first.folder().parent().map(Series::at);
        let open = |rank: usize| {
            let snapshot = match &series {
                Some(series) if rank > 0 => Snapshot::open(&series.part(rank).step(first.manifest().step))?,
                _ => first.clone(),
            };
            let manifest = snapshot.manifest();
            let (mut states, layout) = (manifest.states.clone(), manifest.layout.clone());
            if layout.is_none() {
                states.iter_mut().for_each(|state| state.first = rank as u64 * state.bytes);
            }
            Ok(Rank { layout: layout.unwrap_or_else(|| usual.clone()), states, snapshot })
        };
        let mut ranks = (0..first.manifest().parts).map(open).collect::<Result<Vec<_>>>()?;
        // The first rank wrote as well what all had alike, from its beginning.
        ranks.first_mut().into_iter().flat_map(|rank| &mut rank.states).for_each(|state| state.first = 0);
        Ok(Written { ranks })
    }

    /// The step after which it was taken.
    pub fn first(&self) -> &Snapshot {
        &self.ranks[0].snapshot
    }

    /// The ranks that wrote a page with the same parameters in the same places as this one has there, which is on another mesh
    /// or on the same: what they wrote can be taken byte by byte.
    pub fn alike(&self, layout: &Layout, rank: usize, page: usize) -> Vec<usize> {
        // What several have alike one of them wrote, and others may have written nothing of it.
        let of_page = |state: &StateSize| state.name.split_once('.').is_some_and(|(_, of)| of.parse() == Ok(page));
        let is_it = |theirs: &usize| {
            let written = &self.ranks[*theirs];
            written.states.iter().any(of_page) && written.layout.is_alike(*theirs, layout, rank, page)
        };
        (0..self.ranks.len()).filter(is_it).collect()
    }

    /// The bytes of a whole state of which these ranks wrote a stretch each.
    pub fn bytes(&self, ranks: &[usize], state: &str) -> u64 {
        let end = |rank: &usize| self.ranks[*rank].state(state).map_or(0, |s| s.first + s.bytes);
        ranks.iter().map(end).max().unwrap_or(0)
    }

    /// Fills `bytes` with those of a state from `first` on, of which these ranks wrote a stretch each, in ascending order; gives
    /// how many there are.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn copy(&self, ranks: &[usize], state: &str, first: u64, bytes: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        for rank in ranks {
            let Some(stretch) = self.ranks[*rank].state(state) else { continue };
            let (at, end) = (first + done as u64, stretch.first + stretch.bytes);
            if (stretch.first..end).contains(&at) {
                let count = (end - at).min((bytes.len() - done) as u64) as usize;
                self.ranks[*rank].snapshot.read(state, at - stretch.first, &mut bytes[done..done + count])?;
                done += count;
            }
        }
        Ok(done)
    }

    /// Whether there are states of this kind, such as `ema`.
    pub fn has(&self, kind: &str) -> bool {
        let of_kind = |state: &StateSize| state.name.split_once('.').is_some_and(|(name, _)| name == kind);
        self.ranks.iter().any(|rank| rank.states.iter().any(of_kind))
    }

    /// Elements of a parameter, or of a moment of it by the name of its states (`adam_m`): those of the model's at these
    /// runs. Moments of eight bits are what their codes stand for.
    ///
    /// # Errors
    /// If the checkpoint does not hold them, holds a parameter of another shape, or cannot be read.
    pub fn read(&self, kind: &str, name: &str, shape: &[usize], wanted: &Runs) -> Result<Vec<f32>> {
        let placed = self.ranks.iter().find_map(|rank| rank.layout.params.get(name));
        let Some(Placed { shape: theirs, held, .. }) = placed.filter(|placed| placed.shape == shape) else {
            return Err(self.missing(&format!("no parameter {name} of {shape:?}")));
        };
        let mut all = vec![0.0; wanted.starts.len() * wanted.length];
        let mesh = self.ranks[0].layout.mesh;
        for owner in held.owners(mesh) {
            let shared = overlaps(&held.runs(&theirs.as_slice().into(), mesh, owner), wanted);
            let (Some(first), Some(last)) = (shared.first(), shared.last()) else { continue };
            let range = first.0..last.0 + last.2;
            let part = self.stretch(kind, name, &held.replicas(mesh, owner), range.clone())?;
            for (from, to, count) in shared {
                all[to..to + count].copy_from_slice(&part[from - range.start..][..count]);
            }
        }
        Ok(all)
    }

    /// Elements of a part of a parameter that these ranks have alike, whoever of them wrote which.
    fn stretch(&self, kind: &str, name: &str, ranks: &[usize], range: Range<usize>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(range.len());
        for rank in ranks.iter().filter_map(|rank| self.ranks.get(*rank)) {
            let Some(placed) = rank.layout.params.get(name) else { continue };
            let first = placed.start + range.start;
            all.extend(rank.elements(kind, placed.page, first + all.len()..first + range.len())?);
        }
        if all.len() == range.len() { Ok(all) } else { Err(self.missing(&format!("no state {kind} of {name}"))) }
    }

    fn missing(&self, what: &str) -> Error {
        let message = format!("holds {what}, which this run has: it is a checkpoint of another model or recipe");
        Error::file(self.first().folder(), message)
    }
}

impl Rank {
    fn state(&self, name: &str) -> Option<&StateSize> {
        self.states.iter().find(|state| state.name == name)
    }

    /// As many of a page's elements as this rank wrote, from the first on.
    fn elements(&self, kind: &str, page: usize, range: Range<usize>) -> Result<Vec<f32>> {
        let had = |state: &StateSize, per: [u64; 2]| {
            let [elements, bytes] = per;
            let all = state.first / bytes * elements..(state.first + state.bytes) / bytes * elements;
            let end = (range.end as u64).min(all.end);
            if all.contains(&(range.start as u64)) { range.start as u64 - all.start..end - all.start } else { 0..0 }
        };
        if let Some(state) = self.state(&format!("{kind}.{page}")) {
            let own = had(state, [1, 4]);
            let mut values = vec![0.0f32; (own.end - own.start) as usize];
            self.snapshot.read(&state.name, 4 * own.start, bytemuck::cast_slice_mut(&mut values))?;
            return Ok(values);
        }
        let which = OF_PACKED.iter().position(|name| *name == kind);
        let packed = PACKED.map(|name| self.state(&format!("{name}.{page}")));
        let (Some(which), [Some(codes), Some(scales)]) = (which, packed) else { return Ok(Vec::new()) };
        let (own, block) = (had(codes, [2, 4]), AdamW8::BLOCK as u64);
        // Whole blocks, of which the last may be cut.
        let blocks = own.start / block..own.end.div_ceil(block);
        let (start, end) = (blocks.start * block, (blocks.end * block).min(codes.bytes / 2));
        let mut words = vec![0u32; (end.saturating_sub(start) / 2) as usize];
        let mut of_blocks = vec![0.0f32; 2 * (blocks.end - blocks.start) as usize];
        self.snapshot.read(&codes.name, 2 * start, bytemuck::cast_slice_mut(&mut words))?;
        self.snapshot.read(&scales.name, 8 * blocks.start, bytemuck::cast_slice_mut(&mut of_blocks))?;
        Ok(AdamW8::unpack(&words, &of_blocks)[which][(own.start - start) as usize..][..(own.end - own.start) as usize]
            .to_vec())
    }
}

/// What two parts of one whole share: where it begins in either part, and how many elements it has.
fn overlaps(a: &Runs, b: &Runs) -> Vec<(usize, usize, usize)> {
    let (mut shared, mut i, mut k) = (Vec::new(), 0, 0);
    while let (Some(&from), Some(&to)) = (a.starts.get(i), b.starts.get(k)) {
        let (start, end) = (from.max(to), (from + a.length).min(to + b.length));
        if start < end {
            shared.push((i * a.length + start - from, k * b.length + start - to, end - start));
        }
        if from + a.length <= to + b.length { i += 1 } else { k += 1 }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_what_is_in_both() {
        // Columns 0 and 1 of four in three rows, and the last two rows.
        let (columns, rows) = (Runs { starts: vec![0, 4, 8], length: 2 }, Runs { starts: vec![4], length: 8 });
        assert_eq!(overlaps(&columns, &rows), [(2, 0, 2), (4, 4, 2)]);
        assert_eq!(overlaps(&rows, &columns), [(0, 2, 2), (4, 4, 2)]);
        assert_eq!(overlaps(&columns, &Runs { starts: vec![2, 6, 10], length: 2 }), []);
        assert_eq!(overlaps(&Runs::default(), &rows), []);
    }
}
