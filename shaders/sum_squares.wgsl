// sum_squares: y[p] = sum of x[i]^2 over the PART elements of part p; one workgroup a part.
struct Params { count: u32, parts: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
#if GAPS
@group(0) @binding(3) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let part = group.y * groups.x + group.x;
    if part >= params.parts {
        return;
    }
    let end = min((part + 1u) * PART, params.count);
    var sum = 0.0;
    for (var i = part * PART + lane; i < end; i += WORKGROUP) {
#if GAPS
        if in_gap(params.start + i) {
            continue;
        }
#endif
        sum += x[i] * x[i];
    }
    let total = reduce_sum(sum, lane);
    if lane == 0u {
        y[part] = total;
    }
}
