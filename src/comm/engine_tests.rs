//! What every engine must do, as any rank sees it: sums, bytes and groups against plain loops.

use super::*;
use half::{bf16, f16};
use std::sync::Arc;

/// Some bytes that are any rank's own.
fn noise(seed: u64, rank: usize, bytes: usize) -> Vec<u8> {
    let mut rng = crate::base::Rng::new(seed, rank as u64);
    (0..bytes).map(|_| rng.below(256) as u8).collect()
}

/// Numbers of any size, so that the order of a sum shows.
fn numbers(seed: u64, rank: usize, count: usize, of: Element) -> Vec<u8> {
    let mut rng = crate::base::Rng::new(seed, rank as u64);
    let mut number = || (rng.below(2_000_001) as f32 / 1e6 - 1.0) * [1e-3, 1.0, 300.0][rng.below(3)];
    let bytes = |x: f32| match of {
        Element::F32 => x.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    (0..count).flat_map(|_| bytes(number())).collect()
}

/// The sum as it is promised: in f32, rank after rank, rounded once.
fn sum(parts: &[Vec<u8>], of: Element) -> Vec<u8> {
    let value = |part: &Vec<u8>, i: usize| match of {
        Element::F32 => f32::from_le_bytes(part[4 * i..4 * i + 4].try_into().unwrap()),
        Element::F16 => f16::from_le_bytes(part[2 * i..2 * i + 2].try_into().unwrap()).to_f32(),
        Element::Bf16 => bf16::from_le_bytes(part[2 * i..2 * i + 2].try_into().unwrap()).to_f32(),
    };
    let sum = |i: usize| parts[1..].iter().fold(value(&parts[0], i), |sum, part| sum + value(part, i));
    let sums = (0..parts[0].len() / of.bytes()).map(sum);
    match of {
        Element::F32 => sums.flat_map(|x| x.to_le_bytes()).collect(),
        Element::F16 => sums.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Element::Bf16 => sums.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// An engine that only has what it must: everything else is the trait's.
struct Plain<'a>(&'a dyn Communicator);

impl Communicator for Plain<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn size(&self) -> usize {
        self.0.size()
    }
    fn barrier(&self) -> Result<()> {
        self.0.barrier()
    }
    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()> {
        self.0.broadcast(root, data)
    }
    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()> {
        self.0.all_gather(mine, all)
    }
    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        self.0.all_to_all_v(mine, to, theirs, from)
    }
    fn send(&self, to: usize, data: &[u8]) -> Result<()> {
        self.0.send(to, data)
    }
    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        self.0.receive(from, data)
    }
    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        self.0.split(colour, key)
    }
}

pub(super) const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// Sums of some numbers are those of plain loops, here as on every rank.
pub(super) fn sums_are_those_of_plain_loops(comm: &dyn Communicator, count: usize, of: Element, seed: u64) {
    let (ranks, me) = (comm.size(), comm.rank());
    let data: Vec<Vec<u8>> = (0..ranks).map(|rank| numbers(seed, rank, count, of)).collect();
    let wanted = sum(&data, of);
    let mut whole = data[me].clone();
    comm.all_reduce(&mut whole, of).unwrap();
    assert_eq!(whole, wanted, "{count} of {of:?} on {ranks}");
    let mut other = data[me].clone();
    Plain(comm).all_reduce(&mut other, of).unwrap();
    assert_eq!(other, wanted, "{count} of {of:?} on {ranks}");
    let range = of.range(share(count, ranks, me));
    let mut part = vec![1; range.len()];
    comm.reduce_scatter(&data[me], of, &mut part).unwrap();
    assert_eq!(part, wanted[range], "{count} of {of:?} on {ranks}");
}

