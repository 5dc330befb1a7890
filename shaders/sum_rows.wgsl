// sum_rows: y[part, c] = sum over the part's rows r of x[r, c], rows in order, LOADS of them loaded at once.
struct Params { rows: u32, columns: u32, rows_per_part: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= params.columns {
        return;
    }
    let first = id.y * params.rows_per_part;
    let end = min(first + params.rows_per_part, params.rows);
    let columns = params.columns;
    var sum = 0.0;
    var r = first;
    for (; r + LOADS <= end; r += LOADS) {
        var v: array<f32, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            v[j] = x[(r + j) * columns + column];
        }
        for (var j = 0u; j < LOADS; j++) {
            sum += v[j];
        }
    }
    for (; r < end; r++) {
        sum += x[r * columns + column];
    }
    y[id.y * columns + column] = sum;
}
