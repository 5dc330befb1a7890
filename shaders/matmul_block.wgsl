// matmul_block: c = op(a) op(b) for GPUs, tier 2 with vector loads and two buffers. A lane makes 8 x 8 of a tile of TILE_M x
// TILE_N, from vectors of four along either side, of which each pair of loads serves 32 multiply-adds; while it does, what
// the next step needs is on its way from storage into registers, and from there into the other half of shared memory. Rows
// of a and b as stored divide by four. TA: a is [k,m]; TB: b is [n,k]. HALF: operands are rounded to f16.
#import lib/matmul_params.wgsl
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/operand.wgsl
#hook prologue
#hook epilogue

const LANES_M = TILE_M / 8u;
const LANES_N = TILE_N / 8u;
const LANES = LANES_M * LANES_N;
// Vectors of one step of k, and of all steps of a tile.
const ROW_A = TILE_M / 4u;
const ROW_B = TILE_N / 4u;
const SIZE_A = ROW_A * TILE_K;
const SIZE_B = ROW_B * TILE_K;
// Blocks of 4 x 4 elements, of which a lane loads one at most.
const BLOCKS_A = SIZE_A / 4u;
const BLOCKS_B = SIZE_B / 4u;
var<workgroup> tile_a: array<vec4<f32>, 2u * SIZE_A>;
var<workgroup> tile_b: array<vec4<f32>, 2u * SIZE_B>;

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

// Four elements of a stored row, zeros where there are none.
fn four_of_a(lines: Lines, row: u32, column: u32, ends: vec2<u32>) -> vec4<f32> {
    if row >= ends.x || column >= ends.y {
        return vec4<f32>();
    }
    let at = lines.base + row * lines.step + column;
    let v = a[at / 4u];
    let i = params.whole_a + at;
    return operand4(vec4(prologue(v.x, i), prologue(v.y, i + 1u), prologue(v.z, i + 2u), prologue(v.w, i + 3u)));
}
fn four_of_b(base: u32, row: u32, column: u32, ends: vec2<u32>) -> vec4<f32> {
    if row >= ends.x || column >= ends.y {
        return vec4<f32>();
    }
    return operand4(b[(base + row * params.row_b + column) / 4u]);
}

// A block with k along its rows.
fn load_a(lines: Lines, row: u32, k0: u32, e: u32) -> mat4x4<f32> {
    let at = 4u * block_a(e) + vec2(row, k0);
    var m: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
#if TA
        m[d] = four_of_a(lines, at.y + d, at.x, vec2(params.k, params.m));
#else
        m[d] = four_of_a(lines, at.x + d, at.y, vec2(params.m, params.k));
#endif
    }
#if TA
    return m;
#else
    return transpose(m);
#endif
}
fn load_b(base: u32, column: u32, k0: u32, e: u32) -> mat4x4<f32> {
    let at = 4u * block_b(e) + vec2(column, k0);
    var m: mat4x4<f32>;
    for (var d = 0u; d < 4u; d++) {
#if TB
        m[d] = four_of_b(base, at.x + d, at.y, vec2(params.n, params.k));
#else
        m[d] = four_of_b(base, at.y + d, at.x, vec2(params.k, params.n));
#endif
    }
#if TB
    return transpose(m);
#else
    return m;
#endif
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let base_b = params.skip_b + group.z * params.batch_b;
    let row = group.y * TILE_M;
    let column = group.x * TILE_N;
    var a_lines = lines_a(group.z, TA * row);
    let c_lines = lines_c(group.z, column);
    let ks = summed(group.z);
    // The first lanes load a; where there are enough, others load b.
    let lane_b = lane - select(0u, BLOCKS_A, LANES >= BLOCKS_A + BLOCKS_B);
    var next_a: mat4x4<f32>;
    var next_b: mat4x4<f32>;
    let i0 = lane / LANES_N;
    let j0 = lane % LANES_N;
    var acc: array<vec4<f32>, 16>;
    var side = 0u;
    for (var k = ks.x; k < ks.y + TILE_K; k += TILE_K) {
        // One step ahead of what is multiplied.
        if k < ks.y {
#if PANELS_K
            a_lines = lines_a(group.z, k);
#endif
            if lane < BLOCKS_A {
                next_a = load_a(a_lines, row, k, lane);
            }
            if lane_b < BLOCKS_B {
                next_b = load_b(base_b, column, k, lane_b);
            }
        }
        if k > ks.x {
            for (var kk = 0u; kk < TILE_K; kk++) {
                let at_a = side * SIZE_A + kk * ROW_A + i0;
                let at_b = side * SIZE_B + kk * ROW_B + j0;
                let low = tile_b[at_b];
                let high = tile_b[at_b + LANES_N];
                for (var h = 0u; h < 2u; h++) {
                    let av = tile_a[at_a + h * LANES_M];
                    for (var r = 0u; r < 4u; r++) {
                        let i = 8u * h + 2u * r;
                        acc[i] = fma(vec4(av[r]), low, acc[i]);
                        acc[i + 1u] = fma(vec4(av[r]), high, acc[i + 1u]);
                    }
                }
            }
            side = 1u - side;
        }
        if k < ks.y {
            if lane < BLOCKS_A {
                let at = block_a(lane);
                for (var d = 0u; d < 4u; d++) {
                    tile_a[side * SIZE_A + (4u * at.y + d) * ROW_A + at.x] = next_a[d];
                }
            }
            if lane_b < BLOCKS_B {
                let at = block_b(lane_b);
                for (var d = 0u; d < 4u; d++) {
                    tile_b[side * SIZE_B + (4u * at.y + d) * ROW_B + at.x] = next_b[d];
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 16u; i++) {
        let r = row + i / 8u * (TILE_M / 2u) + 4u * i0 + i / 2u % 4u;
        let s = column + i % 2u * (TILE_N / 2u) + 4u * j0;
        for (var d = 0u; d < 4u; d++) {
            if r < params.m && s + d < params.n {
                let at = c_lines.base + r * c_lines.step + s + d;
                var v = acc[i][d];
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
