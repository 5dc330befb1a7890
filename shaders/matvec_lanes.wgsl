// matvec_lanes: c = a b' for few rows of a, on adapters whose subgroups have at least 8 lanes and are a CPU's SIMD registers
// (lavapipe). A lane makes one column, walking along a row of b, whose words it loads once for ROWS rows of a; of 32
// elements of a each lane loads four and hands them to the others.
#import lib/matvec.wgsl
#import lib/eight.wgsl
#hook prologue
#hook epilogue

// Sums of lanes 0 to 3 and 4 to 7.
fn totals(v: f32) -> vec2<f32> {
    return vec2((subgroupBroadcast(v, 0u) + subgroupBroadcast(v, 1u)) + (subgroupBroadcast(v, 2u) + subgroupBroadcast(v, 3u)),
        (subgroupBroadcast(v, 4u) + subgroupBroadcast(v, 5u)) + (subgroupBroadcast(v, 6u) + subgroupBroadcast(v, 7u)));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * 8u + lane;
    let first = group.y * ROWS;
    let c_lines = lines_c(group.z, group.x * 8u);
    let base_a = params.skip_a + group.z * params.batch_a;
    // Edges read a valid neighbour; the store below is guarded.
    let row_b = params.skip_b + group.z * params.batch_b + min(column, params.n - 1u) * params.row_b;
    var acc: array<f32, ROWS>;
#if NORM
    var squares: array<vec4<f32>, ROWS>;
#endif
    for (var k = 0u; k < params.k; k += 32u) {
        let w = stored(row_b, k, 4u, params.k);
        for (var r = 0u; r < ROWS; r++) {
            var x = four_a(base_a + min(first + r, params.m - 1u) * params.row_a, k + 4u * lane);
#if NORM
            squares[r] = fma(x, x, squares[r]);
            x *= gain_at(k + 4u * lane);
#endif
            acc[r] += product(w, eight(x), totals(sum4(x)));
        }
    }
#if NORM
    for (var r = 0u; r < ROWS; r++) {
        let halves = totals(sum4(squares[r]));
        acc[r] *= inverse_rms(halves.x + halves.y);
    }
#endif
    for (var r = 0u; r < ROWS; r++) {
        if first + r < params.m && column < params.n {
            let at = c_lines.base + (first + r) * c_lines.step + column;
            c[at] = epilogue(acc[r], params.whole_c + at);
        }
    }
}
