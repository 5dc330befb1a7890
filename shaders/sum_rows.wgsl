// sum_rows: y[part, c] = sum over the part's rows r of x[r, c], rows in order.
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
    var sum = 0.0;
    for (var r = first; r < end; r++) {
        sum += x[r * params.columns + column];
    }
    y[id.y * params.columns + column] = sum;
}
