// coop_tile: how matmul_coop.wgsl's operands come into shared memory. The tile of either has TILE rows along m or n and TILE_K of
// k in each, in two buffers. A lane loads one block of each tile, four elements of four stored rows: where k is along stored
// rows they lie a quarter of the tile apart; where it is across them they are neighbours, and the block is turned over.
// Loads have no branches, for a compiler waits at each: beyond the edges of m and n stands what nobody stores, and only
// beyond that of k zeros.
#import lib/half.wgsl

const TILE_K = 32u;
const FOURS = TILE_K / 4u;
// From a row to the next: eight elements more, against bank conflicts.
const STEP = TILE_K + 8u;
const BUFFER = TILE * STEP;
const ACROSS_A = TA == 1u;
const ACROSS_B = TB == 0u;
const APART_A = select(TILE / 4u, 1u, ACROSS_A);
const APART_B = select(TILE / 4u, 1u, ACROSS_B);
alias BlockA = array<FourA, 4>;
alias BlockB = array<LoadedB, 4>;
alias Block = array<vec4<f16>, 4>;
var<workgroup> tile_a: array<f16, 2u * BUFFER>;
var<workgroup> tile_b: array<f16, 2u * BUFFER>;

// Where in its tile a lane's block begins, row and k. Lanes that store at the same time should meet many banks.
fn block(across: bool, lane: u32) -> vec2<u32> {
    let by_columns = vec2(4u * (lane % 8u + lane / (8u * FOURS) * 8u), lane / 8u % FOURS * 4u);
    return select(vec2(lane / FOURS, lane % FOURS * 4u), by_columns, across);
}

// Where the stored rows of a block begin: from `row` on, `apart`, of so many rows; beyond the last, where that one does.
fn starts(lines: Lines, row: u32, apart: u32, rows: u32) -> vec4<u32> {
    return lines.base + min(row + apart * vec4(0u, 1u, 2u, 3u), vec4(rows - 1u)) * lines.step;
}

// The same at step k; where k is along rows, they are `near` at every step.
fn rows_of_a(lines: Lines, near: vec4<u32>, k: u32, at: vec2<u32>) -> vec4<u32> {
#if TA
    return starts(lines, k + at.y, 1u, params.k);
#else
    return near;
#endif
}
fn rows_of_b(lines: Lines, near: vec4<u32>, k: u32, at: vec2<u32>) -> vec4<u32> {
#if TB
    return near;
#else
    return starts(lines, k + at.y, 1u, params.k);
#endif
}

// Blocks as they are stored, of these rows; beyond the edges of a matrix its last elements.
fn load_a(rows: vec4<u32>, k: u32, m: u32) -> BlockA {
    let column = select(k, m, ACROSS_A);
    let width = select(params.k, params.m, ACROSS_A);
    var v: BlockA;
    for (var d = 0u; d < 4u; d++) {
#if VECTOR_A
        v[d] = a[(rows[d] + min(column, width - 4u)) / 4u];
#else
        let at = rows[d] + min(column + vec4(0u, 1u, 2u, 3u), vec4(width - 1u));
        v[d] = FourA(a[at.x], a[at.y], a[at.z], a[at.w]);
#endif
    }
    return v;
}
fn load_b(rows: vec4<u32>, k: u32, n: u32) -> BlockB {
    let column = select(k, n, ACROSS_B);
    let width = select(params.k, params.n, ACROSS_B);
    var v: BlockB;
    for (var d = 0u; d < 4u; d++) {
        v[d] = load4(rows[d], column, width);
    }
    return v;
}

// What load_a gave, as the fuser wants it.
fn prologue_of(block: BlockA, rows: vec4<u32>, k: u32, m: u32) -> BlockA {
    var v = block;
#if prologue
    let column = select(k, m, ACROSS_A);
    let last = select(params.k, params.m, ACROSS_A) - 1u;
    for (var d = 0u; d < 4u; d++) {
        for (var e = 0u; e < 4u; e++) {
            v[d][e] = prologue(block[d][e], params.whole_a + rows[d] + min(column + e, last));
        }
    }
#endif
    return v;
}

// Blocks as they are multiplied: of what is stored in f16 nothing is left to round.
fn half_a(block: BlockA) -> Block {
    var v: Block;
    for (var d = 0u; d < 4u; d++) {
#if A_F16
        v[d] = block[d];
#else
        v[d] = half4(block[d]);
#endif
    }
    return v;
}
fn half_b(block: BlockB) -> Block {
    var v: Block;
    for (var d = 0u; d < 4u; d++) {
#if F16
        v[d] = decoded(block[d]);
#else
        v[d] = half4(decoded(block[d]));
#endif
    }
    return v;
}

// A block with k along its rows.
fn turned(across: bool, block: Block) -> Block {
    if !across {
        return block;
    }
    var v: Block;
    for (var d = 0u; d < 4u; d++) {
        v[d] = vec4(block[0][d], block[1][d], block[2][d], block[3][d]);
    }
    return v;
}

// The same block, with zeros beyond the end of k.
fn cut(block: Block, k: u32) -> Block {
    let there = k + vec4(0u, 1u, 2u, 3u) < vec4(params.k);
    var v: Block;
    for (var d = 0u; d < 4u; d++) {
        v[d] = select(vec4<f16>(), block[d], there);
    }
    return v;
}

fn put_rows(a4: Block, b4: Block, side: u32, at_a: vec2<u32>, at_b: vec2<u32>) {
    for (var d = 0u; d < 4u; d++) {
        let to = side * BUFFER + (at_a.x + d * APART_A) * STEP + at_a.y;
        for (var e = 0u; e < 4u; e++) {
            tile_a[to + e] = a4[d][e];
        }
    }
    for (var d = 0u; d < 4u; d++) {
        let to = side * BUFFER + (at_b.x + d * APART_B) * STEP + at_b.y;
        for (var e = 0u; e < 4u; e++) {
            tile_b[to + e] = b4[d][e];
        }
    }
}

// Blocks as load_a and load_b gave them, into one of both buffers.
fn put(block_a: BlockA, block_b: BlockB, k: u32, side: u32, at_a: vec2<u32>, at_b: vec2<u32>) {
    let a4 = turned(ACROSS_A, half_a(block_a));
    let b4 = turned(ACROSS_B, half_b(block_b));
    if k + TILE_K <= params.k {
        put_rows(a4, b4, side, at_a, at_b);
    } else {
        put_rows(cut(a4, k + at_a.y), cut(b4, k + at_b.y), side, at_a, at_b);
    }
}
