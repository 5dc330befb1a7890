//! What ranks add to the time of a step beside the work of each: they meet, and adapters may be one processor.

use super::MachineFile;
use super::network::{Group, Level, Network};
use super::scale::REACHED;
use crate::base::{Axis, Bytes};
use crate::compile::{Phase, Plan};
use crate::graph::Collective;
use crate::parallel::Mesh;

impl MachineFile {
    /// One of so many of its adapters that work at the same time: of those that are one processor each has its part of every rate,
    /// and all else takes so many times as long.
    #[must_use]
    pub fn each_of(&self, adapters: usize) -> MachineFile {
        let mut each = self.clone();
        if self.shared {
            let n = adapters as f64;
            each.bytes_per_second /= n;
            each.flops.values_mut().for_each(|rate| *rate /= n);
            each.dispatch_seconds *= n;
            each.submission_seconds *= n;
        }
        each
    }

    /// One adapter among so many ranks that work at the same time on one machine of this kind, joined as they are there: of adapters
    /// that are one processor each has its part of the memory, too.
    #[must_use]
    pub fn among(&self, ranks: usize) -> MachineFile {
        let (mut each, n) = (self.each_of(ranks), ranks.max(1));
        let (levels, reached) = each.joined();
        if each.levels.is_empty() {
            let level = |l: Level| Level {
                ranks: Some(n),
                bytes_per_second: l.bytes_per_second * reached / REACHED.network,
                ..l
            };
            each.levels = levels.into_iter().map(level).collect();
        }
        if each.shared {
            each.memory = each.memory.map(|Bytes(bytes)| Bytes(bytes / n as u64));
        }
        each
    }

    /// How its ranks are joined, and what of that is reached. Where they are threads on one processor and nothing else is said,
    /// what is sent is laid down and taken: two copies in memory, each of which reads and writes.
    fn joined(&self) -> (Vec<Level>, f64) {
        if self.levels.is_empty() && self.shared {
            let memory = Level { ranks: None, seconds: 0.0, bytes_per_second: self.bytes_per_second / 4.0 };
            return (vec![memory], 1.0);
        }
        (self.levels.clone(), REACHED.network)
    }
}

/// Seconds that a run of a plan spends where ranks meet, on one of the adapters of a machine ([`MachineFile::each_of`]). At
/// each meeting the device's work ends and begins again, and bytes go from it and come back, for which a copy in its memory
/// stands. Nothing is taken to hide behind anything.
pub(super) fn meetings(plan: &Plan, mesh: Mesh, each: &MachineFile) -> f64 {
    let (levels, reached) = each.joined();
    let network = Network { levels: &levels, reached };
    let seconds = |step: &crate::compile::Step| {
        let meeting = step.meeting.as_ref().filter(|meeting| meeting.phase != Phase::End)?;
        let bytes = |range: &Option<crate::compile::Binding>| range.as_ref().map_or(0, |range| range.bytes) as f64;
        let (read, written) = (bytes(&meeting.read), bytes(&meeting.written));
        // Ranks of the sequence axis sum gradients with those of the data axis.
        let stride = match meeting.axis {
            Axis::Data => mesh.tensor,
            axis => mesh.strides().into_iter().find(|(other, ..)| *other == axis).map_or(1, |(.., n)| n),
        };
        let group = Group { size: meeting.ranks, stride };
        let messages = match meeting.what {
            Collective::AllReduce => network.all_reduce(group, read),
            Collective::AllGather { .. } => network.gather(group, written.max(read)),
            Collective::ReduceScatter { .. } => network.gather(group, read.max(written)),
            Collective::AllToAll => network.all_to_all(group, read),
            Collective::Send { .. } | Collective::Shift { .. } => network.send(group, read),
            Collective::Receive { .. } => 0.0,
        };
        Some(each.submission_seconds + 2.0 * (read + written) / each.bytes_per_second + messages)
    };
    plan.steps.iter().filter_map(seconds).sum()
}

/// Bytes that a rank sends along each axis of a mesh in a step of several batches, as its plans say.
pub(super) fn sent(train: &Plan, apply: Option<&Plan>, batches: u64) -> Vec<(Axis, u64)> {
    let of = |plan: &Plan, axis, batches: u64| -> u64 {
        let all = plan.steps.iter().filter_map(|step| step.meeting.as_ref());
        let here = all.filter(|meeting| meeting.axis == axis && meeting.phase != Phase::End);
        here.map(|meeting| if meeting.last { meeting.sent } else { batches * meeting.sent }).sum()
    };
    let all = Axis::ALL.map(|axis| (axis, of(train, axis, batches) + apply.map_or(0, |plan| of(plan, axis, 1))));
    all.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}
