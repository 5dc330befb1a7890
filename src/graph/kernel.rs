//! How an operator may be computed: shaders, specialisations and dispatches as plain data.

use crate::base::{DType, TensorType};
pub use crate::shader::{Constant, Hook};
use serde::{Deserialize, Serialize};

/// A field of a shader's `Params`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// An unsigned integer.
    U32(u32),
    /// A float.
    F32(f32),
}

impl Scalar {
    /// Its four bytes on the device.
    pub fn to_bytes(self) -> [u8; 4] {
        match self {
            Scalar::U32(x) => x.to_le_bytes(),
            Scalar::F32(x) => x.to_le_bytes(),
        }
    }
}

impl From<u32> for Scalar {
    fn from(x: u32) -> Self {
        Scalar::U32(x)
    }
}

impl From<usize> for Scalar {
    fn from(x: usize) -> Self {
        Scalar::U32(u32::try_from(x).expect("a kernel parameter beyond 32 bits"))
    }
}

impl From<f32> for Scalar {
    fn from(x: f32) -> Self {
        Scalar::F32(x)
    }
}

/// What a binding refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Input of the node.
    Input(usize),
    /// Output of the node.
    Output(usize),
    /// Memory that only the kernel's own stages know: undefined before the first.
    Scratch,
}

/// A shader variable and the range of an operand behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bind {
    /// The variable's name in the shader.
    pub name: String,
    /// Which tensor.
    pub operand: Operand,
    /// First byte within the tensor; a multiple of the adapter's binding alignment.
    pub offset: u64,
    /// Bytes bound.
    pub bytes: u64,
}

/// One dispatch of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// What the shader's storage variables refer to.
    pub bindings: Vec<Bind>,
    /// Values for the fields of `Params`, by name.
    pub params: Vec<(&'static str, Scalar)>,
    /// Workgroups in x, y and z.
    pub workgroups: [u32; 3],
}

/// One candidate: a shader, its specialisation, and the dispatches that cover the tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Which candidate this is, such as `rows_8x2`.
    pub variant: String,
    /// The file under `shaders/`, without its ending.
    pub shader: &'static str,
    /// The header.
    pub constants: Vec<Constant>,
    /// Fused expressions.
    pub hooks: Vec<Hook>,
    /// The dispatches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Floating-point operations of this stage, with those of tiles that stand over the edges; 0 where they are the operator's cost,
    /// or, beside stages that say theirs, hardly any.
    pub flops: u64,
    /// Bytes that this stage reads and writes; 0 where they are the operator's cost, and of scratch memory all.
    pub bytes: u64,
    /// Bytes of [`Operand::Scratch`] for it and what follows; no more than its operator says ([`crate::graph::Op::scratch`]).
    pub scratch: u64,
    /// What runs after it, in order, by other shaders, to complete its work: stages, which nothing follows.
    pub then: Vec<Kernel>,
}

impl Kernel {
    /// A kernel with one dispatch that binds whole tensors.
    pub fn new(shader: &'static str, variant: impl Into<String>) -> Self {
        Kernel {
            variant: variant.into(),
            shader,
            constants: Vec::new(),
            hooks: Vec::new(),
            dispatches: Vec::new(),
            flops: 0,
            bytes: 0,
            scratch: 0,
            then: Vec::new(),
        }
    }

    /// It and what runs after it.
    pub fn stages(&self) -> impl Iterator<Item = &Kernel> {
        std::iter::once(self).chain(&self.then)
    }

    /// What each stage has of this many operations: as many as it says in proportion, and the first what is left.
    pub fn shares(&self, flops: u64) -> Vec<u64> {
        let all: u64 = self.stages().map(|stage| stage.flops).sum();
        let share = |stage: &Kernel| (u128::from(flops) * u128::from(stage.flops) / u128::from(all.max(1))) as u64;
        let mut shares: Vec<u64> = self.stages().map(share).collect();
        shares[0] = flops - shares[1..].iter().sum::<u64>();
        shares
    }

    /// Bytes that each stage moves of an operator that costs so many: those that it says; else the first has the operator's, and
    /// each hands on by all of the scratch memory, or takes from it.
    pub fn traffic(&self, bytes: u64) -> Vec<u64> {
        let handed = if self.then.is_empty() { 0 } else { self.scratch };
        let own = |(i, stage): (usize, &Kernel)| match (stage.bytes, i) {
            (0, 0) => bytes + handed,
            (0, _) => handed,
            (own, _) => own,
        };
        self.stages().enumerate().map(own).collect()
    }

    /// The last of its stages, which writes the outputs.
    pub fn last_mut(&mut self) -> &mut Kernel {
        if self.then.is_empty() { self } else { self.then.last_mut().expect("it is not empty") }
    }

    /// Adds a header constant.
    pub fn constant(mut self, name: &'static str, value: usize) -> Self {
        self.constants.push((name, u32::try_from(value).expect("a shader constant beyond 32 bits")));
        self
    }

    /// Adds the header by which it stores in f16 what is of that type (`lib/written.wgsl`).
    pub fn writing(self, ty: &TensorType) -> Self {
        if ty.dtype == DType::F16 { self.constant("WRITES_F16", 1) } else { self }
    }

    /// Adds a dispatch.
    pub fn dispatch(mut self, dispatch: Dispatch) -> Self {
        self.dispatches.push(dispatch);
        self
    }
}

impl Dispatch {
    /// A dispatch of this many workgroups.
    pub fn new(workgroups: [u32; 3]) -> Self {
        Dispatch { bindings: Vec::new(), params: Vec::new(), workgroups }
    }

    /// Binds a range of an operand.
    pub fn bind(mut self, name: impl Into<String>, operand: Operand, offset: u64, bytes: u64) -> Self {
        self.bindings.push(Bind { name: name.into(), operand, offset, bytes });
        self
    }

    /// Sets a field of `Params`.
    pub fn param(mut self, name: &'static str, value: impl Into<Scalar>) -> Self {
        self.params.push((name, value.into()));
        self
    }
}
