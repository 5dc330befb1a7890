//! Where the slots of a mixture of experts lie in what ranks exchange. R rows, k choices of each, so R·k slots; N ranks with
//! e experts each; C slots at most that one rank has for another.

use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Expert ids u32 `[R,k]`, with order u32 `[R·k]` and starts u32 `[N+1]` of their slots by rank (what
/// [`super::ExpertOrder`] makes of them, e experts together), to: the place of each slot, u32 `[R,k]`, N·C where it has none;
/// the slot at each place, u32 `[N·C]`, R·k where there is none; its row, u32 `[N·C]`, or R; the number of its expert among
/// those of its rank, u32 `[N·C]`, or e; and for each rank how many slots were left without a place, f32 `[N]`.
///
/// Slots for rank r lie from place r·C on, in the order of their rows. Those that come after C others have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPlaces {
    /// N.
    pub ranks: usize,
    /// e.
    pub experts: usize,
    /// C.
    pub capacity: usize,
}

const WORKGROUP: usize = 64;

impl SlotPlaces {
    /// N·C.
    fn places(&self) -> usize {
        self.ranks * self.capacity
    }
}

impl Op for SlotPlaces {
    fn name(&self) -> &'static str {
        "slot_places"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[ids, order, starts] = inputs else { return Err("takes ids, order and starts".into()) };
        let &[r, k] = ids.shape.dims() else { return Err(format!("ids must be u32 [R,k], not {ids}")) };
        let sorted = *order == TensorType::u32([r * k]) && *starts == TensorType::u32([self.ranks + 1]);
        if ids.dtype != DType::U32 || !sorted {
            return Err("ids must be u32 [R,k], order u32 [R·k] and starts u32 [N+1]".into());
        }
        if [r, k, self.ranks, self.experts, self.capacity].contains(&0) {
            return Err("every size must be positive".into());
        }
        let at = || TensorType::u32([self.places()]);
        Ok(vec![ids.clone(), at(), at(), at(), TensorType::f32([self.ranks])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (slots, choices) = (io.inputs[0].shape.elements(), io.inputs[0].shape.last());
        let lanes = slots.max(self.places());
        let mut d = Dispatch::new(spread(lanes.div_ceil(WORKGROUP), limits))
            .param("slots", slots)
            .param("ranks", self.ranks)
            .param("capacity", self.capacity)
            .param("choices", choices)
            .param("experts", self.experts);
        for (i, name) in ["ids", "order", "starts"].into_iter().enumerate() {
            d = d.bind(name, Operand::Input(i), 0, io.inputs[i].bytes());
        }
        for (i, name) in ["places", "slots", "rows", "experts", "dropped"].into_iter().enumerate() {
            d = d.bind(name, Operand::Output(i), 0, io.outputs[i].bytes());
        }
        vec![Kernel::new("slot_places", "lanes").constant("WORKGROUP", WORKGROUP).dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 8 * (io.inputs[0].shape.elements() + self.places()) as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (ids, k) = (&inputs[0].data, inputs[0].ty.shape.last());
        let (all, none) = (self.places(), ids.len());
        let (mut places, mut slots) = (vec![all as f64; none], vec![none as f64; all]);
        let mut counts = vec![0; self.ranks];
        for (slot, &id) in ids.iter().enumerate() {
            let Some(count) = counts.get_mut(id as usize / self.experts) else { continue };
            if *count < self.capacity {
                let place = id as usize / self.experts * self.capacity + *count;
                (places[slot], slots[place]) = (place as f64, slot as f64);
            }
            *count += 1;
        }
        let rows = slots.iter().map(|&slot| (slot as usize / k) as f64).collect();
        let expert = |&slot: &f64| ids.get(slot as usize).map_or(self.experts, |&id| id as usize % self.experts);
        let experts = slots.iter().map(|slot| expert(slot) as f64).collect();
        let at = |data| Array::new(TensorType::u32([all]), data);
        let dropped = counts.iter().map(|&count: &usize| count.saturating_sub(self.capacity) as f64).collect();
        let dropped = Array::new(TensorType::f32([self.ranks]), dropped);
        vec![Array::new(inputs[0].ty.clone(), places), at(slots.clone()), at(rows), at(experts), dropped]
    }
}
