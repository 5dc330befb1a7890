// matmul_coop: c = op(a) op(b) by cooperative matrices of SIZE x SIZE, tier 4: operands rounded to f16, sums in f32. A workgroup
// makes a tile of SIDE x SIDE matrices, of which each subgroup of SUBGROUP lanes makes SIDE/2 x SUBGROUP/SIZE; where a driver
// makes subgroups smaller than that, several make the same. While one step of k is multiplied, what the next one needs is
// on its way from storage. TA: a is [k,m]; TB: b is [n,k]. A_F16, F16: a, b is f16; DECODED: b is
// packed, and decoded on its way to shared memory (lib/coop_b.wgsl), where TABLE_IN_OUT has the values of NF4's codes lie. VECTOR_A, VECTOR_B: rows as stored divide by four.
// No subgroup operations: with them a driver (NVIDIA 595) crashes on cooperative matrices.
enable f16;
enable wgpu_cooperative_matrix;
#import lib/matmul_params.wgsl
#if A_F16
alias OneA = f16;
alias FourA = vec4<f16>;
#else
alias OneA = f32;
alias FourA = vec4<f32>;
#endif
#if VECTOR_A
@group(0) @binding(1) var<storage, read> a: array<FourA>;
#else
@group(0) @binding(1) var<storage, read> a: array<OneA>;
#endif
#import lib/coop_b.wgsl
#import lib/operand.wgsl
#import lib/matmul_store.wgsl
#import lib/coop_tile.wgsl
#hook prologue

#if SIZE_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
#endif

const TILE = SIDE * SIZE;
// One for each block of either operand.
const LANES = TILE * TILE_K / 16u;
const DOWN = SIDE / 2u;
const ALONG = SUBGROUP / SIZE;
const COUNT = DOWN * ALONG;
// Subgroups next to each other; there are two rows of them.
const BESIDE = SIDE / ALONG;
// Rows of tiles that are made one after the other, column by column: what they read is still in a cache then.
const BAND = 8u;
// A matrix of each subgroup on its way out; until the sum is there, the sixteen values of NF4, for which a tile of 128 has no room beside.
var<workgroup> out: array<f32, 2u * BESIDE * SIZE * SIZE>;
#if NF4
fn value(quant: u32) -> f32 {
    return out[quant];
}
#endif

// Row and column of the tile that a workgroup makes.
fn banded(id: vec2<u32>, count: vec2<u32>) -> vec2<u32> {
    let number = id.y * count.x + id.x;
    let band = number / (BAND * count.x);
    let rows = min(BAND, count.y - BAND * band);
    let rest = number % (BAND * count.x);
    return vec2(BAND * band + rest % rows, rest / rows);
}

// What every subgroup has put into `out`: its matrix (i, j).
fn store(lines: Lines, row: u32, column: u32, i: u32, j: u32, lane: u32) {
    workgroupBarrier();
    for (var e = lane; e < 2u * BESIDE * SIZE * SIZE; e += LANES) {
        let group = e / (SIZE * SIZE);
        let r = row + (group / BESIDE * DOWN + i) * SIZE + e / SIZE % SIZE;
        let s = column + (group % BESIDE * ALONG + j) * SIZE + e % SIZE;
        if r < params.m && s < params.n {
            store1(lines.base + r * lines.step + s, out[e]);
        }
    }
    workgroupBarrier();
}

