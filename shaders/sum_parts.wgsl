// sum_parts: y = sum of all elements of up to seven tensors, or its root; one workgroup.
struct Params { n0: u32, n1: u32, n2: u32, n3: u32, n4: u32, n5: u32, n6: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x0: array<f32>;
@group(0) @binding(2) var<storage, read> x1: array<f32>;
@group(0) @binding(3) var<storage, read> x2: array<f32>;
@group(0) @binding(4) var<storage, read> x3: array<f32>;
@group(0) @binding(5) var<storage, read> x4: array<f32>;
@group(0) @binding(6) var<storage, read> x5: array<f32>;
@group(0) @binding(7) var<storage, read> x6: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < params.n0; i += WORKGROUP) { sum += x0[i]; }
    for (var i = lane; i < params.n1; i += WORKGROUP) { sum += x1[i]; }
    for (var i = lane; i < params.n2; i += WORKGROUP) { sum += x2[i]; }
    for (var i = lane; i < params.n3; i += WORKGROUP) { sum += x3[i]; }
    for (var i = lane; i < params.n4; i += WORKGROUP) { sum += x4[i]; }
    for (var i = lane; i < params.n5; i += WORKGROUP) { sum += x5[i]; }
    for (var i = lane; i < params.n6; i += WORKGROUP) { sum += x6[i]; }
    let total = reduce_sum(sum, lane);
    if lane == 0u {
#if ROOT
        y[0] = sqrt(total);
#else
        y[0] = total;
#endif
    }
}
