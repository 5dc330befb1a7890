//! What several tests share: the device under test, and translation of kernels for vendors that are not here.
#![allow(dead_code)]

pub mod candidates;
pub mod golden;
pub mod interpret;
pub mod ranks;
pub mod scores;
pub mod shared;
pub mod spread;
pub mod tiny_run;

use danlu::base::{Bytes, Limits};
use danlu::compile::First;
use danlu::gpu::{Gpu, Selector};
use danlu::graph::Kernel;
use danlu::model::find_config;
use danlu::run::device_bytes;
use danlu::shader::{Source, assemble};
use danlu::train::{Plans, Recipe, plans};
use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Mutex;

/// Devices that were given back, with all that they have compiled: a driver's work that every other test would have done again.
static FREE: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());

/// A device that nobody else has until it is dropped. Then another test may have it, unless it was lost or its test failed.
pub struct Lent(Gpu);

impl Deref for Lent {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.0.check().is_ok() {
            FREE.lock().unwrap().push(self.0.clone());
        }
    }
}

/// A device of the adapter that the environment variable `DANLU_ADAPTER` names, or of the automatic one: those who ask at a time have
/// one each.
pub fn gpu() -> Lent {
    let free = FREE.lock().unwrap().pop();
    Lent(free.unwrap_or_else(new_gpu))
}

/// The same, of which nobody has had anything yet, and which nobody gets afterwards.
pub fn new_gpu() -> Gpu {
    let wanted = std::env::var("DANLU_ADAPTER").unwrap_or_default();
    pollster::block_on(Gpu::open(&Selector::from(wanted.as_str()))).expect("tests need an adapter")
}

/// Assembles a kernel, checks it against the limits that it was made for, and translates it for every vendor.
pub fn check_kernel(kernel: &Kernel, limits: &Limits) {
    let source = assemble(kernel.shader, &kernel.constants, &kernel.hooks).unwrap_or_else(|e| panic!("{e}"));
    let label = format!("{} {}", kernel.shader, kernel.variant);
    let storage = source.bindings.iter().filter(|b| b.access != danlu::gpu::Access::Uniform).count();
    let (bindings, shared) = (limits.max_storage_bindings as usize, limits.max_shared_bytes);
    assert!(storage <= bindings, "{label}: {storage} storage bindings of {bindings}");
    assert!(source.shared_bytes <= shared, "{label}: {} bytes of shared memory of {shared}", source.shared_bytes);
    let [x, y, z] = source.workgroup_size;
    let lanes = limits.max_invocations;
    assert!(x * y * z <= lanes && z <= 64, "{label}: {x} x {y} x {z} invocations of {lanes}");
    for d in &kernel.dispatches {
        assert!(d.workgroups.iter().all(|&n| n <= limits.max_workgroups), "{label}: {:?} workgroups", d.workgroups);
        danlu::run::params_bytes(&source, &d.params).unwrap_or_else(|e| panic!("{label}: {e}"));
        danlu::run::resolve(&source, &d.bindings).unwrap_or_else(|e| panic!("{label}: {e}"));
    }
    translate_all(&label, &source);
}

/// What a CPU's driver gets of a kernel is valid, and reads no storage as `vec4<f32>`.
pub fn check_wide(kernel: &Kernel) {
    let source = assemble(kernel.shader, &kernel.constants, &kernel.hooks).unwrap_or_else(|e| panic!("{e}"));
    static DONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if !is_new(&DONE, &source.text) {
        return;
    }
    let text = danlu::gpu::widen(&source.text);
    let label = format!("{} {}, read by 64 bits", kernel.shader, kernel.variant);
    let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(&text)));
    let capabilities = naga::valid::Capabilities::all();
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    validator.validate(&module).unwrap_or_else(|e| panic!("{label}: {e}"));
    for (_, variable) in module.global_variables.iter() {
        let naga::TypeInner::Array { base, .. } = module.types[variable.ty].inner else { continue };
        let four = naga::TypeInner::Vector { size: naga::VectorSize::Quad, scalar: naga::Scalar::F32 };
        let storage = matches!(variable.space, naga::AddressSpace::Storage { .. });
        assert!(!storage || module.types[base].inner != four, "{label}: {:?} is not", variable.name);
    }
}

/// Whether nothing has been done yet with a text of which all depends on the text.
fn is_new(done: &Mutex<BTreeSet<String>>, text: &str) -> bool {
    done.lock().unwrap().insert(text.into())
}

/// Translates to SPIR-V, MSL, HLSL and GLSL.
pub fn translate_all(label: &str, source: &Source) {
    use naga::back::{glsl, hlsl, msl, spv};
    static DONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if !is_new(&DONE, &source.text) {
        return;
    }
    let fail = |to: &str, e: &dyn std::fmt::Display| panic!("{label} does not translate to {to}: {e}");
    let module = naga::front::wgsl::parse_str(&source.text).unwrap_or_else(|e| panic!("{label}: {e}"));
    let capabilities = naga::valid::Capabilities::all();
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{label}: {e}"));
    let stage = naga::ShaderStage::Compute;

    let pipeline = spv::PipelineOptions { shader_stage: stage, entry_point: "main".into() };
    if let Err(e) = spv::write_vec(&module, &info, &spv::Options::default(), Some(&pipeline)) {
        fail("SPIR-V", &e);
    }
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    if let Err(e) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()) {
        fail("MSL", &e);
    }
    // The other languages have no such matrices.
    if source.text.contains("wgpu_cooperative_matrix") {
        return;
    }
    let mut text = String::new();
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    if let Err(e) = hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None) {
        fail("HLSL", &e);
    }
    // naga's GLSL has no f16; adapters behind GL do not offer it.
    if source.text.contains("enable f16") {
        return;
    }
    // Subgroup operations want GLSL 430 with extensions; embedded GLSL has none.
    let subgroups = source.text.contains("subgroup");
    let versions = [glsl::Version::Desktop(430), glsl::Version::Embedded { version: 310, is_webgl: false }];
    for version in versions.into_iter().take(if subgroups { 1 } else { 2 }) {
        let binding =
            |b: &danlu::shader::Binding| (naga::ResourceBinding { group: 0, binding: b.index }, b.index as u8);
        let options =
            glsl::Options { version, binding_map: source.bindings.iter().map(binding).collect(), ..Default::default() };
        let pipeline = glsl::PipelineOptions { shader_stage: stage, entry_point: "main".into(), multiview: None };
        let mut text = String::new();
        let policies = naga::proc::BoundsCheckPolicies::default();
        let written =
            glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, policies).and_then(|mut w| w.write());
        if let Err(e) = written {
            fail(&format!("GLSL {version}"), &e);
        }
    }
}

/// The plans of a step and of validation of a preset, with buffers of any size, and what they take together.
pub fn planned(preset: &str, recipe: &Recipe) -> (Plans, u64) {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    let plans = plans(&find_config(preset).unwrap(), recipe, None, &limits, &mut First).unwrap();
    let bytes = device_bytes([&plans.train, &plans.eval], &|_| false);
    (plans, bytes)
}

/// Checks that those keep to a budget, by recomputation as far as that is asked for.
pub fn check_budget(preset: &str, recipe: &Recipe, budget: u64) {
    let (plans, bytes) = planned(preset, &Recipe { memory: Some(Bytes(budget)), ..recipe.clone() });
    let fit = plans.fit.unwrap();
    eprintln!("{bytes} bytes; {}", fit.note().unwrap_or_default());
    assert!(bytes <= budget, "{bytes} bytes");
    assert_eq!(bytes, fit.trade.reached + fit.beside);
}
