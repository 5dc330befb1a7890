// expert_linear_few: y = x wᵀ of each slot with its expert's matrix, for few slots (decoding): the matrix is read once for
// each slot. A workgroup makes COLUMNS columns of one slot, its lanes side by side along the sum.
struct Params {
    columns: u32, sum: u32, width: u32,
    row_w: u32, expert_w: u32, skip_w: u32,
    row_x: u32, skip_x: u32, row_y: u32, skip_y: u32, whole_y: u32,
    first_row: u32,
    first_slot: u32,
    experts: u32, first_expert: u32, end_expert: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
#import lib/expert_weight.wgsl
#hook epilogue

// Sums of the lanes, one column after the other.
var<workgroup> parts: array<f32, WORKGROUP * COLUMNS>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let slot = params.first_slot + group.y;
    let expert = min(ids[slot], params.experts);
    if expert < params.first_expert || expert >= params.end_expert {
        return;
    }
    let base_w = params.skip_w + (expert - params.first_expert) * params.expert_w;
    let base_x = params.skip_x + (slot / PER_ROW - params.first_row) * params.row_x;
    let column = group.x * COLUMNS;
    // Ids that are no expert make zeros.
    let sum = select(params.sum, 0u, expert == params.experts);
    var acc: array<f32, COLUMNS>;
    for (var k = 4u * lane; k < sum; k += 4u * WORKGROUP) {
        var v: vec4<f32>;
        for (var d = 0u; d < 4u; d++) {
            v[d] = select(0.0, x[base_x + min(k + d, sum - 1u)], k + d < sum);
        }
        for (var j = 0u; j < COLUMNS; j++) {
            acc[j] += dot(v, four_w(base_w + min(column + j, params.columns - 1u) * params.row_w, k));
        }
    }
    for (var j = 0u; j < COLUMNS; j++) {
        parts[j * WORKGROUP + lane] = acc[j];
    }
    workgroupBarrier();
    for (var j = lane; j < min(COLUMNS, params.columns - column); j += WORKGROUP) {
        var total = 0.0;
        for (var i = 0u; i < WORKGROUP; i += 8u) {
            // Eight at once: shared memory, too, takes its time.
            var some: array<f32, 8>;
            for (var d = 0u; d < 8u; d++) {
                some[d] = parts[j * WORKGROUP + i + d];
            }
            for (var d = 0u; d < 8u; d++) {
                total += some[d];
            }
        }
        let at = params.skip_y + group.y * params.row_y + column + j;
        y[at] = epilogue(total, params.whole_y + at);
    }
}
