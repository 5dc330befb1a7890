// expert_linear_rows: as expert_linear_tile.wgsl, for adapters whose subgroups have at least 8 lanes and are a CPU's SIMD
// registers: a lane makes 4 neighbouring columns of 8 GROUPS slots of one expert, and hands what it loads of x to the
// other lanes, as in matmul_rows.wgsl. VECTOR_X: rows of x are whole vectors.
#import lib/expert_linear_params.wgsl
#if VECTOR_X
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
#endif
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
#import lib/eight.wgsl
#import lib/expert_tiles.wgsl
#import lib/expert_weight.wgsl
#hook epilogue

// Four elements of a row of x; zeros beyond the sum.
fn four_x(base: u32, k: u32) -> vec4<f32> {
#if VECTOR_X
    return x[(base + k) / 4u];
#else
    let last = params.sum - 1u;
    let at = vec4(base) + min(vec4(k) + vec4(0u, 1u, 2u, 3u), vec4(last));
    let v = vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
    return select(vec4<f32>(), v, vec4(k) + vec4(0u, 1u, 2u, 3u) <= vec4(last));
#endif
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tile = find_tile(group.z * groups.y + group.y, 8u * GROUPS);
    if tile.first >= tile.end {
        return;
    }
    let base_w = params.skip_w + (tile.expert - params.first_expert) * params.expert_w;
    let column = (group.x * 8u + lane) * 4u;
    // Where this lane's row of each group begins. Edges read a valid neighbour; the store below is guarded.
    var base_x: array<u32, GROUPS>;
    for (var g = 0u; g < GROUPS; g++) {
        let slot = order[min(tile.first + g * 8u + lane, tile.end - 1u)];
        base_x[g] = params.skip_x + (slot / PER_ROW - params.first_row) * params.row_x;
    }
    // Ids that are no expert make zeros.
    let sum = select(params.sum, 0u, tile.expert == params.experts);
    var acc: array<f32, 32 * GROUPS>;
    for (var k = 0u; k < sum; k += 4u) {
        // ws[j] holds four k of column j.
        var ws: array<vec4<f32>, 4>;
#if BACK
        for (var d = 0u; d < 4u; d++) {
            let v = four_w(base_w + min(k + d, sum - 1u) * params.row_w, column);
            ws[0][d] = v.x;
            ws[1][d] = v.y;
            ws[2][d] = v.z;
            ws[3][d] = v.w;
        }
#else
        for (var j = 0u; j < 4u; j++) {
            ws[j] = four_w(base_w + min(column + j, params.columns - 1u) * params.row_w, k);
        }
#endif
        for (var g = 0u; g < GROUPS; g++) {
            let rows = eight(four_x(base_x[g], k));
            for (var r = 0u; r < 8u; r++) {
                for (var j = 0u; j < 4u; j++) {
                    let i = (g * 8u + r) * 4u + j;
                    acc[i] = fma(rows[r].w, ws[j].w,
                        fma(rows[r].z, ws[j].z, fma(rows[r].y, ws[j].y, fma(rows[r].x, ws[j].x, acc[i]))));
                }
            }
        }
    }
    for (var r = 0u; r < 8u * GROUPS; r++) {
        let slot = order[min(tile.first + r, tile.end - 1u)];
        let base_y = params.skip_y + (slot - params.first_slot) * params.row_y + column;
        for (var j = 0u; j < 4u; j++) {
            if tile.first + r < tile.end && column + j < params.columns {
                var v = acc[r * 4u + j];
                if params.first == 0u {
                    v += y[base_y + j];
                }
                if params.last != 0u {
                    v = epilogue(v, params.whole_y + base_y + j);
                }
                y[base_y + j] = v;
            }
        }
    }
}
