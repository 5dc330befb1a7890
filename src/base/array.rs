//! Host arrays in f64: what an operator's reference computes on, and what tests compare with.

use super::{DType, Shape, TensorType, packed};
use half::{bf16, f16};

/// A contiguous row-major array. Integers are held exactly, as f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Shape and the dtype that the device holds it in.
    pub ty: TensorType,
    /// The elements.
    pub data: Vec<f64>,
    /// The device's bytes, where the dtype is quantised: the elements alone do not say how they were written.
    bytes: Vec<u8>,
}

/// A number rounded to the nearest f16, of two equally near ones the even one; beyond 65,504 to infinity. By way of the f32 that a
/// device holds: so no reference rounds a number that no kernel sees.
pub fn to_half(x: f64) -> f64 {
    f16::from_f32(x as f32).to_f64()
}

impl Array {
    /// Wraps `data`, whose length must be the shape's number of elements.
    pub fn new(ty: TensorType, data: Vec<f64>) -> Self {
        assert_eq!(ty.shape.elements(), data.len(), "{ty}: wrong number of elements");
        Array { ty, data, bytes: Vec::new() }
    }

    /// An f32 array of this shape filled with zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let ty = TensorType::f32(shape);
        let data = vec![0.0; ty.shape.elements()];
        Array { ty, data, bytes: Vec::new() }
    }

    /// The device's bytes of this array, each element rounded to its dtype. Quantised ones give the bytes that they were
    /// made from.
    ///
    /// # Panics
    /// If the dtype is quantised and the array was not made by [`Array::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        match self.ty.dtype {
            DType::F32 => self.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::U32 => self.data.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect(),
            DType::F16 => self.data.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect(),
            DType::BF16 => self.data.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            _ => {
                assert_eq!(
                    self.bytes.len() as u64,
                    self.ty.bytes(),
                    "{}: a quantised array is made from bytes",
                    self.ty
                );
                self.bytes.clone()
            }
        }
    }

    /// Reads an array from the device's bytes.
    pub fn from_bytes(ty: TensorType, bytes: &[u8]) -> Self {
        let words = bytes.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]);
        let data = match ty.dtype {
            DType::F32 => words.map(|w| f32::from_le_bytes(w) as f64).collect(),
            DType::U32 => words.map(|w| u32::from_le_bytes(w) as f64).collect(),
            dtype => {
                let mut data = vec![0.0; ty.shape.elements()];
                packed::decode_device(dtype, bytes, &mut data);
                let data = data.into_iter().map(f64::from).collect();
                return Array { bytes: bytes.to_vec(), ..Array::new(ty, data) };
            }
        };
        Array::new(ty, data)
    }

    /// Sizes of the dims.
    pub fn dims(&self) -> &[usize] {
        self.ty.shape.dims()
    }

    /// Root mean square of the elements; 0 for an empty array.
    pub fn rms(&self) -> f64 {
        if self.data.is_empty() {
            return 0.0;
        }
        (self.data.iter().map(|x| x * x).sum::<f64>() / self.data.len() as f64).sqrt()
    }
}
