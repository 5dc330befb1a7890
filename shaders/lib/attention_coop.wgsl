// attention_coop: products of attention by cooperative matrices of SIZE x SIZE, operands f16, sums f32. A workgroup has ROWS rows
// of its own and streams KEYS others at a time; each of its SUBGROUPS subgroups of SUBGROUP lanes has HIGH rows of matrices,
// and ACROSS lanes share a row. All of attention is two products: scores, own rows times streamed ones, which come to lie in
// `product`, whence lanes take their own (`scores`), and sums of streamed rows, weighted by what lanes made of these
// (`weighted`), which stay in matrices to the end. What is staged next is loaded before products, and without a branch.
// Of HELD of the pairs, the last ones, a subgroup keeps the matrices of its own rows; of the others they lie in shared memory.
// SPREAD: so many subgroups share their rows, each of which has SHARE of a head's columns of matrices: it makes that part of
// scores, which lanes add up, and of the sums.
// The kernel says of what pairs scores are made: `own_vector(pair, at)` and `streamed_vector(pair, at)`, and where rows begin:
// `own_at(group, row)`, `streamed_at(group, row, end)`; and TILES, of shared memory.
// No subgroup operations: with them a driver (NVIDIA 595) crashes on cooperative matrices.
#import lib/half.wgsl

#if SIZE_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
#endif

const MASKED = -3.0e38;
const LOG2_E = 1.4426950408889634;
const LANES = SUBGROUPS * SUBGROUP;
const ROWS = SUBGROUPS / SPREAD * HIGH * SIZE;
// No more than a row has vectors of scores: where there are more lanes, several do the same.
const ACROSS = min(SPREAD * SUBGROUP / (HIGH * SIZE), KEYS / 4u);
const WIDTH = (4u * C4 + SIZE - 1u) / SIZE * SIZE;
// Matrices along a head and along the streamed rows; vectors of a head.
const DEEP = WIDTH / SIZE;
const SHARE = DEEP / SPREAD;
const WIDE = KEYS / SIZE;
const VECTORS = WIDTH / 4u;
// From a row of a head, of weights or of products to the next: some more than there are, against bank conflicts.
const STEP = WIDTH + 8u;
const STEP_S = KEYS + 8u;
const STEP_P = SPREAD * KEYS + 4u * ACROSS;
// Vectors of scores, and columns of matrices of sums that are shown, that one of a row's lanes has.
const MINE = KEYS / ACROSS / 4u;
const COLUMNS = SPREAD * SIZE / ACROSS;
// Where own rows of either pair lie: those that are not held behind all that is streamed; those that are were there on their way.
const OWN_TILE = ROWS * STEP;
const OWN = max(TILES, select(0u, OWN_TILE, HELD > 0u));
const OWN_0 = select(0u, OWN, HELD < OWNS);
const OWN_1 = select(0u, OWN + OWN_TILE, HELD == 0u);
const ALL = OWN + (OWNS - HELD) * OWN_TILE;
var<workgroup> tiles: array<f16, ALL>;
var<workgroup> product: array<f32, ROWS * STEP_P>;

#import lib/attention_coop_tile.wgsl

// Of a subgroup: its own rows by column of matrices and row of them, and so their sums.
alias Own = array<Left, SHARE * HIGH>;
alias Sums = array<Sum, SHARE * HIGH>;

// The first of a subgroup's rows of matrices, and the first of its columns of them.
fn first_row(subgroup: u32) -> u32 { return subgroup / SPREAD * HIGH; }
fn first_column(subgroup: u32) -> u32 { return subgroup % SPREAD * SHARE; }
// The row of which a lane has scores and sums.
fn row_of(lane: u32) -> u32 { return lane / ACROSS % ROWS; }
// The column of a head that stands in this one of what the c-th `show` shows.
fn column_shown(c: u32, column: u32) -> u32 { return (column / SIZE * SHARE + c) * SIZE + column % SIZE; }

// A subgroup's own rows from the tile at `base`.
fn hold(own: ptr<function, Own>, base: u32, subgroup: u32) {
    let at = base + first_row(subgroup) * SIZE * STEP + first_column(subgroup) * SIZE;
    for (var c = 0u; c < SHARE; c++) {
        for (var i = 0u; i < HIGH; i++) {
            (*own)[c * HIGH + i] = coopLoadT<Left>(&tiles[at + i * SIZE * STEP + c * SIZE], STEP);
        }
    }
}

// The same of a pair whose rows are held from then on.
fn begin_own(own: ptr<function, Own>, base: u32, pair: u32, place: Place, subgroup: u32, lane: u32) {
    stage_own(base, pair, place, lane);
    workgroupBarrier();
    hold(own, base, subgroup);
    workgroupBarrier();
}

alias Scores = array<Sum, WIDE * HIGH>;

