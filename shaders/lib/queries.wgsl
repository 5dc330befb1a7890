// queries: what is known of the KEYS queries that stream by where keys are a workgroup's own rows, loaded once for all lanes
// (attention_grad_key_value_coop.wgsl).

// A query that streams by: the last and the first key that it sees; lse as a power of two, and delta, scaled.
struct Query { last: u32, from_key: u32, lse: f32, delta: f32 }
var<workgroup> query: array<Query, KEYS>;
const QUERIES = (KEYS + LANES - 1u) / LANES;
alias Queries = array<Query, QUERIES>;

fn load_queries(next: ptr<function, Queries>, place: Place, row: u32, lane: u32) {
    for (var i = 0u; i < QUERIES; i++) {
        let at = min(row + (lane + i * LANES) % KEYS, max(place.end, 1u) - 1u);
        let last = last_seen(place.group.z, at / GROUP);
        let stat = stats[stat_of_row(place.group, at)];
        (*next)[i] = Query(last, first_seen(place.group.z, at / GROUP, last), stat.x * LOG2_E, stat.y * params.scale);
    }
}

fn stage_queries(next: ptr<function, Queries>, lane: u32) {
    for (var i = 0u; i < QUERIES; i++) {
        query[(lane + i * LANES) % KEYS] = (*next)[i];
    }
}
