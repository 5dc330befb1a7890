//! What ranks tell each other of a run.

use super::*;
use crate::comm::LocalComm;

fn on<T: Send>(ranks: usize, work: impl Fn(World) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |comm| scope.spawn(|| work(World::of(Arc::new(comm))));
        let threads: Vec<_> = LocalComm::group(ranks, None).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_hear_what_the_first_found_and_why_it_failed() {
    let told = on(3, |world| {
        let mine = |value: Result<Vec<u64>>| world.is_first().then_some(value);
        let (good, bad) = (mine(Ok(vec![7, 1 << 40])), mine(Err(Error::Device("it is lost".into()))));
        (world.first(good).unwrap(), world.first(bad).unwrap_err().to_string())
    });
    assert_eq!(told, vec![(vec![7, 1 << 40], "device: it is lost".to_string()); 3]);
    let alone = World::alone();
    assert_eq!(alone.first(Some(Ok(3))).unwrap(), 3);
    assert!(alone.first::<u64>(None).is_err());
    assert_eq!((alone.any(true).unwrap(), alone.sum(2.5).unwrap(), alone.size()), (true, 2.5, 1));
}

#[test]
fn one_rank_is_enough_and_sums_are_the_same_on_all() {
    let told = on(3, |world| {
        let any = world.any(world.rank() == 2).unwrap();
        let none = world.any(false).unwrap();
        (any, none, world.sum(0.1 * (world.rank() + 1) as f64).unwrap().to_bits())
    });
    assert_eq!(told, vec![(true, false, (0.1 + 0.2 + 0.1 * 3.0f64).to_bits()); 3]);
}

#[test]
fn ranks_with_something_else_are_named() {
    let compare = |ranks, odd: fn(usize) -> u64| {
        on(ranks, |world| {
            let all = [("a recipe", 5), ("weights", odd(world.rank()))];
            world.compare(&all).map_err(|e| e.to_string())
        })
    };
    assert_eq!(compare(3, |_| 7), vec![Ok(()); 3]);
    let text = "ranks: rank 2 has weights other than most of the 4".to_string();
    assert_eq!(compare(4, |rank| u64::from(rank == 2)), vec![Err(text); 4]);
    let text = "ranks: ranks 2, 3 have weights other than most of the 4".to_string();
    assert_eq!(compare(4, |rank| rank as u64 / 2), vec![Err(text); 4], "of equally many the first rank's count");
    let in_groups = |odd: fn(usize) -> Option<u64>| {
        on(4, |world| {
            let groups = [vec![0, 2], vec![1, 3]];
            world.compare_groups("gains", odd(world.rank()), &groups).map_err(|e| e.to_string())
        })
    };
    assert_eq!(in_groups(|rank| Some(rank as u64 % 2)), vec![Ok(()); 4], "groups need not be alike");
    assert_eq!(
        in_groups(|rank| (rank < 2).then_some(rank as u64)),
        vec![Ok(()); 4],
        "who has nothing differs from nobody"
    );
    let text = "ranks: rank 3 has gains other than most of the 2".to_string();
    assert_eq!(
        in_groups(|rank| Some(u64::from(rank == 3))),
        vec![Err(text); 4],
        "told on all, by the number among all"
    );
}

#[test]
fn whoever_cannot_go_on_says_why() {
    let told = on(3, |world| match world.rank() {
        1 => {
            world.abort("device: it is lost");
            String::new()
        }
        _ => world.gather(0).unwrap_err().to_string(),
    });
    assert_eq!(told[0], "ranks: rank 1: device: it is lost");
    assert_eq!(told[2], told[0]);
}
