// muon_update: one matrix, in place in its page, decays and moves along x.
struct Params { start: u32, count: u32, run: u32, copied: u32, copies: u32, rate: f32, decay: f32, adjusted: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<Item>;
@group(0) @binding(2) var<storage, read> x: array<Item>;
#import lib/update.wgsl

fn update(i: u32, step: vec4<f32>) -> Item {
    let before = p[i];
    let after = before - before * step.x * params.decay - told[0] * params.adjusted * x[i];
    p[i] = after;
    return after - before;
}
