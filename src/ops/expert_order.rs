//! Slots sorted by expert: what lets an expert's weights be read once for many rows. R rows, k choices, E experts; a slot
//! is one choice of one row, N = R·k of them.

use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};

/// Expert ids u32 `[R,k]` to the slots' numbers sorted by expert, u32 `[N]`, those of one expert ascending; to the places
/// in it where each expert begins, u32 `[E+1]`; and to the number of slots of each, f32 `[E]`. Slots whose id is no expert
/// stand at the end, from the last of these places on.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertOrder {
    /// E: number of experts.
    pub experts: usize,
    /// So many neighbouring ids count as one expert: 1, or how many one rank holds, to sort by rank.
    pub together: usize,
}

impl Op for ExpertOrder {
    fn name(&self) -> &'static str {
        "expert_order"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [ids] = inputs else { return Err("takes one input: ids".into()) };
        let slots = ids.shape.elements();
        if ids.dtype != DType::U32 || slots == 0 || self.experts == 0 || self.together == 0 {
            return Err(format!("ids must be u32 [R,k] and not empty, not {ids}"));
        }
        Ok(vec![TensorType::u32([slots]), TensorType::u32([self.experts + 1]), TensorType::f32([self.experts])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let workgroup = if limits.is_cpu { 8 } else { 256 };
        let d = Dispatch::new([self.experts as u32 + 1, 1, 1])
            .bind("ids", Operand::Input(0), 0, io.inputs[0].bytes())
            .bind("order", Operand::Output(0), 0, io.outputs[0].bytes())
            .bind("starts", Operand::Output(1), 0, io.outputs[1].bytes())
            .bind("counts", Operand::Output(2), 0, io.outputs[2].bytes())
            .param("slots", io.outputs[0].shape.elements())
            .param("experts", self.experts)
            .param("together", self.together);
        let kernel = Kernel::new("expert_order", format!("lanes_{workgroup}"));
        vec![kernel.constant("WORKGROUP", workgroup).dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        let slots = io.outputs[0].shape.elements() as u64;
        Cost { flops: 4 * slots * (self.experts as u64 + 1), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let ids: Vec<usize> = inputs[0].data.iter().map(|&id| id as usize / self.together).collect();
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&slot| ids[slot].min(self.experts));
        let below = |e: usize| ids.iter().filter(|&&id| id < e).count() as f64;
        let starts: Vec<f64> = (0..=self.experts).map(below).collect();
        let counts = starts.windows(2).map(|w| w[1] - w[0]).collect();
        vec![
            Array::new(TensorType::u32([ids.len()]), order.into_iter().map(|slot| slot as f64).collect()),
            Array::new(TensorType::u32([self.experts + 1]), starts),
            Array::new(TensorType::f32([self.experts]), counts),
        ]
    }
}
