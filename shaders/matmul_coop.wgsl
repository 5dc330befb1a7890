// matmul_coop: c = op(a) op(b) by cooperative matrices of SIZE x SIZE, tier 4: operands rounded to f16, sums in f32. Four
// subgroups of SUBGROUP lanes share a workgroup and a tile of 4 x 4 matrices, of which each makes 2 x 2. Tiles are staged
// in shared memory as they are stored, beyond the edges as zeros. TA: a is [k,m]; TB: b is [n,k]. VECTOR_A, VECTOR_B: rows
// as stored divide by four. No subgroup operations: with them a driver (NVIDIA 595) crashes on cooperative matrices.
enable f16;
enable wgpu_cooperative_matrix;
#import lib/matmul_params.wgsl
#if VECTOR_A
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> a: array<f32>;
#endif
#if VECTOR_B
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
#else
@group(0) @binding(2) var<storage, read> b: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/operand.wgsl
#hook prologue
#hook epilogue

#if SIZE_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
#endif

const LANES = 4u * SUBGROUP;
const TILE = 4u * SIZE;
const TILE_K = 32u;
// Rows of a tile as stored, their length, and from one to the next: eight more, against bank conflicts.
#if TA
const ROWS_A = TILE_K;
const WIDE_A = TILE;
#else
const ROWS_A = TILE;
const WIDE_A = TILE_K;
#endif
#if TB
const ROWS_B = TILE;
const WIDE_B = TILE_K;
#else
const ROWS_B = TILE_K;
const WIDE_B = TILE;
#endif
const STEP_A = WIDE_A + 8u;
const STEP_B = WIDE_B + 8u;
var<workgroup> tile_a: array<f16, ROWS_A * STEP_A>;
var<workgroup> tile_b: array<f16, ROWS_B * STEP_B>;
// A matrix of each subgroup on its way out.
var<workgroup> out: array<f32, 4u * SIZE * SIZE>;

// Four elements of a stored row, of `ends` rows and columns that there are.
fn load_a(lines: Lines, row: u32, column: u32, ends: vec2<u32>) -> vec4<f32> {
    var v = vec4<f32>();
    let at = lines.base + row * lines.step + column;
    let i = params.whole_a + at;
    if row < ends.x && column < ends.y {
#if VECTOR_A
        let w = a[at / 4u];
        v = vec4(prologue(w.x, i), prologue(w.y, i + 1u), prologue(w.z, i + 2u), prologue(w.w, i + 3u));
#else
        for (var d = 0u; d < min(4u, ends.y - column); d++) {
            v[d] = prologue(a[at + d], i + d);
        }
#endif
    }
    return operand4(v);
}

fn load_b(base: u32, row: u32, column: u32, ends: vec2<u32>) -> vec4<f32> {
    var v = vec4<f32>();
    let at = base + row * params.row_b + column;
    if row < ends.x && column < ends.y {
#if VECTOR_B
        v = b[at / 4u];
#else
        for (var d = 0u; d < min(4u, ends.y - column); d++) {
            v[d] = b[at + d];
        }
#endif
    }
    return operand4(v);
}

// Both tiles for the TILE_K of the sum from k0 on.
fn stage(a_lines: Lines, base_b: u32, row: u32, column: u32, k0: u32, lane: u32) {
    for (var e = lane; e < ROWS_A * WIDE_A / 4u; e += LANES) {
        let r = e / (WIDE_A / 4u);
        let s = e % (WIDE_A / 4u) * 4u;
#if TA
        let v = load_a(a_lines, k0 + r, row + s, vec2(params.k, params.m));
#else
        let v = load_a(a_lines, row + r, k0 + s, vec2(params.m, params.k));
#endif
        for (var d = 0u; d < 4u; d++) {
            tile_a[r * STEP_A + s + d] = f16(v[d]);
        }
    }
    for (var e = lane; e < ROWS_B * WIDE_B / 4u; e += LANES) {
        let r = e / (WIDE_B / 4u);
        let s = e % (WIDE_B / 4u) * 4u;
#if TB
        let v = load_b(base_b, column + r, k0 + s, vec2(params.n, params.k));
#else
        let v = load_b(base_b, k0 + r, column + s, vec2(params.k, params.n));
#endif
        for (var d = 0u; d < 4u; d++) {
            tile_b[r * STEP_B + s + d] = f16(v[d]);
        }
    }
}

// Matrices of the tiles: rows i0 of op(a) and columns j0 of op(b), from kk on.
fn left(i0: u32, kk: u32) -> Left {
#if TA
    return coopLoad<Left>(&tile_a[kk * STEP_A + i0], STEP_A);
#else
    return coopLoadT<Left>(&tile_a[i0 * STEP_A + kk], STEP_A);
#endif
}
fn right(kk: u32, j0: u32) -> Right {
#if TB
    return coopLoad<Right>(&tile_b[j0 * STEP_B + kk], STEP_B);
#else
    return coopLoadT<Right>(&tile_b[kk * STEP_B + j0], STEP_B);
#endif
}

// What every subgroup has put into `out`: its matrix (i, j) of two by two.
fn store(lines: Lines, row: u32, column: u32, i: u32, j: u32, lane: u32) {
    workgroupBarrier();
    for (var e = lane; e < 4u * SIZE * SIZE; e += LANES) {
        let group = e / (SIZE * SIZE);
        let r = row + (group / 2u * 2u + i) * SIZE + e / SIZE % SIZE;
        let s = column + (group % 2u * 2u + j) * SIZE + e % SIZE;
        if r < params.m && s < params.n {
            let at = lines.base + r * lines.step + s;
            var v = out[e];
            if params.first == 0u {
                v += c[at];
            }
            if params.last != 0u {
                v = epilogue(v, params.whole_c + at);
            }
            c[at] = v;
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base_b = params.skip_b + group.z * params.batch_b;
    let row = group.y * TILE;
    let column = group.x * TILE;
    var a_lines = lines_a(group.z, TA * row);
    let c_lines = lines_c(group.z, column);
    let subgroup = lane / SUBGROUP;
    let i0 = subgroup / 2u * 2u * SIZE;
    let j0 = subgroup % 2u * 2u * SIZE;
    var c00 = Sum();
    var c01 = Sum();
    var c10 = Sum();
    var c11 = Sum();
    let ks = summed(group.z);
    for (var k = ks.x; k < ks.y; k += TILE_K) {
#if PANELS_K
        a_lines = lines_a(group.z, k);
#endif
        stage(a_lines, base_b, row, column, k, lane);
        workgroupBarrier();
        for (var kk = 0u; kk < TILE_K; kk += SIZE) {
            let a0 = left(i0, kk);
            let a1 = left(i0 + SIZE, kk);
            let b0 = right(kk, j0);
            let b1 = right(kk, j0 + SIZE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
        workgroupBarrier();
    }
    let slot = subgroup * SIZE * SIZE;
    coopStoreT(c00, &out[slot], SIZE);
    store(c_lines, row, column, 0u, 0u, lane);
    coopStoreT(c01, &out[slot], SIZE);
    store(c_lines, row, column, 0u, 1u, lane);
    coopStoreT(c10, &out[slot], SIZE);
    store(c_lines, row, column, 1u, 0u, lane);
    coopStoreT(c11, &out[slot], SIZE);
    store(c_lines, row, column, 1u, 1u, lane);
}
