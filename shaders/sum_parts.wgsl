// sum_parts: y = sum of all elements of up to seven tensors, or its root; one workgroup, whose lanes load LOADS elements of each
// tensor at once.
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
    let n = array<u32, 7>(params.n0, params.n1, params.n2, params.n3, params.n4, params.n5, params.n6);
    let most = max(max(max(n[0], n[1]), max(n[2], n[3])), max(max(n[4], n[5]), n[6]));
    var sum = 0.0;
    for (var i = lane; i < most; i += LOADS * WORKGROUP) {
        var v: array<array<f32, 7>, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            let at = i + j * WORKGROUP;
            v[j][0] = x0[min(at, max(n[0], 1u) - 1u)];
            v[j][1] = x1[min(at, max(n[1], 1u) - 1u)];
            v[j][2] = x2[min(at, max(n[2], 1u) - 1u)];
            v[j][3] = x3[min(at, max(n[3], 1u) - 1u)];
            v[j][4] = x4[min(at, max(n[4], 1u) - 1u)];
            v[j][5] = x5[min(at, max(n[5], 1u) - 1u)];
            v[j][6] = x6[min(at, max(n[6], 1u) - 1u)];
        }
        for (var j = 0u; j < LOADS; j++) {
            for (var t = 0u; t < 7u; t++) {
                sum += select(0.0, v[j][t], i + j * WORKGROUP < n[t]);
            }
        }
    }
    let total = reduce_sum(sum, lane);
    if lane == 0u {
#if ROOT
        y[0] = sqrt(total);
#else
        y[0] = total;
#endif
    }
}
