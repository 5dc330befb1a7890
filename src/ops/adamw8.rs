//! One step of AdamW whose moments take eight bits (Dettmers et al., "8-bit optimizers via block-wise quantization", 2022) on a
//! flat page of parameters, in place.

use super::gaps;
use super::update::{self, Part};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Elements of a block, which has a scale for either moment.
pub const BLOCK: usize = 256;

/// Updates p, f32 `[N]`, and its moments from g.
///
/// The moments are of the whole page, or of g's elements only. Inputs: p; the moments' codes, u32 `[⌈N/2⌉]`, each of
/// two elements, from the lowest byte m, v, m, v; their scales, f32 `[2·⌈N/256⌉]`, m's and v's of each block, the
/// largest magnitude in it; g `[N]`; [`AdamW8::codes`]; then as [`super::AdamW`] what the judge tells, and a copy or the table
/// of gaps, not both, for which adapters have no bindings. The first three and the copy are states. Output: of every block of
/// a part the sum of the squares of what was added to p.
///
/// Moments are their code times their scale, move in f32, update p as they are, and are rounded to the nearest code, as
/// bitsandbytes does. All parts begin at a multiple of 256; what follows the last in its block is padding.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW8 {
    /// Decay of the first moment, β₁.
    pub beta1: f32,
    /// Decay of the second moment, β₂.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// The first element of the page that g is of, a multiple of 256: g may be of some of them only, which the parts end with.
    pub start: usize,
    /// The page's parts.
    pub parts: Vec<Part>,
    /// The first element of the page that the copy is of, a multiple of 128; none where there is no copy.
    pub copied: Option<usize>,
}

impl AdamW8 {
    fn given(&self) -> update::Given {
        update::Given { gradient: 1, start: self.start, copied: self.copied }
    }

    /// What the codes of m stand for, and those of v: bitsandbytes' dynamic map with a sign, and without. The exponent takes
    /// as many bits as it has leading zeros, the rest is a fraction.
    pub fn codes() -> Vec<f32> {
        [map(true), map(false)].concat()
    }

    /// Elements of a block, which has a scale for either moment.
    pub const BLOCK: usize = BLOCK;

    /// Of every element of a page from its codes and scales: m, v, and the scales of both.
    pub fn unpack(codes: &[u32], scales: &[f32]) -> [Vec<f32>; 4] {
        let map = AdamW8::codes();
        let code = |i: usize, byte: usize| (codes[i / 2] >> (16 * (i % 2) + 8 * byte) & 255) as usize;
        let scale = |i: usize, moment: usize| scales[2 * (i / BLOCK) + moment];
        let value = |i: usize, moment: usize| map[256 * moment + code(i, moment)] * scale(i, moment);
        let all = |of: &dyn Fn(usize) -> f32| (0..2 * codes.len()).map(of).collect::<Vec<f32>>();
        [all(&|i| value(i, 0)), all(&|i| value(i, 1)), all(&|i| scale(i, 0)), all(&|i| scale(i, 1))]
    }

    /// Codes and scales of a page, of an even number of elements, from what [`AdamW8::unpack`] gives of each, of whatever
    /// pages; where nothing was, zeros. Where a block's elements had one scale they keep it, and their codes; else they are
    /// rounded anew, as after a step: true if no block was.
    pub fn pack(m: [&[f32]; 2], v: [&[f32]; 2]) -> (Vec<u32>, Vec<f32>, bool) {
        let map: Vec<f64> = AdamW8::codes().into_iter().map(f64::from).collect();
        let (mut codes, mut scales, mut exact) = (vec![0u32; m[0].len().div_ceil(2)], Vec::new(), true);
        for start in (0..m[0].len()).step_by(BLOCK) {
            for (moment, [values, had]) in [m, v].into_iter().enumerate() {
                let block = start..values.len().min(start + BLOCK);
                let (values, had) = (&values[block.clone()], &had[block]);
                let one = had.iter().copied().find(|scale| *scale != 0.0).unwrap_or(0.0);
                let is_one = had.iter().all(|scale| *scale == one || *scale == 0.0);
                let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let scale = if is_one { one } else { most };
                exact &= is_one;
                scales.push(scale);
                for (k, x) in values.iter().enumerate() {
                    let share = if scale > 0.0 { f64::from(*x) / f64::from(scale) } else { 0.0 };
                    let code = nearest(&map[256 * moment..256 * (moment + 1)], share) as u32;
                    codes[(start + k) / 2] |= code << (16 * (k % 2) + 8 * moment);
                }
            }
        }
        (codes, scales, exact)
    }

    /// Type of the codes' state for a page of `n` elements.
    pub fn codes_type(n: usize) -> TensorType {
        TensorType::u32([n.div_ceil(2)])
    }

