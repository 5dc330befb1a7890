// route_grad: towards the logits, from the gradient towards the chosen experts' weights w: with s the sum of dw·w, a chosen
// expert gets w·(dw - s); another gets nothing with NORMALISE, and -p·s, p its softmax, without. One lane a row.
struct Params { rows: u32, experts: u32, skip_logits: u32, skip: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read> dweights: array<f32>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    let base = params.skip_logits + row * params.experts;
    let at = params.skip + row * CHOICES;
    var dot = 0.0;
    for (var place = 0u; place < CHOICES; place++) {
        dot += weights[at + place] * dweights[at + place];
    }
#if NORMALISE
    for (var expert = 0u; expert < params.experts; expert++) {
        dlogits[base + expert] = 0.0;
    }
#else
    // The first choice is the largest.
    let largest = logits[base + min(ids[at], params.experts - 1u)];
    var sum = 0.0;
    for (var expert = 0u; expert < params.experts; expert++) {
        sum += exp(logits[base + expert] - largest);
    }
    for (var expert = 0u; expert < params.experts; expert++) {
        dlogits[base + expert] = -dot * exp(logits[base + expert] - largest) / sum;
    }
#endif
    for (var place = 0u; place < CHOICES; place++) {
        if ids[at + place] < params.experts {
            dlogits[base + ids[at + place]] = weights[at + place] * (dweights[at + place] - dot);
        }
    }
}
