// seen: attention in passes (src/ops/attention_passes.rs) takes queries and keys by tiles of 64: of a block's scores those tiles
// are made, and read, of which a query sees a key. Reads what lib/query.wgsl does, and params.query, the block's first query.
@group(0) @binding(4) var<storage, read> position: array<u32>;
#import lib/query.wgsl

// The tiles of keys that queries of the block from `row` on, without `end`, see: from x on, without y.
fn seen_tiles(row: u32, end: u32) -> vec2<u32> {
    let first = begin_key(0u, params.query + row);
    let last = last_seen(0u, params.query + end - 1u);
    return vec2(first / 64u, last / 64u + 1u);
}

#if OWN
// The part of the sum that rows row0 to end of c have, in its tile of columns: k from x on, without y, which is not beyond x
// where there is none.
fn seen_part(row0: u32, end: u32, column: u32) -> vec2<u32> {
#if TA
    // c is keys by a head's width: the queries that see them. These are neighbours.
    var part = vec2(params.k, 0u);
    for (var k = 0u; k < params.k; k += 64u) {
        let tiles = seen_tiles(k, min(k + 64u, params.k));
        if (row0 / 64u >= tiles.x) & (row0 / 64u < tiles.y) {
            part = vec2(min(part.x, k), min(k + 64u, params.k));
        }
    }
    return part;
#else
    let tiles = seen_tiles(row0, end);
#if TB
    // c is queries by keys.
    return vec2(0u, select(0u, params.k, (column >= tiles.x) & (column < tiles.y)));
#else
    // c is queries by a head's width: the keys that they see, and none behind, which need not be numbers.
    return vec2(64u * tiles.x, last_seen(0u, params.query + end - 1u) + 1u);
#endif
#endif
}
#endif
