// top_k: the K largest elements of each row with their ids, descending, of equals the lower id first; a workgroup a row.
// A row is dealt out to CHUNKS chunks whose best are kept; each round takes the best of these and looks in its chunk, all
// lanes together, for the one that comes after it. Where nothing is left (K beyond the numbers), the id is NONE. VECTOR: a
// lane looks through four chunks side by side, LOADS vectors of them at once.
struct Params { columns: u32, rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;

#import lib/item.wgsl

const NONE = 0xffffffffu;
const LOWEST = -3.4e38;

var<workgroup> chunk_value: array<f32, CHUNKS>;
var<workgroup> chunk_id: array<u32, CHUNKS>;
var<workgroup> lane_value: array<f32, WORKGROUP>;
var<workgroup> lane_id: array<u32, WORKGROUP>;

struct Entry { value: f32, id: u32 }

fn element(i: u32) -> f32 {
#if VECTOR
    return x[i / 4u][i % 4u];
#else
    return x[i];
#endif
}

// The better of two; what is none is (LOWEST, NONE), and nothing else is as low.
fn better(a: Entry, b: Entry) -> Entry {
    let is_b = b.value > a.value || (b.value == a.value && b.id < a.id);
    return Entry(select(a.value, b.value, is_b), select(a.id, b.id, is_b));
}

// So many lanes find the best of what the others bring, and then every lane the best of what these have.
const FINDING = min(WORKGROUP, 16u);

// The best of what every lane brings; every lane must call, and every lane gets it.
fn best_of_lanes(mine: Entry, lane: u32) -> Entry {
    workgroupBarrier(); // the last result may still be read
    lane_value[lane] = mine.value;
    lane_id[lane] = mine.id;
    workgroupBarrier();
    var best = mine;
    if WORKGROUP > FINDING {
        if lane < FINDING {
            for (var i = FINDING; i < WORKGROUP; i += FINDING) {
                best = better(best, Entry(lane_value[lane + i], lane_id[lane + i]));
            }
            lane_value[lane] = best.value;
            lane_id[lane] = best.id;
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < FINDING; i++) {
        best = better(best, Entry(lane_value[i], lane_id[i]));
    }
    return best;
}

#if VECTOR
// Of four chunks what is better: of equals the first stays; what is no number never gets in.
struct Entries { values: vec4<f32>, ids: vec4<u32> }

fn seen(best: Entries, v: vec4<f32>, i: u32) -> Entries {
    return Entries(select(best.values, v, v > best.values), select(best.ids, item_index(i), v > best.values));
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    let at = min(row, params.rows - 1u) * params.columns;
#if VECTOR
    for (var chunk = lane; chunk < CHUNKS / 4u; chunk += WORKGROUP) {
        var best = Entries(vec4(LOWEST), vec4(NONE));
        let end = params.columns / 4u;
        var i = chunk;
        for (; i + (LOADS - 1u) * CHUNKS / 4u < end; i += LOADS * CHUNKS / 4u) {
            var v: array<vec4<f32>, LOADS>;
            for (var j = 0u; j < LOADS; j++) {
                v[j] = x[at / 4u + i + j * CHUNKS / 4u];
            }
            for (var j = 0u; j < LOADS; j++) {
                best = seen(best, v[j], i + j * CHUNKS / 4u);
            }
        }
        for (; i < end; i += CHUNKS / 4u) {
            best = seen(best, x[at / 4u + i], i);
        }
        for (var c = 0u; c < 4u; c++) {
            chunk_value[4u * chunk + c] = best.values[c];
            chunk_id[4u * chunk + c] = best.ids[c];
        }
    }
#else
    for (var chunk = lane; chunk < CHUNKS; chunk += WORKGROUP) {
        var best = Entry(LOWEST, NONE);
        for (var i = chunk; i < params.columns; i += CHUNKS) {
            let value = x[at + i];
            // Of equals the first stays; what is no number never gets in.
            if value > best.value {
                best = Entry(value, i);
            }
        }
        chunk_value[chunk] = best.value;
        chunk_id[chunk] = best.id;
    }
#endif
    for (var n = 0u; n < K; n++) {
        workgroupBarrier();
        var mine = Entry(LOWEST, NONE);
        for (var chunk = lane; chunk < CHUNKS; chunk += WORKGROUP) {
            mine = better(mine, Entry(chunk_value[chunk], chunk_id[chunk]));
        }
        let taken = best_of_lanes(mine, lane);
        if lane == 0u && row < params.rows {
            values[row * K + n] = taken.value;
            ids[row * K + n] = taken.id;
        }
        let chunk = min(taken.id, params.columns - 1u) % CHUNKS;
        var next = Entry(LOWEST, NONE);
        for (var i = chunk + lane * CHUNKS; i < params.columns; i += WORKGROUP * CHUNKS) {
            let value = element(at + i);
            let after = value < taken.value || (value == taken.value && i > taken.id);
            if after && value > LOWEST {
                next = better(next, Entry(value, i));
            }
        }
        let left = best_of_lanes(next, lane);
        if lane == 0u && taken.id != NONE {
            chunk_value[chunk] = left.value;
            chunk_id[chunk] = left.id;
        }
    }
}
