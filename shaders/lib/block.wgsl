// block: which keys of one rank the queries of another see, where ranks have parts of a sequence
// (src/ops/attention_block.rs). A rank has two pieces of params.piece tokens each, the first of which begin in the sequence at
// query_0 and query_1, key_0 and key_1. Tokens stand in order, so what a query sees is a range. With STARTS, position holds
// for each query its number here less how many tokens of its document come before it, which may be below zero and then wraps.

// Where number i stands in the sequence.
fn place_of(first: u32, second: u32, i: u32) -> u32 {
    return select(second + i - params.piece, first + i, i < params.piece);
}

// How many stand before a place.
fn before(first: u32, second: u32, place: u32) -> u32 {
    return min(max(place, first) - first, params.piece) + min(max(place, second) - second, params.piece);
}

fn keys_before(place: u32) -> u32 {
    return before(params.key_0, params.key_1, place);
}

fn place_of_query(t: u32) -> u32 {
    return place_of(params.query_0, params.query_1, t);
}

// The first key that is not before query t's document.
fn first_of_document(entry: u32, t: u32) -> u32 {
#if STARTS
    return keys_before(place_of_query(t) - (t - position[(params.entry + entry) * params.queries + t]));
#else
    return 0u;
#endif
}

// The last key that query t sees, or the first there is.
fn last_seen(entry: u32, t: u32) -> u32 {
    return max(keys_before(place_of_query(t) + 1u), 1u) - 1u;
}

// Neither query t nor a later one sees a key before this one.
fn begin_key(entry: u32, t: u32) -> u32 {
    var first = 0u;
#if WINDOW
    first = keys_before(max(place_of_query(t) + 1u, WINDOW) - WINDOW);
#endif
    return max(first, first_of_document(entry, t));
}

// The first key that query t sees; one beyond `last` where it sees none.
fn first_seen(entry: u32, t: u32, last: u32) -> u32 {
    let none = keys_before(place_of_query(t) + 1u) == 0u;
    return max(begin_key(entry, t), select(0u, 1u, none));
}

// The first query that sees key j.
fn begin_query(entry: u32, j: u32) -> u32 {
    return before(params.query_0, params.query_1, place_of(params.key_0, params.key_1, j));
}

// The first query after all those that see key j by their distance.
fn end_query_near(entry: u32, j: u32) -> u32 {
#if WINDOW
    return before(params.query_0, params.query_1, place_of(params.key_0, params.key_1, j) + WINDOW);
#else
    return params.queries;
#endif
}
