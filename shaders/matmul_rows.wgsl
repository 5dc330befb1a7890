// matmul_rows: c = op(a) op(b) for adapters whose subgroups have at least 8 lanes and are a CPU's SIMD registers
// (lavapipe). A lane makes COLUMNS neighbouring columns of 8 GROUPS rows; it loads one row of op(a) in eight and hands
// it to the others, so that one load serves many multiply-adds. Not for subgroups of 4: matmul_tile is.
// TA: a is [k,m]; TB: b is [n,k]. VECTOR_A: a as vec4 (k % 4 = 0, and with TA m % 4 = 0). VECTOR_B: b by four elements of
// a row (lib/four_b.wgsl: packed, or rows of b divide by four), and COLUMNS = 4 if not TB. TAIL: k % 4 may not be 0.
// HALF: operands are rounded to f16.
#import lib/matmul_params.wgsl
#if VECTOR_A
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> a: array<f32>;
#endif
#if VECTOR_B
#import lib/four_b.wgsl
#else
@group(0) @binding(2) var<storage, read> b: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/eight.wgsl
#import lib/operand.wgsl
#hook prologue
#hook epilogue

#if VECTOR_A
// Four k of eight rows of op(a), from `row` on. Edges read a valid neighbour.
fn load_a(lines: Lines, row: u32, k: u32, lane: u32) -> array<vec4<f32>, 8> {
#if TA
    // Lanes 0 to 3 load four rows of one k each, lanes 4 to 7 the next four rows: columns of what rows want.
    let at = lines.base + (k + lane % 4u) * lines.step + min(row + lane / 4u * 4u, params.m - 4u);
#else
    let at = lines.base + min(row + lane, params.m - 1u) * lines.step + k;
#endif
    let v = a[at / 4u];
    let i = params.whole_a + at;
    let x = vec4(prologue(v.x, i), prologue(v.y, i + 1u), prologue(v.z, i + 2u), prologue(v.w, i + 3u));
    let l = eight(operand4(x));
#if TA
    let low = transpose(mat4x4(l[0], l[1], l[2], l[3]));
    let high = transpose(mat4x4(l[4], l[5], l[6], l[7]));
    return array(low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]);
#else
    return l;
#endif
}
#else
fn at_a(lines: Lines, row: u32, k: u32) -> f32 {
#if TAIL
    if k >= params.k {
        return 0.0;
    }
#endif
#if TA
    let at = lines.base + k * lines.step + row;
#else
    let at = lines.base + row * lines.step + k;
#endif
    return prologue(a[at], params.whole_a + at);
}

fn load_a(lines: Lines, first: u32, k: u32, lane: u32) -> array<vec4<f32>, 8> {
    let row = min(first + lane, params.m - 1u);
    let x = vec4(at_a(lines, row, k), at_a(lines, row, k + 1u), at_a(lines, row, k + 2u), at_a(lines, row, k + 3u));
    return eight(operand4(x));
}
#endif

#if VECTOR_B
#else
fn at_b(base: u32, column: u32, k: u32) -> f32 {
#if TAIL
    if k >= params.k {
        return 0.0;
    }
#endif
#if TB
    return b[base + column * params.row_b + k];
#else
    return b[base + k * params.row_b + column];
#endif
}
#endif

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * 8u * GROUPS;
    let column = (group.x * 8u + lane) * COLUMNS;
    let base_b = params.skip_b + group.z * params.batch_b;
    var a_lines = lines_a(group.z, TA * row);
    let c_lines = lines_c(group.z, group.x * 8u * COLUMNS);
    var acc: array<f32, 8 * GROUPS * COLUMNS>;
    for (var k = 0u; k < params.k; k += 4u) {
#if PANELS_K
        a_lines = lines_a(group.z, k);
#endif
        // bs[j] holds four k of column j. Edges read a valid neighbour; the store below is guarded.
        var bs: array<vec4<f32>, COLUMNS>;
#if VECTOR_B
#if TB
        for (var j = 0u; j < COLUMNS; j++) {
            bs[j] = weight_operand4(weight4(base_b + min(column + j, params.n - 1u) * params.row_b, k, params.k));
        }
#else
        for (var d = 0u; d < 4u; d++) {
#if TAIL
            let w = weight4(base_b + min(k + d, params.k - 1u) * params.row_b, column, params.n);
            let v = select(vec4<f32>(), weight_operand4(w), k + d < params.k);
#else
            let v = weight_operand4(weight4(base_b + (k + d) * params.row_b, column, params.n));
#endif
            bs[0][d] = v.x;
            bs[1][d] = v.y;
            bs[2][d] = v.z;
            bs[3][d] = v.w;
        }
#endif
#else
        for (var j = 0u; j < COLUMNS; j++) {
            let s = min(column + j, params.n - 1u);
            let w = vec4(at_b(base_b, s, k), at_b(base_b, s, k + 1u), at_b(base_b, s, k + 2u), at_b(base_b, s, k + 3u));
            bs[j] = operand4(w);
        }
#endif
        for (var g = 0u; g < GROUPS; g++) {
            let rows = load_a(a_lines, row + g * 8u, k, lane);
            for (var r = 0u; r < 8u; r++) {
                for (var j = 0u; j < COLUMNS; j++) {
                    let i = (g * 8u + r) * COLUMNS + j;
                    acc[i] = fma(rows[r].w, bs[j].w,
                        fma(rows[r].z, bs[j].z, fma(rows[r].y, bs[j].y, fma(rows[r].x, bs[j].x, acc[i]))));
                }
            }
        }
    }
    for (var r = 0u; r < 8u * GROUPS; r++) {
        for (var j = 0u; j < COLUMNS; j++) {
            if row + r < params.m && column + j < params.n {
                let at = c_lines.base + (row + r) * c_lines.step + column + j;
                var v = acc[r * COLUMNS + j];
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
