// loss_scale: after the norm of scaled gradients: what AdamW is told, and the scale of the next step; one lane.
struct Params { interval: u32, rest1: f32, rest2: f32 } // rest: 1 - beta of either moment
@group(0) @binding(0) var<uniform> params: Params;
// Scale, good steps since it changed, steps left out, and 1 - beta^t of either moment after t steps that counted.
@group(0) @binding(1) var<storage, read_write> scaler: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
@group(0) @binding(3) var<storage, read> hyper: array<f32>;
@group(0) @binding(4) var<storage, read_write> unscaled: array<f32>;
@group(0) @binding(5) var<storage, read_write> told: array<f32>;

@compute @workgroup_size(1)
fn main() {
    let scale = scaler[0];
    unscaled[0] = norm[0] / scale;
    // By its bits, for a compiler may assume that every number is finite.
    if (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u {
        told[0] = 0.0;
        told[1] = 0.0;
        told[2] = 0.0;
        told[3] = 0.0;
        scaler[0] = max(0.5 * scale, SMALLEST);
        scaler[1] = 0.0;
        scaler[2] = scaler[2] + 1.0;
        return;
    }
    let first = scaler[3] + params.rest1 * (1.0 - scaler[3]);
    let second = scaler[4] + params.rest2 * (1.0 - scaler[4]);
    told[0] = hyper[0];
    told[1] = 1.0 / first;
    told[2] = 1.0 / second;
    told[3] = 1.0 / scale;
    let good = scaler[1] + 1.0;
    let is_due = good >= f32(params.interval);
    scaler[0] = select(scale, min(2.0 * scale, LARGEST), is_due);
    scaler[1] = select(good, 0.0, is_due);
    scaler[3] = first;
    scaler[4] = second;
}
const SMALLEST = 0.5;
const LARGEST = 4294967296.0;
