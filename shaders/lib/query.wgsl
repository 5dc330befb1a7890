// query: where a query stands, which keys it sees (WINDOW, STARTS) and what their distance costs (ALIBI): src/ops/mask.rs.
// Reads params.entry, params.keys, params.queries and position. With STARTS, position holds for each query the key with
// which its document begins; these do not decrease along a sequence, whose first query stands at 0. BLOCK: queries and keys
// are those of two ranks (lib/block.wgsl). What a query sees never begins or ends before what an earlier one does.

#if BLOCK
#import lib/block.wgsl
#else
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

// The last key that query t sees: where it stands, or the last there is.
fn last_seen(entry: u32, t: u32) -> u32 {
    return min(first_position(entry) + t, params.keys - 1u);
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
fn first_seen(entry: u32, t: u32, last: u32) -> u32 {
    var first = 0u;
#if WINDOW
    first = max(last + 1u, WINDOW) - WINDOW;
#endif
    return max(first, first_of_document(entry, t));
}

// Neither query t nor a later one sees a key before this one.
fn begin_key(entry: u32, t: u32) -> u32 {
    return first_seen(entry, t, last_seen(entry, t));
}

// The first query that sees key j.
fn begin_query(entry: u32, j: u32) -> u32 {
    let first = first_position(entry);
    return max(j, first) - first;
}

// The first query after all those that see key j by their distance.
fn end_query_near(entry: u32, j: u32) -> u32 {
    var end = params.queries;
#if WINDOW
    let first = first_position(entry);
    if j + WINDOW < params.keys {
        end = min(max(j + WINDOW, first) - first, end);
    }
#endif
    return end;
}
#endif

// The first query after all those that see key j.
fn end_query(entry: u32, j: u32) -> u32 {
    var end = end_query_near(entry, j);
#if STARTS
    // The first whose document begins after j, by halves.
    var begin = min(begin_query(entry, j), end);
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
