// matmul_block: c = op(a) op(b) for GPUs, tier 2 with vector loads. A lane makes 8 x 8 (NARROW: 8 x 4) of a tile of TILE_M x TILE_N, from vectors
// of four along either side, each pair of which serves 32 multiply-adds; meanwhile what the next step needs is on its way into
// registers. Rows of a and b as stored divide by four. TA: a is [k,m]; TB: b is [n,k]. HALF: operands are rounded to f16;
// A_F16: a is stored so.
#import lib/matmul_params.wgsl
#if A_F16
enable f16;
@group(0) @binding(1) var<storage, read> a: array<vec4<f16>>;
#else
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
#endif
#import lib/four_b.wgsl
#import lib/operand.wgsl
#import lib/matmul_store.wgsl
#hook prologue

const LANES_M = TILE_M / 8u;
#if NARROW
const LANES_N = TILE_N / 4u;
#else
const LANES_N = TILE_N / 8u;
#endif
const LANES = LANES_M * LANES_N;
// Vectors of one step of k, and of a tile.
const ROW_A = TILE_M / 4u;
const ROW_B = TILE_N / 4u;
const SIZE_A = ROW_A * TILE_K;
const SIZE_B = ROW_B * TILE_K;
// Blocks of 4 x 4 elements. Every lane loads one of each; where there are fewer than lanes, one of several stores it.
const BLOCKS_A = SIZE_A / 4u;
const BLOCKS_B = SIZE_B / 4u;
var<workgroup> tile_a: array<vec4<f32>, SIZE_A>;
var<workgroup> tile_b: array<vec4<f32>, SIZE_B>;

// Where a block begins in its tile: along m or n, and along k; both in steps of four.
fn block_a(e: u32) -> vec2<u32> {
#if TA
    return vec2(e % ROW_A, e / ROW_A);
#else
    return vec2(e / (TILE_K / 4u), e % (TILE_K / 4u));
#endif
}
fn block_b(e: u32) -> vec2<u32> {
#if TB
    return vec2(e / (TILE_K / 4u), e % (TILE_K / 4u));
#else
    return vec2(e % ROW_B, e / ROW_B);
#endif
}

// Where four elements of a stored row lie. Beyond the ends it is where the nearest lie: every lane loads without asking, so
// that all of its loads are on their way at once, and what there is not becomes zero on its way to shared memory.
fn place(lines: Lines, row: u32, column: u32, ends: vec2<u32>) -> u32 {
    return lines.base + min(row, ends.x - 1u) * lines.step + min(column, ends.y - 4u);
}
fn place_a(lines: Lines, at: vec2<u32>, d: u32) -> u32 {
#if TA
    return place(lines, at.y + d, at.x, vec2(params.k, params.m));
#else
    return place(lines, at.x + d, at.y, vec2(params.m, params.k));
#endif
}
// A block as it is stored; `at` is where it begins, along m or n, and along k.
fn load_a(lines: Lines, at: vec2<u32>) -> mat4x4<f32> {
    var stored: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
        stored[d] = vec4<f32>(a[place_a(lines, at, d) / 4u]);
    }
    return stored;
}
fn load_b(base: u32, at: vec2<u32>) -> mat4x4<f32> {
    var stored: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
#if TB
        let row = vec3(at.x + d, at.y, params.n);
        let width = params.k;
#else
        let row = vec3(at.y + d, at.x, params.k);
        let width = params.n;
#endif
        stored[d] = weight4(base + min(row.x, row.z - 1u) * params.row_b, row.y, width);
    }
    return stored;
}

