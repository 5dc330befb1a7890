//! Runs a plan: everything is made once; a run uploads its small inputs, encodes, submits, and allocates nothing.

use super::bind::params_bytes;
use super::ranks::{self, Ranks, Talk};
use super::recorder::{Doing, Log, Recorder, StepInfo};
use super::{States, Timing, check_memory};
use crate::base::{Axis, DType, TensorType};
use crate::comm::{Communicator, Groups};
use crate::compile::{BufferKind, BufferSpec, Plan, PlanDispatch, Step, Wire};
use crate::error::{Error, Result};
use crate::gpu::{BindGroup, Buffer, Compile, Gpu, Pipeline, Range, Readback, Submission, Upload};
use crate::shader::{Source, assemble};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs in flight: the host prepares one while the device computes another, and reads results one late.
const SLOTS: usize = 2;

/// Work of one submission at most, or one dispatch: display watchdogs kill what takes seconds, and slow adapters do 100 Gflop a second.
const FLOPS_PER_SUBMISSION: u64 = 40_000_000_000;

struct Launch {
    pipeline: Arc<Pipeline>,
    group: BindGroup,
    workgroups: [u32; 3],
    /// Which step of the plan it belongs to.
    step: usize,
    /// It is the last of its step.
    ends: bool,
    /// A submission ends after this dispatch.
    last: bool,
}

/// A step at which ranks meet.
struct Meeting {
    /// It comes before this launch.
    before: usize,
    what: crate::compile::Meeting,
    dtype: DType,
}

struct Slot {
    upload: Upload,
    readback: Readback,
    /// Which outputs the run that uses it was asked for.
    wanted: Vec<usize>,
}

/// What a run gave, in memory that the device has written.
pub struct Results<'a> {
    outputs: &'a [(Wire, u64)],
    wanted: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> Results<'a> {
    /// The outputs that were asked for, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let (outputs, bytes) = (self.outputs, self.bytes);
        self.wanted.iter().map(move |&i| {
            let (wire, offset) = &outputs[i];
            (wire.name.as_str(), &bytes[*offset as usize..][..wire.ty.bytes() as usize])
        })
    }

    /// The 32-bit words of an output; none where it was not asked for.
    pub fn words(&self, name: &str) -> impl Iterator<Item = [u8; 4]> {
        let bytes = self.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, bytes)| bytes);
        bytes.as_chunks::<4>().0.iter().copied()
    }

    /// The first f32 of an output.
    pub fn first(&self, name: &str) -> Option<f32> {
        self.element(name, 0)
    }

    /// One f32 of an output, by its number.
    pub fn element(&self, name: &str, index: usize) -> Option<f32> {
        let bytes = self.iter().find(|(n, _)| *n == name)?.1;
        Some(f32::from_le_bytes(*bytes.get(4 * index..)?.first_chunk()?))
    }
}

/// A plan ready to run.
pub struct Executor {
    gpu: Gpu,
    launches: Vec<Launch>,
    meetings: Vec<Meeting>,
    ranks: Option<Ranks>,
    buffers: Vec<Buffer>,
    /// Those of them whose content means nothing between runs.
    arenas: Vec<Buffer>,
    inputs: Vec<Wire>,
    outputs: Vec<(Wire, u64)>,
    input_buffer: Option<usize>,
    /// The input buffer's bytes, as the host wants them.
    image: Vec<u8>,
    output_bytes: u64,
    slots: Vec<Slot>,
    /// Runs whose results were not taken, by their slots.
    pending: VecDeque<(usize, Log)>,
    runs: usize,
    /// Whether runs are the last of batches that make a step.
    last: bool,
    allocated: u64,
    steps: Arc<[StepInfo]>,
    recorder: Option<(Recorder, Arc<str>)>,
}

/// The bytes of a run's outputs, by name.
pub type Outputs = BTreeMap<String, Vec<u8>>;

impl Executor {
    /// Allocates the plan's buffers, joins its states with those of other plans, and makes pipelines and bind groups.
    ///
    /// # Errors
    /// [`Error::Memory`] before anything is allocated if the adapter's memory is known to be too small; else if the
    /// device refuses.
    pub async fn new(gpu: &Gpu, plan: &Plan, states: &mut States) -> Result<Executor> {
        check_memory(gpu, &[plan], states)?;
        Executor::over(gpu, plan, states, &[]).await
    }

