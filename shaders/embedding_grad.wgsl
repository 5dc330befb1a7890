// embedding_grad: y[v] += the sum of the rows of dy whose token is v, in order; a row has `columns` items. With `fill` it writes
// zeros, or with BASE base[v], one lane an item; then one workgroup a position, of which the first with its token does the
// work, so that no two write the same row.
struct Params {
    fill: u32, columns: u32, first_row: u32, end_row: u32, first_token: u32, end_token: u32, skip_dy: u32, skip_y: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<Item>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<Item>;
#if BASE
@group(0) @binding(4) var<storage, read> base: array<Item>;
#endif
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.y * groups.x + group.x;
    if params.fill != 0u {
        let i = index * WORKGROUP + lane;
        if i < (params.end_token - params.first_token) * params.columns {
#if BASE
            y[params.skip_y + i] = base[params.skip_y + i];
#else
            y[params.skip_y + i] = Item();
#endif
        }
        return;
    }
    let first = params.first_row + index;
    if first >= params.end_row {
        return;
    }
    let token = tokens[first];
    if token < params.first_token || token >= params.end_token {
        return;
    }
    for (var row = params.first_row; row < first; row++) {
        if tokens[row] == token {
            return;
        }
    }
    let to = params.skip_y + (token - params.first_token) * params.columns;
    let columns = params.columns;
    let end = params.end_row;
    for (var begin = lane; begin < columns; begin += HELD * WORKGROUP) {
        var sums: array<Item, HELD>;
        for (var row = first; row < end; row++) {
            if tokens[row] == token {
                let from_dy = params.skip_dy + (row - params.first_row) * columns;
                for (var c = 0u; c < HELD; c++) {
                    let i = begin + c * WORKGROUP;
                    if i < columns {
                        sums[c] += dy[from_dy + i];
                    }
                }
            }
        }
        for (var c = 0u; c < HELD; c++) {
            let i = begin + c * WORKGROUP;
            if i < columns {
                y[to + i] += sums[c];
            }
        }
    }
}
// Items of a row that a lane adds up at a time.
const HELD = 4u;
