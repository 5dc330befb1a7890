//! What a dispatch says by name, put where the shader wants it.

use crate::base::{Limits, TensorType};
use crate::error::{Error, Result};
use crate::gpu::Access;
use crate::graph::{Bind, Scalar};
use crate::shader::{FieldKind, Source};

/// The bytes of `Params` from values by field name.
///
/// # Errors
/// [`Error::Shader`] if a field is missing, unknown, given twice, or of another type.
pub fn params_bytes(source: &Source, values: &[(&str, Scalar)]) -> Result<Vec<u8>> {
    let fail = |message: String| Err(Error::Shader { shader: source.shader.clone(), message });
    let mut bytes = vec![0; source.params_bytes];
    for (i, (name, _)) in values.iter().enumerate() {
        if values[..i].iter().any(|(n, _)| n == name) {
            return fail(format!("the dispatch sets field `{name}` of Params twice"));
        }
        if !source.params.iter().any(|f| f.name == *name) {
            return fail(format!("the dispatch sets `{name}`, which Params does not have"));
        }
    }
    for field in &source.params {
        let Some((_, value)) = values.iter().find(|(n, _)| *n == field.name) else {
            return fail(format!("the dispatch does not set field `{}` of Params", field.name));
        };
        if (field.kind == FieldKind::F32) != matches!(value, Scalar::F32(_)) {
            return fail(format!("field `{}` of Params is {:?} and was given {value:?}", field.name, field.kind));
        }
        bytes[field.offset..field.offset + 4].copy_from_slice(&value.to_bytes());
    }
    Ok(bytes)
}

/// The binding number behind each bound name, in the order of `binds`.
///
/// # Errors
/// [`Error::Shader`] if a variable is missing, unknown or bound twice.
pub fn resolve(source: &Source, binds: &[Bind]) -> Result<Vec<(u32, Access)>> {
    let fail = |message: String| Error::Shader { shader: source.shader.clone(), message };
    for binding in source.bindings.iter().filter(|b| b.access != Access::Uniform) {
        match binds.iter().filter(|b| b.name == binding.name).count() {
            1 => {}
            0 => return Err(fail(format!("the dispatch does not bind `{}`", binding.name))),
            _ => return Err(fail(format!("the dispatch binds `{}` twice", binding.name))),
        }
    }
    let find = |bind: &Bind| {
        let found = source.binding(&bind.name).filter(|b| b.access != Access::Uniform);
        found
            .map(|b| (b.index, b.access))
            .ok_or_else(|| fail(format!("the dispatch binds `{}`, which it does not declare", bind.name)))
    };
    binds.iter().map(find).collect()
}

/// Checks that a bound range lies within its tensor of type `ty`, starts where the adapter allows and holds whole
/// elements of the shader's array.
///
/// # Errors
/// [`Error::Shader`] if it does not.
pub fn check_range(source: &Source, bind: &Bind, ty: &TensorType, limits: &Limits) -> Result<()> {
    let (alignment, max) = (limits.binding_alignment, limits.max_binding_bytes);
    let stride = source.binding(&bind.name).map_or(4, |b| u64::from(b.stride));
    let within = bind.offset.checked_add(bind.bytes).is_some_and(|end| end <= ty.bytes());
    let whole = bind.bytes > 0 && bind.bytes.is_multiple_of(stride);
    if within && whole && bind.offset.is_multiple_of(alignment) && bind.bytes <= max {
        return Ok(());
    }
    let message = format!(
        "`{}` is bound to {} bytes at {} of {:?}, {ty} with {} bytes; bindings start at multiples of {alignment}, hold whole \
         elements of {stride} bytes and at most {max} bytes",
        bind.name,
        bind.bytes,
        bind.offset,
        bind.operand,
        ty.bytes()
    );
    Err(Error::Shader { shader: source.shader.clone(), message })
}
