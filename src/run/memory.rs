//! Device memory of plans that run beside each other.

use super::States;
use crate::compile::{BufferKind, BufferSpec, Plan, Step, human_bytes};
use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// Bytes of all buffers of plans together, each state counted once, and those not that are `there` already.
pub fn device_bytes<'a>(plans: impl IntoIterator<Item = &'a Plan>, there: &dyn Fn(&str) -> bool) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    let buffers = plans.into_iter().flat_map(|plan| &plan.buffers);
    buffers.filter(|b| !matches!(&b.kind, BufferKind::State(n) if there(n) || !seen.insert(n))).map(|b| b.bytes).sum()
}

/// Bytes that [`super::Executor::beside`] allocates for a plan beside one of `other`, whose states are there.
pub fn bytes_beside(plan: &Plan, other: &Plan) -> u64 {
    fn arenas(plan: &Plan) -> impl Iterator<Item = u64> + '_ {
        plan.buffers.iter().filter(|b| b.kind == BufferKind::Arena).map(|b| b.bytes)
    }
    let lent = arenas(other).map(Some).chain(std::iter::repeat(None));
    let wanted = arenas(plan).zip(lent).filter(|(own, lent)| lent.is_none_or(|lent| lent < *own));
    let more: u64 = wanted.map(|(own, _)| own).sum();
    let kept = |b: &&BufferSpec| matches!(b.kind, BufferKind::Input | BufferKind::Constant);
    more + plan.buffers.iter().filter(kept).map(|b| b.bytes).sum::<u64>()
}

/// Refuses a plan of which a kernel reads or writes more at once than the adapter lets it see.
fn check_bindings(gpu: &Gpu, plan: &Plan) -> Result<()> {
    let most = gpu.limits().max_binding_bytes;
    let binds = |step: &Step| step.dispatches.iter().flat_map(|d| &d.bindings).map(|b| b.bytes).max().unwrap_or(0);
    let Some(step) = plan.steps.iter().find(|step| binds(step) > most) else { return Ok(()) };
    let (adapter, wanted) = (&gpu.report().name, human_bytes(binds(step)));
    Err(Error::Invalid(format!(
        "{} at {} takes {wanted} at once, and {adapter} lets a kernel see {} of a buffer: take fewer or shorter sequences at a time",
        step.op,
        step.name,
        human_bytes(most)
    )))
}

/// Refuses plans that together, each state counted once, want more than the adapter's memory, where that is known, and those of which a
/// kernel wants to see more of a buffer than it may.
///
/// # Errors
/// [`Error::Memory`] with the bytes wanted and had; [`Error::Invalid`] with the kernel and what it wants to see.
pub fn check_memory(gpu: &Gpu, plans: &[&Plan], states: &States) -> Result<()> {
    plans.iter().try_for_each(|plan| check_bindings(gpu, plan))?;
    let Some(memory) = gpu.limits().memory_bytes else { return Ok(()) };
    let wanted = device_bytes(plans.iter().copied(), &|name| states.contains(name));
    let had = memory.saturating_sub(states.bytes());
    if wanted <= had {
        return Ok(());
    }
    let what = format!("the plan ({} of {} that are free)", human_bytes(wanted), human_bytes(had));
    let advice = "choose a smaller model, --batch or --seq; `danlu plan` shows what takes the room".to_string();
    Err(Error::Memory { what, wanted, had, adapter: gpu.report().name.clone(), advice })
}
