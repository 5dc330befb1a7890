// map: an elementwise expression, put in by the fuser, over items start .. start + count of the result; PAIR: and a second
// one, into z.
struct Params { start: u32, count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<WrittenItem>;
#if PAIR
@group(0) @binding(2) var<storage, read_write> z: array<WrittenItem>;
#endif
#import lib/written_item.wgsl
#hook map
#if PAIR
#hook second
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i < params.count {
        y[i] = written_item(map(i, params.start + i));
#if PAIR
        z[i] = written_item(second(i, params.start + i));
#endif
    }
}
