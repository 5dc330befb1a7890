// eight: the vectors of eight lanes, handed to each of them. For workgroups of 8 that lie in one subgroup.
fn eight(own: vec4<f32>) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(subgroupBroadcast(own, 0u), subgroupBroadcast(own, 1u), subgroupBroadcast(own, 2u),
        subgroupBroadcast(own, 3u), subgroupBroadcast(own, 4u), subgroupBroadcast(own, 5u), subgroupBroadcast(own, 6u),
        subgroupBroadcast(own, 7u));
}
