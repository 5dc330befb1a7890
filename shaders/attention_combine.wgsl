// attention_combine: the results of attention_part.wgsl over PARTS parts to attention's; one lane a vector of four.
// o = sum of exp(m_i - m) o_i / sum of exp(m_i - m) sum_i with m the largest m_i; parts without keys have a sum of 0.
struct Params { count: u32, width: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> o: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let row = i / params.width * PARTS;
    var largest = -3.0e38;
    for (var part = row; part < row + PARTS; part++) {
        let stat = stats[part];
        largest = max(largest, select(-3.0e38, stat.x, stat.y > 0.0));
    }
    var sum = 0.0;
    var total = vec4<f32>();
    for (var part = row; part < row + PARTS; part++) {
        let stat = stats[part];
        let weight = select(0.0, exp(stat.x - largest), stat.y > 0.0);
        sum += weight * stat.y;
        total += weight * parts[part * params.width + i % params.width];
    }
    o[i] = total / sum;
}
