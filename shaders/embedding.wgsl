// embedding: y[row] = table[tokens[row]] for the rows whose token this dispatch holds; zeros for tokens outside the
// vocabulary. One lane an element.
struct Params {
    first_row: u32, count: u32, columns: u32, vocab: u32, first_token: u32, end_token: u32, skip_table: u32, skip_y: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let token = tokens[params.first_row + i / params.columns];
    if token >= params.first_token && token < params.end_token {
        y[params.skip_y + i] = table[params.skip_table + (token - params.first_token) * params.columns + i % params.columns];
    } else if token >= params.vocab && params.first_token == 0u {
        y[params.skip_y + i] = 0.0;
    }
}
