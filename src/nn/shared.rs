//! Pages that ranks share out: those that hold the same of a model keep, of each page, a part each of what goes with it, and perhaps
//! of the parameters themselves.

use super::params::{GROUP_ALIGN, Group, Page, ParamLayout, ParamSpec, block};
use crate::parallel::{Mesh, Peers};
use std::ops::Range;

/// Who shares pages out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shared {
    mesh: Mesh,
    rank: usize,
    /// Whether of parameters, too, a rank keeps its part alone.
    parameters: bool,
}

impl ParamLayout {
    /// The same parameters in pages that ranks share out one by one: the matrices of attention, or of the MLP, of each layer have
    /// one of their own, and gains and biases of all layers one together. Nothing moves within a block of 256 elements: where a
    /// layer does not end with one, the next begins in its page.
    pub fn cut(self, page_bytes: u64, group: impl Fn(&ParamSpec) -> Group) -> Self {
        let ParamLayout { specs: mut ordered, parts, .. } = self;
        ordered.sort_by_key(&group);
        let together = |page: &Page, last: &ParamSpec, next: &ParamSpec| {
            let (was, is) = (group(last), group(next));
            let ends = was != is || page.elements.is_multiple_of(GROUP_ALIGN);
            was.decays() == is.decays() && (!is.decays() || block(&last.name) == block(&next.name) || !ends)
        };
        ParamLayout::in_order(ordered, page_bytes, parts, &group, together)
    }

    /// The same places in pages that are filled up to a multiple of so many elements, itself one of 256, so that ranks can share
    /// each in equal parts.
    pub fn padded(mut self, multiple: usize) -> Self {
        for page in &mut self.pages {
            let (before, after) = (page.elements, page.elements.next_multiple_of(multiple));
            if after > before {
                match page.gaps.last_mut() {
                    Some((_, end)) if *end == before => *end = after,
                    _ => page.gaps.push((before, after)),
                }
                page.groups.last_mut().into_iter().for_each(|(_, end)| *end = after);
                page.elements = after;
            }
        }
        self
    }

    /// The same layout of a rank that shares pages out with those of its mesh that hold the same of them ([`Mesh::peers`]), and keeps
    /// of `parameters` its part alone, too. Each page must have as many equal parts as it has peers.
    pub fn shared_by(self, mesh: Mesh, rank: usize, parameters: bool) -> Self {
        ParamLayout { shared: Some(Shared { mesh, rank, parameters }), ..self }
    }

    /// With whom this rank shares out pages, of experts or of all else; with nobody, where pages are not shared out.
    pub fn sharers(&self, experts: bool) -> Peers {
        self.shared.map_or(Peers::NONE, |shared| shared.mesh.peers(shared.rank, experts))
    }

    /// The same of one page.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn sharers_of(&self, page: usize) -> Peers {
        self.sharers(self.pages[page].is_of_experts())
    }

    /// Which elements of a page's parameters this rank keeps; all, but where ranks share them out.
    pub fn kept(&self, page: usize) -> Range<usize> {
        let peers = if self.keeps_parts() { self.sharers_of(page) } else { Peers::NONE };
        peers.part(self.pages[page].elements)
    }

    /// Whether this rank keeps parts of its parameters only.
    pub fn keeps_parts(&self) -> bool {
        self.shared.is_some_and(|shared| shared.parameters)
    }
}
