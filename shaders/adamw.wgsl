// adamw: one step of AdamW on items start .. start + count of a page, in place.
struct Params {
    start: u32, count: u32, run: u32, copied: u32, copies: u32, rate: f32, decay: f32,
    beta1: f32, beta2: f32, epsilon: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<Item>;
@group(0) @binding(2) var<storage, read_write> m: array<Item>;
@group(0) @binding(3) var<storage, read_write> v: array<Item>;
@group(0) @binding(4) var<storage, read> g: array<Item>;
#import lib/update.wgsl

fn update(i: u32, step: vec4<f32>) -> Item {
    let gradient = g[i] * step.w;
    let first = m[i] + (gradient - m[i]) * (1.0 - params.beta1);
    let second = v[i] * params.beta2 + gradient * gradient * (1.0 - params.beta2);
    let before = p[i];
    let decayed = before - before * step.x * params.decay;
    let after = decayed - step.x * step.y * first / (sqrt(second * step.z) + params.epsilon);
    p[i] = after;
    m[i] = first;
    v[i] = second;
    return after - before;
}
