// expert_grad_rows: as expert_grad_tile.wgsl, for adapters whose subgroups have at least 8 lanes and are a CPU's SIMD
// registers: a lane makes 4 neighbouring columns of 8 GROUPS rows of one expert's matrix, four slots at a time, and hands
// what it loads of dy to the other lanes, as in matmul_rows.wgsl. VECTOR: rows of x and dy are whole vectors.
#import lib/expert_grad_params.wgsl
#if VECTOR
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
#endif
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read_write> dw: array<f32>;
#import lib/eight.wgsl
#import lib/expert_tiles.wgsl

// Four elements from element i of a row that begins at `base`; beyond the row's end a valid neighbour.
fn four_x(base: u32, i: u32) -> vec4<f32> {
#if VECTOR
    return x[(base + min(i, params.columns - 4u)) / 4u];
#else
    let at = vec4(base) + min(vec4(i) + vec4(0u, 1u, 2u, 3u), vec4(params.columns - 1u));
    return vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
#endif
}

fn four_dy(base: u32, i: u32) -> vec4<f32> {
#if VECTOR
    return dy[(base + min(i, params.rows - 4u)) / 4u];
#else
    let at = vec4(base) + min(vec4(i) + vec4(0u, 1u, 2u, 3u), vec4(params.rows - 1u));
    return vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
#endif
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let expert = params.first_expert + group.z;
    let places = expert_places(expert);
    let row = group.y * 8u * GROUPS;
    let column = (group.x * 8u + lane) * 4u;
    var acc: array<vec4<f32>, 8 * GROUPS>;
    for (var place = places.first; place < places.end; place += 4u) {
        // Lanes 0 to 3 load four rows of one slot each, lanes 4 to 7 the next four rows. Slots beyond the last repeat it,
        // times zero.
        let own = place + lane % 4u;
        let slot = order[min(own, places.end - 1u)];
        let base_y = params.skip_y + (slot - params.first_slot) * params.row_y;
        let base_x = params.skip_x + (slot / PER_ROW - params.first_row) * params.row_x;
        let xs = array<vec4<f32>, 4>(four_x(subgroupBroadcast(base_x, 0u), column),
            four_x(subgroupBroadcast(base_x, 1u), column), four_x(subgroupBroadcast(base_x, 2u), column),
            four_x(subgroupBroadcast(base_x, 3u), column));
        for (var g = 0u; g < GROUPS; g++) {
            let v = select(vec4<f32>(), four_dy(base_y, row + g * 8u + lane / 4u * 4u), own < places.end);
            let l = eight(v);
            for (var d = 0u; d < 4u; d++) {
                for (var r = 0u; r < 4u; r++) {
                    acc[g * 8u + r] = fma(vec4(l[d][r]), xs[d], acc[g * 8u + r]);
                    acc[g * 8u + 4u + r] = fma(vec4(l[4u + d][r]), xs[d], acc[g * 8u + 4u + r]);
                }
            }
        }
    }
    for (var r = 0u; r < 8u * GROUPS; r++) {
        for (var j = 0u; j < 4u; j++) {
            if row + r < params.rows && column + j < params.columns {
                let at = params.skip_w + group.z * params.expert_w + (row + r) * params.columns + column + j;
                var v = acc[r][j];
                if params.first == 0u {
                    v += dw[at];
                }
                dw[at] = v;
            }
        }
    }
}
