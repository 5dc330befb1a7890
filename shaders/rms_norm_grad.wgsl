// rms_norm_grad: dx = r gain dy - x r^3 mean(gain dy x) over rows of `columns` items; LANES lanes of a workgroup a row. ITEMS:
// so many items of a row each lane keeps, of which only the last may stand beyond it; without it the row is read twice.
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
    let own = (group.y * groups.x + group.x) * (WORKGROUP / LANES) + lane / LANES;
    // Lanes without a row go along, for all must meet.
    let row = min(own, params.rows - 1u);
    let along = lane % LANES;
    let columns = params.columns;
    let at = params.skip + row * columns;
    let r = inverse_rms[params.skip_rows + row];
    var dot = 0.0;
#if ITEMS
    var v: array<Item, ITEMS>;
    var d: array<Item, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = x[at + min(along + i * LANES, columns - 1u)];
        d[i] = dy[at + min(along + i * LANES, columns - 1u)];
    }
    for (var i = 0u; i < ITEMS; i++) {
        d[i] *= gain[min(along + i * LANES, columns - 1u)];
        dot += select(0.0, item_sum(d[i] * v[i]), along + i * LANES < columns);
    }
#else
    for (var i = along; i < columns; i += LANES) {
        dot += item_sum(gain[i] * dy[at + i] * x[at + i]);
    }
#endif
    let factor = r * r * r * (reduce_sum(dot, lane) / f32(columns * ITEM));
    if own >= params.rows {
        return;
    }
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = stored(r * d[i] - v[i] * factor, at + min(along + i * LANES, columns - 1u));
    }
    for (var i = 0u; i < ITEMS; i++) {
        if i + 1u < ITEMS || along + i * LANES < columns {
            dx[at + along + i * LANES] = v[i];
        }
    }
#else
    for (var i = along; i < columns; i += LANES) {
        dx[at + i] = stored(r * gain[i] * dy[at + i] - x[at + i] * factor, at + i);
    }
#endif
}
