//! Writes every kernel that a GPU may be given as SPIR-V, as its driver would get it, so that a vendor's compiler can be asked
//! what it makes of them where there is no such GPU: scripts/gpu_code.py asks Mesa's for AMD's, Intel's and NVIDIA's.
//!
//!     cargo run --release --example gpu_code -- FOLDER [amd|intel|xe2|nvidia|LIMITS.json]
//!
//! Kernels are the candidates of all nodes of what `danlu bench` measures, and the steps of its plans with what is fused to
//! them, each once, for the limits that the vendor's driver in Mesa tells (xe2: Intel since Lunar Lake), or those of LIMITS.json
//! (`danlu::base::Limits`). FOLDER/index.json lists for each file the kernel, the size of its workgroup, its bindings, and where it
//! stands.

use danlu::base::Limits;
use danlu::bench::suite;
use danlu::compile::{Chooser, compile};
use danlu::gpu::Access;
use danlu::graph::{Io, Kernel, Op};
use danlu::shader::{Constant, Hook, Source, assemble};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// A kernel of the index.
#[derive(Serialize)]
struct Entry {
    file: String,
    shader: String,
    variant: String,
    workgroup_size: [u32; 3],
    shared_bytes: u32,
    /// Numbers in group 0 and whether each is a uniform.
    bindings: Vec<(u32, bool)>,
    /// The first case that asks for it.
    case: String,
    /// True for a step of a plan, false for a candidate by itself.
    fused: bool,
}

/// Keeps every candidate, and takes the first.
#[derive(Default)]
struct Candidates(Vec<Kernel>);

impl Chooser for Candidates {
    fn choose(&mut self, _op: &Arc<dyn Op>, _io: &Io, kernels: &[Kernel]) -> usize {
        self.0.extend(kernels.iter().flat_map(Kernel::stages).cloned());
        0
    }
}

/// All kernels seen so far, by their text.
#[derive(Default)]
struct Kernels {
    known: BTreeMap<String, Entry>,
    written: Vec<(String, Source)>,
}

impl Kernels {
    fn add(
        &mut self,
        (shader, variant): (&str, &str),
        constants: &[Constant],
        hooks: &[Hook],
        case: &str,
        fused: bool,
    ) -> danlu::error::Result<()> {
        let source = assemble(shader, constants, hooks)?;
        if self.known.contains_key(&source.text) {
            return Ok(());
        }
        let file = format!("{:03}-{shader}-{variant}.spv", self.known.len());
        let entry = Entry {
            file: file.clone(),
            shader: shader.to_string(),
            variant: variant.to_string(),
            workgroup_size: source.workgroup_size,
            shared_bytes: source.shared_bytes,
            bindings: source.bindings.iter().map(|b| (b.index, b.access == Access::Uniform)).collect(),
            case: case.to_string(),
            fused,
        };
        self.known.insert(source.text.clone(), entry);
        self.written.push((file, source));
        Ok(())
    }
}

/// What a vendor's GPUs of today offer. Intel's matrices are 8×8×16 and 8×16×16, which WGSL has not.
fn limits_of(vendor: &str) -> Option<Limits> {
    let (shared, min_subgroup, max_subgroup, cooperative) = match vendor {
        "amd" => (64, 32, 64, vec![16]),
        "intel" => (48, 8, 32, Vec::new()),
        "xe2" => (48, 16, 32, Vec::new()),
        "nvidia" => (48, 32, 32, vec![16]),
        _ => return None,
    };
    Some(Limits {
        max_binding_bytes: (2 << 30) - 4,
        max_buffer_bytes: 2 << 30,
        max_invocations: 1024,
        max_shared_bytes: shared << 10,
        min_subgroup,
        max_subgroup,
        has_f16: true,
        cooperative,
        ..Limits::default()
    })
}

/// As the Vulkan backend translates what is trusted: without checks of indices, and loops that are known to end.
fn spirv(source: &Source) -> Result<Vec<u8>, Box<dyn Error>> {
    use naga::back::spv;
    let module = naga::front::wgsl::parse_str(&source.text)?;
    let capabilities = naga::valid::Capabilities::all();
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities).validate(&module)?;
    let unchecked = naga::proc::BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("usage: gpu_code FOLDER [amd|intel|xe2|nvidia|LIMITS.json]")?);
    let whose = args.next().unwrap_or_else(|| "amd".into());
    let limits = match limits_of(&whose) {
        Some(limits) => limits,
        None => serde_json::from_str(&std::fs::read_to_string(whose)?)?,
    };
    std::fs::create_dir_all(&folder)?;
    let mut kernels = Kernels::default();
    for case in suite(&limits, false)? {
        let mut candidates = Candidates::default();
        let plan = compile(&case.graph(&limits)?, &limits, &mut candidates)?;
        for kernel in &candidates.0 {
            // What an elementwise operator computes is a hook, which its candidates have from the start.
            kernels.add((kernel.shader, &kernel.variant), &kernel.constants, &kernel.hooks, &case.name, false)?;
        }
        for step in plan.steps.iter().filter(|step| step.meeting.is_none()) {
            kernels.add((step.shader, &step.variant), &step.constants, &step.hooks, &case.name, true)?;
        }
    }
    for (file, source) in &kernels.written {
        let words = spirv(source).map_err(|e| format!("{file}: {e}"))?;
        std::fs::write(folder.join(file), words)?;
        std::fs::write(folder.join(file).with_extension("wgsl"), &source.text)?;
    }
    let mut entries: Vec<&Entry> = kernels.known.values().collect();
    entries.sort_by(|a, b| a.file.cmp(&b.file));
    std::fs::write(folder.join("index.json"), serde_json::to_string_pretty(&entries)?)?;
    println!("{} kernels in {}", entries.len(), folder.display());
    Ok(())
}
