//! Attention in passes, for a CPU's lanes: for a block of queries scores, their softmax, and what is made of that are each
//! written to scratch memory by a kernel of its own, products by `matmul_own.wgsl`. Of the matrices of T×S no more than a
//! block is there at a time, and of that only tiles of 64 by 64 in which a query sees a key. Backward, five products serve
//! queries, keys and values, where kernels that keep scores in registers make seven. Legend as in `attention_sizes.rs`.

use super::attention_sizes::{Kind, Sizes, each};
use super::matmul_kernels::hands_on;
use super::windows::ranges;
use crate::base::{DType, Limits};
use crate::graph::{Dispatch, Io, Kernel, Operand};
use std::ops::Range;

/// Queries, and keys, of a tile: what a workgroup of `matmul_own.wgsl` makes.
const TILE: usize = 64;
/// Queries of a block, the most first.
const BLOCKS: [usize; 3] = [4 * TILE, 2 * TILE, TILE];
/// Bytes that the scores of a block are to take at most, whatever the operands.
const BYTES: usize = 8 << 20;
/// The most blocks: each has stages of its own.
const MOST: usize = 1024;
/// Narrower heads leave most lanes of a product without work.
const WIDTH: usize = 32;
/// Queries of a workgroup of the softmax, which divide a tile's.
const ROWS: usize = 8;

/// How one attention is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes<'a> {
    z: Sizes,
    kind: Kind,
    io: &'a Io,
    /// Matrices of a block: scores, and backward their gradients.
    matrices: usize,
    /// Sequences, kv heads and queries that are taken at a time.
    entries: usize,
    heads: usize,
    block: usize,
}

/// Queries of one sequence that are taken at a time, and where their scores lie.
#[derive(Debug, Clone)]
struct Block {
    slot: usize,
    entry: usize,
    /// Kv heads.
    heads: Range<usize>,
    queries: Range<usize>,
}

/// A matrix of each of some heads, counted in elements.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    operand: Operand,
    /// What is bound of it.
    start: usize,
    count: usize,
    /// Where in that the first head's first row begins, and how far it is to the next row and to the next head.
    skip: usize,
    row: usize,
    head: usize,
}

impl Matrix {
    /// Of every `step`th head, from number `first` on.
    fn every(self, step: usize, first: usize) -> Matrix {
        Matrix { skip: self.skip + first * self.head, head: self.head * step, ..self }
    }
}

/// The products of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    /// Queries by keys, over a head's width.
    Scores,
    /// Queries by a head's width, over the keys.
    OfQueries,
    /// Keys by a head's width, over the queries.
    OfKeys,
}

