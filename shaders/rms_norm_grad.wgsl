// rms_norm_grad: dx = r gain dy - x r^3 mean(gain dy x) over rows of `columns` items; one workgroup a row.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32, whole: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> gain: array<Item>;
@group(0) @binding(3) var<storage, read> inverse_rms: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<Item>;
@group(0) @binding(5) var<storage, read_write> dx: array<Item>;
#import lib/item.wgsl
#import lib/reduce.wgsl
#hook epilogue

// Item i of what is bound, as it is stored.
fn stored(v: Item, i: u32) -> Item {
    let at = params.whole + i * ITEM;
#if VECTOR
    return vec4(epilogue(v.x, at), epilogue(v.y, at + 1u), epilogue(v.z, at + 2u), epilogue(v.w, at + 3u));
#else
    return epilogue(v, at);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let at = params.skip + row * params.columns;
    var dot = 0.0;
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        dot += item_sum(gain[i] * dy[at + i] * x[at + i]);
    }
    let r = inverse_rms[params.skip_rows + row];
    let factor = r * r * r * (reduce_sum(dot, lane) / f32(params.columns * ITEM));
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        dx[at + i] = stored(r * gain[i] * dy[at + i] - x[at + i] * factor, at + i);
    }
}
