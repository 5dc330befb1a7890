//! What is known of a machine that need not be here: a TOML file with its limits, or a report of `danlu bench`.

use super::network::Level;
use crate::base::{Bytes, Limits, read_text};
use crate::bench::Report;
use crate::error::{Error, Result};
use crate::run::{Ceiling, Class, Machine, Records};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of a file that are read at most.
const MOST: u64 = 64 << 20;

/// A machine by its file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFile {
    /// What it is called.
    pub name: String,
    /// Memory of one adapter.
    pub memory: Option<Bytes>,
    /// Bytes read and written by a large copy on one adapter, per second.
    pub bytes_per_second: f64,
    /// Floating-point operations per second of one adapter, by class: `f32`, and `f16` where it has such.
    pub flops: BTreeMap<String, f64>,
    /// Whether shaders compute in f16 there, as GPUs' do: then mixed precision also stores in f16.
    #[serde(default)]
    pub has_f16: bool,
    /// Shares of the roofline that operators reach, by operator; `rest` for all others.
    #[serde(default)]
    pub reached: BTreeMap<String, f64>,
    /// Of operators, pairs of seconds at the roofline and of those that steps took, the short ones first.
    #[serde(default)]
    pub taken: BTreeMap<String, Vec<(f64, f64)>>,
    /// Seconds of a small dispatch.
    #[serde(default = "dispatch")]
    pub dispatch_seconds: f64,
    /// Seconds to the device and back.
    #[serde(default = "submission")]
    pub submission_seconds: f64,
    /// Power of one adapter with its part of the machine around it, watts.
    pub watts: Option<f64>,
    /// Price of an hour of one adapter.
    pub price: Option<f64>,
    /// Whether the adapters of a node are one processor, of which each of several ranks has a part: those that compute on a CPU.
    #[serde(default)]
    pub shared: bool,
    /// Adapters of a node.
    #[serde(default = "one")]
    pub adapters: usize,
    /// Its network, the level within a node first.
    #[serde(default)]
    pub levels: Vec<Level>,
}

fn one() -> usize {
    1
}

/// What wgpu and a driver take for a small dispatch among others.
fn dispatch() -> f64 {
    2e-6
}

/// What wgpu and a driver take to the device and back.
fn submission() -> f64 {
    1e-4
}

/// Name and file of the machines that come with the program.
const MACHINES: [(&str, &str); 7] = [
    ("h100", include_str!("../../machines/h100.toml")),
    ("h100-500w", include_str!("../../machines/h100-500w.toml")),
    ("h200", include_str!("../../machines/h200.toml")),
    ("a100", include_str!("../../machines/a100.toml")),
    ("mi300x", include_str!("../../machines/mi300x.toml")),
    ("sunway", include_str!("../../machines/sunway.toml")),
    ("cpu", include_str!("../../machines/cpu.toml")),
];

