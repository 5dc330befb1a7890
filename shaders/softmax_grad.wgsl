// softmax_grad: dx = p (dp - the row's sum of p dp + dlse). DP, DLSE: which of the two gradients there are. One workgroup
// a row.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> p: array<f32>;
#if DP
@group(0) @binding(2) var<storage, read> dp: array<f32>;
#endif
#if DLSE
@group(0) @binding(3) var<storage, read> dlse: array<f32>;
#endif
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = params.skip + row * params.columns;
    var shift = 0.0;
#if DP
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        shift -= p[base + i] * dp[base + i];
    }
    shift = reduce_sum(shift, lane);
#endif
#if DLSE
    shift += dlse[params.skip_rows + row];
#endif
    for (var i = lane; i < params.columns; i += WORKGROUP) {
#if DP
        dx[base + i] = p[base + i] * (dp[base + i] + shift);
#else
        dx[base + i] = p[base + i] * shift;
#endif
    }
}
