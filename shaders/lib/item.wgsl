// Item: what a lane takes at a time: with VECTOR four neighbouring elements, else one.
#if VECTOR
const ITEM = 4u;
alias Item = vec4<f32>;
alias Index = vec4<u32>;
fn item_sum(four: Item) -> f32 { return (four.x + four.y) + (four.z + four.w); }
fn item_max(four: Item) -> f32 { return max(max(four.x, four.y), max(four.z, four.w)); }
fn item_index(i: u32) -> Index { return vec4(4u * i) + vec4(0u, 1u, 2u, 3u); }
#else
const ITEM = 1u;
alias Item = f32;
alias Index = u32;
fn item_sum(one: Item) -> f32 { return one; }
fn item_max(one: Item) -> f32 { return one; }
fn item_index(i: u32) -> Index { return i; }
#endif
