// matvec_groups: c = a b' for few rows of a, on GPUs. LANES lanes of a workgroup of 64 walk along one row of b together,
// each over blocks or quads of its own, and then add up: in shared memory, right for any subgroup size, or with SHUFFLE from
// lane to lane, where subgroups have LANES or more. Both add in the same order.
#import lib/matvec.wgsl
#hook prologue
#hook epilogue

#if SHUFFLE
#else
var<workgroup> sums: array<f32, 64 * ROWS>;
#if NORM
var<workgroup> squares: array<f32, 64 * ROWS>;
#endif
#endif

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let along = lane % LANES;
    let column = group.x * (64u / LANES) + lane / LANES;
    let first = group.y * ROWS;
    let c_lines = lines_c(group.z, group.x * (64u / LANES));
    let base_a = params.skip_a + group.z * params.batch_a;
    // Edges read a valid neighbour; the store below is guarded.
    let row_b = params.skip_b + group.z * params.batch_b + min(column, params.n - 1u) * params.row_b;
#if BLOCK
    // A lane takes whole blocks, of which neighbours lie side by side.
    let begin = 32u * along;
    let step = 4u;
#else
    let begin = 4u * along;
    let step = 4u * LANES;
#endif
    var acc: array<f32, ROWS>;
#if NORM
    var square: array<vec4<f32>, ROWS>;
#endif
    for (var k = begin; k < params.k; k += 32u * LANES) {
        let w = stored(row_b, k, step, params.k);
        for (var r = 0u; r < ROWS; r++) {
            var x: array<vec4<f32>, 8>;
            for (var i = 0u; i < 8u; i++) {
                x[i] = four_a(base_a + min(first + r, params.m - 1u) * params.row_a, k + step * i);
#if NORM
                square[r] = fma(x[i], x[i], square[r]);
                x[i] *= gain_at(k + step * i);
#endif
            }
            let low = sum4((x[0] + x[1]) + (x[2] + x[3]));
            let high = sum4((x[4] + x[5]) + (x[6] + x[7]));
            acc[r] += product(w, x, vec2(low, high));
        }
    }
#if SHUFFLE
    var sums = acc;
#if NORM
    var squares: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        squares[r] = sum4(square[r]);
    }
#endif
    for (var width = LANES / 2u; width > 0u; width = width / 2u) {
        for (var r = 0u; r < ROWS; r++) {
            sums[r] += subgroupShuffleXor(sums[r], width);
#if NORM
            squares[r] += subgroupShuffleXor(squares[r], width);
#endif
        }
    }
    let row_of_sums = 1u;
    let own = 0u;
#else
    let row_of_sums = 64u;
    let own = lane;
    for (var r = 0u; r < ROWS; r++) {
        sums[64u * r + lane] = acc[r];
#if NORM
        squares[64u * r + lane] = sum4(square[r]);
#endif
    }
    for (var width = LANES / 2u; width > 0u; width = width / 2u) {
        workgroupBarrier();
        if along < width {
            for (var r = 0u; r < ROWS; r++) {
                sums[64u * r + lane] += sums[64u * r + lane + width];
#if NORM
                squares[64u * r + lane] += squares[64u * r + lane + width];
#endif
            }
        }
    }
#endif
    if along == 0u && column < params.n {
        for (var r = 0u; r < min(ROWS, params.m - first); r++) {
            let at = c_lines.base + (first + r) * c_lines.step + column;
#if NORM
            let sum = sums[row_of_sums * r + own] * inverse_rms(squares[row_of_sums * r + own]);
#else
            let sum = sums[row_of_sums * r + own];
#endif
            c[at] = epilogue(sum, params.whole_c + at);
        }
    }
}
