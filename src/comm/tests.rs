//! Every collective against plain loops, on 1 to 5 ranks; and what happens where ranks differ, leave, panic or hang.

use super::*;
use half::{bf16, f16};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs a function on every rank of a group, each in its thread; what each gave.
fn on<T: Send>(ranks: usize, work: impl Fn(&dyn Communicator) -> T + Sync) -> Vec<T> {
    on_impatient(ranks, None, work)
}

fn on_impatient<T: Send>(
    ranks: usize,
    patience: Option<Duration>,
    work: impl Fn(&dyn Communicator) -> T + Sync,
) -> Vec<T> {
    let group = LocalComm::group(ranks, patience);
    std::thread::scope(|scope| {
        let run = |comm: LocalComm| {
            scope.spawn(|| {
                let comm = comm;
                work(&comm)
            })
        };
        let threads: Vec<_> = group.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

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

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_those_of_plain_loops_on_every_rank(
        ranks in 1usize..6, count in 0usize..700, which in 0usize..3, seed: u64,
    ) {
        let of = ELEMENTS[which];
        let data: Vec<Vec<u8>> = (0..ranks).map(|rank| numbers(seed, rank, count, of)).collect();
        let wanted = sum(&data, of);
        let got = on(ranks, |comm| {
            let mut whole = data[comm.rank()].clone();
            comm.all_reduce(&mut whole, of).unwrap();
            let mut other = data[comm.rank()].clone();
            Plain(comm).all_reduce(&mut other, of).unwrap();
            assert_eq!(whole, other);
            let range = of.range(share(count, ranks, comm.rank()));
            let mut part = vec![1; range.len()];
            comm.reduce_scatter(&data[comm.rank()], of, &mut part).unwrap();
            (whole, part, range)
        });
        for (whole, part, range) in got {
            prop_assert_eq!(&whole, &wanted);
            prop_assert_eq!(&part[..], &wanted[range]);
        }
    }

    #[test]
    fn bytes_arrive_where_they_belong(ranks in 1usize..6, most in 0usize..40, root in 0usize..5, seed: u64) {
        let root = root % ranks;
        // What rank a sends to rank b has this length.
        let length = |a: usize, b: usize| noise(seed ^ 1, 7 * a + b, 1)[0] as usize % (most + 1);
        let ranges = |lengths: Vec<usize>| {
            lengths.iter().scan(0, |end, n| { *end += n; Some(*end - n..*end) }).collect::<Vec<Range<usize>>>()
        };
        let data: Vec<Vec<u8>> = (0..ranks).map(|a| noise(seed, a, (0..ranks).map(|b| length(a, b)).sum())).collect();
        let to = |a: usize| ranges((0..ranks).map(|b| length(a, b)).collect());
        let from = |b: usize| ranges((0..ranks).map(|a| length(a, b)).collect());
        on(ranks, |comm| {
            let me = comm.rank();
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
        });
    }
}

#[test]
fn groups_are_those_of_colours_in_the_order_of_keys() {
    let got = on(5, |comm| {
        let me = comm.rank();
        // Ranks 0, 2 and 4 in reverse order; 1 and 3 as they are.
        let group = comm.split(me as u32 % 2, if me.is_multiple_of(2) { 9 - me as u32 } else { 0 }).unwrap();
        let mut all = vec![0; group.size()];
        group.all_gather(&[me as u8], &mut all).unwrap();
        // Both groups at once, and again, and the whole between them.
        comm.barrier().unwrap();
        let pair = group.split(group.rank() as u32 / 2, 0).unwrap();
        let mut sum = (me as f32).to_le_bytes();
        pair.all_reduce(&mut sum, Element::F32).unwrap();
        (group.rank(), all, f32::from_le_bytes(sum))
    });
    let wanted = [
        (2, vec![4, 2, 0], 0.0),
        (0, vec![1, 3], 4.0),
        (1, vec![4, 2, 0], 6.0),
        (1, vec![1, 3], 4.0),
        (0, vec![4, 2, 0], 6.0),
    ];
    assert_eq!(got, wanted);
}

#[test]
fn what_is_begun_goes_on_while_its_rank_does_something_else() {
    let group = LocalComm::group(3, None);
    let threads: Vec<_> = group
        .into_iter()
        .map(|comm| {
            std::thread::spawn(move || {
                let (rank, background) = (comm.rank(), Background::new(Arc::new(comm)));
                let number = |x: usize| (x as f32).to_le_bytes().to_vec();
                let sums: Vec<Pending<Vec<u8>>> =
                    (0..10).map(|i| background.all_reduce(number(i * (rank + 1)), Element::F32)).collect();
                let size = background.start(|comm| comm.barrier().map(|()| comm.size()));
                let sums: Vec<Vec<u8>> = sums.into_iter().map(|pending| pending.wait().unwrap()).collect();
                assert_eq!(sums, (0..10).map(|i| number(6 * i)).collect::<Vec<_>>());
                assert_eq!(size.wait().unwrap(), 3);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn ranks_that_differ_are_told_apart() {
    let told = on(3, |comm| {
        let done = if comm.rank() == 2 { comm.barrier() } else { comm.broadcast(0, &mut [0; 4]) };
        (done.unwrap_err().to_string(), comm.barrier().unwrap_err().to_string())
    });
    let text = "ranks: rank 0 calls broadcast of 4, and rank 2 barrier of 0".to_string();
    assert_eq!(told, vec![(text.clone(), text); 3]);
    let told = on(2, |comm| comm.all_gather(&[1; 3], &mut [0; 7]).unwrap_err().to_string());
    assert!(told.iter().all(|t| t.contains("what all ranks give has 6 bytes where 7 are wanted")), "{told:?}");
    let told = on(2, |comm| comm.all_reduce(&mut [0; 3], Element::F32).unwrap_err().to_string());
    assert!(told.iter().all(|t| t.contains("3 bytes are no whole number of elements of 4 bytes")), "{told:?}");
    let told = on(2, |comm| comm.send(2, &[]).unwrap_err().to_string());
    assert!(told.iter().all(|t| t.contains("there is no rank 2")), "{told:?}");
}

#[test]
fn nobody_waits_for_a_rank_that_left_panicked_or_hangs() {
    let told = on(3, |comm| match comm.rank() {
        1 => String::new(),
        _ => comm.barrier().unwrap_err().to_string(),
    });
    assert_eq!(told[0], "ranks: rank 1 has left, and the others wait for barrier");
    assert_eq!(told[0], told[2]);
    let told = on(2, |comm| match comm.rank() {
        1 => String::new(),
        _ => comm.receive(1, &mut [0]).unwrap_err().to_string(),
    });
    assert_eq!(told[0], "ranks: rank 1 has left, and rank 0 waits for what it sends");
    // What a rank has sent before it left arrives.
    on(2, |comm| match comm.rank() {
        1 => comm.send(0, &[7]).unwrap(),
        _ => comm.receive(1, &mut [0]).unwrap(),
    });
    let [first, second] = <[LocalComm; 2]>::try_from(LocalComm::group(2, None)).ok().unwrap();
    let panicking = std::thread::spawn(move || {
        let _comm = second;
        std::panic::resume_unwind(Box::new(()));
    });
    assert_eq!(first.barrier().unwrap_err().to_string(), "ranks: rank 1 panicked, and the others wait for barrier");
    assert!(panicking.join().is_err());
    let began = Instant::now();
    let told = on_impatient(2, Some(Duration::from_millis(200)), |comm| match comm.rank() {
        1 => {
            std::thread::sleep(Duration::from_millis(600));
            comm.barrier().unwrap_err().to_string()
        }
        _ => comm.barrier().unwrap_err().to_string(),
    });
    assert_eq!(told, vec!["ranks: rank 1 did nothing for 0.2 s, and the others wait for barrier"; 2]);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn shares_are_neighbours_and_nearly_equal() {
    for (elements, ranks) in [(0, 3), (1, 3), (7, 3), (12, 4), (1 << 40, 7)] {
        let shares: Vec<Range<usize>> = (0..ranks).map(|rank| share(elements, ranks, rank)).collect();
        assert!(shares[0].start == 0 && shares[ranks - 1].end == elements);
        assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        let lengths = || shares.iter().map(Range::len);
        assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1, "{shares:?}");
    }
}
