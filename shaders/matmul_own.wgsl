// matmul_own: c = op(a) op(b) for a CPU's SIMD registers (lavapipe), for many rows. A lane keeps 64 k of eight columns of
// op(b) in memory of its own, of which constant places are as good as registers, and makes row after row of c with them:
// of a row of op(a) each lane loads an eighth and hands it on, and no sum outlives an iteration, at whose end the driver
// would blend it with a mask. TA: a is [k,m], m % 4 = 0; TB: b is [n,k]; k % 4 = 0, n % 4 = 0; b as in lib/four_b.wgsl.
// HALF: operands are rounded to f16. SEEN: one of attention's products, without what no query sees (lib/seen.wgsl).
#import lib/matmul_params.wgsl
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
#import lib/four_b.wgsl
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;
#import lib/eight.wgsl
#import lib/operand.wgsl
#hook prologue
#hook epilogue
#if SEEN
#import lib/seen.wgsl
#endif

// Four elements of a, or zeros.
fn load_a(at: u32, whole_a: u32, is_inside: bool) -> vec4<f32> {
    let v = a[at / 4u];
    let i = whole_a + at;
    let x = vec4(prologue(v.x, i), prologue(v.y, i + 1u), prologue(v.z, i + 2u), prologue(v.w, i + 3u));
    return select(vec4<f32>(), operand4(x), is_inside);
}

#if TA
// The floats of eight lanes, as those of two vectors.
fn eight_floats(own: f32) -> mat2x4<f32> {
    return mat2x4(subgroupBroadcast(own, 0u), subgroupBroadcast(own, 1u), subgroupBroadcast(own, 2u),
        subgroupBroadcast(own, 3u), subgroupBroadcast(own, 4u), subgroupBroadcast(own, 5u), subgroupBroadcast(own, 6u),
        subgroupBroadcast(own, 7u));
}

// Four rows of column k of a as stored.
fn rows_a(lines: Lines, row: u32, k: u32) -> vec4<f32> {
    return load_a(lines.base + min(k, params.k - 1u) * lines.step + row, params.whole_a, k < params.k);
}
#endif

// Four columns of op(b) as rows of a matrix whose columns are four k, of which there are `all`. Beyond the edges it holds a
// valid neighbour.
fn four_by_four(base: u32, column: u32, k: u32, all: u32) -> mat4x4<f32> {
    var m: mat4x4<f32>;
    for (var i = 0u; i < 4u; i++) {
#if TB
        m[i] = weight_operand4(weight4(base + min(column + i, params.n - 1u) * params.row_b, k, params.k));
#else
        m[i] = weight_operand4(weight4(base + min(k + i, all - 1u) * params.row_b, column, params.n));
#endif
    }
#if TB
    return transpose(m);
#else
    return m;
#endif
}

// A sum and four products more.
fn four(sum: vec4<f32>, m: mat4x4<f32>, z: vec4<f32>) -> vec4<f32> {
    return sum + ((m[0] * z.x + m[1] * z.y) + (m[2] * z.z + m[3] * z.w));
}

