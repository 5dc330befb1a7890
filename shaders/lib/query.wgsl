// query: where a query stands, which keys it sees (WINDOW, STARTS) and what their distance costs (ALIBI): src/ops/mask.rs.
// Reads params.entry, params.keys, params.queries and position. With STARTS, position holds for each query the key with
// which its document begins; these do not decrease along a sequence, whose first query stands at 0.

// Position of a sequence's first query: one for all sequences or, with EACH, one for each.
fn first_position(entry: u32) -> u32 {
#if STARTS
    return 0u;
#else
#if EACH
    return position[params.entry + entry];
#else
    return position[0];
#endif
#endif
}

// The last key that a query at this position sees: where it stands, or the last there is.
fn last_key(position_of_query: u32) -> u32 {
    return min(position_of_query, params.keys - 1u);
}

// The key with which query t's document begins.
fn first_of_document(entry: u32, t: u32) -> u32 {
#if STARTS
    return position[(params.entry + entry) * params.queries + t];
#else
    return 0u;
#endif
}

// The first key that query t sees, whose last key is `last`.
fn first_key(entry: u32, t: u32, last: u32) -> u32 {
    var first = 0u;
#if WINDOW
    first = max(last + 1u, WINDOW) - WINDOW;
#endif
    return max(first, first_of_document(entry, t));
}

// The first query after all those that see key j, if the first of them stands at `first`.
fn end_query(entry: u32, first: u32, j: u32) -> u32 {
    var end = params.queries;
#if WINDOW
    if j + WINDOW < params.keys {
        end = min(max(j + WINDOW, first) - first, end);
    }
#endif
#if STARTS
    // The first whose document begins after j, by halves.
    var begin = min(j, end);
    while begin < end {
        let middle = (begin + end) / 2u;
        if first_of_document(entry, middle) > j {
            end = middle;
        } else {
            begin = middle + 1u;
        }
    }
#endif
    return end;
}

// What one step of distance adds to the score; ALIBI is the largest power of two up to the number of heads.
#if ALIBI
fn slope(head: u32) -> f32 {
    let n = f32(ALIBI);
    return exp2(select(-4.0 * f32(2u * (head - ALIBI) + 1u) / n, -8.0 * f32(head + 1u) / n, head < ALIBI));
}
#endif
