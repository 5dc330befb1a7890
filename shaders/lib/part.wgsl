// part: which keys one of PARTS parts has of those that a query sees (src/ops/attention_part.rs).
struct Place {
    begin: u32,  // the part's first key
    end: u32,    // the first key after it; not above `begin` where the part is empty
    last: u32,   // the last key that the query sees
    base: u32,   // vector of k and v where the kv head's first key begins, in vectors of four elements
    stride: u32, // vectors from key to key
    q_at: u32,   // vector of q where the first head of the group begins
}

// `width` vectors of four a head; `query` counts sequences and their queries.
fn part_of(part: u32, kv_head: u32, query: u32, width: u32) -> Place {
    let entry = query / params.queries;
    let t = query % params.queries;
    let last = last_seen(entry, t);
    let first = first_seen(entry, t, last);
    let each = ((last + 1u - first + PARTS - 1u) / PARTS + 7u) / 8u * 8u;
    let begin = first + part * each;
    let stride = params.heads / GROUP * width;
    let base = entry * params.keys * stride + kv_head * width;
    return Place(begin, min(begin + each, last + 1u), last, base, stride,
        (query * params.heads + kv_head * GROUP) * width);
}

// The score of a dot product: scaled, and lowered by distance.
fn score(product: f32, head: u32, key: u32, place: Place) -> f32 {
#if ALIBI
    return product * params.scale + slope(head) * (f32(key) - f32(place.last));
#else
    return product * params.scale;
#endif
}
