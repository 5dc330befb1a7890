// scores: what kernels share that take the rows of a block of scores, [heads, rows, keys], eight to a workgroup, of a tile's keys
// a lane four in 32. Reads params.rows and what lib/seen.wgsl does.
#import lib/seen.wgsl

// The keys in the tiles that a query of row0's tile sees: from this lane's first on, without y.
fn seen_keys(row0: u32, lane: u32) -> vec2<u32> {
    let tile = row0 / 64u * 64u;
    let tiles = seen_tiles(tile, min(tile + 64u, params.rows));
    return vec2(tiles.x * 64u + 4u * lane, min(tiles.y * 64u, params.keys));
}

// A lane's keys from j on.
fn keys_from(j: u32) -> vec4<u32> {
    return vec4(j) + vec4(0u, 1u, 2u, 3u);
}

// Products of a query whose last key is `last` with these keys, as what the softmax is of: scaled, and biased by distance.
fn scaled(product: vec4<f32>, scale: f32, head: u32, keys: vec4<u32>, last: u32) -> vec4<f32> {
#if ALIBI
    return product * scale + slope(head) * (vec4<f32>(keys) - f32(last));
#else
    return product * scale;
#endif
}
