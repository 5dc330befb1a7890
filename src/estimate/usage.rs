//! Bytes on the device by what they are for.

use crate::compile::{Binding, BufferKind, Plan, Tenant};
use crate::optim::Optimizer;
use serde::Serialize;
use std::collections::BTreeSet;

/// Device bytes of one plan by kind. What the arenas hold is told of the moment at which most is alive in them; together
/// the kinds are all that the plan's buffers take, to the byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Parameters, those that are trained and those that are not, and copies of them.
    pub weights: u64,
    /// What the optimizer keeps from step to step.
    pub moments: u64,
    /// What the optimizer reads of this step.
    pub gradients: u64,
    /// What the forward pass makes and the backward pass reads.
    pub activations: u64,
    /// What lives within one of the passes.
    pub workspace: u64,
    /// What the arenas hold beside that then, since blocks of other moments lie there.
    pub gaps: u64,
    /// What the host writes, and constants.
    pub inputs: u64,
    /// Most gradients that are alive at any moment, which may be another one.
    pub most_gradients: u64,
    /// The same of activations: where parameters outweigh them, most is alive when they have been used up.
    pub most_activations: u64,
}

/// What a block of an arena holds.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    Gradients,
    Activations,
    Workspace,
}

impl Usage {
    /// Of a plan: of a training step, or of any other, which then has no gradients and no activations.
    pub fn of(plan: &Plan) -> Usage {
        let mut usage = Usage::default();
        let written: BTreeSet<&str> = plan.written_states().into_iter().map(|(name, _)| name).collect();
        let mut arenas = 0;
        for buffer in &plan.buffers {
            *match &buffer.kind {
                BufferKind::State(name)
                    if name.starts_with("param.") || Optimizer::is_copy(name) || !written.contains(name.as_str()) =>
                {
                    &mut usage.weights
                }
                // Of several batches a step, in which they are added up.
                BufferKind::State(name) if name.starts_with("grad.") => &mut usage.gradients,
                BufferKind::State(_) => &mut usage.moments,
                BufferKind::Arena => &mut arenas,
                BufferKind::Input | BufferKind::Constant => &mut usage.inputs,
            } += buffer.bytes;
        }
        let border = border(plan);
        let gradients = gradients(plan, border);
        let backward: Vec<bool> = plan.steps.iter().map(|s| is_backward(&s.name)).collect();
        let holds = |i: usize, tenant: &Tenant| match () {
            () if gradients.contains(&i) => Holds::Gradients,
            // Of the forward pass that it belongs to: parameters that change by layers may have two.
            () if !backward[tenant.first]
                && !tenant.name.starts_with("optimizer")
                && backward[tenant.first..].iter().take(tenant.last + 1 - tenant.first).any(|b| *b) =>
            {
                Holds::Activations
            }
            () => Holds::Workspace,
        };
        let kinds: Vec<Holds> = plan.tenants.iter().enumerate().map(|(i, tenant)| holds(i, tenant)).collect();
        let at = peak(plan, &|_| true).0;
        let most = |kind| peak(plan, &|i| kinds[i] == kind).1;
        usage.most_gradients = usage.gradients + most(Holds::Gradients);
        usage.most_activations = most(Holds::Activations);
        let mut alive = 0;
        for (i, tenant) in plan.tenants.iter().enumerate().filter(|(_, t)| t.first <= at && at <= t.last) {
            alive += tenant.bytes;
            *match kinds[i] {
                Holds::Gradients => &mut usage.gradients,
                Holds::Activations => &mut usage.activations,
                Holds::Workspace => &mut usage.workspace,
            } += tenant.bytes;
        }
        usage.gaps = arenas - alive;
        usage
    }