fn finish(v: vec4<f32>, i: u32) -> vec4<f32> {
    return vec4(epilogue(v.x, i), epilogue(v.y, i + 1u), epilogue(v.z, i + 2u), epilogue(v.w, i + 3u));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.y * params.rows;
    let end = min(row0 + params.rows, params.m);
    let column = group.x * 64u + 4u * lane;
#if GROUP
    let base_b = params.skip_b + group.z / GROUP * params.batch_b;
#else
    let base_b = params.skip_b + group.z * params.batch_b;
#endif
    let c_lines = lines_c(group.z, group.x * 64u);
    let insides = vec2(column, column + 32u) < vec2(params.n);
    let columns = min(vec2(column, column + 32u), vec2(params.n - 4u));
    let whole_a = params.whole_a;
    let whole_c = params.whole_c;
#if SEEN
    let part = seen_part(row0, end, group.x);
    if part.x >= part.y {
#if TA
        // Keys that no query sees have a gradient all the same.
        for (var row = row0; row < end; row++) {
            let to = c_lines.base + row * c_lines.step;
            if (params.first != 0u) & insides.x { c[(to + columns.x) / 4u] = vec4<f32>(); }
            if (params.first != 0u) & insides.y { c[(to + columns.y) / 4u] = vec4<f32>(); }
        }
#endif
        return;
    }
#else
    let part = vec2(0u, params.k);
#endif
    var own: array<array<mat4x4<f32>, 2>, 16>;
    for (var k = part.x; k < part.y; k += 64u) {
        for (var i = 0u; i < min(params.k - k, 64u) / 4u; i++) {
            own[i][0] = four_by_four(base_b, column, k + 4u * i, part.y);
            own[i][1] = four_by_four(base_b, column + 32u, k + 4u * i, part.y);
        }
        // Outside the rows' loop, since each look at params is a branch.
        let adds = (k > part.x) | (params.first == 0u);
        let ends = (k + 64u >= part.y) & (params.last != 0u);
        let all = params.k;
#if TA
        for (var first = row0; first < end; first += 4u) {
            let lines = lines_a(group.z, first);
            let x0 = rows_a(lines, first, k + lane);
            let x1 = rows_a(lines, first, k + 8u + lane);
            let x2 = rows_a(lines, first, k + 16u + lane);
            let x3 = rows_a(lines, first, k + 24u + lane);
            let x4 = rows_a(lines, first, k + 32u + lane);
            let x5 = rows_a(lines, first, k + 40u + lane);
            let x6 = rows_a(lines, first, k + 48u + lane);
            let x7 = rows_a(lines, first, k + 56u + lane);
            for (var r = 0u; r < 4u; r++) {
                let row = first + r;
                let y0 = eight_floats(x0[r]);
                let y1 = eight_floats(x1[r]);
                let y2 = eight_floats(x2[r]);
                let y3 = eight_floats(x3[r]);
                let y4 = eight_floats(x4[r]);
                let y5 = eight_floats(x5[r]);
                let y6 = eight_floats(x6[r]);
                let y7 = eight_floats(x7[r]);
                let z = array(y0[0], y0[1], y1[0], y1[1], y2[0], y2[1], y3[0], y3[1]);
                let w = array(y4[0], y4[1], y5[0], y5[1], y6[0], y6[1], y7[0], y7[1]);
#else
        let lines = lines_a(group.z, k);
        for (var row = row0; row < end; row++) {
            {
                let at = lines.base + row * lines.step;
                let mine = k + 4u * lane;
                let z = eight(load_a(at + min(mine, all - 4u), whole_a, mine < all));
                let w = eight(load_a(at + min(mine + 32u, all - 4u), whole_a, mine + 32u < all));
#endif
                var left = four(vec4<f32>(), own[0][0], z[0]);
                var right = four(vec4<f32>(), own[0][1], z[0]);
                left = four(left, own[1][0], z[1]);
                right = four(right, own[1][1], z[1]);
                left = four(left, own[2][0], z[2]);
                right = four(right, own[2][1], z[2]);
                left = four(left, own[3][0], z[3]);
                right = four(right, own[3][1], z[3]);
                left = four(left, own[4][0], z[4]);
                right = four(right, own[4][1], z[4]);
                left = four(left, own[5][0], z[5]);
                right = four(right, own[5][1], z[5]);
                left = four(left, own[6][0], z[6]);
                right = four(right, own[6][1], z[6]);
                left = four(left, own[7][0], z[7]);
                right = four(right, own[7][1], z[7]);
                left = four(left, own[8][0], w[0]);
                right = four(right, own[8][1], w[0]);
                left = four(left, own[9][0], w[1]);
                right = four(right, own[9][1], w[1]);
                left = four(left, own[10][0], w[2]);
                right = four(right, own[10][1], w[2]);
                left = four(left, own[11][0], w[3]);
                right = four(right, own[11][1], w[3]);
                left = four(left, own[12][0], w[4]);
                right = four(right, own[12][1], w[4]);
                left = four(left, own[13][0], w[5]);
                right = four(right, own[13][1], w[5]);
                left = four(left, own[14][0], w[6]);
                right = four(right, own[14][1], w[6]);
                left = four(left, own[15][0], w[7]);
                right = four(right, own[15][1], w[7]);
                // Both sums are used in two blocks from here on, which keeps LLVM from moving them, but not their products,
                // to the place of a single use, with hundreds of products in memory.
                let to = c_lines.base + row * c_lines.step;
                if adds {
                    left += c[(to + columns.x) / 4u];
                    right += c[(to + columns.y) / 4u];
                }
                if ends {
                    left = finish(left, whole_c + to + columns.x);
                    right = finish(right, whole_c + to + columns.y);
                }
                if insides.x {
                    c[(to + columns.x) / 4u] = left;
                }
                if insides.y {
                    c[(to + columns.y) / 4u] = right;
                }
            }
        }
    }
}
