// softmax: p = exp(x - lse) of each row, and lse, the logarithm of the sum of exp(x). LANES lanes of a workgroup a row. ITEMS: so
// many elements of it each lane keeps, of which only the last may stand beyond it; without it the row is read again.
struct Params { rows: u32, columns: u32, skip: u32, skip_rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> p: array<f32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
#import lib/reduce.wgsl
#import lib/row.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = row_of(group, groups, lane);
    let columns = params.columns;
    var largest = -3.0e38;
    var sum = 0.0;
#if ITEMS
    var v: array<f32, ITEMS>;
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = x[row.at + min(row.along + i * LANES, columns - 1u)];
        largest = max(largest, v[i]);
    }
    largest = reduce_max(largest, lane);
    for (var i = 0u; i < ITEMS; i++) {
        v[i] = exp(v[i] - largest);
        sum += select(0.0, v[i], row.along + i * LANES < columns);
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
        largest = max(largest, x[row.at + i]);
    }
    largest = reduce_max(largest, lane);
    for (var i = row.along; i < columns; i += LANES) {
        sum += exp(x[row.at + i] - largest);
    }
#endif
    sum = reduce_sum(sum, lane);
    if !row.is_own {
        return;
    }
#if ITEMS
    for (var i = 0u; i < ITEMS; i++) {
        if i + 1u < ITEMS || row.along + i * LANES < columns {
            p[row.at + row.along + i * LANES] = v[i] / sum;
        }
    }
#else
    for (var i = row.along; i < columns; i += LANES) {
        p[row.at + i] = exp(x[row.at + i] - largest) / sum;
    }
#endif
    if row.along == 0u {
        lse[params.skip_rows + row.number] = largest + log(sum);
    }
}
