//! What runs of plans did when, on the device and on the host: the material of `danlu profile`. Recording costs time of
//! its own, a pass for every step; nothing here is used unless somebody asks.

use super::ceilings::Class;
use crate::compile::Step;
use crate::error::Result;
use crate::gpu::{Gpu, PassTimes, Submission, Ticket};
use serde::Serialize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Most passes that one submission can time.
const PASSES: u32 = 2048;

/// What the host does in a run, in this order; encoding and submitting take turns where a run has several submissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Writes the inputs into staging memory.
    Upload,
    /// Records dispatches and copies.
    Encode,
    /// Hands them to the driver.
    Submit,
    /// Waits for the device to end.
    Wait,
    /// Copies the outputs out of staging memory.
    Readback,
}

impl Doing {
    /// All of them.
    pub const ALL: [Doing; 5] = [Doing::Upload, Doing::Encode, Doing::Submit, Doing::Wait, Doing::Readback];

    /// Its name in tables and traces.
    pub fn name(self) -> &'static str {
        ["upload", "encode", "submit", "wait", "readback"][self as usize]
    }
}

/// A span of time on the host, in seconds since the recorder was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostSpan {
    /// What it did.
    pub doing: Doing,
    /// From then.
    pub begin: f64,
    /// Until then.
    pub end: f64,
}

/// A span of time on the device, in seconds by its own clock, which has a beginning of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceSpan {
    /// Index into [`Run::steps`].
    pub step: usize,
    /// From then.
    pub begin: f64,
    /// Until then.
    pub end: f64,
}

/// What a step of a plan is and costs, without its dispatches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepInfo {
    /// The node's path.
    pub name: String,
    /// The operator.
    pub op: &'static str,
    /// Shader and candidate.
    pub kernel: String,
    /// What it multiplies with.
    pub class: Class,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Dispatches.
    pub dispatches: usize,
}

impl From<&Step> for StepInfo {
    fn from(step: &Step) -> Self {
        StepInfo {
            name: step.name.clone(),
            op: step.op,
            kernel: format!("{}:{}", step.shader, step.variant),
            class: Class::of(step.shader, &step.constants),
            flops: step.flops,
            bytes: step.bytes,
            dispatches: step.dispatches.len(),
        }
    }
}

/// One run of a plan.
#[derive(Debug, Clone)]
pub struct Run {
    /// What the caller named its plan.
    pub plan: Arc<str>,
    /// The plan's steps.
    pub steps: Arc<[StepInfo]>,
    /// What the host did.
    pub host: Vec<HostSpan>,
    /// What the device did.
    pub device: Vec<DeviceSpan>,
    /// False where the device has no clock: then each step was waited for, and its span is the host's.
    pub device_clock: bool,
}

impl Run {
    /// Seconds that the device worked.
    pub fn busy(&self) -> f64 {
        self.device.iter().map(|s| s.end - s.begin).sum()
    }

    /// Seconds from the first of the host's doings to the end of the last.
    pub fn wall(&self) -> f64 {
        let ends = self.host.iter().map(|s| s.end).fold(0.0, f64::max);
        self.host.first().map_or(0.0, |s| ends - s.begin)
    }
}

/// Hears of runs. Clones share what was heard.
#[derive(Debug, Clone)]
pub struct Recorder {
    epoch: Instant,
    runs: Arc<Mutex<Vec<Run>>>,
    /// Runs begun.
    begun: Arc<AtomicUsize>,
    window: Range<usize>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder::of(0..usize::MAX)
    }
}

impl Recorder {
    /// Records only these of the runs that are begun, counted from 0.
    pub fn of(window: Range<usize>) -> Recorder {
        Recorder { epoch: Instant::now(), runs: Arc::default(), begun: Arc::default(), window }
    }

