// matmul_tile: c = op(a) op(b) for GPUs, tiers 1 and 2. A workgroup of 16 x 16 lanes makes a tile of TILE_M x TILE_N,
// each lane TILE_M/16 x TILE_N/16 of it, in steps of TILE_K staged in shared memory. TA: a is [k,m]; TB: b is [n,k].
// HALF: operands are rounded to f16, and STAGED as such. A_F16: a is stored so.
#import lib/matmul_params.wgsl
#if A_F16
enable f16;
@group(0) @binding(1) var<storage, read> a: array<f16>;
#else
@group(0) @binding(1) var<storage, read> a: array<f32>;
#endif
#if PACKED
@group(0) @binding(2) var<storage, read> b: array<u32>;
fn word(at: u32) -> u32 {
    return b[at];
}
#import lib/weight.wgsl
#else
@group(0) @binding(2) var<storage, read> b: array<f32>;
#endif
#import lib/operand.wgsl
#import lib/matmul_store.wgsl
#hook prologue

#if STAGED
enable f16;
alias Staged = f16;
#else
alias Staged = f32;
#endif

const LANES = 256u;
const PER_M = TILE_M / 16u;
const PER_N = TILE_N / 16u;
// One element more than the tile in each row, against bank conflicts where the stores run along k.
var<workgroup> tile_a: array<Staged, TILE_K * (TILE_M + 1u)>;
var<workgroup> tile_b: array<Staged, TILE_K * (TILE_N + 1u)>;

// Elements of a tile that a lane loads.
const LOADS_A = TILE_K * TILE_M / LANES;
const LOADS_B = TILE_K * TILE_N / LANES;

// Where they lie in the tile, along m or n and along k: neighbouring lanes load neighbouring addresses, whichever way the
// operand is stored.
fn place_a(e: u32) -> vec2<u32> {
#if TA
    return vec2(e % TILE_M, e / TILE_M);
#else
    return vec2(e / TILE_K, e % TILE_K);
#endif
}
fn place_b(e: u32) -> vec2<u32> {
#if TB
    return vec2(e / TILE_K, e % TILE_K);
#else
    return vec2(e % TILE_N, e / TILE_N);
#endif
}

// Beyond the ends it is what lies nearest: every lane loads without asking, so that all of its loads are on their way at
// once, and what there is not becomes zero on its way to shared memory.
fn word_a(lines: Lines, row: u32, k0: u32, e: u32) -> u32 {
    let at = min(place_a(e) + vec2(row, k0), vec2(params.m, params.k) - 1u);
#if TA
    return lines.base + at.y * lines.step + at.x;
#else
    return lines.base + at.x * lines.step + at.y;
#endif
}
fn line_a(lines: Lines, row: u32, k0: u32, lane: u32) -> array<f32, LOADS_A> {
    var loaded: array<f32, LOADS_A>;
    for (var t = 0u; t < LOADS_A; t++) {
        loaded[t] = f32(a[word_a(lines, row, k0, lane + t * LANES)]);
    }
    return loaded;
}
fn kept(v: f32, at: vec2<u32>, lines: u32) -> f32 {
    return select(0.0, v, at.x < lines && at.y < params.k);
}

#if PACKED
const QUADS = TILE_K * TILE_N / 4u;

// Four elements of a row of b, into the tile. Where k lies beyond the sum they meet zeros of a.
fn stage_b(base: u32, k0: u32, j0: u32, e: u32) {
#if TB
    let j = e / (TILE_K / 4u);
    let k = e % (TILE_K / 4u) * 4u;
    let v = weight_operand4(weight4(base + min(j0 + j, params.n - 1u) * params.row_b, k0 + k, params.k));
    for (var d = 0u; d < 4u; d++) {
        tile_b[(k + d) * (TILE_N + 1u) + j] = Staged(v[d]);
    }
#else
    let j = e % (TILE_N / 4u) * 4u;
    let k = e / (TILE_N / 4u);
    let v = weight_operand4(weight4(base + min(k0 + k, params.k - 1u) * params.row_b, j0 + j, params.n));
    for (var d = 0u; d < 4u; d++) {
        tile_b[k * (TILE_N + 1u) + j + d] = Staged(v[d]);
    }
#endif
}
#else
fn line_b(base: u32, column: u32, k0: u32, lane: u32) -> array<f32, LOADS_B> {
    var loaded: array<f32, LOADS_B>;
    for (var t = 0u; t < LOADS_B; t++) {
        let at = min(place_b(lane + t * LANES) + vec2(column, k0), vec2(params.n, params.k) - 1u);
#if TB
        loaded[t] = b[base + at.x * params.row_b + at.y];
#else
        loaded[t] = b[base + at.y * params.row_b + at.x];
#endif
    }
    return loaded;
}
#endif

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base_b = params.skip_b + group.z * params.batch_b;
    let row = group.y * TILE_M;
    let column = group.x * TILE_N;
    let c_lines = lines_c(group.z, column);
    let i0 = lane / 16u;
    let j0 = lane % 16u;
    var acc: array<f32, PER_M * PER_N>;
    let ks = summed(group.z);
#if PANELS_K
    var a_lines = lines_a(group.z, ks.x);
#else
    let a_lines = lines_a(group.z, TA * row);
#endif
    var next_a = line_a(a_lines, row, ks.x, lane);
#if PACKED
#else
    var next_b = line_b(base_b, column, ks.x, lane);
#endif
    for (var k = ks.x; k < ks.y; k += TILE_K) {
        for (var t = 0u; t < LOADS_A; t++) {
            let at = place_a(lane + t * LANES);
            let met = prologue(next_a[t], params.whole_a + word_a(a_lines, row, k, lane + t * LANES));
            let v = kept(met, vec2(row, k) + at, params.m);
            tile_a[at.y * (TILE_M + 1u) + at.x] = Staged(operand_a4(vec4(v)).x);
        }
#if PACKED
        for (var t = 0u; t < (QUADS + LANES - 1u) / LANES; t++) {
            if lane + t * LANES < QUADS {
                stage_b(base_b, k, column, lane + t * LANES);
            }
        }
#else
        for (var t = 0u; t < LOADS_B; t++) {
            let at = place_b(lane + t * LANES);
            let v = kept(next_b[t], vec2(column, k) + at, params.n);
            tile_b[at.y * (TILE_N + 1u) + at.x] = Staged(operand(v));
        }
#endif
        workgroupBarrier();
        // On their way while the tile is multiplied; after the last they are not wanted.
#if PANELS_K
        a_lines = lines_a(group.z, k + TILE_K);
#endif
        next_a = line_a(a_lines, row, k + TILE_K, lane);
#if PACKED
#else
        next_b = line_b(base_b, column, k + TILE_K, lane);
#endif
        for (var kk = 0u; kk < TILE_K; kk++) {
            var bs: array<f32, PER_N>;
            for (var j = 0u; j < PER_N; j++) {
                bs[j] = f32(tile_b[kk * (TILE_N + 1u) + j0 + j * 16u]);
            }
            for (var i = 0u; i < PER_M; i++) {
                let av = f32(tile_a[kk * (TILE_M + 1u) + i0 + i * 16u]);
                for (var j = 0u; j < PER_N; j++) {
                    acc[i * PER_N + j] = fma(av, bs[j], acc[i * PER_N + j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PER_M; i++) {
        for (var j = 0u; j < PER_N; j++) {
            let r = row + i0 + i * 16u;
            let s = column + j0 + j * 16u;
            if r < params.m && s < params.n {
                store1(c_lines.base + r * c_lines.step + s, acc[i * PER_N + j]);
            }
        }
    }
}
