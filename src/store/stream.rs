//! Weights on their way from mapped files to the device: tensor by tensor, through staging memory of fixed size, so that
//! no weight is ever whole in host memory beside its map.

use super::narrow::Narrow;
use super::weights::Weight;
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu};
use crate::nn::{Frozen, ParamLayout};
use crate::run::States;
use std::ops::Range;

/// Bytes of a staging slot, of which there are [`SLOTS`], beside one such piece on the host.
const STAGING: usize = 16 << 20;
/// Slots: one is filled while the device copies from the others.
const SLOTS: usize = 2;

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes on the device.
    pub done: u64,
    /// Bytes of all weights.
    pub total: u64,
}

/// Where a weight goes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// The state that holds it, and the bytes of that.
    state: (String, u64),
    /// First byte there, and where the state is a part of what the weight lies in, which.
    at: u64,
    kept: Range<u64>,
    /// Its type there.
    ty: TensorType,
}

impl Place {
    /// Those of frozen parameters, in order.
    pub fn frozen(frozen: &Frozen) -> Vec<Place> {
        let place = |(i, (_, ty)): (usize, &(String, TensorType))| {
            let (name, bytes, at) = frozen.place(i);
            Place { state: (name.to_string(), bytes), at, kept: 0..bytes, ty: ty.clone() }
        };
        frozen.params().iter().enumerate().map(place).collect()
    }

    /// Those of parameters that are trained: f32, in the pages `param.0`, `param.1`, ...
    pub fn pages(layout: &ParamLayout) -> Vec<Place> {
        let place = |spec: &crate::nn::ParamSpec| {
            let (page, start) = layout.place(&spec.name).expect("every parameter has a place");
            let kept = layout.kept(page);
            let kept = 4 * kept.start as u64..4 * kept.end as u64;
            let ty = TensorType::f32(spec.shape.clone());
            let state = (format!("param.{page}"), kept.end - kept.start);
            Place { state, at: 4 * start as u64, kept, ty }
        };
        layout.specs().iter().map(place).collect()
    }
}

/// Rows of a weight, and where in a slot they lie.
struct Part {
    weight: usize,
    rows: Range<usize>,
    /// First byte in what the weight lies in, and which of that its state has.
    to: u64,
    kept: Range<u64>,
    at: usize,
    bytes: usize,
}

/// Puts weights where their places are, in order.
///
/// # Errors
/// If a weight is larger than the largest buffer or holds a number that its dtype there does not, its file was cut short since it
/// was opened, or the device has no room or failed.
pub(super) async fn stream(
    gpu: &Gpu,
    states: &mut States,
    weights: &[Weight<'_>],
    places: &[Place],
    progress: &mut dyn FnMut(Loaded),
) -> Result<()> {
    let largest = gpu.limits().max_buffer_bytes;
    for (weight, place) in weights.iter().zip(places) {
        if place.state.1 > largest {
            let (name, bytes, adapter) = (weight.name, place.state.1, &gpu.report().name);
            return Err(Error::Invalid(format!(
                "{name} takes {bytes} bytes and {adapter} has no buffer above {largest}: \
                 take a smaller or more quantised model, or another adapter (danlu doctor lists them)"
            )));
        }
    }
    let mut buffers = Vec::new();
    for Place { state: (name, bytes), .. } in places {
        buffers.push(states.buffer(name, *bytes).await?);
    }
    let mut loaded = Loaded { done: 0, total: places.iter().map(|place| place.ty.bytes()).sum() };
    progress(loaded);
    let mut staging = Staging::new(gpu, loaded.total).await?;
    let mut parts: Vec<Part> = Vec::new();
    let mut used = 0;
    for (i, (weight, place)) in weights.iter().zip(places).enumerate() {
        let count = weight.rows();
        let row = place.ty.bytes() as usize / count;
        weight.check_whole()?;
        let narrow = Narrow::new(weight, place.ty.dtype)?;
        let mut next = 0;
        while next < count {
            let fit = (staging.bytes.len() - used) / row;
            if fit == 0 && used == 0 {
                return Err(Error::Invalid(format!("a row of {} takes {row} bytes, over {STAGING}", weight.name)));
            }
            let rows = next..count.min(next + fit);
            if !rows.is_empty() {
                let bytes = rows.len() * row;
                weight.check_whole()?;
                narrow.write(rows.clone(), &mut staging.bytes[used..used + bytes])?;
                let (to, kept) = (place.at + (rows.start * row) as u64, place.kept.clone());
                parts.push(Part { weight: i, to, kept, rows, at: used, bytes });
                next += parts[parts.len() - 1].rows.len();
                used += bytes;
            }
            if next < count {
                staging.send(gpu, &buffers, &mut parts, &mut used, &mut loaded).await?;
                progress(loaded);
            }
        }
    }
    staging.send(gpu, &buffers, &mut parts, &mut used, &mut loaded).await?;
    progress(loaded);
    // What was cut off while a piece was read may have been read as zeros.
    weights.iter().try_for_each(Weight::check_whole)?;
    gpu.finish().await
}

/// Host memory in which a piece is made, and the slots that it leaves through.
struct Staging {
    bytes: Vec<u8>,
    slots: Vec<crate::gpu::Upload>,
    sent: usize,
}

impl Staging {
    async fn new(gpu: &Gpu, total: u64) -> Result<Staging> {
        let bytes = total.min(STAGING as u64).max(4);
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            slots.push(gpu.upload(bytes).await?);
        }
        Ok(Staging { bytes: vec![0; bytes as usize], slots, sent: 0 })
    }

    async fn send(
        &mut self,
        gpu: &Gpu,
        buffers: &[Buffer],
        parts: &mut Vec<Part>,
        used: &mut usize,
        loaded: &mut Loaded,
    ) -> Result<()> {
        if *used == 0 {
            return Ok(());
        }
        let slot = &self.slots[self.sent % SLOTS];
        self.sent += 1;
        slot.fill(gpu, &self.bytes[..*used]).await?;
        let mut submission = gpu.submission();
        for part in parts.drain(..) {
            let (start, end) = (part.to.max(part.kept.start), (part.to + part.bytes as u64).min(part.kept.end));
            if start < end {
                let range = buffers[part.weight].range(start - part.kept.start, end - start);
                submission.copy_in(slot, part.at as u64 + start - part.to, range)?;
            }
            loaded.done += part.bytes as u64;
        }
        submission.submit()?;
        *used = 0;
        Ok(())
    }
}
