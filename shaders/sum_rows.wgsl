// sum_rows: y[part, c] = sum over the part's rows r of x[r, c]. COLUMNS columns a workgroup, of each of which SHARES lanes walk
// over a share of the rows in order, LOADS of them at once; then the shares are added in order. Bindings begin x_skip and y_skip words
// before the first row.
struct Params { rows: u32, columns: u32, rows_per_part: u32, x_skip: u32, y_skip: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> shares: array<f32, COLUMNS * SHARES>;

@compute @workgroup_size(COLUMNS * SHARES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = params.columns;
    let own = group.x * COLUMNS + lane % COLUMNS;
    // Lanes without a column go along, for all must meet.
    let column = min(own, columns - 1u);
    let first = group.y * params.rows_per_part;
    let end = min(first + params.rows_per_part, params.rows);
    var sum = 0.0;
    var r = first + lane / COLUMNS;
    for (; r + (LOADS - 1u) * SHARES < end; r += LOADS * SHARES) {
        var v: array<f32, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            v[j] = x[params.x_skip + (r + j * SHARES) * columns + column];
        }
        for (var j = 0u; j < LOADS; j++) {
            sum += v[j];
        }
    }
    for (; r < end; r += SHARES) {
        sum += x[params.x_skip + r * columns + column];
    }
    if SHARES > 1u {
        shares[lane] = sum;
        workgroupBarrier();
        for (var i = 1u; i < SHARES; i++) {
            sum += shares[i * COLUMNS + lane % COLUMNS];
        }
    }
    if lane < COLUMNS && own < columns {
        y[params.y_skip + group.y * columns + column] = sum;
    }
}