/// Parts of up to so many bytes arrive where they belong, by every call that moves them.
pub(super) fn bytes_arrive_where_they_belong(comm: &dyn Communicator, most: usize, root: usize, seed: u64) {
    let (ranks, me, root) = (comm.size(), comm.rank(), root % comm.size());
    // What rank a sends to rank b has this length.
    let length = |a: usize, b: usize| noise(seed ^ 1, 7 * a + b, 1)[0] as usize % (most + 1);
    let ranges = |lengths: Vec<usize>| {
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end - n..*end)
        });
        ends.collect::<Vec<Range<usize>>>()
    };
    let data: Vec<Vec<u8>> = (0..ranks).map(|a| noise(seed, a, (0..ranks).map(|b| length(a, b)).sum())).collect();
    let to = |a: usize| ranges((0..ranks).map(|b| length(a, b)).collect());
    let from = |b: usize| ranges((0..ranks).map(|a| length(a, b)).collect());
    let mut theirs = vec![0; from(me).last().map_or(0, |range| range.end)];
    comm.all_to_all_v(&data[me], &to(me), &mut theirs, &from(me)).unwrap();
    for (a, range) in from(me).into_iter().enumerate() {
        assert_eq!(theirs[range], data[a][to(a)[me].clone()], "from {a} to {me}");
    }
    let mut all = vec![0; data.iter().map(Vec::len).sum()];
    comm.all_gather(&data[me], &mut all).unwrap();
    assert_eq!(all, data.concat());
    let mut one = if me == root { noise(seed, 99, most) } else { vec![0; most] };
    comm.broadcast(root, &mut one).unwrap();
    assert_eq!(one, noise(seed, 99, most));
    let equal: Vec<u8> = (0..ranks).flat_map(|b| [me as u8, b as u8]).collect();
    let mut dealt = vec![0; equal.len()];
    comm.all_to_all(&equal, &mut dealt).unwrap();
    assert_eq!(dealt, (0..ranks).flat_map(|a| [a as u8, me as u8]).collect::<Vec<u8>>());
    // A ring: each to the next, twice, in order.
    let (next, last) = ((me + 1) % ranks, (me + ranks - 1) % ranks);
    comm.send(next, &[me as u8, 1]).unwrap();
    comm.send(next, &[me as u8, 2]).unwrap();
    for turn in 1..=2 {
        let mut came = [0; 2];
        comm.receive(last, &mut came).unwrap();
        assert_eq!(came, [last as u8, turn]);
    }
    comm.barrier().unwrap();
}

/// Of five ranks, groups are those of colours in the order of keys.
pub(super) fn groups_are_those_of_colours_in_the_order_of_keys(comm: &dyn Communicator) {
    let me = comm.rank();
    // Ranks 0, 2 and 4 in reverse order; 1 and 3 as they are.
    let colour = if me.is_multiple_of(2) { u32::MAX } else { 1 };
    let group = comm.split(colour, if me.is_multiple_of(2) { 9 - me as u32 } else { 0 }).unwrap();
    let mut all = vec![0; group.size()];
    group.all_gather(&[me as u8], &mut all).unwrap();
    // Both groups at once, and again, and the whole between them.
    comm.barrier().unwrap();
    let pair = group.split(group.rank() as u32 / 2, 0).unwrap();
    let mut sum = (me as f32).to_le_bytes();
    pair.all_reduce(&mut sum, Element::F32).unwrap();
    let wanted = [
        (2, vec![4, 2, 0], 0.0),
        (0, vec![1, 3], 4.0),
        (1, vec![4, 2, 0], 6.0),
        (1, vec![1, 3], 4.0),
        (0, vec![4, 2, 0], 6.0),
    ];
    assert_eq!((group.rank(), all, f32::from_le_bytes(sum)), wanted[me]);
}

/// What is begun goes on while its rank does something else.
pub(super) fn what_is_begun_goes_on(comm: Arc<dyn Communicator>) {
    let (rank, size, background) = (comm.rank(), comm.size(), Background::new(comm));
    let number = |x: usize| (x as f32).to_le_bytes().to_vec();
    let sums: Vec<Pending<Vec<u8>>> =
        (0..10).map(|i| background.all_reduce(number(i * (rank + 1)), Element::F32)).collect();
    let there = background.start(|comm| comm.barrier().map(|()| comm.size()));
    let sums: Vec<Vec<u8>> = sums.into_iter().map(|pending| pending.wait().unwrap()).collect();
    assert_eq!(sums, (0..10).map(|i| number(size * (size + 1) / 2 * i)).collect::<Vec<_>>());
    assert_eq!(there.wait().unwrap(), size);
}