    /// Type of the scales' state for a page of `n` elements.
    pub fn scales_type(n: usize) -> TensorType {
        TensorType::f32([2 * n.div_ceil(BLOCK)])
    }
}

fn map(signed: bool) -> Vec<f32> {
    let mut codes = vec![0.0, 1.0];
    for i in 0..7 {
        let items = if signed { 1usize << i } else { 1 << (i + 1) };
        // As torch.linspace has it: the second half is counted from the end, each with one rounding.
        let step = (1.0f32 - 0.1) / items as f32;
        let begins = |k: usize| step.mul_add(k as f32, 0.1);
        let ends = |k: usize| (-step).mul_add((items - k) as f32, 1.0);
        let at = |k: usize| if k < items.div_ceil(2) { begins(k) } else { ends(k) };
        let power = 10f64.powi(i - 6) as f32;
        for k in 0..items {
            let mean = (at(k) + at(k + 1)) / 2.0 * power;
            codes.push(mean);
            if signed {
                codes.push(-mean);
            }
        }
    }
    codes.sort_by(f32::total_cmp);
    codes
}

/// The code nearest to x, the lower of two.
fn nearest(codes: &[f64], x: f64) -> usize {
    (1..codes.len()).take_while(|&k| 0.5 * (codes[k - 1] + codes[k]) < x).count()
}

