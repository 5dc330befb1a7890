// cross_entropy_loss: lse of every row, and the mean of lse - target logit over rows whose target is not IGNORE; one
// workgroup, so that the order of the sum is fixed.
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> count: array<f32>;
#import lib/reduce.wgsl

const IGNORE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    var counted = 0.0;
    for (var row = lane; row < params.rows; row += WORKGROUP) {
        let whole = stats[3u * row] + log(stats[3u * row + 1u]);
        lse[row] = whole;
        if targets[row] != IGNORE {
            sum += whole - stats[3u * row + 2u];
            counted += 1.0;
        }
    }
    let total = reduce_sum(sum, lane);
    let rows = reduce_sum(counted, lane);
    if lane == 0u {
        loss[0] = total / max(rows, 1.0);
        count[0] = rows;
    }
}
