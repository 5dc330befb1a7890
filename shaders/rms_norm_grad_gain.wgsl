// rms_norm_grad_gain: parts[p, c] = sum over the part's rows of dy x r. COLUMNS columns a workgroup, of each of which SHARES
// lanes walk over a share of the rows in order, LOADS of them at once; then the shares are added in order.
struct Params { rows: u32, columns: u32, rows_per_part: u32, skip: u32, skip_rows: u32, skip_parts: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> inverse_rms: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> parts: array<f32>;

var<workgroup> sums: array<f32, COLUMNS * SHARES>;

@compute @workgroup_size(COLUMNS * SHARES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * COLUMNS + lane % COLUMNS;
    let first = group.y * params.rows_per_part;
    let end = min(first + params.rows_per_part, params.rows);
    var sum = 0.0;
    if column < params.columns {
        let columns = params.columns;
        let skip_rows = params.skip_rows;
        let at = params.skip + column;
        var row = first + lane / COLUMNS;
        for (; row + (LOADS - 1u) * SHARES < end; row += LOADS * SHARES) {
            var v: array<vec3<f32>, LOADS>;
            for (var j = 0u; j < LOADS; j++) {
                let r = row + j * SHARES;
                v[j] = vec3(dy[at + r * columns], x[at + r * columns], inverse_rms[skip_rows + r]);
            }
            for (var j = 0u; j < LOADS; j++) {
                sum += v[j].x * v[j].y * v[j].z;
            }
        }
        for (; row < end; row += SHARES) {
            sum += dy[at + row * columns] * x[at + row * columns] * inverse_rms[skip_rows + row];
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane < COLUMNS && column < params.columns {
        for (var i = 1u; i < SHARES; i++) {
            sum += sums[i * COLUMNS + lane];
        }
        parts[params.skip_parts + group.y * params.columns + column] = sum;
    }
}
