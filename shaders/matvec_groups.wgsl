// matvec_groups: c = a b' for few rows of a, on GPUs, which is to be as fast as b comes from memory. LANES lanes of a
// workgroup of 64 walk together along COLUMNS rows of b, 32 elements each at a time, and meet them with the same elements of
// a. All loads of a step stand before their first use, and none in a branch: so they are under way together. In the end lanes
// add up: with SHARED in shared memory, right for any subgroup size, and the last SHUFFLE of them from lane to lane, where
// subgroups have as many. Whoever adds, the order is one.
#import lib/matvec.wgsl
#hook prologue
#hook epilogue

// Fours of elements that LANES lanes take at a time, and rows of a of which they are loaded together.
const STEP = 8u * LANES;
const TOGETHER = min(ROWS, 2u);
#if NORM
const SUMS = (COLUMNS + 1u) * ROWS; // products, and each row's squares
#else
const SUMS = COLUMNS * ROWS;
#endif
#if SHARED
var<workgroup> parts: array<f32, 64u * SUMS>;
#endif

// Where four i of the eight that a lane takes lies: a block is one lane's, and else neighbours' vectors are neighbours.
fn ahead(i: u32) -> u32 {
#if BLOCK
    return i;
#else
    return FOURS * LANES * (i / FOURS) + i % FOURS;
#endif
}

// The step that stands over the rows' end reads valid neighbours there, so many fours at a time.
fn within(four: u32, fours: u32, over: bool) -> u32 {
    return select(four, min(four, params.k / 4u - fours), over);
}

struct Sums {
    products: array<f32, COLUMNS * ROWS>,
    squares: array<vec4<f32>, ROWS>,
}

// What a lane adds from its fours on.
fn add(sums: ptr<function, Sums>, rows_a: array<u32, ROWS>, rows_b: array<u32, COLUMNS>, four: u32, over: bool) {
    var w: array<Stored, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j++) {
        w[j] = weights(rows_b[j], four, over);
    }
#if NORM
    var g: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        g[i] = gain[within(four + ahead(i), 1u, over)];
    }
#endif
    for (var r = 0u; r < ROWS; r += TOGETHER) {
        var x: array<array<vec4<f32>, 8>, TOGETHER>;
        for (var i = 0u; i < 8u * TOGETHER; i++) {
            x[i / 8u][i % 8u] = a[rows_a[r + i / 8u] + within(four + ahead(i % 8u), 1u, over)];
        }
        for (var s = 0u; s < TOGETHER; s++) {
            for (var i = 0u; i < 8u; i++) {
                let v = x[s][i];
                let at = params.whole_a + 4u * (rows_a[r + s] + within(four + ahead(i), 1u, over));
                let met = vec4(prologue(v.x, at), prologue(v.y, at + 1u), prologue(v.z, at + 2u), prologue(v.w, at + 3u));
                x[s][i] = select(met, vec4<f32>(), over && four + ahead(i) >= params.k / 4u);
#if NORM
                (*sums).squares[r + s] = fma(x[s][i], x[s][i], (*sums).squares[r + s]);
                x[s][i] *= g[i];
#endif
            }
            let low = sum4((x[s][0] + x[s][1]) + (x[s][2] + x[s][3]));
            let high = sum4((x[s][4] + x[s][5]) + (x[s][6] + x[s][7]));
            for (var j = 0u; j < COLUMNS; j++) {
                (*sums).products[COLUMNS * (r + s) + j] += product(w[j], x[s], vec2(low, high));
            }
        }
    }
}

// A lane's elements of a row of b.
fn weights(row: u32, four: u32, over: bool) -> Stored {
#if BLOCK
    return stored(row, 4u * four, 4u, params.k);
#else
    var s: Stored;
    for (var i = 0u; i < 8u; i += FOURS) {
        let at = within(four + ahead(i), FOURS, over);
#if WIDE
        let v = b[row / 4u + at / 2u];
        s.quants[i] = pairs(v.xy);
        s.quants[i + 1u] = pairs(v.zw);
#else
#if PACKED
        s.quants[i] = pairs(vec2(word(row + 2u * at), word(row + 2u * at + 1u)));
#else
        s.quants[i] = b[row / 4u + at];
#endif
#endif
    }
    return s;
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let along = lane % LANES;
    let column = (group.x * (64u / LANES) + lane / LANES) * COLUMNS;
    let first = group.y * ROWS;
    // Edges read a valid neighbour; the stores below are guarded.
    var rows_a: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        rows_a[r] = (params.skip_a + group.z * params.batch_a + min(first + r, params.m - 1u) * params.row_a) / 4u;
    }
    var rows_b: array<u32, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j++) {
        rows_b[j] = params.skip_b + group.z * params.batch_b + min(column + j, params.n - 1u) * params.row_b;
    }
    var sums: Sums;
#if SHARED_TABLE
    share_table(lane);
#endif
#if BLOCK
    for (var four = 8u * along; four < params.k / 4u; four += STEP) {
        add(&sums, rows_a, rows_b, four, false);
    }
#else
    let whole = params.k / 4u / STEP * STEP;
    for (var four = 0u; four < whole; four += STEP) {
        add(&sums, rows_a, rows_b, four + FOURS * along, false);
    }
#if OVER
    add(&sums, rows_a, rows_b, whole + FOURS * along, true);
#endif
#endif
    var all: array<f32, SUMS>;
    for (var i = 0u; i < COLUMNS * ROWS; i++) {
        all[i] = sums.products[i];
    }
#if NORM
    for (var r = 0u; r < ROWS; r++) {
        all[COLUMNS * ROWS + r] = sum4(sums.squares[r]);
    }
#endif
#if SHARED
    for (var i = 0u; i < SUMS; i++) {
        parts[64u * i + lane] = all[i];
    }
    for (var width = LANES / 2u; width >= max(SHUFFLE, 1u); width = width / 2u) {
        workgroupBarrier();
        for (var i = 0u; i < SUMS && along < width; i++) {
            all[i] += parts[64u * i + lane + width];
            parts[64u * i + lane] = all[i];
        }
    }
#endif
#if SHUFFLE
    for (var width = min(SHUFFLE, LANES) / 2u; width > 0u; width = width / 2u) {
        for (var i = 0u; i < SUMS; i++) {
            all[i] += subgroupShuffleXor(all[i], width);
        }
    }
#endif
    let c_lines = lines_c(group.z, group.x * (64u / LANES) * COLUMNS);
    for (var r = 0u; r < ROWS; r++) {
#if NORM
        let scale = inverse_rms(all[COLUMNS * ROWS + r]);
#else
        let scale = 1.0;
#endif
        for (var j = 0u; j < COLUMNS; j++) {
            if along == 0u && first + r < params.m && column + j < params.n {
                let at = c_lines.base + (first + r) * c_lines.step + column + j;
                c[at] = epilogue(all[COLUMNS * r + j] * scale, params.whole_c + at);
            }
        }
    }
}
