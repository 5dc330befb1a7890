// rms_norm: y = gain * x / sqrt(mean(x^2) + eps) over rows of `columns` items; LANES lanes of a workgroup a row. ITEMS: so many
// items of a row each lane keeps, of which only the last may stand beyond it; without it the row is read twice.
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
    let own = (group.y * groups.x + group.x) * (WORKGROUP / LANES) + lane / LANES;
    // Lanes without a row go along, for all must meet.
    let row = min(own, params.rows - 1u);
    let along = lane % LANES;
    let columns = params.columns;
    let at = params.skip + row * columns;
    var squares = 0.0;
#if ITEMS
    var v: array<Item, ITEMS>;
    var g: array<Item, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = x[at + min(along + i * LANES, columns - 1u)];
    }
    for (var i = 0u; i < ITEMS; i++) {
        g[i] = gain[min(along + i * LANES, columns - 1u)];
    }
    for (var i = 0u; i < ITEMS; i++) {
        squares += select(0.0, item_sum(v[i] * v[i]), along + i * LANES < columns);
    }
#else
    for (var i = along; i < columns; i += LANES) {
        let v = x[at + i];
        squares += item_sum(v * v);
    }
#endif
    let r = 1.0 / sqrt(reduce_sum(squares, lane) / f32(columns * ITEM) + params.eps);
    if own >= params.rows {
        return;
    }
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        if i + 1u < ITEMS || along + i * LANES < columns {
            y[at + along + i * LANES] = g[i] * v[i] * r;
        }
    }
#else
    for (var i = along; i < columns; i += LANES) {
        y[at + i] = gain[i] * x[at + i] * r;
    }
#endif
    if along == 0u {
        inverse_rms[params.skip_rows + row] = r;
    }
}
