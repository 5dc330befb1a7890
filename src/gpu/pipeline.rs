//! Compiled shaders and what they are bound to.

use super::device::describe;
use super::{Gpu, Range};
use crate::error::{Error, Result};
use std::sync::Arc;

/// How a shader uses a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// A uniform.
    Uniform,
    /// Storage that is only read.
    Read,
    /// Storage that is written.
    ReadWrite,
}

/// A compiled shader.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    label: String,
}

/// Buffers bound to the variables of a shader.
#[derive(Debug, Clone)]
pub struct BindGroup {
    pub(super) raw: wgpu::BindGroup,
}

impl Gpu {
    /// Compiles WGSL with entry point `main`, or finds it compiled already. `bindings` are numbers in group 0. May be
    /// called from several threads at a time; compiling holds the calling thread.
    ///
    /// The text must have passed validation and guard every index itself: the driver's view of it has no bounds checks,
    /// and shared memory starts undefined.
    ///
    /// # Errors
    /// [`Error::Shader`] if the device refuses it.
    pub async fn pipeline(&self, label: &str, text: &str, bindings: &[(u32, Access)]) -> Result<Arc<Pipeline>> {
        self.check()?;
        if let Some(found) = self.pipelines().get(text) {
            return Ok(found.clone());
        }
        let made = self.scoped(|| self.compile(label, text, bindings)).await;
        let made = made.map_err(|e| Error::Shader { shader: label.to_string(), message: describe(&e) })?;
        Ok(self.pipelines().entry(text.to_string()).or_insert_with(|| Arc::new(made)).clone())
    }

    fn compile(&self, label: &str, text: &str, bindings: &[(u32, Access)]) -> Pipeline {
        let device = self.device();
        let entries: Vec<_> = bindings.iter().map(|&(binding, access)| entry(binding, access)).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries };
        let layout = device.create_bind_group_layout(&descriptor);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let text = if self.reads_wide() { super::wide::widen(text) } else { text.to_string() };
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let module = wgpu::ShaderModuleDescriptor { label: Some(label), source };
        // SAFETY: every shader is ours, guards its own indices and ends its loops; the operator tests run each
        // candidate at odd sizes between guard words.
        let module = unsafe { device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked()) };
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.kept().get().map(|kept| &kept.raw),
        });
        Pipeline { raw, layout, label: label.to_string() }
    }

    /// Binds ranges to binding numbers; every binding of the pipeline needs one.
    ///
    /// # Errors
    /// [`Error::Device`] if a binding is missing, misaligned or too large.
    pub async fn bind(&self, pipeline: &Pipeline, ranges: &[(u32, Range<'_>)]) -> Result<BindGroup> {
        self.check()?;
        if ranges.iter().any(|(_, r)| r.bytes == 0) {
            return Err(Error::Device(format!("{}: an empty range cannot be bound", pipeline.label)));
        }
        let mut entries = Vec::new();
        for &(binding, Range { buffer, offset, bytes }) in ranges {
            let buffer = wgpu::BufferBinding { buffer: &buffer.raw, offset, size: wgpu::BufferSize::new(bytes) };
            entries.push(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(buffer) });
        }
        let label = Some(pipeline.label.as_str());
        let descriptor = wgpu::BindGroupDescriptor { label, layout: &pipeline.layout, entries: &entries };
        let made = self.scoped(|| self.device().create_bind_group(&descriptor)).await;
        made.map(|raw| BindGroup { raw }).map_err(|e| Error::Device(format!("{}: {}", pipeline.label, describe(&e))))
    }
}

fn entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform => wgpu::BufferBindingType::Uniform,
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
    };
    let ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}