impl<'a> Passes<'a> {
    /// For operands and limits that allow for it.
    pub fn of(io: &'a Io, limits: &Limits, kind: Kind, matrices: usize) -> Option<Passes<'a>> {
        let z = Sizes::of_io(io);
        let is_suited = hands_on(limits) && kind.pieces.is_none() && io.inputs[1].dtype == DType::F32;
        // Vectors of four lie along rows of every matrix.
        let fours = z.t.is_multiple_of(4) && z.s.is_multiple_of(4);
        if !is_suited || !fours || z.t < TILE || z.c < WIDTH {
            return None;
        }
        let bytes = |heads: usize, block| 4 * heads * z.group() * rows(&z, block) * z.s;
        // What is little itself is not to be held up by what is much.
        let whole: u64 = io.inputs.iter().chain(&io.outputs).map(|ty| ty.bytes()).sum();
        let most = BYTES.min(whole as usize / matrices);
        let block = BLOCKS.into_iter().find(|&block| bytes(z.k, block) <= most).unwrap_or(TILE);
        let heads = (most / bytes(1, block)).clamp(1, z.k);
        let entries = if heads == z.k { (most / bytes(z.k, block)).clamp(1, z.b) } else { 1 };
        let passes = Passes { z, kind, io, matrices, entries, heads, block };
        let scores = (4 * matrices * passes.slot()) as u64;
        let largest = io.inputs.iter().chain(&io.outputs).map(|ty| ty.bytes()).fold(scores, u64::max);
        let blocks = z.b.div_ceil(entries) * z.k.div_ceil(heads) * z.t.div_ceil(block);
        (largest <= limits.max_binding_bytes && blocks <= MOST).then_some(passes)
    }

    /// Bytes of scratch memory.
    pub fn bytes(&self) -> u64 {
        (4 * self.entries * self.matrices * self.slot()) as u64
    }

    /// o and lse from q, k, v and position. The tuner knows a kernel by its first stage, which has the same text as the gradient's:
    /// so they are named apart.
    pub fn forward(&self) -> Kernel {
        let [q, k, v, position] = [0, 1, 2, 3].map(Operand::Input);
        let [o, lse] = [0, 1].map(Operand::Output);
        self.stages(position, |blocks| {
            let scores =
                |b: &Block| self.product(Product::Scores, b, [self.queries(q, b), self.keys(k, b), self.scores(0, b)]);
            let softmax = |b: &Block| self.softmax(b, 1).bind("lse", lse, 0, self.io.outputs[1].bytes());
            let values = |b: &Block| {
                self.product(Product::OfQueries, b, [self.scores(0, b), self.keys(v, b), self.queries(o, b)])
            };
            vec![
                (self.products("passes", Product::Scores), blocks.iter().map(scores).collect()),
                (self.kernel("attention_softmax", "softmax"), blocks.iter().map(softmax).collect()),
                (self.products("values", Product::OfQueries), blocks.iter().map(values).collect()),
            ]
        })
    }

    /// dq, dk and dv from q, k, v, dy, stats and position.
    pub fn gradient(&self) -> Kernel {
        let [q, k, v, dy, stats, position] = [0, 1, 2, 3, 4, 5].map(Operand::Input);
        let [dq, dk, dv] = [0, 1, 2].map(Operand::Output);
        self.stages(position, |blocks| {
            let scores = |b: &Block| {
                [(q, k, 0), (dy, v, 1)].map(|(rows, columns, i)| {
                    self.product(Product::Scores, b, [self.queries(rows, b), self.keys(columns, b), self.scores(i, b)])
                })
            };
            let softmax = |b: &Block| {
                let d = self.softmax(b, 2).param("gradients", self.slot());
                d.bind("stats", stats, 0, self.io.inputs[4].bytes())
            };
            let of_queries = |b: &Block| {
                self.product(Product::OfQueries, b, [self.scores(1, b), self.keys(k, b), self.queries(dq, b)])
            };
            // Query heads of a group add to the same gradients, one after another.
            let group = self.z.group();
            let of_keys = |b: &Block| {
                let of_head = |head: usize| {
                    [(1, q, dk), (0, dy, dv)].map(|(i, rows, sums)| {
                        let operands = [self.scores(i, b), self.queries(rows, b)].map(|m| m.every(group, head));
                        let d = self.product(Product::OfKeys, b, [operands[0], operands[1], self.keys(sums, b)]);
                        d.param("first", usize::from(b.queries.start == 0 && head == 0))
                    })
                };
                (0..group).flat_map(of_head).collect::<Vec<_>>()
            };
            vec![
                (self.products("passes_grad", Product::Scores), blocks.iter().flat_map(scores).collect()),
                (self.kernel("attention_softmax_grad", "softmax"), blocks.iter().map(softmax).collect()),
                (self.products("queries", Product::OfQueries), blocks.iter().map(of_queries).collect()),
                (self.products("keys", Product::OfKeys), blocks.iter().flat_map(of_keys).collect()),
            ]
        })
    }

    /// The stages of all blocks as one kernel.
    fn stages(&self, position: Operand, of: impl Fn(&[Block]) -> Vec<(Kernel, Vec<Dispatch>)>) -> Kernel {
        let Operand::Input(i) = position else { unreachable!("positions are an input") };
        let told = |d: Dispatch| d.bind("position", position, 0, self.io.inputs[i].bytes());
        let stage = |queries: &Range<usize>, (kernel, dispatches): (Kernel, Vec<Dispatch>)| {
            let (scores, keys) = self.seen(queries);
            let (c, rows) = (self.z.c as u64, queries.len() as u64);
            // A product has a head for each of its workgroups along z, a softmax, whose operations hardly count, along y.
            let heads = |axis: usize| dispatches.iter().map(|d| u64::from(d.workgroups[axis])).sum::<u64>();
            let (flops, bytes) = match kernel.shader {
                "matmul_own" => (2 * heads(2) * scores * c, 4 * heads(2) * (scores + (rows + keys) * c)),
                // Reads scores and writes others in their place.
                _ => (0, 4 * heads(1) * 2 * self.matrices as u64 * scores),
            };
            Kernel { flops, bytes, dispatches: dispatches.into_iter().map(told).collect(), ..kernel }
        };
        let made = self.blocks().into_iter().flat_map(|blocks| {
            let queries = blocks[0].queries.clone();
            of(&blocks).into_iter().map(move |made| stage(&queries, made))
        });
        let mut stages: Vec<Kernel> = made.collect();
        let first = stages.remove(0);
        Kernel { scratch: self.bytes(), then: stages, ..first }
    }

    /// Scores of one head in the tiles of these queries, and the keys in these, as far as the shapes tell.
    fn seen(&self, queries: &Range<usize>) -> (u64, u64) {
        let position = self.z.s.saturating_sub(self.z.t);
        let keys = |row: usize| (position + row + TILE).next_multiple_of(TILE).min(self.z.s);
        let tiles = queries.clone().step_by(TILE);
        tiles.fold((0, 0), |(scores, _), row| (scores + (TILE * keys(row)) as u64, keys(row) as u64))
    }

    /// What is taken at a time, in order.
    fn blocks(&self) -> Vec<Vec<Block>> {
        let mut all = Vec::new();
        for entries in ranges(self.z.b, self.entries) {
            for heads in ranges(self.z.k, self.heads) {
                for queries in ranges(self.z.t, self.block) {
                    let block = |(slot, entry)| Block { slot, entry, heads: heads.clone(), queries: queries.clone() };
                    all.push(entries.clone().enumerate().map(block).collect());
                }
            }
        }
        all
    }

    fn kernel(&self, shader: &'static str, name: &str) -> Kernel {
        each(self.kind.mask.constants(Kernel::new(shader, name), self.z.h), self.io.inputs.last())
    }

    fn products(&self, name: &str, product: Product) -> Kernel {
        let half = if self.kind.operands.are_half() { "_half" } else { "" };
        let kernel = Kernel::new("matmul_own", format!("{name}{half}"))
            .constant("TA", usize::from(product == Product::OfKeys))
            .constant("TB", usize::from(product == Product::Scores));
        let kernel = if self.kind.operands.are_half() { kernel.constant("HALF", 1) } else { kernel };
        let kernel = kernel.constant("OWN", 1).constant("SEEN", 1);
        // Each query head has a matrix of its own, but for sums over them.
        let kernel = if product == Product::OfKeys { kernel } else { kernel.constant("GROUP", self.z.group()) };
        each(self.kind.mask.constants(kernel, self.z.h), self.io.inputs.last())
    }

    /// What both kinds of shaders are told.
    fn told(&self, d: Dispatch, b: &Block) -> Dispatch {
        d.param("queries", self.z.t).param("keys", self.z.s).param("entry", b.entry).param("query", b.queries.start)
    }

    fn product(&self, product: Product, b: &Block, operands: [Matrix; 3]) -> Dispatch {
        let (z, rows) = (&self.z, b.queries.len());
        let [m, n, k] = match product {
            Product::Scores => [rows, z.s, z.c],
            Product::OfQueries => [rows, z.c, z.s],
            Product::OfKeys => [z.s, z.c, rows],
        };
        let heads = if product == Product::OfKeys { b.heads.len() } else { b.heads.len() * z.group() };
        let groups = [n.div_ceil(TILE), m.div_ceil(TILE), heads];
        let mut d = self.told(Dispatch::new(groups.map(|n| n as u32)), b);
        d = d.param("m", m).param("n", n).param("k", k).param("rows", TILE).param("last", 1usize);
        d = d.param("whole_a", 0usize).param("whole_c", 0usize);
        if product != Product::OfKeys {
            d = d.param("first", 1usize);
        }
        let names = [
            ["a", "skip_a", "row_a", "batch_a"],
            ["b", "skip_b", "row_b", "batch_b"],
            ["c", "skip_c", "row_c", "batch_c"],
        ];
        for ([name, skip, row, batch], x) in names.into_iter().zip(operands) {
            d = d.param(skip, x.skip).param(row, x.row).param(batch, x.head);
            d = d.bind(name, x.operand, 4 * x.start as u64, 4 * x.count as u64);
        }
        d
    }

    /// Of so many matrices of scores.
    fn softmax(&self, b: &Block, matrices: usize) -> Dispatch {
        let (z, rows) = (&self.z, b.queries.len());
        let groups = [rows.div_ceil(ROWS) as u32, (b.heads.len() * z.group()) as u32, 1];
        let d = self.told(Dispatch::new(groups), b);
        let d = d.param("rows", rows).param("heads", z.h).param("head", b.heads.start * z.group());
        let scores = self.scores(0, b);
        d.param("scale", 1.0 / (z.c as f32).sqrt()).bind(
            "scores",
            scores.operand,
            4 * scores.start as u64,
            4 * (matrices * self.slot()) as u64,
        )
    }

    /// A block's queries, or what has their shape.
    fn queries(&self, operand: Operand, b: &Block) -> Matrix {
        let z = &self.z;
        let skip = z.q_at(b.entry, b.queries.start, b.heads.start * z.group());
        Matrix { operand, start: 0, count: z.b * z.t * z.h * z.c, skip, row: z.h * z.c, head: z.c }
    }

    /// All keys, or what has their shape.
    fn keys(&self, operand: Operand, b: &Block) -> Matrix {
        let z = &self.z;
        let skip = z.k_at(b.entry, 0, b.heads.start * z.group());
        Matrix { operand, start: 0, count: z.b * z.s * z.k * z.c, skip, row: z.k * z.c, head: z.c }
    }

    /// Number `i` of a block's matrices of scores.
    fn scores(&self, i: usize, b: &Block) -> Matrix {
        let rows = b.queries.len();
        let start = (b.slot * self.matrices + i) * self.slot();
        Matrix { operand: Operand::Scratch, start, count: self.slot(), skip: 0, row: self.z.s, head: rows * self.z.s }
    }

    /// Elements of a matrix of scores, so many that the next one begins where a binding may.
    fn slot(&self) -> usize {
        self.heads * self.z.group() * rows(&self.z, self.block) * self.z.s
    }
}

/// Queries of a block, which there may be fewer of.
fn rows(z: &Sizes, block: usize) -> usize {
    block.min(z.t.next_multiple_of(TILE))
}

#[cfg(test)]
mod tests {
    use super::super::{Mask, Operands};
    use super::*;
    use crate::base::TensorType;

