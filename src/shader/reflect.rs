//! What a shader binds, read from the WGSL itself, so that no layout is ever written twice.

use crate::error::{Error, Result};
use crate::gpu::Access;

/// A resource that the shader declares in group 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name.
    pub name: String,
    /// Its `@binding` number.
    pub index: u32,
    /// How the shader uses it.
    pub access: Access,
    /// Bytes of one element, such as 16 for `array<vec4<f32>>`.
    pub stride: u32,
}

/// Type of a field of `Params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// `u32`
    U32,
    /// `i32`
    I32,
    /// `f32`
    F32,
}

/// A field of `Params`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// First byte within the struct.
    pub offset: usize,
    /// Its type; all are four bytes.
    pub kind: FieldKind,
}

/// A specialised shader that has passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The shader's name, for messages.
    pub shader: String,
    /// The WGSL.
    pub text: String,
    /// Invocations of a workgroup in x, y and z.
    pub workgroup_size: [u32; 3],
    /// Resources, in the order of their numbers.
    pub bindings: Vec<Binding>,
    /// Fields of the uniform; empty where there is none.
    pub params: Vec<Field>,
    /// Bytes of the uniform; 0 where there is none.
    pub params_bytes: usize,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
}

impl Source {
    /// Number and use of each binding, as a pipeline wants them.
    pub fn layout(&self) -> Vec<(u32, Access)> {
        self.bindings.iter().map(|b| (b.index, b.access)).collect()
    }

    /// The binding of this name.
    pub fn binding(&self, name: &str) -> Option<&Binding> {
        self.bindings.iter().find(|b| b.name == name)
    }

    /// The binding of `Params`.
    pub fn uniform(&self) -> Option<&Binding> {
        self.bindings.iter().find(|b| b.access == Access::Uniform)
    }
}

/// Parses and validates; `place` names the origin of a line of `text`.
pub(super) fn reflect(shader: &str, text: String, place: &dyn Fn(usize) -> String) -> Result<Source> {
    let fail = |message: String| Error::Shader { shader: shader.to_string(), message };
    let at = |location: Option<naga::SourceLocation>| {
        location.map_or(String::new(), |l| place(l.line_number as usize) + ": ")
    };
    let module = naga::front::wgsl::parse_str(&text)
        .map_err(|e| fail(format!("{}{}", at(e.location(&text)), e.emit_to_string(&text).trim_end())))?;
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
        .validate(&module)
        .map_err(|e| fail(format!("{}{}", at(e.location(&text)), e.emit_to_string(&text).trim_end())))?;
    let entry = module.entry_points.iter().find(|e| e.name == "main");
    let entry = entry.ok_or_else(|| fail("has no entry point `main`".into()))?;
    let mut source = Source {
        shader: shader.to_string(),
        workgroup_size: entry.workgroup_size,
        bindings: Vec::new(),
        params: Vec::new(),
        params_bytes: 0,
        shared_bytes: 0,
        text,
    };
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| fail(e.to_string()))?;
    for (_, variable) in module.global_variables.iter() {
        if variable.space == naga::AddressSpace::WorkGroup {
            source.shared_bytes += layouter[variable.ty].size;
        }
        let Some(binding) = &variable.binding else { continue };
        let name = variable.name.clone().unwrap_or_default();
        let access = match variable.space {
            naga::AddressSpace::Uniform => {
                (source.params, source.params_bytes) = params(&module, variable.ty).map_err(fail)?;
                Access::Uniform
            }
            naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Access::ReadWrite,
            naga::AddressSpace::Storage { .. } => Access::Read,
            _ => return Err(fail(format!("`{name}` is neither a uniform nor a storage buffer"))),
        };
        let stride = match module.types[variable.ty].inner {
            naga::TypeInner::Array { stride, .. } => stride,
            _ => layouter[variable.ty].size,
        };
        if binding.group != 0 {
            return Err(fail(format!("`{name}` is in group {}; everything is bound in group 0", binding.group)));
        }
        source.bindings.push(Binding { name, index: binding.binding, access, stride });
    }
    source.bindings.sort_by_key(|b| b.index);
    if let Some(pair) = source.bindings.windows(2).find(|p| p[0].index == p[1].index) {
        return Err(fail(format!("`{}` and `{}` have the same binding number", pair[0].name, pair[1].name)));
    }
    if source.bindings.iter().filter(|b| b.access == Access::Uniform).count() > 1 {
        return Err(fail("has more than one uniform".into()));
    }
    Ok(source)
}

/// Fields and size of the uniform struct.
fn params(module: &naga::Module, ty: naga::Handle<naga::Type>) -> Result<(Vec<Field>, usize), String> {
    let naga::TypeInner::Struct { members, span } = &module.types[ty].inner else {
        return Err("the uniform must be a struct of scalars".into());
    };
    let mut fields = Vec::new();
    for m in members {
        let name = m.name.clone().unwrap_or_default();
        let kind = match module.types[m.ty].inner {
            naga::TypeInner::Scalar(naga::Scalar::U32) => FieldKind::U32,
            naga::TypeInner::Scalar(naga::Scalar::I32) => FieldKind::I32,
            naga::TypeInner::Scalar(naga::Scalar::F32) => FieldKind::F32,
            _ => return Err(format!("field `{name}` of the uniform is not a u32, i32 or f32")),
        };
        fields.push(Field { name, offset: m.offset as usize, kind });
    }
    Ok((fields, *span as usize))
}
