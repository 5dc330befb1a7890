// expert_grad_tile: towards an expert's matrix: dw[expert, n, k] = sum over its slots of dy[slot, n] x[slot's row, k], slots
// in order. For GPUs: a workgroup of 16 x 16 lanes makes TILE_M x TILE_N of one matrix, in steps of TILE_K slots staged in
// shared memory. PER_ROW slots share a row of x.
#import lib/expert_grad_params.wgsl
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read_write> dw: array<f32>;
#import lib/expert_tiles.wgsl

const LANES = 256u;
const PER_M = TILE_M / 16u;
const PER_N = TILE_N / 16u;
var<workgroup> tile_y: array<f32, TILE_K * (TILE_M + 1u)>;
var<workgroup> tile_x: array<f32, TILE_K * (TILE_N + 1u)>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let expert = params.first_expert + group.z;
    let places = expert_places(expert);
    let row = group.y * TILE_M;
    let column = group.x * TILE_N;
    let i0 = lane / 16u;
    let j0 = lane % 16u;
    var acc: array<f32, PER_M * PER_N>;
    for (var place = places.first; place < places.end; place += TILE_K) {
        // Beyond the ends the nearest is loaded and zero taken, so that no load waits for another.
        for (var t = 0u; t < TILE_K * TILE_M / LANES; t++) {
            let i = (lane + t * LANES) % TILE_M;
            let k = (lane + t * LANES) / TILE_M;
            let slot = order[min(place + k, places.end - 1u)] - params.first_slot;
            let v = dy[params.skip_y + slot * params.row_y + min(row + i, params.rows - 1u)];
            tile_y[k * (TILE_M + 1u) + i] = select(0.0, v, place + k < places.end && row + i < params.rows);
        }
        for (var t = 0u; t < TILE_K * TILE_N / LANES; t++) {
            let j = (lane + t * LANES) % TILE_N;
            let k = (lane + t * LANES) / TILE_N;
            let from_row = order[min(place + k, places.end - 1u)] / PER_ROW - params.first_row;
            let v = x[params.skip_x + from_row * params.row_x + min(column + j, params.columns - 1u)];
            tile_x[k * (TILE_N + 1u) + j] = select(0.0, v, place + k < places.end && column + j < params.columns);
        }
        workgroupBarrier();
        for (var k = 0u; k < TILE_K; k++) {
            var xs: array<f32, PER_N>;
            for (var j = 0u; j < PER_N; j++) {
                xs[j] = tile_x[k * (TILE_N + 1u) + j0 + j * 16u];
            }
            for (var i = 0u; i < PER_M; i++) {
                let yv = tile_y[k * (TILE_M + 1u) + i0 + i * 16u];
                for (var j = 0u; j < PER_N; j++) {
                    acc[i * PER_N + j] = fma(yv, xs[j], acc[i * PER_N + j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PER_M; i++) {
        for (var j = 0u; j < PER_N; j++) {
            let r = row + i0 + i * 16u;
            let s = column + j0 + j * 16u;
            if r < params.rows && s < params.columns {
                let at = params.skip_w + group.z * params.expert_w + r * params.columns + s;
                var v = acc[i * PER_N + j];
                if params.first == 0u {
                    v += dw[at];
                }
                dw[at] = v;
            }
        }
    }
}
