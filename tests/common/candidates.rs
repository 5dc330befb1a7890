//! Which candidates the tests of kernels try, and on what device.

use danlu::base::Limits;
use danlu::gpu::Gpu;
use danlu::graph::Kernel;
use danlu::run::Class;
use pollster::block_on;
use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Set in the environment, it lets the tests of kernels pass where there is no adapter.
const ALLOW_NO_ADAPTER: &str = "DANLU_ALLOW_NO_ADAPTER";
/// Set in the environment, an adapter without cooperative matrices is a failure, and only kernels that use them are tried.
pub const COOPERATIVE: &str = "DANLU_COOPERATIVE";
/// A number of lanes in the environment: an adapter with smaller subgroups is a failure, and only kernels are tried whose lanes hand on
/// to each other in steps that the subgroup's size decides.
const SHUFFLES: &str = "DANLU_SHUFFLES";

/// Whether some kernels alone are tried: then a row, or a test, may have none.
pub fn are_some() -> bool {
    [COOPERATIVE, SHUFFLES].iter().any(|name| std::env::var_os(name).is_some())
}

/// This thread's device: a CPU's driver compiles in one thread a device, and finds on disk what it has compiled for another. What one test
/// has had compiled the next one that gets the device finds. None where that is allowed.
pub fn gpu() -> Option<Gpu> {
    thread_local!(static OWN: OnceCell<super::Lent> = const { OnceCell::new() });
    if std::env::var_os(ALLOW_NO_ADAPTER).is_some() && block_on(danlu::gpu::list()).is_empty() {
        println!("skipped: no adapter");
        return None;
    }
    let gpu = OWN.with(|own| (**own.get_or_init(super::gpu)).clone());
    let has = !gpu.limits().cooperative.is_empty();
    assert!(has || std::env::var_os(COOPERATIVE).is_none(), "{} has no cooperative matrices", gpu.report().line());
    let wanted = std::env::var(SHUFFLES).map_or(0, |lanes| lanes.parse().expect("DANLU_SHUFFLES is a number of lanes"));
    assert!(gpu.limits().min_subgroup >= wanted, "{} has smaller subgroups than {wanted}", gpu.report().line());
    Some(gpu)
}

/// The most rows that are tried at a time.
const AT_ONCE: usize = 4;

/// What is made of each row, on all cores, in no order.
pub fn each<R: Sync, T: Send>(rows: &[R], work: impl Fn(&R) -> T + Sync) -> Vec<T> {
    let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(AT_ONCE);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = work(row);
                    made.lock().unwrap().push(one);
                }
            });
        }
    });
    made.into_inner().unwrap()
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
    let hands_on = kernel.constants.iter().any(|&(name, value)| name == "SHUFFLE" && value > 0);
    std::env::var_os(COOPERATIVE).is_some() && is_other
        || std::env::var_os(SHUFFLES).is_some() && !hands_on
        || kernel.constants.contains(&("NATIVE", 1)) && !rounds_natively(gpu)
}

/// Whether attention in passes must be among what is tried: where lanes are a CPU's, and of subgroups that hand on from lane to lane.
pub fn passes_are_tried(gpu: &Gpu) -> bool {
    let limits = gpu.limits();
    limits.is_cpu && limits.min_subgroup >= 8 && !are_some()
}
