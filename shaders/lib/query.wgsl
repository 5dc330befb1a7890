// query: where a query stands, which keys it sees (WINDOW) and what their distance costs (ALIBI): src/ops/mask.rs.
// Reads params.entry, params.keys and position.

// Position of a sequence's first query: one for all sequences or, with EACH, one for each.
fn first_position(entry: u32) -> u32 {
#if EACH
    return position[params.entry + entry];
#else
    return position[0];
#endif
}

// The last key that a query at this position sees: where it stands, or the last there is.
fn last_key(position_of_query: u32) -> u32 {
    return min(position_of_query, params.keys - 1u);
}

// The first key that a query sees whose last key is `last`.
fn first_key(last: u32) -> u32 {
#if WINDOW
    return max(last + 1u, WINDOW) - WINDOW;
#else
    return 0u;
#endif
}

// True if a query whose last key is `last` sees key j.
fn sees(last: u32, j: u32) -> bool {
    return j <= last && j >= first_key(last);
}

// The first query after all those that see key j, if the first of them stands at `first`.
fn end_query(first: u32, j: u32) -> u32 {
#if WINDOW
    if j + WINDOW < params.keys {
        return min(max(j + WINDOW, first) - first, params.queries);
    }
#endif
    return params.queries;
}

// What one step of distance adds to the score; ALIBI is the largest power of two up to the number of heads.
#if ALIBI
fn slope(head: u32) -> f32 {
    let n = f32(ALIBI);
    return exp2(select(-4.0 * f32(2u * (head - ALIBI) + 1u) / n, -8.0 * f32(head + 1u) / n, head < ALIBI));
}
#endif
