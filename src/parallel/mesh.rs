//! Axes along which the work of a step is split over ranks.

use crate::base::Axis;
use crate::error::{Error, Result};
use crate::ops::Along;
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Sizes of the axes. Ranks are numbered with tensor innermost, then sequence, then data, and pipeline outermost; the
/// expert axis is the inner part of data, as in BaGuaLu's MoDa, so that it adds no ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Mesh {
    /// Parts of the batch.
    pub data: usize,
    /// Parts of every matrix.
    pub tensor: usize,
    /// Parts of the list of layers.
    pub pipeline: usize,
    /// Parts of the list of experts; divides `data`.
    pub expert: usize,
    /// Parts of every sequence.
    pub sequence: usize,
}

impl Mesh {
    /// One rank.
    pub const ONE: Mesh = Mesh { data: 1, tensor: 1, pipeline: 1, expert: 1, sequence: 1 };

    /// All ranks.
    pub fn ranks(&self) -> usize {
        self.data * self.tensor * self.pipeline * self.sequence
    }

    /// The size of each axis, and how many ranks lie between two neighbours along it.
    pub fn strides(&self) -> [(Axis, usize, usize); Axis::COUNT] {
        let inner = self.tensor * self.sequence;
        [
            (Axis::Tensor, self.tensor, 1),
            (Axis::Sequence, self.sequence, self.tensor),
            (Axis::Expert, self.expert, inner),
            (Axis::Data, self.data, inner),
            (Axis::Replica, self.size(Axis::Replica), inner * self.expert),
            (Axis::Pipeline, self.pipeline, inner * self.data),
        ]
    }

    /// The number of parts along an axis.
    pub fn size(&self, axis: Axis) -> usize {
        match axis {
            Axis::Data => self.data,
            Axis::Tensor => self.tensor,
            Axis::Pipeline => self.pipeline,
            Axis::Expert => self.expert,
            Axis::Sequence => self.sequence,
            Axis::Replica if self.expert > 1 => self.data / self.expert * self.sequence,
            Axis::Replica => 1,
        }
    }

    /// How many ranks hold the same parameters: those of the data and the sequence axis.
    pub fn replicas(&self) -> usize {
        self.data * self.sequence
    }

    /// One rank of each kind, ascending: all others have equally much of the same kind as one of these. Along data and tensor ranks
    /// are alike.
    pub fn unlike(&self) -> Vec<usize> {
        let is_first =
            |rank: &usize| self.place(*rank, Axis::Tensor) == 0 && self.place(*rank, Axis::Data) < self.expert;
        (0..self.ranks()).filter(is_first).collect()
    }

    /// Which of these is this rank.
    pub fn replica(&self, rank: usize) -> usize {
        rank / self.tensor % self.replicas()
    }

    /// Those that hold the same parameters as a rank, itself among them; or the same `experts`, where not all hold these.
    pub fn peers(&self, rank: usize, experts: bool) -> Peers {
        let (axis, ranks, place) = if experts && self.expert > 1 {
            (Axis::Replica, self.size(Axis::Replica), self.place(rank, Axis::Replica))
        } else {
            (Axis::Data, self.replicas(), self.replica(rank))
        };
        Peers { along: Along { axis, ranks }, place }
    }

    /// Whom a rank meets along an axis: how many they are, the first of them, and which of them it is itself. Along data these are
    /// also the ranks of the sequence axis: all hold the same parameters, whose gradients are summed over them at once; and so
    /// are they, of experts, along [`Axis::Replica`].
    pub fn group(&self, rank: usize, axis: Axis) -> (usize, usize, usize) {
        let place = self.place(rank, axis);
        let (size, place, before) = match axis {
            Axis::Data => (self.replicas(), self.replica(rank), self.replica(rank) * self.tensor),
            Axis::Replica => {
                // They begin with the first rank of all that has these experts.
                let first = self.place(rank, Axis::Data) % self.expert * self.sequence;
                (self.size(axis), place, (self.replica(rank) - first) * self.tensor)
            }
            _ => {
                let (_, size, stride) = self.strides().into_iter().find(|(a, ..)| *a == axis).expect("an axis");
                (size, place, place * stride)
            }
        };
        (size, rank - before, place)
    }

    /// Which part along an axis is this rank's.
    pub fn place(&self, rank: usize, axis: Axis) -> usize {
        if axis == Axis::Replica {
            let [data, sequence] = [Axis::Data, Axis::Sequence].map(|axis| self.place(rank, axis));
            return data / self.expert * self.sequence + sequence;
        }
        let along = self.strides().into_iter().find(|(a, ..)| *a == axis);
        along.map_or(0, |(_, size, stride)| rank / stride % size)
    }
}

/// Ranks that hold the same of something, and which of them one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peers {
    /// Along what they meet, and how many they are.
    pub along: Along,
    /// This one's number among them.
    pub place: usize,
}

impl Peers {
    /// A rank that shares nothing with others.
    pub const NONE: Peers = Peers { along: Along { axis: Axis::Data, ranks: 1 }, place: 0 };

