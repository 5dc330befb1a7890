// ema: a moving average follows parameters, on items start .. start + count of a page, in place.
struct Params { start: u32, count: u32, rate: f32, decay: f32, rest: f32 } // rest: 1 - decay of the average
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> average: array<Item>;
@group(0) @binding(2) var<storage, read> p: array<Item>;
#import lib/update.wgsl

fn update(i: u32, step: vec4<f32>) -> Item {
    let added = (p[i] - average[i]) * params.rest;
    average[i] = average[i] + added;
    return added;
}