    /// The same, whose runs take turns with those of `other` and use its scratch memory as far as that reaches:
    /// [`super::bytes_beside`] says what is allocated besides.
    ///
    /// # Errors
    /// If the device refuses.
    pub async fn beside(gpu: &Gpu, plan: &Plan, states: &mut States, other: &Executor) -> Result<Executor> {
        Executor::over(gpu, plan, states, &other.arenas).await
    }

    async fn over(gpu: &Gpu, plan: &Plan, states: &mut States, arenas: &[Buffer]) -> Result<Executor> {
        let (mut buffers, mut theirs) = (Vec::new(), arenas.iter());
        let mut allocated = 0;
        for (i, spec) in plan.buffers.iter().enumerate() {
            let lent = if spec.kind == BufferKind::Arena { theirs.next() } else { None };
            buffers.push(match (&spec.kind, lent.filter(|arena| arena.bytes() >= spec.bytes)) {
                (BufferKind::State(name), _) => states.buffer(name, spec.bytes).await?,
                (_, Some(arena)) => arena.clone(),
                _ => gpu.storage(&format!("buffer {i}"), spec.bytes).await?,
            });
            allocated += buffers[i].bytes();
        }
        let is_arena = |(spec, _): &(&BufferSpec, &Buffer)| spec.kind == BufferKind::Arena;
        let arenas = plan.buffers.iter().zip(&buffers).filter(is_arena).map(|(_, buffer)| buffer.clone()).collect();
        for (wire, bytes) in &plan.constants {
            gpu.write(&buffers[wire.buffer], wire.offset, bytes).await?;
        }
        let (launches, meetings) = launches(gpu, plan, &buffers).await?;
        let input_buffer = plan.buffers.iter().position(|b| b.kind == BufferKind::Input);
        let mut output_bytes = 0;
        let mut outputs = Vec::new();
        for wire in &plan.outputs {
            outputs.push((wire.clone(), output_bytes));
            output_bytes += wire.ty.bytes();
        }
        let image = vec![0; input_buffer.map_or(0, |b| buffers[b].bytes() as usize)];
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            let upload = gpu.upload(image.len() as u64).await?;
            let wanted = Vec::with_capacity(outputs.len());
            slots.push(Slot { upload, readback: gpu.readback(output_bytes).await?, wanted });
        }
        let inputs = plan.inputs.clone();
        let (gpu, pending) = (gpu.clone(), VecDeque::with_capacity(SLOTS));
        Ok(Executor {
            gpu,
            launches,
            meetings,
            ranks: None,
            buffers,
            arenas,
            inputs,
            outputs,
            input_buffer,
            image,
            output_bytes,
            slots,
            pending,
            runs: 0,
            last: true,
            allocated,
            steps: plan.steps.iter().map(StepInfo::from).collect(),
            recorder: None,
        })
    }

    /// From now on meets these other ranks along the data axis where its plan says so; all of them run it equally often.
    ///
    /// # Errors
    /// As [`Executor::join_groups`].
    pub async fn join(&mut self, comm: Arc<dyn Communicator>) -> Result<()> {
        self.join_groups(Groups::of(Axis::Data, comm)).await
    }

    /// From now on meets other ranks along each axis where its plan says so; all of them run theirs equally often.
    ///
    /// # Errors
    /// If the plan is for other numbers of ranks, or the adapter has no room for what is under way between them.
    pub async fn join_groups(&mut self, groups: Groups) -> Result<()> {
        let meetings: Vec<_> = self.meetings.iter().map(|m| m.what.clone()).collect();
        self.ranks = Some(Ranks::new(&self.gpu, groups, &meetings).await?);
        Ok(())
    }

    /// When ranks met in the last run that was submitted.
    pub fn talks(&self) -> &[Talk] {
        self.ranks.as_ref().map_or(&[], Ranks::talks)
    }

    /// Whether the runs to come are each the last of several batches that make a step, as they are until this is said: only then
    /// ranks meet where the plan has them meet after the last.
    pub fn is_last(&mut self, last: bool) {
        self.last = last;
    }

    /// Device bytes of the plan's buffers, as allocated.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated
    }

    /// Type of an input, if the plan has it.
    pub fn input(&self, name: &str) -> Option<&TensorType> {
        self.inputs.iter().find(|w| w.name == name).map(|w| &w.ty)
    }

    /// Sets an input for the runs to come. Inputs that a plan does not read are ignored.
    ///
    /// # Errors
    /// If the number of bytes is not the input's.
    pub fn set<T: bytemuck::Pod>(&mut self, name: &str, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let Some(wire) = self.inputs.iter().find(|w| w.name == name) else { return Ok(()) };
        if wire.ty.bytes() != bytes.len() as u64 {
            return Err(Error::Graph(format!("input {name} is {}, not {} bytes", wire.ty, bytes.len())));
        }
        let at = wire.offset as usize;
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Submits one run. At most two may be in flight: take the results of the first before the third.
    ///
    /// # Errors
    /// If the device failed, or results were left untaken.
    pub async fn submit(&mut self) -> Result<()> {
        self.submit_for(|_| true).await
    }

    /// [`Executor::submit`], of which only some outputs will be read.
    async fn submit_for(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        if self.pending.len() == SLOTS {
            return Err(Error::Graph("results of earlier runs were not taken".into()));
        }
        let at = self.runs % SLOTS;
        self.runs += 1;
        let slot = &mut self.slots[at];
        slot.wanted.clear();
        slot.wanted.extend((0..self.outputs.len()).filter(|&i| wanted(&self.outputs[i].0.name)));
        self.ranks.iter_mut().try_for_each(Ranks::begin_run)?;
        let mut log = Log::begin(self.recorder.as_ref().map(|(recorder, _)| recorder));
        let mut submission = log.submission(&self.gpu).await?;
        if let (Some(b), false) = (self.input_buffer, self.image.is_empty()) {
            slot.upload.fill(&self.gpu, &self.image).await?;
            submission.copy_in(&slot.upload, 0, self.buffers[b].whole())?;
        }
        log.did(Doing::Upload);
        let mut met = 0;
        for (i, launch) in self.launches.iter().enumerate() {
            if self.meetings.get(met).is_some_and(|m| m.before == i) {
                log.submit(submission, &self.gpu).await?;
                met = meet(&self.gpu, self.ranks.as_mut(), &self.buffers, (&self.meetings, self.last), met).await?;
                submission = log.submission(&self.gpu).await?;
            }
            submission.dispatch(&launch.pipeline, &launch.group, launch.workgroups);
            let full = launch.ends && log.step(&mut submission, launch.step);
            // A step that is timed is one submission.
            if full || launch.last && (launch.ends || self.recorder.is_none()) {
                log.submit(submission, &self.gpu).await?;
                submission = log.submission(&self.gpu).await?;
            }
        }
        if met < self.meetings.len() {
            log.submit(submission, &self.gpu).await?;
            meet(&self.gpu, self.ranks.as_mut(), &self.buffers, (&self.meetings, self.last), met).await?;
            submission = log.submission(&self.gpu).await?;
        }
        self.ranks.iter_mut().for_each(Ranks::end_run);
        for (wire, offset) in slot.wanted.iter().map(|&i| &self.outputs[i]) {
            let range = self.buffers[wire.buffer].range(wire.offset, wire.ty.bytes());
            submission.copy_out_at(range, &slot.readback, *offset)?;
        }
        log.submit(submission, &self.gpu).await?;
        self.pending.push_back((at, log));
        Ok(())
    }

    /// Waits for the oldest run whose results were not taken, and gives them.
    ///
    /// # Errors
    /// If nothing is in flight, or the device failed.
    pub async fn outputs(&mut self) -> Result<Outputs> {
        self.read(|results| results.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect()).await
    }

    /// [`Executor::outputs`] where they lie: nothing is copied, and nothing allocated.
    ///
    /// # Errors
    /// As [`Executor::outputs`].
    pub async fn read<T>(&mut self, take: impl FnOnce(Results<'_>) -> T) -> Result<T> {
        let (at, mut log) = self.pending.pop_front().ok_or_else(|| Error::Graph("no run is in flight".into()))?;
        log.wait(&self.gpu).await?;
        let (outputs, Slot { readback, wanted, .. }) = (&self.outputs, &self.slots[at]);
        let take = |bytes: &[u8]| take(Results { outputs, wanted, bytes });
        let taken = readback.read(&self.gpu, self.output_bytes, take).await?;
        if let Some((_, plan)) = &self.recorder {
            log.end(&self.gpu, plan, &self.steps).await?;
        }
        Ok(taken)
    }

    /// Runs whose results were not taken.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// True if results must be taken before the next run is submitted.
    pub fn is_full(&self) -> bool {
        self.pending.len() == SLOTS
    }

    /// From now on tells `recorder` what every run does when, as runs of the plan `name`; or, with `None`, no longer.
    pub fn record(&mut self, recorder: Option<&Recorder>, name: &str) {
        self.recorder = recorder.map(|recorder| (recorder.clone(), name.into()));
    }

    /// How long one step of the plan takes with what its buffers hold now, measured `runs` times; each time it is repeated
    /// until two milliseconds are full. States change as if the step had run so often.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn time_step(&self, step: usize, runs: usize) -> Result<Timing> {
        let launches = || self.launches.iter().filter(|launch| launch.step == step);
        let record = |submission: &mut Submission| {
            launches().for_each(|l| submission.dispatch(&l.pipeline, &l.group, l.workgroups));
        };
        Timing::measure(&self.gpu, runs, record).await
    }

    /// One run and its results.
    ///
    /// # Errors
    /// As [`Executor::submit`] and [`Executor::outputs`].
    pub async fn run(&mut self) -> Result<Outputs> {
        self.submit().await?;
        self.outputs().await
    }

    /// One run, and those of its results that are named where they lie, as [`Executor::read`]; with no name there is nothing to
    /// wait for.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub async fn run_for<T>(&mut self, names: &[&str], take: impl FnOnce(Results<'_>) -> T) -> Result<T> {
        self.submit_for(|name| names.contains(&name)).await?;
        self.read(take).await
    }
}

