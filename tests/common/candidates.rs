//! Which candidates the tests of kernels try, and on what device.

use danlu::base::Limits;
use danlu::gpu::Gpu;
use danlu::graph::Kernel;
use danlu::run::Class;
use pollster::block_on;
use std::sync::OnceLock;

/// Set in the environment, it lets the tests of kernels pass where there is no adapter.
const ALLOW_NO_ADAPTER: &str = "DANLU_ALLOW_NO_ADAPTER";
/// Set in the environment, an adapter without cooperative matrices is a failure, and only kernels that use them are tried.
pub const COOPERATIVE: &str = "DANLU_COOPERATIVE";

/// One device for all tests of a program, many of which want the same pipelines: what one has had compiled the next one finds. None where
/// that is allowed.
pub fn gpu() -> Option<&'static Gpu> {
    static ONE: OnceLock<super::Lent> = OnceLock::new();
    if std::env::var_os(ALLOW_NO_ADAPTER).is_some() && block_on(danlu::gpu::list()).is_empty() {
        println!("skipped: no adapter");
        return None;
    }
    let gpu = &**ONE.get_or_init(super::gpu);
    let has = !gpu.limits().cooperative.is_empty();
    assert!(has || std::env::var_os(COOPERATIVE).is_none(), "{} has no cooperative matrices", gpu.report().line());
    Some(gpu)
}

/// Both orders of candidates: a CPU's and a GPU's.
pub fn both(limits: &Limits) -> [Limits; 2] {
    [false, true].map(|is_cpu| Limits { is_cpu, ..limits.clone() })
}

/// Whether kernels may be tried that round by the adapter's own conversion, which the tuner bars where it rounds otherwise.
pub fn rounds_natively(gpu: &Gpu) -> bool {
    static ROUNDS: OnceLock<bool> = OnceLock::new();
    *ROUNDS.get_or_init(|| {
        let wrong = block_on(danlu::run::misrounds(gpu, &both(gpu.limits())[0]));
        let wrong = wrong.unwrap_or_else(|e| Some(e.to_string()));
        wrong.inspect(|e| println!("left out, as it is by the tuner: NATIVE, {e}")).is_none()
    })
}

/// Whether a candidate is not asked for, or none that this adapter may be given.
pub fn is_barred(gpu: &Gpu, kernel: &Kernel) -> bool {
    let is_other = Class::of(kernel.shader, &kernel.constants) != Class::Cooperative;
    std::env::var_os(COOPERATIVE).is_some() && is_other
        || kernel.constants.contains(&("NATIVE", 1)) && !rounds_natively(gpu)
}

/// Whether attention in passes must be among what is tried: where lanes are a CPU's, and of subgroups that hand on from lane to lane.
pub fn passes_are_tried(gpu: &Gpu) -> bool {
    let limits = gpu.limits();
    limits.is_cpu && limits.min_subgroup >= 8 && std::env::var_os(COOPERATIVE).is_none()
}
