// softmax: p = exp(x - lse) of each row, and lse, the logarithm of the sum of exp(x). One workgroup a row.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> p: array<f32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = params.skip + row * params.columns;
    var largest = -3.0e38;
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        largest = max(largest, x[base + i]);
    }
    largest = reduce_max(largest, lane);
    var sum = 0.0;
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        sum += exp(x[base + i] - largest);
    }
    sum = reduce_sum(sum, lane);
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        p[base + i] = exp(x[base + i] - largest) / sum;
    }
    if lane == 0u {
        lse[params.skip_rows + row] = largest + log(sum);
    }
}
