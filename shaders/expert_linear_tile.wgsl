// expert_linear_tile: the product of every slot's row with its expert's matrix, w as stored [expert, n, k]: y = x wᵀ, or
// with BACK y = x w. For GPUs: a workgroup of 16 x 16 lanes makes TILE_M slots of one expert x TILE_N columns, in steps of
// TILE_K staged in shared memory. PER_ROW slots share a row of x.
#import lib/expert_linear_params.wgsl
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
#import lib/expert_tiles.wgsl
#import lib/expert_weight.wgsl
#hook epilogue

const LANES = 256u;
const PER_M = TILE_M / 16u;
const PER_N = TILE_N / 16u;
var<workgroup> slot_of: array<u32, TILE_M>;
var<workgroup> tile_x: array<f32, TILE_K * (TILE_M + 1u)>;
var<workgroup> tile_w: array<f32, TILE_K * (TILE_N + 1u)>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tile = find_tile(group.z * groups.y + group.y, TILE_M);
    if tile.first >= tile.end {
        return;
    }
    let rows = tile.end - tile.first;
    if lane < TILE_M {
        slot_of[lane] = order[min(tile.first + lane, tile.end - 1u)];
    }
    workgroupBarrier();
    let base_w = params.skip_w + (tile.expert - params.first_expert) * params.expert_w;
    let column = group.x * TILE_N;
    let i0 = lane / 16u;
    let j0 = lane % 16u;
    // Ids that are no expert make zeros.
    let sum = select(params.sum, 0u, tile.expert == params.experts);
    var acc: array<f32, PER_M * PER_N>;
    for (var k0 = 0u; k0 < sum; k0 += TILE_K) {
        // Beyond the ends the nearest is loaded and zero taken, so that no load waits for another.
        for (var t = 0u; t < TILE_K * TILE_M / LANES; t++) {
            let i = (lane + t * LANES) / TILE_K;
            let k = lane % TILE_K;
            let row = slot_of[i] / PER_ROW - params.first_row;
            let v = x[params.skip_x + row * params.row_x + min(k0 + k, sum - 1u)];
            tile_x[k * (TILE_M + 1u) + i] = select(0.0, v, i < rows && k0 + k < sum);
        }
        // Weights beyond the sum meet zeros of x.
        for (var t = 0u; t < TILE_K * TILE_N / 4u / LANES; t++) {
            let e = lane + t * LANES;
#if BACK
            let j = e % (TILE_N / 4u) * 4u;
            let k = e / (TILE_N / 4u);
            let v = four_w(base_w + min(k0 + k, sum - 1u) * params.row_w, column + j);
            for (var d = 0u; d < 4u; d++) {
                tile_w[k * (TILE_N + 1u) + j + d] = v[d];
            }
#else
            let j = e / (TILE_K / 4u);
            let k = e % (TILE_K / 4u) * 4u;
            let v = four_w(base_w + min(column + j, params.columns - 1u) * params.row_w, k0 + k);
            for (var d = 0u; d < 4u; d++) {
                tile_w[(k + d) * (TILE_N + 1u) + j] = v[d];
            }
#endif
        }
        workgroupBarrier();
        for (var k = 0u; k < TILE_K; k++) {
            var ws: array<f32, PER_N>;
            for (var j = 0u; j < PER_N; j++) {
                ws[j] = tile_w[k * (TILE_N + 1u) + j0 + j * 16u];
            }
            for (var i = 0u; i < PER_M; i++) {
                let xv = tile_x[k * (TILE_M + 1u) + i0 + i * 16u];
                for (var j = 0u; j < PER_N; j++) {
                    acc[i * PER_N + j] = fma(xv, ws[j], acc[i * PER_N + j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PER_M; i++) {
        for (var j = 0u; j < PER_N; j++) {
            let r = i0 + i * 16u;
            let s = column + j0 + j * 16u;
            if r < rows && s < params.columns {
                let at = params.skip_y + (slot_of[r] - params.first_slot) * params.row_y + s;
                var v = acc[i * PER_N + j];
                if params.first == 0u {
                    v += y[at];
                }
                if params.last != 0u {
                    v = epilogue(v, params.whole_y + at);
                }
                y[at] = v;
            }
        }
    }
}
