// matmul_tile: c = op(a) op(b) for GPUs, tiers 1 and 2. A workgroup of 16 x 16 lanes makes a tile of TILE_M x TILE_N,
// each lane TILE_M/16 x TILE_N/16 of it, in steps of TILE_K staged in shared memory. TA: a is [k,m]; TB: b is [n,k].
// HALF: operands are rounded to f16, and STAGED as such.
#import lib/matmul_params.wgsl
@group(0) @binding(1) var<storage, read> a: array<f32>;
#if PACKED
@group(0) @binding(2) var<storage, read> b: array<u32>;
fn word(at: u32) -> u32 {
    return b[at];
}
#import lib/weight.wgsl
#else
@group(0) @binding(2) var<storage, read> b: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/operand.wgsl
#hook prologue
#hook epilogue

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

fn load_a(lines: Lines, i: u32, k: u32) -> f32 {
    if i >= params.m || k >= params.k {
        return 0.0;
    }
#if TA
    let at = lines.base + k * lines.step + i;
#else
    let at = lines.base + i * lines.step + k;
#endif
    return prologue(a[at], params.whole_a + at);
}

#if PACKED
// Four elements of a row of b, into the tile. Where k lies beyond the sum they meet zeros of a.
fn stage_b(base: u32, k0: u32, j0: u32, e: u32) {
#if TB
    let j = e / (TILE_K / 4u);
    let k = e % (TILE_K / 4u) * 4u;
    let v = operand4(weight4(base + min(j0 + j, params.n - 1u) * params.row_b, k0 + k, params.k));
    for (var d = 0u; d < 4u; d++) {
        tile_b[(k + d) * (TILE_N + 1u) + j] = Staged(v[d]);
    }
#else
    let j = e % (TILE_N / 4u) * 4u;
    let k = e / (TILE_N / 4u);
    let v = operand4(weight4(base + min(k0 + k, params.k - 1u) * params.row_b, j0 + j, params.n));
    for (var d = 0u; d < 4u; d++) {
        tile_b[k * (TILE_N + 1u) + j + d] = Staged(v[d]);
    }
#endif
}
#else
fn load_b(base: u32, k: u32, j: u32) -> f32 {
    if j >= params.n || k >= params.k {
        return 0.0;
    }
#if TB
    return b[base + j * params.row_b + k];
#else
    return b[base + k * params.row_b + j];
#endif
}
#endif

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base_b = params.skip_b + group.z * params.batch_b;
    let row = group.y * TILE_M;
    let column = group.x * TILE_N;
    var a_lines = lines_a(group.z, TA * row);
    let c_lines = lines_c(group.z, column);
    let i0 = lane / 16u;
    let j0 = lane % 16u;
    var acc: array<f32, PER_M * PER_N>;
    let ks = summed(group.z);
    for (var k = ks.x; k < ks.y; k += TILE_K) {
#if PANELS_K
        a_lines = lines_a(group.z, k);
#endif
        // Neighbouring lanes load neighbouring addresses, whichever way the operand is stored.
        for (var e = lane; e < TILE_K * TILE_M; e += LANES) {
#if TA
            let i = e % TILE_M;
            let kk = e / TILE_M;
#else
            let i = e / TILE_K;
            let kk = e % TILE_K;
#endif
            tile_a[kk * (TILE_M + 1u) + i] = Staged(operand(load_a(a_lines, row + i, k + kk)));
        }
#if PACKED
        for (var e = lane; e < TILE_K * TILE_N / 4u; e += LANES) {
            stage_b(base_b, k, column, e);
        }
#else
        for (var e = lane; e < TILE_K * TILE_N; e += LANES) {
#if TB
            let j = e / TILE_K;
            let kk = e % TILE_K;
#else
            let j = e % TILE_N;
            let kk = e / TILE_N;
#endif
            tile_b[kk * (TILE_N + 1u) + j] = Staged(operand(load_b(base_b, k + kk, column + j)));
        }
#endif
        workgroupBarrier();
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
                let at = c_lines.base + r * c_lines.step + s;
                var v = acc[i * PER_N + j];
                if params.first == 0u {
                    v += c[at];
                }
                if params.last != 0u {
                    v = epilogue(v, params.whole_c + at);
                }
                c[at] = v;
            }
        }
    }
}