// A block as it is multiplied: with k along its rows, and zeros where there is nothing.
fn ready_a(lines: Lines, at: vec2<u32>, stored: mat4x4<f32>) -> mat4x4<f32> {
    var m: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
        let v = stored[d];
        let i = params.whole_a + place_a(lines, at, d);
        m[d] = operand_a4(vec4(prologue(v.x, i), prologue(v.y, i + 1u), prologue(v.z, i + 2u), prologue(v.w, i + 3u)));
    }
    return within(m, TA == 0u, at, params.m);
}
fn ready_b(at: vec2<u32>, stored: mat4x4<f32>) -> mat4x4<f32> {
    var m: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
        m[d] = weight_operand4(stored[d]);
    }
    return within(m, TB != 0u, at, params.n);
}
fn within(stored: mat4x4<f32>, along_k: bool, at: vec2<u32>, lines: u32) -> mat4x4<f32> {
    var m = stored;
    if along_k {
        m = transpose(stored);
    }
    let inside = vec4(at.x) + vec4(0u, 1u, 2u, 3u) < vec4(lines);
    for (var d = 0u; d < 4u; d++) {
        m[d] = select(vec4<f32>(), m[d], inside & vec4(at.y + d < params.k));
    }
    return m;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base_b = params.skip_b + group.z * params.batch_b;
    let row = group.y * TILE_M;
    let column = group.x * TILE_N;
    let c_lines = lines_c(group.z, column);
    let ks = summed(group.z);
#if PANELS_K
    var a_lines = lines_a(group.z, ks.x);
#else
    let a_lines = lines_a(group.z, TA * row);
#endif
    let at_a = block_a(lane % BLOCKS_A);
    let at_b = block_b(lane % BLOCKS_B);
    var next_a = load_a(a_lines, 4u * at_a + vec2(row, ks.x));
    var next_b = load_b(base_b, 4u * at_b + vec2(column, ks.x));
    let i0 = lane / LANES_N;
    let j0 = lane % LANES_N;
    // Of each row the first four columns, and the other four.
    var acc: array<vec4<f32>, 8>;
#if NARROW
#else
    var acc_high: array<vec4<f32>, 8>;
#endif
    for (var k = ks.x; k < ks.y; k += TILE_K) {
        let block_of_a = ready_a(a_lines, 4u * at_a + vec2(row, k), next_a);
        let block_of_b = ready_b(4u * at_b + vec2(column, k), next_b);
        if lane < BLOCKS_A {
            for (var d = 0u; d < 4u; d++) {
                tile_a[(4u * at_a.y + d) * ROW_A + at_a.x] = block_of_a[d];
            }
        }
        if lane < BLOCKS_B {
            for (var d = 0u; d < 4u; d++) {
                tile_b[(4u * at_b.y + d) * ROW_B + at_b.x] = block_of_b[d];
            }
        }
        workgroupBarrier();
        // On their way while the tile is multiplied; after the last they are not wanted.
#if PANELS_K
        a_lines = lines_a(group.z, k + TILE_K);
#endif
        next_a = load_a(a_lines, 4u * at_a + vec2(row, k + TILE_K));
        next_b = load_b(base_b, 4u * at_b + vec2(column, k + TILE_K));
        for (var k0 = 0u; k0 < TILE_K; k0 += 8u) {
            for (var d = 0u; d < 8u; d++) {
                let kk = k0 + d;
                let low = tile_b[kk * ROW_B + j0];
#if NARROW
#else
                let high = tile_b[kk * ROW_B + j0 + LANES_N];
#endif
                for (var h = 0u; h < 2u; h++) {
                    let av = tile_a[kk * ROW_A + i0 + h * LANES_M];
                    for (var r = 0u; r < 4u; r++) {
                        let i = 4u * h + r;
                        acc[i] = fma(vec4(av[r]), low, acc[i]);
#if NARROW
#else
                        acc_high[i] = fma(vec4(av[r]), high, acc_high[i]);
#endif
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var h = 0u; h < 2u; h++) {
        for (var r = 0u; r < 4u; r++) {
            let at = vec2(row + h * (TILE_M / 2u) + 4u * i0 + r, column + 4u * j0);
            store4(c_lines, at.x, at.y, acc[4u * h + r]);
#if NARROW
#else
            store4(c_lines, at.x, at.y + TILE_N / 2u, acc_high[4u * h + r]);
#endif
        }
    }
}
