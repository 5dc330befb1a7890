//! What an adapter can do, as plain data: the compiler sees this and never a device.

use serde::{Deserialize, Serialize};

/// Limits that shape kernels and the memory plan. The default is WebGPU's guaranteed minimum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest range of a buffer that one storage binding may cover, bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, bytes.
    pub max_buffer_bytes: u64,
    /// Offsets of storage and uniform bindings must be multiples of this, bytes.
    pub binding_alignment: u64,
    /// Storage bindings of one dispatch.
    pub max_storage_bindings: u32,
    /// Workgroups in each dimension of a dispatch.
    pub max_workgroups: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Shared memory of one workgroup, bytes.
    pub max_shared_bytes: u32,
    /// Smallest subgroup that the adapter may choose, in invocations.
    pub min_subgroup: u32,
    /// Largest subgroup that the adapter may choose, in invocations.
    pub max_subgroup: u32,
    /// True where invocations run as SIMD lanes of a CPU, which turns the usual advice on shared memory around.
    pub is_cpu: bool,
    /// True where shaders may compute in f16.
    #[serde(default)]
    pub has_f16: bool,
    /// Sizes of the cooperative matrices that shaders may multiply: 8 for 8×8×8, 16 for 16×16×16, f16 with sums in f32.
    #[serde(default)]
    pub cooperative: Vec<u32>,
    /// Device memory that may be planned with, bytes, where it is known.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// Largest buffer that is ever used, whatever an adapter offers: kernels count elements in 32 bits.
    pub const COUNTABLE_BYTES: u64 = (1 << 34) - (1 << 16);

    /// True where a lane of a GPU has 128 registers, half of what others have, as far as subgroups tell: Intel's are of 8 to 32, and none
    /// else's known so far may be smaller than the largest, of 32.
    pub fn has_few_registers(&self) -> bool {
        !self.is_cpu && self.min_subgroup < 32 && self.max_subgroup == 32
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_binding_bytes: 128 << 20,
            max_buffer_bytes: 256 << 20,
            binding_alignment: 256,
            max_storage_bindings: 8,
            max_workgroups: 65_535,
            max_invocations: 256,
            max_shared_bytes: 16_384,
            min_subgroup: 4,
            max_subgroup: 64,
            is_cpu: false,
            has_f16: false,
            cooperative: Vec::new(),
            memory_bytes: None,
        }
    }
}

/// Names an adapter, its driver and its backend: the key under which measurements are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AdapterId {
    /// The adapter's name as its driver gives it.
    pub name: String,
    /// Driver and version.
    pub driver: String,
    /// `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
}
