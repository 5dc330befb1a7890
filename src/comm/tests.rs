//! Every collective against plain loops, on 1 to 5 ranks; and what happens where ranks differ, leave, panic or hang.

use super::engine_tests::*;
use super::*;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_those_of_plain_loops_on_every_rank(
        ranks in 1usize..6, count in 0usize..700, which in 0usize..3, seed: u64,
    ) {
        on(ranks, |comm| sums_are_those_of_plain_loops(comm, count, ELEMENTS[which], seed));
    }

    #[test]
    fn bytes_arrive(ranks in 1usize..6, most in 0usize..40, root in 0usize..5, seed: u64) {
        on(ranks, |comm| bytes_arrive_where_they_belong(comm, most, root, seed));
    }
}

#[test]
fn groups_are_those_of_colours() {
    on(5, groups_are_those_of_colours_in_the_order_of_keys);
}

#[test]
fn what_is_begun_goes_on_while_its_rank_does_something_else() {
    let start = |comm: LocalComm| std::thread::spawn(move || what_is_begun_goes_on(Arc::new(comm)));
    let threads: Vec<_> = LocalComm::group(3, None).into_iter().map(start).collect();
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
    assert!(began.elapsed() < Duration::from_secs(60));
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
