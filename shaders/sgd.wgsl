// sgd: one step of stochastic gradient descent on items start .. start + count of a page, in place; with MOMENTUM through
// the buffer m, with NESTEROV one step ahead of it.
struct Params { start: u32, count: u32, run: u32, copied: u32, copies: u32, rate: f32, decay: f32, momentum: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<Item>;
@group(0) @binding(2) var<storage, read> g: array<Item>;
#if MOMENTUM
@group(0) @binding(3) var<storage, read_write> m: array<Item>;
#endif
#import lib/update.wgsl

fn update(i: u32, step: vec4<f32>) -> Item {
    var direction = g[i] * step.w + p[i] * params.decay;
#if MOMENTUM
    let velocity = params.momentum * m[i] + direction;
    m[i] = velocity;
#if NESTEROV
    direction += params.momentum * velocity;
#else
    direction = velocity;
#endif
#endif
    let before = p[i];
    let after = before - step.x * direction;
    p[i] = after;
    return after - before;
}
