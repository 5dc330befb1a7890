// rms_norm: y = gain * x / sqrt(mean(x^2) + eps) over rows of `columns` items; one workgroup a row.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32, eps: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> gain: array<Item>;
@group(0) @binding(3) var<storage, read_write> y: array<Item>;
@group(0) @binding(4) var<storage, read_write> inverse_rms: array<f32>;
#import lib/item.wgsl
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let at = params.skip + row * params.columns;
    var squares = 0.0;
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        let v = x[at + i];
        squares += item_sum(v * v);
    }
    let r = 1.0 / sqrt(reduce_sum(squares, lane) / f32(params.columns * ITEM) + params.eps);
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        y[at + i] = gain[i] * x[at + i] * r;
    }
    if lane == 0u {
        inverse_rms[params.skip_rows + row] = r;
    }
}
