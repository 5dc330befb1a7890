// cross_entropy_loss: lse of every row, and the mean of lse - target logit over rows whose target is not IGNORE; one
// workgroup, so that the order of the sum is fixed, whose lanes load LOADS rows at once.
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> count: array<f32>;
#import lib/reduce.wgsl

const IGNORE = 0xffffffffu;

fn stats_of(row: u32) -> vec3<f32> {
    return vec3(stats[3u * row], stats[3u * row + 1u], stats[3u * row + 2u]);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
    // The sum, and how many rows it has.
    var sum = vec2<f32>();
    var row = lane;
    for (; row + (LOADS - 1u) * WORKGROUP < params.rows; row += LOADS * WORKGROUP) {
        var of_row: array<vec3<f32>, LOADS>;
        var target_word: array<u32, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            of_row[j] = stats_of(row + j * WORKGROUP);
            target_word[j] = targets[row + j * WORKGROUP];
        }
        for (var j = 0u; j < LOADS; j++) {
            let whole = of_row[j].x + log(of_row[j].y);
            lse[row + j * WORKGROUP] = whole;
            sum += select(vec2<f32>(), vec2(whole - of_row[j].z, 1.0), target_word[j] != IGNORE);
        }
    }
    for (; row < params.rows; row += WORKGROUP) {
        let of_row = stats_of(row);
        let whole = of_row.x + log(of_row.y);
        lse[row] = whole;
        sum += select(vec2<f32>(), vec2(whole - of_row.z, 1.0), targets[row] != IGNORE);
    }
    let total = reduce_sum(sum.x, lane);
    let rows = reduce_sum(sum.y, lane);
    if lane == 0u {
        loss[0] = total / max(rows, 1.0);
        count[0] = rows;
    }
}