    const KIND: Kind = Kind { mask: Mask { window: None, alibi: false }, operands: Operands::F32, pieces: None };

    fn io([b, t, h, k, c]: [usize; 5]) -> Io {
        let [q, keys] = [h, k].map(|heads| TensorType::f32([b, t, heads, c]));
        let inputs = vec![q.clone(), keys.clone(), keys, TensorType::u32([1])];
        Io { inputs, outputs: vec![q, TensorType::f32([b, h, t])] }
    }

    fn limits() -> Limits {
        Limits { is_cpu: true, min_subgroup: 8, max_subgroup: 8, max_binding_bytes: 1 << 30, ..Limits::default() }
    }

    #[test]
    fn blocks_cover_every_query_once_within_their_memory() {
        // One sequence and several, with more heads than are taken at a time, and with fewer sequences.
        for sizes in
            [[1, 1024, 9, 3, 64], [2, 324, 3, 1, 32], [3, 4096, 32, 8, 64], [40, 128, 9, 9, 64], [1, 64, 1, 1, 32]]
        {
            let io = io(sizes);
            let passes = Passes::of(&io, &limits(), KIND, 2).expect("it is suited");
            let z = passes.z;
            let mut seen = vec![0; z.b * z.k * z.t];
            for block in passes.blocks().into_iter().flatten() {
                let most = block.heads.len() * z.group() * block.queries.len() * z.s;
                assert!(most <= passes.slot() && block.slot < passes.entries, "{sizes:?}: {block:?}");
                assert!(block.queries.start.is_multiple_of(TILE), "{sizes:?}: {block:?}");
                for head in block.heads.clone() {
                    block.queries.clone().for_each(|t| seen[(block.entry * z.k + head) * z.t + t] += 1);
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{sizes:?}");
            assert!(passes.bytes() <= 2 * BYTES as u64, "{sizes:?}: {} bytes", passes.bytes());
        }
    }

    /// Of a block as much as the tiles that its queries see, and all together hardly more than the operator costs.
    #[test]
    fn stages_say_what_they_compute_and_move() {
        let io = io([1, 1024, 9, 3, 64]);
        let passes = Passes::of(&io, &limits(), KIND, 1).expect("it is suited");
        let kernel = passes.forward();
        let softmax: Vec<u64> = kernel.stages().filter(|s| s.shader == "attention_softmax").map(|s| s.bytes).collect();
        // Blocks of two tiles, of which the first see one and two tiles of keys, and the last 15 and 16; read and written.
        let of_heads = 2 * 4 * 9 * (TILE * TILE) as u64;
        assert_eq!((softmax.len(), softmax[0], softmax[7]), (8, 3 * of_heads, 31 * of_heads));
        let cost = 4 * 64 * passes.z.pairs();
        let told: u64 = kernel.stages().map(|stage| stage.flops).sum();
        assert!(told >= cost && told < cost * 11 / 10, "{told} operations, and {cost} without the edges of tiles");
        let shares = kernel.shares(cost);
        assert_eq!(shares.iter().sum::<u64>(), cost);
        assert!(shares[0] < shares[shares.len() - 3], "the first block sees the fewest keys: {shares:?}");
        // The rest is in products: a block's scores are written by one and read by another.
        let moved: u64 = kernel.traffic(io.bytes()).iter().sum();
        let scores = softmax.iter().sum::<u64>();
        assert!(moved > 2 * scores && moved < 3 * scores, "{moved} bytes, {scores} by the softmax");
    }

    #[test]
    fn the_most_blocks_need_no_deep_stack() {
        let made = || {
            let mut io = io([1, MOST * TILE, 1, 1, 32]);
            // dy and stats.
            io.inputs.insert(3, io.outputs[0].clone());
            io.inputs.insert(4, TensorType::f32([1, 1, MOST * TILE, 2]));
            let kernel = Passes::of(&io, &limits(), KIND, 2).expect("it is suited").gradient();
            assert_eq!(kernel.stages().count(), 4 * MOST);
            assert!(kernel.clone() == kernel && !format!("{kernel:?}").is_empty());
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(made).unwrap().join().unwrap();
    }

    #[test]
    fn memory_is_linear_in_tokens() {
        let bytes = |t| Passes::of(&io([1, t, 9, 3, 64]), &limits(), KIND, 2).map(|passes| passes.bytes());
        // As much as is allowed for a long time, and then a tile of the query heads of one kv head.
        for t in [1024, 4096, 8192] {
            assert!(bytes(t).unwrap() <= 2 * BYTES as u64, "{t}");
        }
        for t in [16_384, 20_480] {
            assert_eq!(bytes(t), Some((2 * 4 * 3 * TILE * t) as u64));
        }
    }

    #[test]
    fn what_is_not_suited_has_no_passes() {
        let none = |io: &Io, limits: &Limits| Passes::of(io, limits, KIND, 1).is_none();
        let suited = io([1, 128, 3, 1, 64]);
        assert!(!none(&suited, &limits()));
        // Too many blocks; a GPU; few queries; a number of them that no vector divides; narrow heads; a narrow cache; small
        // bindings.
        assert!(none(&io([1, 65_536, 9, 3, 64]), &limits()));
        assert!(none(&suited, &Limits::default()));
        assert!(none(&io([1, 60, 3, 1, 64]), &limits()) && none(&io([1, 130, 3, 1, 64]), &limits()));
        assert!(none(&io([1, 128, 3, 1, 16]), &limits()));
        let mut cache = suited.clone();
        (cache.inputs[1].dtype, cache.inputs[2].dtype) = (DType::F16, DType::F16);
        assert!(none(&cache, &limits()));
        assert!(none(&suited, &Limits { max_binding_bytes: 1 << 16, ..limits() }));
    }
}