impl MachineFile {
    /// A machine by what the user typed: one that comes with the program, or a file.
    ///
    /// # Errors
    /// As [`MachineFile::read`]; if there is no such file, a sentence with the names that there are.
    pub fn find(name: &str) -> Result<MachineFile> {
        let path = Path::new("machines").join(name).with_extension("toml");
        match MACHINES.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => MachineFile::parse(text, &path),
            None if Path::new(name).is_file() => MachineFile::read(Path::new(name)),
            None => {
                let names = MACHINES.map(|(name, _)| name).join(", ");
                Err(Error::Invalid(format!(
                    "\"{name}\" is neither a machine nor a file that describes one; machines: {names}"
                )))
            }
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A sentence with the file, and the key or value that does not fit.
    pub fn read(path: &Path) -> Result<MachineFile> {
        if path.extension().is_some_and(|e| e == "json") {
            let report = Report::read(path)?;
            let file = MachineFile::of(&report.adapter.name, &report.machine, None);
            let file = MachineFile { shared: report.is_cpu, ..file };
            file.check().map_err(|message| Error::file(path, message))?;
            return Ok(file);
        }
        MachineFile::parse(&read_text(path, MOST)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<MachineFile> {
        let file: MachineFile = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            Error::file(path, format!("line {line}: {}", e.message().replace('\n', "; ")))
        })?;
        file.check().map_err(|message| Error::file(path, message))?;
        Ok(file)
    }

    /// One that was measured.
    pub fn of(name: &str, machine: &Machine, memory: Option<Bytes>) -> MachineFile {
        MachineFile {
            name: name.into(),
            memory,
            bytes_per_second: machine.bytes_per_second,
            flops: machine.ceilings.iter().map(|c| (c.class.name().into(), c.arithmetic.max(c.matmul))).collect(),
            has_f16: machine.ceilings.iter().any(|c| c.class == Class::F16),
            reached: machine.reached.clone(),
            taken: machine.taken.clone(),
            dispatch_seconds: machine.dispatch_seconds,
            submission_seconds: machine.submission_seconds,
            watts: None,
            price: None,
            shared: false,
            adapters: 1,
            levels: Vec::new(),
        }
    }

    /// An adapter by what is remembered of it: as a benchmark learned it, or else as if kernels reached its roofline, which
    /// [`MachineFile::is_learned`] tells apart; `None` where neither is.
    pub fn remembered(records: &Records, is_cpu: bool) -> Option<MachineFile> {
        let machine = match (&records.learned, &records.roofline) {
            (Some(machine), _) => machine.clone(),
            (None, Some(roofline)) => {
                let rates = [(Class::F32, roofline.flops_per_second), (Class::F16, roofline.half_flops_per_second)];
                let measured = rates.into_iter().filter(|(_, matmul)| *matmul > 0.0);
                Machine {
                    bytes_per_second: roofline.bytes_per_second,
                    ceilings: measured.map(|(class, matmul)| Ceiling { class, arithmetic: 0.0, matmul }).collect(),
                    dispatch_seconds: records.machine.as_ref().map_or_else(dispatch, |m| m.dispatch_seconds),
                    pass_seconds: 0.0,
                    submission_seconds: submission(),
                    workgroups: 0.0,
                    reached: BTreeMap::new(),
                    taken: BTreeMap::new(),
                }
            }
            (None, None) => return None,
        };
        Some(MachineFile { shared: is_cpu, ..MachineFile::of(&records.adapter.name, &machine, None) })
    }

    /// Whether it is known what operators reach of the roofline.
    pub fn is_learned(&self) -> bool {
        !self.reached.is_empty() || !self.taken.is_empty()
    }

    /// Whether it is known what messages between so many ranks cost, so many of them on one machine: its file says so, or they are one
    /// processor.
    pub fn knows_messages(&self, ranks: usize, near: usize) -> bool {
        ranks < 2 || !self.levels.is_empty() || self.shared && near == ranks
    }

    /// On how many adapters so many ranks of one machine are.
    pub fn adapters_of(&self, ranks: usize) -> usize {
        if self.shared { 1 } else { ranks }
    }

    fn check(&self) -> Result<(), String> {
        let rates = [("bytes_per_second", Some(self.bytes_per_second)), ("watts", self.watts), ("price", self.price)];
        let mut rates: Vec<(String, f64)> =
            rates.into_iter().filter_map(|(name, rate)| Some((name.to_string(), rate?))).collect();
        rates.extend(self.flops.iter().map(|(class, rate)| (format!("flops.{class}"), *rate)));
        rates.extend(self.reached.iter().map(|(op, share)| (format!("reached.{op}"), *share)));
        for (op, pairs) in &self.taken {
            let ascends = pairs.windows(2).all(|two| two[0].0 < two[1].0);
            if !ascends || pairs.iter().any(|(x, y)| !(x.is_finite() && y.is_finite() && *x > 0.0 && *y > 0.0)) {
                return Err(format!("taken.{op} must be pairs of seconds above 0, of which the first ascend"));
            }
        }
        if let Some((name, rate)) = rates.iter().find(|(_, rate)| !(rate.is_finite() && *rate > 0.0)) {
            return Err(format!("{name} is {rate}; it must be a number above 0"));
        }
        let waits = [("dispatch_seconds", self.dispatch_seconds), ("submission_seconds", self.submission_seconds)];
        if let Some((name, seconds)) = waits.iter().find(|(_, seconds)| !(seconds.is_finite() && *seconds >= 0.0)) {
            return Err(format!("{name} is {seconds}; it must be a number, 0 or above"));
        }
        let levels = self.levels.iter().enumerate();
        if let Some((i, _)) = levels.clone().find(|(_, l)| !(l.bytes_per_second > 0.0 && l.seconds >= 0.0)) {
            let which = i + 1;
            return Err(format!("[[levels]] {which}: bytes_per_second must be above 0, and seconds 0 or above"));
        }
        if self.adapters == 0 {
            return Err("adapters is 0; a node has at least one".into());
        }
        if let Some((i, _)) = levels.clone().find(|(_, l)| l.ranks == Some(0)) {
            return Err(format!("[[levels]] {}: ranks is 0; a level joins at least one", i + 1));
        }
        let sizes: Vec<usize> = self.levels.iter().map(|l| l.ranks.unwrap_or(usize::MAX)).collect();
        if let Some(i) = sizes.windows(2).position(|two| two[0] > two[1]) {
            return Err(format!("[[levels]] {}: joins fewer ranks than the one before it", i + 2));
        }
        if !self.flops.contains_key("f32") {
            return Err("flops.f32 is missing: the floating-point operations per second of f32".into());
        }
        Ok(())
    }

    /// Limits that a plan for it has: those that WebGPU guarantees, with buffers of any size, for whether a model fits a real
    /// adapter's is for the reader to see.
    pub fn limits(machine: Option<&MachineFile>) -> Limits {
        let has_f16 = machine.is_some_and(|machine| machine.has_f16 && !machine.shared);
        Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, has_f16, ..Limits::default() }
    }

