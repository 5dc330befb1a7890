// attention_products: the two products of attention's tiles, over what lib/attention_tile.wgsl loads and stages: all lanes call.

// Adds to `s` the products of a pair: all own rows with the KEYS streamed ones from `row` on, whose first chunk is loaded.
fn products(s: ptr<function, Scores>, next: ptr<function, Ahead>, pair: u32, place: Place, row: u32, then: u32, lane: u32) {
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
        workgroupBarrier();
#if WHOLE
        let of_own = own_tile(pair) + chunk * CHUNK;
#else
        let of_own = 0u;
        stage_own(next, pair, chunk, lane);
#endif
        for (var i = 0u; i < LOADS; i++) {
            if (i + 1u) * LANES <= KEYS * CHUNK || lane + i * LANES < KEYS * CHUNK {
                let e = part(i, KEYS, CHUNK, lane);
                tile[e.x * STEP + e.y] = Staged(operand4((*next).streamed[i]));
            }
        }
        workgroupBarrier();
        if chunk + 1u < CHUNKS {
            load_chunk(next, pair, place, row, chunk + 1u, lane);
        } else {
            load_first(next, then, place, row, lane);
        }
        for (var c = 0u; c < CHUNK; c++) {
            var x: array<vec4<f32>, MINE>;
            for (var n = 0u; n < MINE; n++) {
                x[n] = vec4<f32>(tile[(16u * n + lane % 16u) * STEP + c]);
            }
            for (var h = 0u; h < HIGH; h++) {
                let at = of_own + (lane / 16u * HIGH + h) * 4u * OWN_STEP + c;
                let a0 = vec4<f32>(tile_own[at]);
                let a1 = vec4<f32>(tile_own[at + OWN_STEP]);
                let a2 = vec4<f32>(tile_own[at + 2u * OWN_STEP]);
                let a3 = vec4<f32>(tile_own[at + 3u * OWN_STEP]);
                for (var n = 0u; n < MINE; n++) {
                    (*s)[n][h] += vec4(dot(a0, x[n]), dot(a1, x[n]), dot(a2, x[n]), dot(a3, x[n]));
                }
            }
        }
    }
}

// Adds to `sums` the KEYS streamed rows of a pair from `row` on, whose first slab is loaded, each by its weight for each own
// row. `then` is loaded next, of row `then_row`, where there is one. The weights are used up.
fn weighted(sums: ptr<function, Sums>, w: ptr<function, Scores>, next: ptr<function, Ahead>, pair: u32, place: Place, row: u32,
        then: u32, then_row: u32, lane: u32) {
    for (var slab = 0u; slab < SLABS; slab++) {
        workgroupBarrier();
        if slab * SLAB % 16u == 0u {
            for (var h = 0u; h < HIGH; h++) {
                weights[lane % 16u * WEIGHTS + lane / 16u * HIGH + h] = Staged(operand4((*w)[0][h]));
            }
            // Those of the next sixteen move up: registers are not chosen by a variable.
            for (var n = 1u; n < MINE; n++) {
                (*w)[n - 1u] = (*w)[n];
            }
        }
        for (var i = 0u; i < SLAB_LOADS; i++) {
            let e = lane + i * LANES;
            if (i + 1u) * LANES <= SLAB * C4 || e < SLAB * C4 {
                tile[e] = Staged(operand4((*next).streamed[i]));
            }
        }
        workgroupBarrier();
        if slab + 1u < SLABS {
            load_slab(next, pair, place, row + (slab + 1u) * SLAB, lane);
        } else if then_row < place.end {
            load_first(next, then, place, then_row, lane);
        }
        let first = slab * SLAB % 16u;
        for (var some = 0u; some < SLAB; some += BESIDE) {
            for (var beside = 0u; beside < BESIDE; beside++) {
                let i = some + beside;
                for (var n = 0u; n < COLUMNS; n++) {
                    let x = vec4<f32>(tile[i * C4 + min(16u * n + lane % 16u, C4 - 1u)]);
                    for (var h = 0u; h < HIGH; h++) {
                        let by = vec4<f32>(weights[(first + i) * WEIGHTS + lane / 16u * HIGH + h]);
                        (*sums)[h][n][0] += by.x * x;
                        (*sums)[h][n][1] += by.y * x;
                        (*sums)[h][n][2] += by.z * x;
                        (*sums)[h][n][3] += by.w * x;
                    }
                }
            }
        }
    }
}
