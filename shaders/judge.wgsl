// judge: after the norm of the accumulated gradients: whether the step counts, what the optimizer is told, and the scale of
// the next loss; one lane.
// Params: steps until the scale doubles or 0, 1 - beta of either moment, largest norm, largest multiple of the mean or 0.
struct Params { interval: u32, rest1: f32, rest2: f32, max_norm: f32, outlier: f32 }
@group(0) @binding(0) var<uniform> params: Params;
// Scale, good steps since it changed, steps left out, 1 - beta^t of either moment after t steps that counted, the sum of
// their norms, each 0.98 of the one after it, the sum of those weights, and 1 if this step was left out.
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
@group(0) @binding(3) var<storage, read> hyper: array<f32>;
@group(0) @binding(4) var<storage, read_write> true_norm: array<f32>;
@group(0) @binding(5) var<storage, read_write> told: array<f32>;
#if SUMS
@group(0) @binding(6) var<storage, read> weights: array<f32>;
@group(0) @binding(7) var<storage, read> losses: array<f32>;
@group(0) @binding(8) var<storage, read_write> loss: array<f32>;
#endif

@compute @workgroup_size(1)
fn main() {
    let is_scaled = params.interval != 0u;
    let scale = select(1.0, state[0], is_scaled);
#if SUMS
    // Batches of which no token counts have no gradient either.
    let weight = select(1.0, weights[0], weights[0] > 0.0);
    let factor = 1.0 / (scale * weight);
    loss[0] = losses[0] / weight;
#else
    let factor = 1.0 / scale;
#endif
    let size = norm[0] * factor;
    true_norm[0] = size;
    // By its bits, for a compiler may assume that every number is finite.
    let overflows = (bitcast<u32>(size) & 0x7f800000u) == 0x7f800000u;
    let is_outlier = params.outlier > 0.0 && state[6] > WARM && size * state[6] > params.outlier * state[5];
    let is_left_out = overflows || is_outlier;
    let good = state[1] + 1.0;
    let is_due = good >= f32(params.interval);
    if is_scaled {
        state[0] = select(select(scale, min(2.0 * scale, LARGEST), is_due), max(0.5 * scale, SMALLEST), overflows);
        state[1] = select(select(good, 0.0, is_due), 0.0, overflows);
    }
    state[7] = select(0.0, 1.0, is_left_out);
    if is_left_out {
        state[2] = state[2] + 1.0;
        told[0] = 0.0;
        told[1] = 0.0;
        told[2] = 0.0;
        told[3] = 0.0;
        return;
    }
    let first = state[3] + params.rest1 * (1.0 - state[3]);
    let second = state[4] + params.rest2 * (1.0 - state[4]);
    let ratio = params.max_norm / (size + 1e-6);
    told[0] = hyper[0];
    told[1] = 1.0 / first;
    told[2] = 1.0 / second;
    told[3] = factor * min(ratio, 1.0);
    state[3] = first;
    state[4] = second;
    state[5] = KEEP * state[5] + size;
    state[6] = KEEP * state[6] + 1.0;
}
const SMALLEST = 0.5;
const LARGEST = 4294967296.0;
// The weights of fifty steps sum up to a little more.
const WARM = 31.6;
const KEEP = 0.98;
