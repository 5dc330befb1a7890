// expert_order: a stable counting sort of slots by expert, without atomics. One workgroup an expert, and a last one for
// ids beyond them (`together` ids count as one): each counts the smaller ids, which is where its own slots begin, and writes its own in order.
struct Params { slots: u32, experts: u32, together: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> starts: array<u32>;
@group(0) @binding(4) var<storage, read_write> counts: array<f32>;
var<workgroup> smaller_of: array<u32, WORKGROUP>;
var<workgroup> own_of: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let expert = group.x;
    let each = (params.slots + WORKGROUP - 1u) / WORKGROUP;
    let first = min(lane * each, params.slots);
    let end = min(first + each, params.slots);
    var smaller = 0u;
    var own = 0u;
    for (var slot = first; slot < end; slot++) {
        let id = min(ids[slot] / params.together, params.experts);
        smaller += u32(id < expert);
        own += u32(id == expert);
    }
    smaller_of[lane] = smaller;
    own_of[lane] = own;
    workgroupBarrier();
    var start = 0u;
    var before = 0u;
    var all = 0u;
    for (var other = 0u; other < WORKGROUP; other++) {
        start += smaller_of[other];
        before += select(0u, own_of[other], other < lane);
        all += own_of[other];
    }
    if lane == 0u {
        starts[expert] = start;
        if expert < params.experts {
            counts[expert] = f32(all);
        }
    }
    var at = start + before;
    for (var slot = first; slot < end; slot++) {
        if min(ids[slot] / params.together, params.experts) == expert {
            order[at] = slot;
            at++;
        }
    }
}
