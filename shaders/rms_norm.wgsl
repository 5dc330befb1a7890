// rms_norm: y = gain * x / sqrt(mean(x^2) + eps) over rows of `columns` items; LANES lanes of a workgroup a row. ITEMS: so many
// items of a row each lane keeps, of which only the last may stand beyond it; without it the row is read twice.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32, eps: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> gain: array<Item>;
@group(0) @binding(3) var<storage, read_write> y: array<WrittenItem>;
@group(0) @binding(4) var<storage, read_write> inverse_rms: array<f32>;
#import lib/written_item.wgsl
#import lib/reduce.wgsl
#import lib/row.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = row_of(group, groups, lane);
    let columns = params.columns;
    var squares = 0.0;
#if ITEMS
    var v: array<Item, ITEMS>;
    var g: array<Item, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = x[row.at + min(row.along + i * LANES, columns - 1u)];
    }
    for (var i = 0u; i < ITEMS; i++) {
        g[i] = gain[min(row.along + i * LANES, columns - 1u)];
    }
    for (var i = 0u; i < ITEMS; i++) {
        squares += select(0.0, item_sum(v[i] * v[i]), row.along + i * LANES < columns);
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
        let v = x[row.at + i];
        squares += item_sum(v * v);
    }
#endif
    let r = 1.0 / sqrt(reduce_sum(squares, lane) / f32(columns * ITEM) + params.eps);
    if !row.is_own {
        return;
    }
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        if i + 1u < ITEMS || row.along + i * LANES < columns {
            y[row.at + row.along + i * LANES] = written_item(g[i] * v[i] * r);
        }
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
        y[row.at + i] = written_item(gain[i] * x[row.at + i] * r);
    }
#endif
    if row.along == 0u {
        inverse_rms[params.skip_rows + row.number] = r;
    }
}
