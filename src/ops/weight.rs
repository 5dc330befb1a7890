//! Weights as kernels read them: rows of blocks, counted in words of four bytes (`lib/weight.wgsl`).

use crate::base::{DType, TensorType};
use crate::graph::Kernel;

/// Words of so many elements of a row, which are whole blocks.
pub fn words(dtype: DType, elements: usize) -> usize {
    (dtype.size(elements) / 4) as usize
}

/// The header that tells `lib/weight.wgsl` a dtype.
pub fn header(kernel: Kernel, dtype: DType) -> Kernel {
    let names: &[&'static str] = match dtype {
        DType::F32 => &["F32"],
        DType::U32 => unreachable!("refused where the node was made"),
        DType::F16 => &["F16"],
        DType::BF16 => &["BF16"],
        DType::Q4_0 => &["Q4_0", "BLOCK", "BLOCK_32"],
        DType::Q4_1 => &["Q4_1", "BLOCK", "BLOCK_32", "MINIMUM"],
        DType::Q5_0 => &["Q5_0", "BLOCK", "BLOCK_32", "HIGH_BITS"],
        DType::Q5_1 => &["Q5_1", "BLOCK", "BLOCK_32", "HIGH_BITS", "MINIMUM"],
        DType::Q8_0 => &["Q8_0", "BLOCK", "BLOCK_32"],
        DType::Q2K => &["Q2_K", "BLOCK", "BLOCK_256"],
        DType::Q3K => &["Q3_K", "BLOCK", "BLOCK_256"],
        DType::Q4K => &["Q4_K", "BLOCK", "BLOCK_256", "SIX_BIT_SCALES"],
        DType::Q5K => &["Q5_K", "BLOCK", "BLOCK_256", "SIX_BIT_SCALES", "HIGH_BITS"],
        DType::Q6K => &["Q6_K", "BLOCK", "BLOCK_256"],
    };
    names.iter().fold(kernel, |kernel, name| kernel.constant(name, 1))
}

/// What is wrong with a tensor as a weight, if anything is.
pub fn check(name: &str, ty: &TensorType) -> Result<(), String> {
    if ty.dtype == DType::U32 {
        return Err(format!("{name} is {ty}, and u32 is no dtype of weights"));
    }
    if !ty.has_whole_blocks() {
        let (row, block) = (ty.shape.last(), ty.dtype.block().elements);
        return Err(format!(
            "{name} is {ty}, but {} comes in blocks of {block}, and a row has {row} elements",
            ty.dtype
        ));
    }
    Ok(())
}
