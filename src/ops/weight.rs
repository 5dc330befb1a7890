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
        DType::Q2K => &["Q2_K", "BLOCK", "BLOCK_256", "HALVES"],
        DType::Q3K => &["Q3_K", "BLOCK", "BLOCK_256", "HALVES"],
        DType::Q4K => &["Q4_K", "BLOCK", "BLOCK_256", "SIX_BIT_SCALES"],
        DType::Q5K => &["Q5_K", "BLOCK", "BLOCK_256", "SIX_BIT_SCALES", "HIGH_BITS"],
        DType::Q6K => &["Q6_K", "BLOCK", "BLOCK_256", "HALVES"],
        DType::Nf4 => &["NF4", "BLOCK", "BLOCK_64"],
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

#[cfg(test)]
mod tests {
    use super::super::{Embedding, MatMul};
    use super::*;
    use crate::graph::Op;

    fn ty<const N: usize>(dtype: DType, dims: [usize; N]) -> TensorType {
        TensorType { shape: dims.into(), dtype }
    }

    #[test]
    fn weights_that_cannot_be_read_are_refused() {
        let (x, tokens) = (TensorType::f32([3, 48]), TensorType::u32([5]));
        let product = |op: MatMul, b: TensorType| op.infer(&[&x, &b]).unwrap_err();
        let by_rows = MatMul::new(false, false);
        assert_eq!(
            product(MatMul::linear(), ty(DType::Q4_0, [64, 48])),
            "b is q4_0[64,48], but q4_0 comes in blocks of 32, and a row has 48 elements"
        );
        assert_eq!(
            product(by_rows, ty(DType::Q6K, [48, 64])),
            "b is q6_k[48,64], but q6_k comes in blocks of 256, and a row has 64 elements"
        );
        assert_eq!(
            product(MatMul::linear(), ty(DType::U32, [64, 48])),
            "b is u32[64,48], and u32 is no dtype of weights"
        );
        assert_eq!(
            Embedding.infer(&[&ty(DType::BF16, [64, 3]), &tokens]).unwrap_err(),
            "the table is bf16[64,3], but bf16 comes in blocks of 2, and a row has 3 elements"
        );
        assert!(Embedding.infer(&[&ty(DType::Q8_0, [64, 32]), &tokens]).is_ok());
    }

    /// Distinct headers give distinct keys of the tuner, and distinct pipelines.
    #[test]
    fn every_dtype_has_a_header_of_its_own() {
        let header = |dtype| header(Kernel::new("matmul_rows", "rows"), dtype).constants;
        for (i, a) in DType::WEIGHTS.into_iter().enumerate() {
            assert!(DType::WEIGHTS[..i].iter().all(|&b| header(a) != header(b)), "{a}");
        }
    }
}
