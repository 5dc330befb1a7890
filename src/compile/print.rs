//! The plan as a table of text.

use super::plan::{BufferKind, Plan, Sent};
use std::fmt;

/// A number of bytes as a person reads it: `1.5 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>5}  {:<44} {:<22} {:>10} {:>10}  writes", "step", "node", "kernel", "Mflop", "bytes")?;
        for (i, step) in self.steps.iter().enumerate() {
            let kernel = match &step.meeting {
                Some(meeting) => {
                    let phase = ["", "begins ", "ends "][meeting.phase as usize];
                    let last = if meeting.last { ", after the last batch" } else { "" };
                    format!("{phase}{} along {}{last}", step.op, meeting.axis)
                }
                None => format!("{}:{}", step.shader, step.variant),
            };
            let mut at: Vec<String> = Vec::new();
            for b in step.bindings().filter(|b| b.written) {
                at.push(format!("{}+{}", b.buffer, b.offset));
            }
            at.dedup();
            let mflop = step.flops as f64 / 1e6;
            let bytes = human_bytes(step.bytes);
            writeln!(f, "{i:>5}  {:<44} {kernel:<22} {mflop:>10.2} {bytes:>10}  {}", step.name, at.join(" "))?;
        }
        writeln!(f)?;
        for (i, b) in self.buffers.iter().enumerate() {
            let kind = match &b.kind {
                BufferKind::Input => "inputs".to_string(),
                BufferKind::Constant => "constants".to_string(),
                BufferKind::Arena => "arena".to_string(),
                BufferKind::State(name) => format!("state {name}"),
            };
            writeln!(f, "buffer {i:<3} {kind:<24} {:>14} bytes ({})", b.bytes, human_bytes(b.bytes))?;
        }
        for (axis, Sent { meetings, bytes }) in self.sent() {
            let human = human_bytes(bytes);
            writeln!(f, "along {axis:<19} {meetings:>6} meetings {bytes:>14} bytes sent ({human})")?;
        }
        let t = self.totals();
        write!(
            f,
            "total: {} steps, {} dispatches, {:.3} Gflop, {} of traffic, {} on the device ({} bytes)",
            t.steps,
            t.dispatches,
            t.flops as f64 / 1e9,
            human_bytes(t.traffic),
            human_bytes(t.device_bytes()),
            t.device_bytes()
        )
    }
}