// Adds what a step gives to the sums of a subgroup.
fn multiply(sums: ptr<function, array<Sum, COUNT>>, side: u32, i0: u32, j0: u32) {
    for (var kk = 0u; kk < TILE_K; kk += SIZE) {
        var x: array<Left, DOWN>;
        for (var i = 0u; i < DOWN; i++) {
            x[i] = coopLoadT<Left>(&tile_a[side * BUFFER + (i0 + i * SIZE) * STEP + kk], STEP);
        }
        for (var j = 0u; j < ALONG; j++) {
            let y = coopLoad<Right>(&tile_b[side * BUFFER + (j0 + j * SIZE) * STEP + kk], STEP);
            for (var i = 0u; i < DOWN; i++) {
                sums[i * ALONG + j] = coopMultiplyAdd(x[i], y, sums[i * ALONG + j]);
            }
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
#if NF4
    if lane < 16u {
        out[lane] = nf4[lane];
    }
    workgroupBarrier();
#endif
    let tile = banded(id.xy, count.xy) * TILE;
    let ks = summed(id.z);
#if PANELS_K
    let a_lines = lines_a(id.z, ks.x);
#else
    let a_lines = lines_a(id.z, TA * tile.x);
#endif
    let b_lines = Lines((params.skip_b + id.z * params.batch_b) * OF_WORD, params.row_b * OF_WORD);
    let at_a = block(ACROSS_A, lane);
    let at_b = block(ACROSS_B, lane);
    var near_a = starts(a_lines, tile.x + at_a.x, APART_A, params.m);
    let near_b = starts(b_lines, tile.y + at_b.x, APART_B, params.n);
    let subgroup = lane / SUBGROUP;
    let i0 = subgroup / BESIDE * DOWN * SIZE;
    let j0 = subgroup % BESIDE * ALONG * SIZE;
    var sums: array<Sum, COUNT>;
    var side = 0u;
    var rows = rows_of_a(a_lines, near_a, ks.x, at_a);
    var next_a = load_a(rows, ks.x + at_a.y, tile.x + at_a.x);
    var next_b = load_b(rows_of_b(b_lines, near_b, ks.x, at_b), ks.x + at_b.y, tile.y + at_b.x);
    next_a = prologue_of(next_a, rows, ks.x + at_a.y, tile.x + at_a.x);
    put(next_a, next_b, ks.x, side, at_a, at_b);
    for (var k = ks.x + TILE_K; k < ks.y; k += TILE_K) {
        workgroupBarrier();
        // One step ahead of what is multiplied.
#if PANELS_K
        near_a = starts(lines_a(id.z, k), tile.x + at_a.x, APART_A, params.m);
#endif
        rows = rows_of_a(a_lines, near_a, k, at_a);
        next_a = load_a(rows, k + at_a.y, tile.x + at_a.x);
        next_b = load_b(rows_of_b(b_lines, near_b, k, at_b), k + at_b.y, tile.y + at_b.x);
        multiply(&sums, side, i0, j0);
        side = 1u - side;
        next_a = prologue_of(next_a, rows, k + at_a.y, tile.x + at_a.x);
        put(next_a, next_b, k, side, at_a, at_b);
    }
    workgroupBarrier();
    multiply(&sums, side, i0, j0);
    let lines = lines_c(id.z, tile.y);
    let step = lines.step;
    let corner = lines.base + (tile.x + i0) * step + tile.y + j0;
    // Where nothing else is to be done matrices go to c themselves, if rows begin at multiples of four.
    var is_direct = tile.x + TILE <= params.m && tile.y + TILE <= params.n && params.first != 0u;
    is_direct = is_direct && (lines.base | step) % 4u == 0u;
#if epilogue
    is_direct = false;
#endif
#if WRITES_F16
    is_direct = false;
#endif
    for (var e = 0u; e < COUNT; e++) {
        let sum = sums[0];
        if is_direct {
#if WRITES_F16
            // Never: a matrix of f32 cannot go to f16.
#else
            let to = corner + (e / ALONG * step + e % ALONG) * SIZE;
            coopStoreT(sum, &c[to], step);
#endif
        } else {
            let slot = subgroup * SIZE * SIZE;
            coopStoreT(sum, &out[slot], SIZE);
            store(lines, tile.x, tile.y, e / ALONG, e % ALONG, lane);
        }
        // An array at places that a compiler does not know would go to memory.
        for (var i = 1u; i < COUNT; i++) {
            sums[i - 1u] = sums[i];
        }
    }
}