    /// One adapter of it, as the roofline sees it.
    pub fn machine(&self) -> Machine {
        // Narrower classes than kernels have are for what many ranks are predicted by.
        let class = |name: &str, class: Class| {
            self.flops.get(name).map(|&rate| Ceiling { class, arithmetic: rate, matmul: rate })
        };
        let classes = [("f32", Class::F32), ("f16", Class::F16), ("cooperative", Class::Cooperative)];
        let ceilings = classes.into_iter().filter_map(|(name, of)| class(name, of)).collect();
        Machine {
            bytes_per_second: self.bytes_per_second,
            ceilings,
            dispatch_seconds: self.dispatch_seconds,
            pass_seconds: self.dispatch_seconds,
            submission_seconds: self.submission_seconds,
            workgroups: 0.0,
            reached: self.reached.clone(),
            taken: self.taken.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_read_and_mistakes_named() {
        for (name, _) in MACHINES {
            let machine = MachineFile::find(name).unwrap();
            assert!(machine.machine().roofline().flops_per_second == machine.flops["f32"], "{name}");
            assert!(machine.memory.is_some() && machine.watts.is_some() && machine.price.is_some(), "{name}");
        }
        let said = |text: &str| MachineFile::parse(text, Path::new("m.toml")).unwrap_err().to_string();
        let good = "name = \"m\"\nbytes_per_second = 1e9\n[flops]\nf32 = 1e9\n";
        assert!(MachineFile::parse(good, Path::new("m.toml")).is_ok());
        assert!(said(&good.replace("name", "nmae")).contains("m.toml: line 1: unknown field `nmae`"));
        assert_eq!(
            said(&good.replace("f32", "f64")),
            "m.toml: flops.f32 is missing: the floating-point operations per second of f32"
        );
        assert_eq!(
            said(&good.replace("= 1e9\n[", "= 0\n[")),
            "m.toml: bytes_per_second is 0; it must be a number above 0"
        );
        let unknown = MachineFile::find("abacus").unwrap_err().to_string();
        assert!(unknown.contains("\"abacus\" is neither a machine") && unknown.contains("h100"), "{unknown}");
    }
}
