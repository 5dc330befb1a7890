//! What a rank of an axis has of a value.

use crate::base::Shape;

/// What a rank has of a value that one device would have whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// All of it, as every other rank, to the bit.
    Same,
    /// One of N parts. The value is `outer` blocks one after another, and each block N equal parts; rank r has part r of every
    /// block. So it is a dim that is split, the one that begins where `outer` elements of larger dims end; said like this it
    /// outlives a reshape.
    Split {
        /// Blocks.
        outer: usize,
    },
}

impl Placement {
    /// The placement of a value whose dim `dim` is split.
    pub fn of_dim(shape: &Shape, dim: usize) -> Placement {
        Placement::Split { outer: shape.dims()[..dim].iter().product() }
    }

    /// Which dim of a shape is split among so many ranks; `None` where a part would be no part of a dim.
    pub fn dim(self, shape: &Shape, ranks: usize) -> Option<usize> {
        let Placement::Split { outer } = self else { return None };
        let mut before = 1;
        for (dim, size) in shape.dims().iter().enumerate() {
            let through = before * size;
            if through.is_multiple_of(outer * ranks) && outer.is_multiple_of(before) && size.is_multiple_of(ranks) {
                return Some(dim);
            }
            before = through;
        }
        None
    }

    /// A rank's shape of a value of this shape; `None` as of [`Placement::dim`].
    pub fn local(self, shape: &Shape, ranks: usize) -> Option<Shape> {
        if self == Placement::Same {
            return Some(shape.clone());
        }
        let dim = self.dim(shape, ranks)?;
        let mut dims = shape.dims().to_vec();
        dims[dim] /= ranks;
        Some(dims.into())
    }

    /// Elements that lie together in a rank's part: whole rows of a dim that divides this are on one rank.
    pub fn run(self, shape: &Shape, ranks: usize) -> usize {
        match self {
            Placement::Same => shape.elements(),
            Placement::Split { outer } => shape.elements() / outer / ranks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_dim_stay_parts_through_reshapes() {
        let (b, t, h, c) = (3, 5, 4, 6);
        let heads = Placement::of_dim(&[b, t, h * c].into(), 2);
        assert_eq!(heads, Placement::Split { outer: b * t });
        for (shape, local) in [
            (vec![b, t, h * c], vec![b, t, h * c / 2]),
            (vec![b, t, h, c], vec![b, t, h / 2, c]),
            (vec![b * t * h, c], vec![b * t * h / 2, c]),
            (vec![b * t, h * c], vec![b * t, h * c / 2]),
        ] {
            assert_eq!(heads.local(&shape.clone().into(), 2), Some(local.into()), "{shape:?}");
        }
        // Three heads of two elements on four ranks are no parts of heads.
        assert_eq!(Placement::of_dim(&[2, 12].into(), 1).local(&[2, 6, 2].into(), 4), None);
        let tokens = Placement::of_dim(&[1, 8, 6].into(), 1);
        assert_eq!(tokens.local(&[1, 8, 6].into(), 4), Some([1, 2, 6].into()));
        assert_eq!((tokens.run(&[1, 8, 6].into(), 4), heads.run(&[b, t, h, c].into(), 2)), (12, 12));
    }
}