    /// The runs so far, whose outputs were taken, in that order; they are forgotten here.
    pub fn take(&self) -> Vec<Run> {
        std::mem::take(&mut *self.runs.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn now(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }
}

/// A run under way; all that it does is nothing where nobody records.
pub(super) struct Log {
    recorder: Option<Recorder>,
    /// Since when the host has been doing what it does.
    since: f64,
    host: Vec<HostSpan>,
    device: Vec<DeviceSpan>,
    /// The steps of the submission being recorded.
    steps: Vec<usize>,
    timed: bool,
    submitted: Vec<(Ticket, Option<PassTimes>, Vec<usize>)>,
}

impl Log {
    pub(super) fn begin(recorder: Option<&Recorder>) -> Log {
        let heard = |r: &&Recorder| r.window.contains(&r.begun.fetch_add(1, Ordering::Relaxed));
        let recorder = recorder.filter(heard).cloned();
        let since = recorder.as_ref().map_or(0.0, Recorder::now);
        Log { recorder, since, host: vec![], device: vec![], steps: vec![], timed: false, submitted: vec![] }
    }

    /// Ends what the host was doing, and says what it was.
    pub(super) fn did(&mut self, doing: Doing) {
        let Some(recorder) = &self.recorder else { return };
        let now = recorder.now();
        self.host.push(HostSpan { doing, begin: self.since, end: now });
        self.since = now;
    }

    /// A submission whose steps are timed, if somebody records and the device can.
    pub(super) async fn submission(&mut self, gpu: &Gpu) -> Result<Submission> {
        let timed = if self.recorder.is_some() { gpu.timed_submission(PASSES).await? } else { None };
        self.timed = timed.is_some();
        Ok(timed.unwrap_or_else(|| gpu.submission()))
    }

    /// Hears that a step's last dispatch was recorded. True if the submission must end here: it can time no more, or there
    /// is no other way to time this step.
    pub(super) fn step(&mut self, submission: &mut Submission, step: usize) -> bool {
        if self.recorder.is_none() {
            return false;
        }
        submission.split();
        self.steps.push(step);
        !self.timed || self.steps.len() == PASSES as usize
    }

    pub(super) async fn submit(&mut self, submission: Submission, gpu: &Gpu) -> Result<()> {
        if self.recorder.is_none() {
            return submission.submit().map(|_| ());
        }
        self.did(Doing::Encode);
        let (ticket, times) = submission.submit_timed()?;
        let begin = self.since;
        self.did(Doing::Submit);
        let steps = std::mem::take(&mut self.steps);
        if let (false, Some(&step)) = (self.timed, steps.first()) {
            ticket.wait(gpu).await?;
            self.did(Doing::Wait);
            self.device.push(DeviceSpan { step, begin, end: self.since });
        }
        self.submitted.push((ticket, times, steps));
        Ok(())
    }

    /// Waits for the device, before the outputs are read.
    pub(super) async fn wait(&mut self, gpu: &Gpu) -> Result<()> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        self.since = recorder.now();
        if let Some((ticket, ..)) = self.submitted.last() {
            ticket.wait(gpu).await?;
        }
        self.did(Doing::Wait);
        Ok(())
    }

    /// Reads the device's clock and hands the run over, after the outputs were read.
    pub(super) async fn end(mut self, gpu: &Gpu, plan: &Arc<str>, steps: &Arc<[StepInfo]>) -> Result<()> {
        let Some(recorder) = self.recorder.clone() else { return Ok(()) };
        self.did(Doing::Readback);
        let mut device_clock = false;
        for (_, times, steps) in std::mem::take(&mut self.submitted) {
            let Some(times) = times else { continue };
            let spans = times.read(gpu).await?;
            device_clock = true;
            let spans = steps.into_iter().zip(spans);
            self.device.extend(spans.map(|(step, (begin, end))| DeviceSpan { step, begin, end: end.max(begin) }));
        }
        let (plan, steps) = (plan.clone(), steps.clone());
        let run = Run { plan, steps, host: self.host, device: self.device, device_clock };
        recorder.runs.lock().unwrap_or_else(|e| e.into_inner()).push(run);
        Ok(())
    }
}
