//! Shapes and dtypes: what a tensor is, without its numbers.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Element type of a tensor on the device. Narrow and quantised elements lie in blocks, each a whole number of 4-byte
/// words (`packed.rs` says how); a row must hold whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // Most quantised ones have the names that GGUF gives them.
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Unsigned 32-bit integers: token ids, positions, seeds.
    U32,
    /// IEEE half precision, two in a word.
    F16,
    /// The upper half of an f32, two in a word.
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    #[serde(rename = "q2_k")]
    Q2K,
    #[serde(rename = "q3_k")]
    Q3K,
    #[serde(rename = "q4_k")]
    Q4K,
    #[serde(rename = "q5_k")]
    Q5K,
    #[serde(rename = "q6_k")]
    Q6K,
    /// Four bits by a table, and a scale for 64 (`nf4.rs`).
    Nf4,
}

/// How a dtype groups its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Elements of one block.
    pub elements: usize,
    /// Bytes of a block in a file.
    pub file_bytes: usize,
    /// Bytes of a block on the device: those of the file, padded to whole words.
    pub bytes: usize,
}

impl DType {
    /// Every dtype that a weight may have.
    pub const WEIGHTS: [DType; 14] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Nf4,
    ];

    /// Its blocks.
    pub const fn block(self) -> Block {
        let (elements, file_bytes) = match self {
            DType::F32 | DType::U32 => (1, 4),
            DType::F16 | DType::BF16 => (2, 4),
            DType::Q4_0 => (32, 18),
            DType::Q4_1 => (32, 20),
            DType::Q5_0 => (32, 22),
            DType::Q5_1 => (32, 24),
            DType::Q8_0 => (32, 34),
            DType::Q2K => (256, 84),
            DType::Q3K => (256, 110),
            DType::Q4K => (256, 144),
            DType::Q5K => (256, 176),
            DType::Q6K => (256, 210),
            DType::Nf4 => (64, 36),
        };
        Block { elements, file_bytes, bytes: file_bytes.next_multiple_of(4) }
    }

    /// Bytes on the device of this many elements: whole blocks.
    pub const fn size(self, elements: usize) -> u64 {
        let block = self.block();
        (elements / block.elements) as u64 * block.bytes as u64
    }

    /// Bytes in a file of this many elements: whole blocks.
    pub const fn file_size(self, elements: usize) -> u64 {
        let block = self.block();
        (elements / block.elements) as u64 * block.file_bytes as u64
    }

    /// True where an element is not a word of its own: a shader reads it through `lib/weight.wgsl`.
    pub const fn is_packed(self) -> bool {
        !matches!(self, DType::F32 | DType::U32)
    }

    /// Its name, as GGUF and WGSL write it, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::U32 => "u32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::Q4_0 => "q4_0",
            DType::Q4_1 => "q4_1",
            DType::Q5_0 => "q5_0",
            DType::Q5_1 => "q5_1",
            DType::Q8_0 => "q8_0",
            DType::Q2K => "q2_k",
            DType::Q3K => "q3_k",
            DType::Q4K => "q4_k",
            DType::Q5K => "q5_k",
            DType::Q6K => "q6_k",
            DType::Nf4 => "nf4",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sizes of a tensor's dims, outermost first. Tensors are contiguous and row-major.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Number of dims.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The innermost size; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Product of all sizes but the innermost.
    pub fn rows(&self) -> usize {
        self.0.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Shape(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "[{}]", dims.join(","))
    }
}

/// Shape and dtype of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Sizes of its dims.
    pub shape: Shape,
    /// Type of its elements.
    pub dtype: DType,
}

impl TensorType {
    /// An f32 tensor of this shape.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        TensorType { shape: shape.into(), dtype: DType::F32 }
    }

    /// A u32 tensor of this shape.
    pub fn u32(shape: impl Into<Shape>) -> Self {
        TensorType { shape: shape.into(), dtype: DType::U32 }
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.dtype.size(self.shape.elements())
    }

    /// Bytes of one row: of the innermost dim.
    pub fn row_bytes(&self) -> u64 {
        self.dtype.size(self.shape.last())
    }

    /// True if every row holds whole blocks of the dtype.
    pub fn has_whole_blocks(&self) -> bool {
        self.shape.last().is_multiple_of(self.dtype.block().elements)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
