//! What a checkpoint's manifest says of parameters: how they lie over the ranks that wrote it, and where in the states of one of
//! them.

use crate::base::Shape;
use crate::error::{Error, Result};
use crate::nn::{Held, ParamLayout};
use crate::parallel::{Mesh, mesh_text};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Most ranks that a manifest is believed to tell of.
const MOST_RANKS: u128 = 1 << 24;

/// Where the parameters of a rank lie: those of which it has any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The mesh of the ranks that wrote.
    #[serde(with = "mesh_text")]
    pub mesh: Mesh,
    /// By name.
    pub params: BTreeMap<String, Placed>,
}

/// A parameter of which a rank has some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// The dims of the whole.
    pub shape: Vec<usize>,
    /// How it lies over the ranks.
    #[serde(default, skip_serializing_if = "is_whole")]
    pub held: Held,
    /// Of states in pages, such as `param.3`: the page of this rank that holds its part.
    pub page: usize,
    /// First element there.
    pub start: usize,
}

fn is_whole(held: &Held) -> bool {
    *held == Held::default()
}

impl Layout {
    /// That of a rank's parameters, on a mesh.
    pub fn of(layout: &ParamLayout, mesh: Mesh) -> Layout {
        let placed = |name: &str, shape: &Shape| {
            let (page, start) = layout.place(name).expect("every parameter has a place");
            let held = layout.parts().map_or(Held::default(), |parts| parts.held(name).clone());
            (name.to_string(), Placed { shape: shape.dims().to_vec(), held, page, start })
        };
        let own = |name: &str| layout.place(name).is_some();
        let params = match layout.parts() {
            Some(parts) => parts.whole().iter().filter(|s| own(&s.name)).map(|s| placed(&s.name, &s.shape)).collect(),
            None => layout.specs().iter().map(|s| placed(&s.name, &s.shape)).collect(),
        };
        Layout { mesh, params }
    }

    /// Refuses what no rank can have written.
    pub(super) fn check(&self, file: &Path, parts: usize) -> Result<()> {
        let Mesh { data, tensor, pipeline, sequence, .. } = self.mesh;
        let ranks = [data, tensor, pipeline, sequence].iter().map(|n| *n as u128).product::<u128>();
        let wrong = |what: String| Err(Error::file(file, format!("is damaged: {what}")));
        if ranks > MOST_RANKS || (parts > 1 && ranks != parts as u128) {
            return wrong(format!("its mesh {} has {ranks} ranks, and {parts} wrote it", self.mesh));
        }
        for (name, placed) in &self.params {
            let elements = placed.shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n).filter(|n| *n < 1 << 60));
            let mut dims = placed.shape.clone();
            let splits = placed.held.splits.iter().all(|(dim, axis)| {
                let parts = self.mesh.size(*axis);
                dims.get_mut(*dim).filter(|n| n.is_multiple_of(parts)).map(|n| *n /= parts).is_some()
            });
            if elements.is_none_or(|n| n == 0) || !splits || placed.start >= 1 << 60 {
                return wrong(format!("{name} cannot lie over the mesh {} as it says", self.mesh));
            }
        }
        Ok(())
    }

    fn of_page(&self, page: usize) -> impl Iterator<Item = (&String, &Placed)> {
        self.params.iter().filter(move |(_, placed)| placed.page == page)
    }

    /// Whether a page of a rank of this layout holds the same parameters, in the same places, as that of one of another.
    pub fn is_alike(&self, rank: usize, other: &Layout, of_other: usize, page: usize) -> bool {
        let axes = self.of_page(page).flat_map(|(_, placed)| placed.held.splits.iter().map(|(_, axis)| *axis));
        let same = |axis| {
            self.mesh.size(axis) == other.mesh.size(axis)
                && self.mesh.place(rank, axis) == other.mesh.place(of_other, axis)
        };
        self.of_page(page).eq(other.of_page(page)) && axes.collect::<BTreeSet<_>>().into_iter().all(same)
    }
}
