// softmax_grad: dx = p (dp - the row's sum of p dp + dlse). DP, DLSE: which of the two gradients there are. LANES
// lanes of a workgroup a row. ITEMS: so many elements of it each lane keeps, of which only the last may stand beyond it; without
// it the row is read again.
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
#import lib/row.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = row_of(group, groups, lane);
    let columns = params.columns;
    var shift = 0.0;
#if ITEMS
    var v: array<vec2<f32>, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        let at = row.at + min(row.along + i * LANES, columns - 1u);
#if DP
        v[i] = vec2(p[at], dp[at]);
#else
        v[i] = vec2(p[at], 0.0);
#endif
    }
#endif
#if DP
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        shift -= select(0.0, v[i].x * v[i].y, row.along + i * LANES < columns);
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
        shift -= p[row.at + i] * dp[row.at + i];
    }
#endif
    shift = reduce_sum(shift, lane);
#endif
    if !row.is_own {
        return;
    }
#if DLSE
    shift += dlse[params.skip_rows + row.number];
#endif
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        if i + 1u < ITEMS || row.along + i * LANES < columns {
            dx[row.at + row.along + i * LANES] = v[i].x * (v[i].y + shift);
        }
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
#if DP
        dx[row.at + i] = p[row.at + i] * (dp[row.at + i] + shift);
#else
        dx[row.at + i] = p[row.at + i] * shift;
#endif
    }
#endif
}