/// Holds all meetings that stand at one place, from the first on, and are of this run, which may be the last of several; gives
/// the number of the next.
async fn meet(
    gpu: &Gpu,
    ranks: Option<&mut Ranks>,
    buffers: &[Buffer],
    (meetings, last): (&[Meeting], bool),
    first: usize,
) -> Result<usize> {
    let Some(ranks) = ranks else {
        return Err(Error::Graph("the plan meets other ranks, and it was joined to none".into()));
    };
    let here = meetings[first..].iter().take_while(|m| m.before == meetings[first].before);
    let mut next = first;
    for m in here {
        if last || !m.what.last {
            ranks.meet(gpu, buffers, (next, &m.what), m.dtype).await?;
        }
        next += 1;
    }
    Ok(next)
}

/// A run's output as f32.
pub fn f32s(outputs: &Outputs, name: &str) -> Vec<f32> {
    outputs.get(name).map_or_else(Vec::new, |bytes| bytemuck::pod_collect_to_vec(bytes))
}

/// Pipelines, compiled on all cores, and for each dispatch its bind group; and the meetings between them.
async fn launches(gpu: &Gpu, plan: &Plan, buffers: &[Buffer]) -> Result<(Vec<Launch>, Vec<Meeting>)> {
    let kernels = || plan.steps.iter().enumerate().filter(|(_, s)| s.meeting.is_none());
    let sources: Vec<Source> =
        kernels().map(|(_, s)| assemble(s.shader, &s.constants, &s.hooks)).collect::<Result<_>>()?;
    // What cannot be compiled is reported below, by its step.
    compile_all(gpu, &sources);
    let alignment = gpu.limits().binding_alignment;
    let mut params: Vec<u8> = Vec::new();
    let mut offsets = Vec::new();
    for ((_, step), source) in kernels().zip(&sources) {
        for dispatch in &step.dispatches {
            params.resize(params.len().next_multiple_of(alignment as usize), 0);
            offsets.push(params.len() as u64);
            params.extend(params_bytes(source, &dispatch.params)?);
            params.resize(params.len().next_multiple_of(16), 0);
        }
    }
    let uniform = gpu.uniform("params", params.len() as u64).await?;
    gpu.write(&uniform, 0, &params).await?;
    let mut offsets = offsets.into_iter();
    let mut launches: Vec<Launch> = Vec::new();
    let mut flops = 0;
    let mut meetings = Vec::new();
    let mut sources = sources.iter();
    let mut meets = ranks::meetings(plan).peekable();
    for (index, step) in plan.steps.iter().enumerate() {
        if let Some((_, what, dtype)) = meets.next_if(|(at, ..)| *at == index) {
            meetings.push(Meeting { before: launches.len(), what: what.clone(), dtype });
            continue;
        }
        let source = sources.next().expect("one source a kernel");
        let pipeline = gpu.pipeline(&step.name, &source.text, &source.layout()).await?;
        let of_each = step.flops / step.dispatches.len().max(1) as u64;
        for dispatch in &step.dispatches {
            flops += of_each;
            if flops > FLOPS_PER_SUBMISSION {
                flops = of_each;
                if let Some(before) = launches.last_mut() {
                    before.last = true;
                }
            }
            let mut ranges = ranges(step, source, dispatch, buffers)?;
            let offset = offsets.next().expect("one offset a dispatch");
            if let Some(binding) = source.uniform() {
                let bytes = (source.params_bytes as u64).next_multiple_of(16);
                ranges.push((binding.index, uniform.range(offset, bytes)));
            }
            let group = gpu.bind(&pipeline, &ranges).await?;
            let (pipeline, workgroups) = (pipeline.clone(), dispatch.workgroups);
            launches.push(Launch { pipeline, group, workgroups, step: index, ends: false, last: false });
        }
        if let Some(launch) = launches.last_mut() {
            launch.ends = true;
        }
    }
    Ok((launches, meetings))
}

