// rms_norm_grad_gain: parts[p, c] = sum over the part's rows of dy x r, rows in order; one lane a column.
struct Params { rows: u32, columns: u32, rows_per_part: u32, skip: u32, skip_rows: u32, skip_parts: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> inverse_rms: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> parts: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column >= params.columns {
        return;
    }
    let first = id.y * params.rows_per_part;
    let end = min(first + params.rows_per_part, params.rows);
    var sum = 0.0;
    for (var row = first; row < end; row++) {
        let i = params.skip + row * params.columns + column;
        sum += dy[i] * x[i] * inverse_rms[params.skip_rows + row];
    }
    parts[params.skip_parts + id.y * params.columns + column] = sum;
}
