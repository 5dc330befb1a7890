// route: of each row's logits the CHOICES largest (of equal ones the first), in descending order, and their weights:
// the softmax over all experts, or with NORMALISE over those that were chosen. One workgroup a row; a lane ranks an expert
// by counting those that come before it.
struct Params { rows: u32, experts: u32, skip_logits: u32, skip: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
var<workgroup> chosen: array<u32, CHOICES>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = params.skip_logits + row * params.experts;
    // Logits that are no numbers have no order: then some places keep these, which are experts too.
    for (var place = lane; place < CHOICES; place += WORKGROUP) {
        chosen[place] = place;
    }
    workgroupBarrier();
    for (var expert = lane; expert < params.experts; expert += WORKGROUP) {
        let own = logits[base + expert];
        var before = 0u;
        for (var other = 0u; other < params.experts; other++) {
            let value = logits[base + other];
            before += u32(value > own || (value == own && other < expert));
        }
        if before < CHOICES {
            chosen[before] = expert;
        }
    }
    workgroupBarrier();
    let largest = logits[base + chosen[0]];
    for (var place = lane; place < CHOICES; place += WORKGROUP) {
        var sum = 0.0;
#if NORMALISE
        for (var other = 0u; other < CHOICES; other++) {
            sum += exp(logits[base + chosen[other]] - largest);
        }
#else
        for (var other = 0u; other < params.experts; other++) {
            sum += exp(logits[base + other] - largest);
        }
#endif
        let at = params.skip + row * CHOICES + place;
        weights[at] = exp(logits[base + chosen[place]] - largest) / sum;
        ids[at] = chosen[place];
    }
}
