// rms_norm_grad: dx = r gain dy - x r^3 mean(gain dy x) over rows of `columns` items; and of the gain's gradient its parts, each
// the sum of dy x r over rows_per_part rows. A workgroup has a part, of whose rows it takes TOGETHER at a time, LANES lanes
// a row and SUMS items of it a lane, of which only the last may stand beyond it. ITEMS: x and dy of a row are loaded once.
// Without PARTS nobody wants the gain's gradient.
struct Params { rows: u32, columns: u32, rows_per_part: u32, skip: u32, skip_rows: u32, skip_parts: u32, whole: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> gain: array<Item>;
@group(0) @binding(3) var<storage, read> inverse_rms: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<Item>;
@group(0) @binding(5) var<storage, read_write> dx: array<Item>;
#if PARTS
@group(0) @binding(6) var<storage, read_write> parts: array<Item>;
#endif
#import lib/item.wgsl
#import lib/reduce.wgsl
#hook epilogue

const TOGETHER = WORKGROUP / LANES;
#if PARTS
var<workgroup> shares: array<Item, WORKGROUP>;
#endif

// Item i of what is bound, as it is stored.
fn stored(v: Item, i: u32) -> Item {
    let at = params.whole + i * ITEM;
#if VECTOR
    return vec4(epilogue(v.x, at), epilogue(v.y, at + 1u), epilogue(v.z, at + 2u), epilogue(v.w, at + 3u));
#else
    return epilogue(v, at);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let along = lane % LANES;
    let columns = params.columns;
    let skip = params.skip;
    let skip_rows = params.skip_rows;
    let first = group.x * params.rows_per_part;
    let end = min(first + params.rows_per_part, params.rows);
#if PARTS
    var sums: array<Item, SUMS>;
#endif
#if ITEMS
    var g: array<Item, SUMS>;
    for (var i = 0u; i < SUMS; i++) {
        g[i] = gain[min(along + i * LANES, columns - 1u)];
    }
#endif
    for (var start = first; start < end; start += TOGETHER) {
        let own = start + lane / LANES;
        // Lanes without a row go along, for all must meet.
        let row = min(own, end - 1u);
        let at = skip + row * columns;
        let r = inverse_rms[skip_rows + row];
        var dot = 0.0;
#if ITEMS
        var v: array<Item, SUMS>;
        var d: array<Item, SUMS>;
        for (var i = 0u; i < SUMS; i++) {
            v[i] = x[at + min(along + i * LANES, columns - 1u)];
            d[i] = dy[at + min(along + i * LANES, columns - 1u)];
        }
        for (var i = 0u; i < SUMS; i++) {
            dot += select(0.0, item_sum(g[i] * d[i] * v[i]), along + i * LANES < columns);
        }
#else
        for (var i = along; i < columns; i += LANES) {
            dot += item_sum(gain[i] * dy[at + i] * x[at + i]);
        }
#endif
        let factor = r * r * r * (reduce_sum(dot, lane) / f32(columns * ITEM));
        if own < end {
#if ITEMS
            for (var i = 0u; i < SUMS; i++) {
#if PARTS
                sums[i] += d[i] * v[i] * r;
#endif
                v[i] = stored(r * g[i] * d[i] - v[i] * factor, at + min(along + i * LANES, columns - 1u));
            }
            for (var i = 0u; i < SUMS; i++) {
                if i + 1u < SUMS || along + i * LANES < columns {
                    dx[at + along + i * LANES] = v[i];
                }
            }
#else
            for (var i = 0u; i < SUMS; i++) {
                let column = along + i * LANES;
                if column < columns {
                    let v = x[at + column];
                    let d = dy[at + column];
#if PARTS
                    sums[i] += d * v * r;
#endif
                    dx[at + column] = stored(r * gain[column] * d - v * factor, at + column);
                }
            }
#endif
        }
    }
#if PARTS
    let to = params.skip_parts + group.x * columns;
    for (var i = 0u; i < SUMS; i++) {
        var sum = sums[i];
        if TOGETHER > 1u {
            workgroupBarrier(); // the shares may still be read for the previous items
            shares[lane] = sum;
            workgroupBarrier();
            for (var j = 1u; j < TOGETHER; j++) {
                sum += shares[j * LANES + along];
            }
        }
        if lane < LANES && along + i * LANES < columns {
            parts[to + along + i * LANES] = sum;
        }
    }
#endif
}