    /// Of a step whose update is a plan of its own, as with several batches or ranks: what that keeps is part of it.
    pub fn of_step(train: &Plan, apply: Option<&Plan>) -> Usage {
        let mut usage = Usage::of(train);
        let states = |plan: &Plan| -> Vec<(String, u64)> {
            let state = |kind: &BufferKind| match kind {
                BufferKind::State(name) => Some(name.clone()),
                _ => None,
            };
            plan.buffers.iter().filter_map(|b| Some((state(&b.kind)?, b.bytes))).collect()
        };
        let known: BTreeSet<String> = states(train).into_iter().map(|(name, _)| name).collect();
        let new = apply.map(states).unwrap_or_default().into_iter().filter(|(name, _)| !known.contains(name));
        usage.moments += new.map(|(_, bytes)| bytes).sum::<u64>();
        usage
    }

    /// What the forward pass of a plan makes and its backward pass reads.
    pub(super) fn kept(plan: &Plan) -> impl Iterator<Item = &Tenant> {
        let border = border(plan);
        plan.tenants.iter().filter(move |t| t.first < border && border <= t.last)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Most of a kind at any moment, where that may be another one than that with most in all.
    pub fn most(&self, kind: &str) -> Option<u64> {
        match kind {
            "gradients" => Some(self.most_gradients),
            "activations" => Some(self.most_activations),
            _ => None,
        }
    }

    /// Names and bytes, in the order of a person's interest.
    pub fn kinds(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("workspace", self.workspace),
            ("gaps", self.gaps),
            ("inputs", self.inputs),
        ]
    }
}

/// The step at which most of some blocks of the arenas is alive, and how many bytes that is.
fn peak(plan: &Plan, counts: &dyn Fn(usize) -> bool) -> (usize, u64) {
    let mut change = vec![0i128; plan.steps.len() + 2];
    for (_, tenant) in plan.tenants.iter().enumerate().filter(|(i, _)| counts(*i)) {
        change[tenant.first] += i128::from(tenant.bytes);
        change[tenant.last + 1] -= i128::from(tenant.bytes);
    }
    let (mut alive, mut most, mut at) = (0, 0, 0);
    for (step, change) in change.into_iter().enumerate() {
        alive += change;
        if alive > most {
            (most, at) = (alive, step);
        }
    }
    (at, most as u64)
}

/// The first step of the backward pass, or the number of steps where there is none: gradients and copies of what is
/// computed again bear it in their names.
fn border(plan: &Plan) -> usize {
    plan.steps.iter().position(|s| is_backward(&s.name)).unwrap_or(plan.steps.len())
}

/// Steps of a pipeline bear the number of their micro-batch before their name, and of these forward and backward passes take turns.
fn is_backward(step: &str) -> bool {
    let of_batch = step.strip_prefix("batch.").and_then(|rest| rest.split_once('.'));
    let name = of_batch.filter(|(batch, _)| batch.parse::<usize>().is_ok()).map_or(step, |(_, name)| name);
    name.starts_with("grad.") || name.starts_with("again.")
}

/// The tenants that are read by steps which write states, in the backward pass: what the optimizer reads.
fn gradients(plan: &Plan, border: usize) -> BTreeSet<usize> {
    let is_state = |buffer: usize| matches!(plan.buffers[buffer].kind, BufferKind::State(_));
    let mut found = BTreeSet::new();
    for (i, step) in plan.steps.iter().enumerate().skip(border) {
        let bindings = || step.dispatches.iter().flat_map(|d| &d.bindings);
        if !bindings().any(|b| b.written && is_state(b.buffer)) {
            continue;
        }
        let read: Vec<_> = bindings().filter(|b| !b.written && !is_state(b.buffer)).collect();
        for (t, tenant) in plan.tenants.iter().enumerate().filter(|(_, t)| t.first <= i && i <= t.last) {
            // Parts of what a step reads may be tenants of their own.
            let meets = |b: &Binding| tenant.offset < b.offset + b.bytes && b.offset < tenant.offset + tenant.bytes;
            if read.iter().any(|b| b.buffer == tenant.buffer && meets(b)) {
                found.insert(t);
            }
        }
    }
    found
}
