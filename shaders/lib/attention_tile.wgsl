// attention_tile: what the tiles of attention share: sixteen lanes to four rows, elements staged by four.
#if STAGED
enable f16;
alias Staged = vec4<f16>;
#else
alias Staged = vec4<f32>;
#endif

const MASKED = -3.0e38;
const FOURS = ROWS / 4u;
const LANES = 4u * ROWS;
const CHUNKS = (C4 + CHUNK - 1u) / CHUNK;
// Scores of a row, and vectors of a chunk, that one of sixteen lanes has.
const MINE = KEYS / 16u;
const COLUMNS = (CHUNK + 15u) / 16u;
// Vectors from a staged row to the next: one more than there are, against bank conflicts.
const STEP = CHUNK + 1u;
// What a probability of one is staged as: so that those of 2^-28 of the largest are normal numbers yet where they are f16.
#if HALF
const UNIT = 16384.0;
#else
const UNIT = 1.0;
#endif

// The vector of q, dy, o or dq where this row's head begins; beyond the last row, where the last row's does.
fn vector_of_row(entry: u32, kv_head: u32, row: u32) -> u32 {
    let r = min(row, params.queries * GROUP - 1u);
    return ((entry * params.queries + r / GROUP) * params.heads + kv_head * GROUP + r % GROUP) * C4;
}

// The vector of k, v, dk or dv where this key's head begins.
fn vector_of_key(entry: u32, kv_head: u32, key: u32) -> u32 {
    return ((entry * params.keys + key) * (params.heads / GROUP) + kv_head) * C4;
}

// The scores of four rows from `row` on and a key: scaled, and lowered by distance.
fn biased(product: vec4<f32>, kv_head: u32, row: u32, key: u32, last: vec4<u32>) -> vec4<f32> {
#if ALIBI
    let head = vec4(kv_head * GROUP) + (vec4(row) + vec4(0u, 1u, 2u, 3u)) % vec4(GROUP);
    let slopes = vec4(slope(head.x), slope(head.y), slope(head.z), slope(head.w));
    return product * params.scale + slopes * (vec4(f32(key)) - vec4<f32>(last));
#else
    return product * params.scale;
#endif
}