impl Op for AdamW8 {
    fn name(&self) -> &'static str {
        "adamw8"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [p, moments, scales, g, codes, rest @ ..] = inputs else {
            return Err(
                "takes p, moments, scales, g, codes, what it is told, and the table of gaps if there are any".into()
            );
        };
        update::check(&[&[*p, *g], rest].concat(), 2, self.given(), &self.parts)?;
        if self.copied.is_some() && rest.len() > 2 {
            return Err("a page with a copy has no gaps".into());
        }
        let whole = **moments == Self::codes_type(p.shape.elements());
        let n = if whole { p } else { g }.shape.elements();
        if **moments != Self::codes_type(n) || **scales != Self::scales_type(n) || **codes != TensorType::f32([512]) {
            let types = (Self::codes_type(n), Self::scales_type(n));
            return Err(format!("moments must be {}, scales {}, and codes f32[512]", types.0, types.1));
        }
        let rest = &self.parts[..self.parts.len() - 1];
        if rest.iter().map(|part| part.end).chain([self.start]).any(|end| !end.is_multiple_of(BLOCK)) {
            return Err(format!("parts must begin at multiples of {BLOCK}"));
        }
        Ok(vec![update::added_type(&self.parts, self.start, BLOCK)])
    }

    fn writes(&self) -> Vec<usize> {
        [0, 1, 2].into_iter().chain(self.given().rest(5).0).collect()
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let workgroup = if limits.is_cpu { 8 } else { 32 };
        let mut kernel = Kernel::new("adamw8", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("GAPS", io.inputs.len() - self.given().rest(5).1);
        if self.copied.is_some() {
            kernel = kernel.constant("COPY", 1).constant("HALF", 1);
        }
        // Whole blocks, whose codes begin at an aligned byte.
        let whole = io.inputs[1] == Self::codes_type(io.inputs[0].shape.elements());
        let kept = if whole { 0 } else { self.start };
        let window = (limits.max_binding_bytes / 4) as usize / BLOCK * BLOCK;
        let (mut first, mut run) = (self.start, 0);
        for part in &self.parts {
            for start in (first..part.end).step_by(window) {
                let count = window.min(part.end - start);
                let (at, bytes) = (start as u64 * 4, count as u64 * 4);
                let mut d = Dispatch::new(spread(count.div_ceil(BLOCK), limits))
                    .bind("p", Operand::Input(0), at, bytes)
                    .bind("moments", Operand::Input(1), at / 2 - kept as u64 * 2, count.div_ceil(2) as u64 * 4)
                    .bind("g", Operand::Input(3), at - self.start as u64 * 4, bytes)
                    .param("start", start)
                    .param("block", (start - kept) / BLOCK)
                    .param("count", count)
                    .param("run", run)
                    .bind("y", Operand::Output(0), 0, io.outputs[0].bytes())
                    .param("rate", part.rate)
                    .param("decay", part.decay)
                    .param("beta1", self.beta1)
                    .param("beta2", self.beta2)
                    .param("epsilon", self.epsilon);
                let (copy, table) = self.given().rest(5);
                d = match copy {
                    Some(copy) => {
                        self.given().bind_copy(d, (copy, io.inputs[copy].shape.elements()), [start, count, 1])
                    }
                    None => d.param("copied", 0usize).param("copies", 0usize),
                };
                for (name, i) in [("scales", 2), ("codes", 4), ("told", 5), ("gaps", table)] {
                    if let Some(ty) = io.inputs.get(i) {
                        d = d.bind(name, Operand::Input(i), 0, ty.bytes());
                    }
                }
                kernel = kernel.dispatch(d);
                run += count.div_ceil(BLOCK);
            }
            first = part.end;
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let n = io.inputs[3].shape.elements() as u64;
        // p and g in f32, two codes, and a share of two scales.
        Cost {
            flops: 40 * n,
            bytes: n * (2 * 4 + 4 + 2 * 2) + 2 * n.div_ceil(BLOCK as u64) * 8 + update::copy_bytes(io),
        }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [beta1, beta2] = [self.beta1, self.beta2].map(f64::from);
        let [lr, bias1, bias2, factor] = inputs[5].data[..] else { unreachable!("checked when the node was made") };
        let [mut p, mut moments, mut scales] = [0, 1, 2].map(|i| inputs[i].clone());
        if factor == 0.0 {
            let added = Array::zeros(update::added_type(&self.parts, self.start, BLOCK).shape);
            let copy = self.given().copy(inputs, 5, &p, 0..0);
            return [added, p, moments, scales].into_iter().chain(copy).collect();
        }
        let (signed, unsigned) = inputs[4].data.split_at(256);
        let whole = inputs[1].data.len() == inputs[0].data.len().div_ceil(2);
        let kept = if whole { 0 } else { self.start };
        let code = |i: usize, byte: usize| (inputs[1].data[i / 2] as u32 >> (16 * (i % 2) + 8 * byte) & 255) as usize;
        let table = inputs.get(self.given().rest(5).1);
        let end = self.start + inputs[3].data.len();
        moments.data[(self.start - kept) / 2..(end - kept).div_ceil(2)].fill(0.0);
        for start in (self.start..end).step_by(BLOCK) {
            let block = (start - kept) / BLOCK;
            let (m_scale, v_scale) = (inputs[2].data[2 * block], inputs[2].data[2 * block + 1]);
            let mut new = Vec::new();
            for i in start..end.min(start + BLOCK) {
                if gaps::contains(table, i) {
                    new.push((0.0, 0.0));
                    continue;
                }
                let part = update::part_of(&self.parts, i);
                let (rate, g) = (lr * f64::from(part.rate), inputs[3].data[i - self.start] * factor);
                let (m, v) = (signed[code(i - kept, 0)] * m_scale, unsigned[code(i - kept, 1)] * v_scale);
                let (m, v) = (m + (g - m) * (1.0 - beta1), v * beta2 + g * g * (1.0 - beta2));
                p.data[i] -= p.data[i] * rate * f64::from(part.decay);
                p.data[i] -= rate * bias1 * m / ((v * bias2).sqrt() + f64::from(self.epsilon));
                new.push((m, v));
            }
            let most = new.iter().fold((0.0f64, 0.0f64), |most, x| (most.0.max(x.0.abs()), most.1.max(x.1)));
            let share = |x: f64, most: f64| if most > 0.0 { x / most } else { 0.0 };
            new.resize(new.len().next_multiple_of(2), (0.0, 0.0));
            for (k, (m, v)) in new.iter().enumerate() {
                let pair = nearest(signed, share(*m, most.0)) + 256 * nearest(unsigned, share(*v, most.1));
                moments.data[(start - kept + k) / 2] += (pair << (16 * (k % 2))) as f64;
            }
            (scales.data[2 * block], scales.data[2 * block + 1]) = most;
        }
        let copy = self.given().copy(inputs, 5, &p, self.start..end);
        let added = update::added([&inputs[0], &p], &self.parts, self.start, BLOCK);
        [added, p, moments, scales].into_iter().chain(copy).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn blocks_of_one_scale_keep_their_codes() {
        let mut rng = Rng::new(7, 0);
        let codes: Vec<u32> = (0..BLOCK).map(|_| rng.next_u64() as u32).collect();
        let scales = [0.5, 1e-7, 3.0, 1e-12];
        let [m, v, of_m, of_v] = AdamW8::unpack(&codes, &scales);
        assert_eq!(AdamW8::pack([&m, &of_m], [&v, &of_v]), (codes.clone(), scales.to_vec(), true));
        // The second half of each block by itself is exact as well; both together make one block of two scales.
        let halves = |all: &[f32]| [&all[128..256], &all[384..]].concat();
        let [m, v, of_m, of_v] = [m, v, of_m, of_v].map(|all| halves(&all));
        let (_, mixed, exact) = AdamW8::pack([&m, &of_m], [&v, &of_v]);
        assert!(!exact && mixed[0] == m.iter().fold(0.0f32, |most, x| most.max(x.abs())));
        let (half, scales, exact) = AdamW8::pack([&m[..128], &of_m[..128]], [&v[..128], &of_v[..128]]);
        assert!(exact && half == codes[64..128] && scales == [0.5, 1e-7]);
    }
}
