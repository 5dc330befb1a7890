//! How an operator may be computed: shaders, specialisations and dispatches as plain data.

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
    /// Bytes of [`Operand::Scratch`] for it and what follows; no more than its operator says ([`crate::graph::Op::scratch`]).
    pub scratch: u64,
    /// What runs after it, by another shader, to complete its work.
    pub then: Option<Box<Kernel>>,
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
            scratch: 0,
            then: None,
        }
    }

    /// It and what runs after it.
    pub fn stages(&self) -> impl Iterator<Item = &Kernel> {
        std::iter::successors(Some(self), |kernel| kernel.then.as_deref())
    }

    /// The last of its stages, which writes the outputs.
    pub fn last_mut(&mut self) -> &mut Kernel {
        match self.then {
            None => self,
            Some(ref mut next) => next.last_mut(),
        }
    }

    /// Adds a header constant.
    pub fn constant(mut self, name: &'static str, value: usize) -> Self {
        self.constants.push((name, u32::try_from(value).expect("a shader constant beyond 32 bits")));
        self
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
