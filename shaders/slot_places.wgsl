// slot_places: from slots sorted by the rank that holds their expert, where each slot lies in what ranks exchange, and which
// slot lies at each place. Of rank r's slots the first `capacity` lie side by side from place r capacity on; the others
// lie nowhere. One lane a place, and a slot.
struct Params { slots: u32, ranks: u32, capacity: u32, choices: u32, experts: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> starts: array<u32>;
@group(0) @binding(4) var<storage, read_write> places: array<u32>;
@group(0) @binding(5) var<storage, read_write> slots: array<u32>;
@group(0) @binding(6) var<storage, read_write> rows: array<u32>;
@group(0) @binding(7) var<storage, read_write> experts: array<u32>;
@group(0) @binding(8) var<storage, read_write> dropped: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let all = params.ranks * params.capacity;
    if i < all {
        let rank = i / params.capacity;
        let at = starts[rank] + i % params.capacity;
        var slot = params.slots;
        var expert = params.experts;
        if at < starts[rank + 1u] {
            slot = order[at];
            expert = ids[slot] % params.experts;
        }
        slots[i] = slot;
        rows[i] = slot / params.choices;
        experts[i] = expert;
    }
    if i < params.slots {
        let slot = order[i];
        let rank = ids[slot] / params.experts;
        var place = all;
        if rank < params.ranks {
            let at = i - starts[rank];
            if at < params.capacity {
                place = rank * params.capacity + at;
            }
        }
        places[slot] = place;
    }
    if i < params.ranks {
        let count = starts[i + 1u] - starts[i];
        dropped[i] = f32(max(count, params.capacity) - params.capacity);
    }
}