    /// This rank's part of so many elements that all share out, a multiple of their number.
    pub fn part(&self, elements: usize) -> Range<usize> {
        let count = elements / self.along.ranks;
        self.place * count..(self.place + 1) * count
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = Axis::ALL.map(|axis| (axis, self.size(axis)));
        let parts: Vec<String> = sizes.iter().filter(|(_, n)| *n > 1).map(|(axis, n)| format!("{axis}={n}")).collect();
        f.write_str(if parts.is_empty() { "data=1".into() } else { parts.join(",") }.as_str())
    }
}

impl FromStr for Mesh {
    type Err = Error;

    /// Reads `data=4,tensor=2`; what is not named is 1.
    fn from_str(text: &str) -> Result<Mesh> {
        let wrong = |what: String| Error::Invalid(format!("mesh `{text}`: {what}; write axes as in data=4,tensor=2"));
        let (mut mesh, mut named) = (Mesh::ONE, Vec::new());
        if text.trim() == "auto" {
            return Err(Error::Invalid(
                "a recipe's mesh is written as axes, as in data=4,tensor=2; --mesh auto has them chosen".into(),
            ));
        }
        for part in text.split(',') {
            let (axis, size) = part.split_once('=').ok_or_else(|| wrong(format!("`{part}` has no =")))?;
            let place = match axis.trim() {
                "data" => &mut mesh.data,
                "tensor" => &mut mesh.tensor,
                "pipeline" => &mut mesh.pipeline,
                "expert" => &mut mesh.expert,
                "sequence" => &mut mesh.sequence,
                axis => {
                    let known = "data, tensor, pipeline, expert, sequence";
                    return Err(wrong(format!("there is no axis {axis}; there are {known}")));
                }
            };
            if named.contains(&axis.trim()) {
                return Err(wrong(format!("the axis {} is named twice", axis.trim())));
            }
            named.push(axis.trim());
            let size = size.trim().parse().ok().filter(|n| (1..=1 << 24).contains(n));
            *place = size.ok_or_else(|| wrong(format!("`{part}` names no number from 1 to {}", 1 << 24)))?;
        }
        if !mesh.data.is_multiple_of(mesh.expert) {
            let (data, expert) = (mesh.data, mesh.expert);
            return Err(wrong(format!("experts are spread over the data axis, and {expert} does not divide {data}")));
        }
        Ok(mesh)
    }
}

/// A mesh in files that people read: as text, `data=4,tensor=2`.
pub mod text {
    use super::Mesh;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(mesh: &Mesh, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(mesh)
    }

    /// Reads it.
    ///
    /// # Errors
    /// As [`Mesh`]'s `FromStr`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mesh, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meshes_are_read_and_written() {
        let mesh: Mesh = "data=8,tensor=4, expert=2".parse().unwrap();
        assert_eq!((mesh.ranks(), mesh.to_string()), (32, "data=8,tensor=4,expert=2".into()));
        assert_eq!((mesh.place(13, Axis::Tensor), mesh.place(13, Axis::Data), mesh.place(13, Axis::Expert)), (1, 3, 1));
        // Of eight ranks along data two have the same experts, and all eight the same of all else.
        let [all, experts] = [false, true].map(|experts| mesh.peers(21, experts));
        assert_eq!((all.along, all.place), (Along { axis: Axis::Data, ranks: 8 }, 5));
        assert_eq!((experts.along, experts.place), (Along { axis: Axis::Replica, ranks: 4 }, 2));
        assert_eq!((all.part(16), experts.part(16)), (10..12, 8..12));
        // Two stages of two ranks each with other experts; two more have the same as these, and each is two of the tensor axis.
        let mesh: Mesh = "data=4,tensor=2,expert=2,pipeline=2".parse().unwrap();
        assert_eq!(mesh.unlike(), [0, 2, 8, 10]);
        assert_eq!("data=4,tensor=2".parse::<Mesh>().unwrap().unlike(), [0]);
        assert_eq!("data=2,sequence=2".parse::<Mesh>().unwrap().unlike(), [0, 1]);
        // Experts by two places, tokens by two: rank 5 is the second of the third row of a batch, whose experts are the first's.
        let rings: Mesh = "data=4,expert=2,sequence=2".parse().unwrap();
        let met = |axis| rings.group(5, axis);
        assert_eq!([met(Axis::Data), met(Axis::Replica)], [(8, 0, 5), (4, 0, 3)]);
        assert_eq!([met(Axis::Expert), met(Axis::Sequence)], [(2, 5, 0), (2, 4, 1)]);
        assert_eq!(rings.group(2, Axis::Replica), (4, 2, 0));
        assert_eq!(Mesh::ONE.to_string().parse::<Mesh>().unwrap(), Mesh::ONE);
        for (text, part) in [
            ("data", "has no ="),
            ("rows=2", "there is no axis rows"),
            ("data=0", "names no number from 1"),
            ("data=2,tensor=2,data=2", "the axis data is named twice"),
            ("data=3,expert=2", "2 does not divide 3"),
        ] {
            let said = text.parse::<Mesh>().unwrap_err().to_string();
            assert!(said.contains(part) && said.contains("data=4,tensor=2"), "{said}");
        }
    }
}
