// embedding: y[row] = table[tokens[row] - shift] for the rows whose token this dispatch holds; zeros for tokens outside the
// vocabulary. One lane four elements of a row, the last of which may stand beyond it.
struct Params {
    first_row: u32, count: u32, columns: u32, row_table: u32, vocab: u32, first_token: u32, end_token: u32,
    skip_table: u32, skip_y: u32, shift: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn word(at: u32) -> u32 {
    return table[at];
}
#import lib/weight.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let fours = (params.columns + 3u) / 4u;
    if i >= params.count * fours {
        return;
    }
    let row = i / fours;
    let column = i % fours * 4u;
    // Of tokens before the table's first the difference is beyond its last.
    let token = tokens[params.first_row + row] - params.shift;
    var v = vec4<f32>();
    if token >= params.first_token && token < params.end_token {
        v = weight4(params.skip_table + (token - params.first_token) * params.row_table, column, params.columns);
    } else if token < params.vocab || params.first_token > 0u {
        return;
    }
    let at = params.skip_y + row * params.columns + column;
    for (var d = 0u; d < min(4u, params.columns - column); d++) {
        y[at + d] = v[d];
    }
}