// Adds a column of matrices of own rows times those of the KEYS heads at `b`.
fn score(sums: ptr<function, Scores>, x: array<Left, HIGH>, b: u32) {
    for (var n = 0u; n < WIDE; n++) {
        let y = coopLoad<Right>(&tiles[b + n * SIZE * STEP], STEP);
        for (var i = 0u; i < HIGH; i++) {
            (*sums)[n * HIGH + i] = coopMultiplyAdd(x[i], y, (*sums)[n * HIGH + i]);
        }
    }
}

fn put_scores(sums: ptr<function, Scores>, subgroup: u32) {
    for (var n = 0u; n < WIDE; n++) {
        for (var i = 0u; i < HIGH; i++) {
            let sum = (*sums)[n * HIGH + i];
            let to = (first_row(subgroup) + i) * SIZE * STEP_P + subgroup % SPREAD * KEYS + n * SIZE;
            coopStoreT(sum, &product[to], STEP_P);
        }
    }
}

// Scores of own rows that are held and the KEYS heads at `b`, into `product`.
fn scores_of_held(own: ptr<function, Own>, b: u32, subgroup: u32) {
    var sums: Scores;
    let from_b = b + first_column(subgroup) * SIZE;
    for (var c = 0u; c < SHARE; c++) {
        var x: array<Left, HIGH>;
        for (var i = 0u; i < HIGH; i++) {
            x[i] = (*own)[c * HIGH + i];
        }
        score(&sums, x, from_b + c * SIZE);
    }
    put_scores(&sums, subgroup);
}

// The same of own rows that lie at `a`.
fn scores(a: u32, b: u32, subgroup: u32) {
    var sums: Scores;
    let from_a = a + first_row(subgroup) * SIZE * STEP + first_column(subgroup) * SIZE;
    let from_b = b + first_column(subgroup) * SIZE;
    for (var c = 0u; c < SHARE; c++) {
        var x: array<Left, HIGH>;
        for (var i = 0u; i < HIGH; i++) {
            x[i] = coopLoadT<Left>(&tiles[from_a + i * SIZE * STEP + c * SIZE], STEP);
        }
        score(&sums, x, from_b + c * SIZE);
    }
    put_scores(&sums, subgroup);
}

// The column of the n-th four of a row's scores, for one of its lanes: first come its own, MINE of them.
fn place_of_score(n: u32, part: u32) -> u32 {
    return 4u * (n % MINE * ACROSS + (part + n / MINE) % ACROSS);
}

// Four scores of row r.
fn score4(r: u32, column: u32) -> vec4<f32> {
    var scores: vec4<f32>;
    for (var part = 0u; part < SPREAD; part++) {
        let at = r * STEP_P + part * KEYS + column;
        scores += vec4(product[at], product[at + 1u], product[at + 2u], product[at + 3u]);
    }
    return scores;
}

// Adds the KEYS heads that are staged by columns at `b`, weighted by the rows' weights at `s`.
fn weighted(sums: ptr<function, Sums>, s: u32, b: u32, subgroup: u32) {
    let from_s = s + first_row(subgroup) * SIZE * STEP_S;
    let from_b = b + first_column(subgroup) * SIZE * STEP_S;
    for (var n = 0u; n < WIDE; n++) {
        var x: array<Left, HIGH>;
        for (var i = 0u; i < HIGH; i++) {
            x[i] = coopLoadT<Left>(&tiles[from_s + i * SIZE * STEP_S + n * SIZE], STEP_S);
        }
        for (var c = 0u; c < SHARE; c++) {
            let y = coopLoad<Right>(&tiles[from_b + c * SIZE * STEP_S + n * SIZE], STEP_S);
            for (var i = 0u; i < HIGH; i++) {
                (*sums)[c * HIGH + i] = coopMultiplyAdd(x[i], y, (*sums)[c * HIGH + i]);
            }
        }
    }
}

// A subgroup's first column of matrices of sums, for lanes to see or to change; it becomes the last one. An array at places that a
// compiler does not know would go to memory, so all others move up.
fn show(sums: ptr<function, Sums>, subgroup: u32) {
    for (var i = 0u; i < HIGH; i++) {
        let sum = (*sums)[i];
        let to = (first_row(subgroup) + i) * SIZE * STEP_P + subgroup % SPREAD * SIZE;
        coopStoreT(sum, &product[to], STEP_P);
    }
    for (var e = HIGH; e < SHARE * HIGH; e++) {
        (*sums)[e - HIGH] = (*sums)[e];
    }
}

// The last column of matrices of sums, from where lanes have changed or put it.
fn take(sums: ptr<function, Sums>, subgroup: u32) {
    for (var i = 0u; i < HIGH; i++) {
        let at = (first_row(subgroup) + i) * SIZE * STEP_P + subgroup % SPREAD * SIZE;
        (*sums)[(SHARE - 1u) * HIGH + i] = coopLoadT<Sum>(&product[at], STEP_P);
    }
}
