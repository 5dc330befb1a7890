// attention_coop: products of attention by cooperative matrices of SIZE x SIZE, operands f16, sums f32. A workgroup of
// SUBGROUPS subgroups of SUBGROUP lanes has SIZE rows for each; PARTS lanes share a row. Operands are staged in `tiles`,
// heads of C elements with zeros behind, and products of a workgroup's rows come to lie in `product`, whence lanes take
// their own. No subgroup operations: with them a driver (NVIDIA 595) crashes on cooperative matrices.

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
// What a probability of one is staged as: so that those of 2^-28 of the largest are normal numbers yet.
const UNIT = 16384.0;
const LANES = SUBGROUPS * SUBGROUP;
const ROWS = SUBGROUPS * SIZE;
const PARTS = SUBGROUP / SIZE;
const WIDTH = (4u * C4 + SIZE - 1u) / SIZE * SIZE;
// From a row of a head, of scores or of a product to the next: some more than there are, against bank conflicts.
const STEP = WIDTH + 8u;
const STEP_S = KEYS + 8u;
const STEP_P = max(WIDTH, KEYS) + 4u;
// Scores of a row, and elements of a head, that one of its lanes has.
const MINE = KEYS / PARTS;
const COLUMNS = WIDTH / PARTS;
var<workgroup> tiles: array<f16, TILES>;
var<workgroup> product: array<f32, ROWS * STEP_P>;

// Four elements of a head, vector c, into row r of the tile at `base`.
fn stage(base: u32, r: u32, c: u32, value: vec4<f32>) {
    let v = select(vec4<f32>(), operand4(value), c < C4);
    for (var d = 0u; d < 4u; d++) {
        tiles[base + r * STEP + 4u * c + d] = f16(v[d]);
    }
}

// The products of the workgroup's rows, heads at `a`, and KEYS others, at `b`.
fn scores(a: u32, b: u32, subgroup: u32) {
    for (var n = 0u; n < KEYS; n += SIZE) {
        var sum = Sum();
        for (var c = 0u; c < WIDTH; c += SIZE) {
            let x = coopLoadT<Left>(&tiles[a + subgroup * SIZE * STEP + c], STEP);
            let y = coopLoad<Right>(&tiles[b + n * STEP + c], STEP);
            sum = coopMultiplyAdd(x, y, sum);
        }
        coopStoreT(sum, &product[subgroup * SIZE * STEP_P + n], STEP_P);
    }
}

// Sums of the KEYS heads at `b`, weighted by the workgroup's rows of scores at `s`.
fn weighted(s: u32, b: u32, subgroup: u32) {
    for (var c = 0u; c < WIDTH; c += SIZE) {
        var sum = Sum();
        for (var n = 0u; n < KEYS; n += SIZE) {
            let x = coopLoadT<Left>(&tiles[s + subgroup * SIZE * STEP_S + n], STEP_S);
            let y = coopLoadT<Right>(&tiles[b + n * STEP + c], STEP);
            sum = coopMultiplyAdd(x, y, sum);
        }
        coopStoreT(sum, &product[subgroup * SIZE * STEP_P + c], STEP_P);
    }
}

// The vector of q, dy, o or dq where this row's head begins; beyond the last row, where the last row's does.
fn vector_of_row(entry: u32, kv_head: u32, row: u32) -> u32 {
    let r = min(row, params.queries * GROUP - 1u);
    return ((entry * params.queries + r / GROUP) * params.heads + kv_head * GROUP + r % GROUP) * C4;
}

// The vector of k, v, dk or dv where this key's head begins.
fn vector_of_key(entry: u32, kv_head: u32, key: u32) -> u32 {
    return ((entry * params.keys + key) * (params.heads / GROUP) + kv_head) * C4;
}