/// Compiles what plans run before it is needed; gives the number of shaders. A plan that differs from the later one
/// costs time and changes nothing; so does setting `stop`, after which no further shader is begun.
pub fn compile_early<'a>(gpu: &Gpu, plans: impl IntoIterator<Item = &'a Plan>, stop: &AtomicBool) -> usize {
    let steps = plans.into_iter().flat_map(|plan| &plan.steps);
    let assembled = steps.filter_map(|s| assemble(s.shader, &s.constants, &s.hooks).ok());
    compile_some(gpu, &assembled.collect::<Vec<_>>(), stop)
}

/// Compiles shaders on all cores, since a driver may take a second for one; gives the number of those that are new and
/// went well.
pub fn compile_all(gpu: &Gpu, sources: &[Source]) -> usize {
    compile_some(gpu, sources, &AtomicBool::new(false))
}

fn compile_some(gpu: &Gpu, sources: &[Source], stop: &AtomicBool) -> usize {
    let distinct: BTreeMap<&str, &Source> = sources.iter().map(|s| (s.text.as_str(), s)).collect();
    let compile = |s: &Source| Compile { label: s.shader.clone(), text: s.text.clone(), bindings: s.layout() };
    let shaders: Vec<Compile> = distinct.into_values().map(compile).collect();
    gpu.compile_early(&shaders, std::thread::available_parallelism().map_or(1, usize::from), stop)
}

fn ranges<'a>(
    step: &Step,
    source: &Source,
    dispatch: &PlanDispatch,
    buffers: &'a [Buffer],
) -> Result<Vec<(u32, Range<'a>)>> {
    let fail = |name: &str| {
        let message = format!("{} binds `{name}`, which the shader does not declare", step.name);
        Error::Shader { shader: step.shader.to_string(), message }
    };
    let bind = |b: &crate::compile::Binding| {
        let binding = source.binding(&b.name).ok_or_else(|| fail(&b.name))?;
        Ok((binding.index, buffers[b.buffer].range(b.offset, b.bytes)))
    };
    dispatch.bindings.iter().map(bind).collect()
}
