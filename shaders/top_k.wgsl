// top_k: the K largest elements of each row with their ids, descending, of equals the lower id first; a workgroup a row.
// A row is dealt out to CHUNKS chunks whose best are kept; each round takes the best of these and looks in its chunk, all
// lanes together, for the one that comes after it. Where nothing is left (K beyond the numbers), the id is NONE.
struct Params { columns: u32, rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;

const NONE = 0xffffffffu;
const LOWEST = -3.4e38;

var<workgroup> chunk_value: array<f32, CHUNKS>;
var<workgroup> chunk_id: array<u32, CHUNKS>;
var<workgroup> lane_value: array<f32, WORKGROUP>;
var<workgroup> lane_id: array<u32, WORKGROUP>;

struct Entry { value: f32, id: u32 }

fn better(a: Entry, b: Entry) -> bool {
    return a.id != NONE && (b.id == NONE || a.value > b.value || (a.value == b.value && a.id < b.id));
}

// The best of what every lane brings; every lane must call, and every lane gets it.
fn best_of_lanes(mine: Entry, lane: u32) -> Entry {
    workgroupBarrier(); // the last result may still be read
    lane_value[lane] = mine.value;
    lane_id[lane] = mine.id;
    for (var width = WORKGROUP / 2u; width > 0u; width = width / 2u) {
        workgroupBarrier();
        if lane < width {
            let other = Entry(lane_value[lane + width], lane_id[lane + width]);
            if better(other, Entry(lane_value[lane], lane_id[lane])) {
                lane_value[lane] = other.value;
                lane_id[lane] = other.id;
            }
        }
    }
    workgroupBarrier();
    return Entry(lane_value[0], lane_id[0]);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    let at = min(row, params.rows - 1u) * params.columns;
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
    for (var n = 0u; n < K; n++) {
        workgroupBarrier();
        var mine = Entry(LOWEST, NONE);
        for (var chunk = lane; chunk < CHUNKS; chunk += WORKGROUP) {
            let entry = Entry(chunk_value[chunk], chunk_id[chunk]);
            if better(entry, mine) {
                mine = entry;
            }
        }
        let taken = best_of_lanes(mine, lane);
        if lane == 0u && row < params.rows {
            values[row * K + n] = taken.value;
            ids[row * K + n] = taken.id;
        }
        let chunk = min(taken.id, params.columns - 1u) % CHUNKS;
        var next = Entry(LOWEST, NONE);
        for (var i = chunk + lane * CHUNKS; i < params.columns; i += WORKGROUP * CHUNKS) {
            let entry = Entry(x[at + i], i);
            let after = entry.value < taken.value || (entry.value == taken.value && i > taken.id);
            if after && entry.value > LOWEST && better(entry, next) {
                next = entry;
            }
        }
        let left = best_of_lanes(next, lane);
        if lane == 0u && taken.id != NONE {
            chunk_value[chunk] = left.value;
            chunk_id[chunk] = left.id;
        }
    }
}
