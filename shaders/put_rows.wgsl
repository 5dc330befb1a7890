// put_rows: table[token of row i] = x[i], in place, for tokens from `first_token` to `end_token`, of which the table's first row is
// the first; a row has `columns` items. Rows that are put for one token are alike, so that it does not matter which comes last.
struct Params {
    columns: u32, first_row: u32, count: u32, first_token: u32, end_token: u32, skip_x: u32, skip_table: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> table: array<Item>;
@group(0) @binding(2) var<storage, read> x: array<Item>;
@group(0) @binding(3) var<storage, read> tokens: array<u32>;
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let token = tokens[params.first_row + i / params.columns];
    if token >= params.first_token && token < params.end_token {
        let row = token - params.first_token;
        table[params.skip_table + row * params.columns + i % params.columns] = x[params.skip_x + i];
    }
}
