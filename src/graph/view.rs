//! Operators that move no data: a part of a tensor, several tensors side by side, and a tensor taken for a constant.

use super::{Cost, Graph, Io, Op, OpNode, Value, View};
use crate::base::{Array, DType, Shape, TensorType};
use crate::error::Result;

/// Bytes from one at which a binding may begin on every adapter to the next.
pub(crate) const BINDING: usize = 256;

/// Elements from one at which a view may begin to the next: those of [`BINDING`] bytes of f32 and of f16. Of packed dtypes as many as of
/// f32 are a whole number of words, and whoever makes their states sees to the bytes.
pub(crate) const fn aligned(dtype: DType) -> usize {
    BINDING / if matches!(dtype, DType::F16) { 2 } else { 4 }
}

/// `shape.elements()` elements from element `start` on, which is a multiple of 64, or of 128 in f16, seen under `shape`. With `start` 0 it
/// is a reshape.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// First element.
    pub start: usize,
    /// Shape of the part.
    pub shape: Shape,
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        let (have, end) = (x.shape.elements(), self.start + self.shape.elements());
        if end > have || !self.start.is_multiple_of(aligned(x.dtype)) {
            let unit = aligned(x.dtype);
            return Err(format!(
                "elements {}..{end} of {have}: out of range, or not at a multiple of {unit}",
                self.start
            ));
        }
        Ok(vec![TensorType { shape: self.shape.clone(), dtype: x.dtype }])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let shape = g.ty(node.inputs[0]).shape.clone();
        match dy[0] {
            // Only whole-tensor views carry a gradient: parts are cut from states, whose parts are differentiated.
            Some(dy) if shape.elements() == self.shape.elements() => Ok(vec![Some(g.reshape(dy, shape)?)]),
            _ => Ok(vec![None]),
        }
    }

    fn cost(&self, _io: &Io) -> Cost {
        Cost::default()
    }

    fn view(&self, io: &Io) -> Option<View> {
        Some(View::Slice(io.outputs[0].dtype.size(self.start)))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let data = inputs[0].data[self.start..self.start + self.shape.elements()].to_vec();
        vec![Array::new(TensorType { shape: self.shape.clone(), dtype: inputs[0].ty.dtype }, data)]
    }
}

/// Tensors of f32, or all of f16, placed in one flat tensor of `elements` elements, each at its own start, as a [`Slice`] may have.
/// Gaps are undefined.
#[derive(Debug, Clone, PartialEq)]
pub struct Concat {
    /// First element of each input.
    pub starts: Vec<usize>,
    /// Elements in all.
    pub elements: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let mut end = 0;
        let dtype = if inputs.iter().any(|x| x.dtype == DType::F16) { DType::F16 } else { DType::F32 };
        for (x, &start) in inputs.iter().zip(&self.starts) {
            if start < end || !start.is_multiple_of(aligned(dtype)) || x.dtype != dtype {
                return Err(format!("{x} cannot lie at element {start}"));
            }
            end = start + x.shape.elements();
        }
        if inputs.len() != self.starts.len() || end > self.elements {
            return Err(format!(
                "{} inputs for {} places in {} elements",
                inputs.len(),
                self.starts.len(),
                self.elements
            ));
        }
        Ok(vec![TensorType { shape: [self.elements].into(), dtype }])
    }

    fn cost(&self, _io: &Io) -> Cost {
        Cost::default()
    }

    fn view(&self, io: &Io) -> Option<View> {
        Some(View::Concat(self.starts.iter().map(|&s| io.outputs[0].dtype.size(s)).collect()))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut y = Array::zeros([self.elements]);
        y.ty.dtype = inputs[0].ty.dtype;
        for (x, &start) in inputs.iter().zip(&self.starts) {
            y.data[start..start + x.data.len()].copy_from_slice(&x.data);
        }
        vec![y]
    }
}

/// The same tensor, through which no gradient flows.
#[derive(Debug, Clone, PartialEq)]
pub struct Detach;

impl Op for Detach {
    fn name(&self) -> &'static str {
        "detach"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        Ok(vec![(*x).clone()])
    }

    fn cost(&self, _io: &Io) -> Cost {
        Cost::default()
    }

    fn view(&self, _io: &Io) -> Option<View> {
        Some(View::Slice(0))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}
