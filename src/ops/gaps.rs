//! Ranges of a flat page that belong to no tensor: padding, whose content in a gradient is undefined.

use crate::base::{Array, DType, TensorType};

/// Type and bytes of the constant that tells [`super::SumSquares`] and updates what to leave out: u32
/// `[G,2]`, the first element of each gap and the first after it, in ascending order. `None` where there is no gap.
pub fn gap_table(gaps: &[(usize, usize)]) -> Option<(TensorType, Vec<u8>)> {
    let mut gaps: Vec<_> = gaps.iter().filter(|(start, end)| start < end).collect();
    gaps.sort_unstable();
    let word = |x: usize| u32::try_from(x).expect("an element of a page beyond 32 bits").to_le_bytes();
    let bytes: Vec<u8> = gaps.iter().flat_map(|&&(start, end)| [word(start), word(end)].concat()).collect();
    (!gaps.is_empty()).then(|| (TensorType::u32([gaps.len(), 2]), bytes))
}

/// Checks the inputs that follow an operator's own: nothing, or a table.
pub(super) fn check(rest: &[&TensorType]) -> Result<(), String> {
    match rest {
        [] => Ok(()),
        [table] if table.dtype == DType::U32 && table.shape.rank() == 2 && table.shape.last() == 2 => Ok(()),
        _ => Err("the table of gaps must be u32 [G,2], and the last input".into()),
    }
}

/// True if element `i` lies in a gap.
pub(super) fn contains(table: Option<&Array>, i: usize) -> bool {
    table.is_some_and(|t| t.data.chunks_exact(2).any(|g| (g[0] as usize..g[1] as usize).contains(&i)))
}
