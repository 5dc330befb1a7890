//! A few lengths of rows, so that short ones cost less than long ones: each length is a plan of its own, and plans share their
//! states. Rows that are filled up are dealt so that those of a step are alike in length, in an order that is a function of the seed
//! and of how many a step has: not of the lengths that there are, nor of how many batches or ranks share a step.

use super::rows::permute;

/// Lengths are multiples of so many tokens.
pub(super) const GRAIN: usize = 16;
/// Rows of at most so many steps are put in order of their length before they are dealt into steps.
const WINDOW: u64 = 64;
/// A further length must save so much of what is computed.
const WORTH: f64 = 0.03;
/// Seeds the order of the steps of a window.
const ORDER: u64 = 0x6C65_6E67;

/// At most `most` lengths for rows of which `counts[n]` have up to `GRAIN`·n tokens, the longest at most `seq`: those with which
/// the fewest tokens are computed, and no more lengths than are worth a plan. Ascending; the last holds every row.
pub(super) fn choose(counts: &[u64], most: usize, seq: usize) -> Vec<usize> {
    let used: Vec<usize> = (1..counts.len()).filter(|&n| counts[n] > 0).collect();
    let Some(&last) = used.last() else { return vec![seq] };
    // least[k][i]: the fewest tokens for the i shortest of `used` in k + 1 lengths; from[k][i]: how many shorter lengths hold.
    let rows: Vec<u64> = std::iter::once(0)
        .chain(used.iter().scan(0, |sum, &n| {
            *sum += counts[n];
            Some(*sum)
        }))
        .collect();
    let cost = |from: usize, to: usize| (rows[to] - rows[from]) * used[to - 1] as u64;
    let mut least: Vec<Vec<u64>> = vec![(0..=used.len()).map(|i| if i == 0 { 0 } else { cost(0, i) }).collect()];
    let mut froms: Vec<Vec<usize>> = vec![vec![0; used.len() + 1]];
    while least.len() < most.min(used.len()) {
        let before = &least[least.len() - 1];
        let best = |to: usize| (0..to).map(|from| (before[from] + cost(from, to), from)).min().unwrap_or((0, 0));
        let (costs, from): (Vec<u64>, Vec<usize>) = (0..=used.len()).map(best).unzip();
        if (costs[used.len()] as f64) > (1.0 - WORTH) * before[used.len()] as f64 {
            break;
        }
        least.push(costs);
        froms.push(from);
    }
    let (mut lengths, mut to) = (Vec::new(), used.len());
    for from in froms.iter().rev() {
        lengths.push((used[to - 1] * GRAIN).min(seq));
        to = from[to];
    }
    debug_assert!(to == 0 && lengths[0] == (last * GRAIN).min(seq));
    lengths.reverse();
    lengths
}

/// At most `most` lengths of rows of up to `seq` tokens, each the longest that there can be, whatever the rows hold. Ascending.
pub fn longest_lengths(most: usize, seq: usize) -> Vec<usize> {
    let last = seq.div_ceil(GRAIN);
    (0..most.clamp(1, last.max(1))).rev().map(|n| ((last - n) * GRAIN).min(seq)).collect()
}

/// The steps whose rows are dealt together, each having `each` of the `all` units of an epoch: no more than an epoch has, or an
/// example, which is as long as itself, would meet itself in a step.
pub(super) fn window(all: u64, each: u64) -> u64 {
    (all / each).clamp(1, WINDOW)
}

/// The numbers of the units of `step`, each step having `each`: within a window of steps they are dealt in order of `used`.
pub(super) fn deal(step: u64, each: u64, window: u64, seed: u64, used: impl Fn(u64) -> usize) -> Vec<u64> {
    let (index, at) = (step / window, step % window);
    let first = index * window * each;
    let mut units: Vec<(usize, u64)> = (first..first + window * each).map(|unit| (used(unit), unit)).collect();
    units.sort_unstable();
    let own = permute(at, window, seed ^ ORDER, index) * each;
    units[own as usize..][..each as usize].iter().map(|(_, unit)| *unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    fn tokens(counts: &[u64], lengths: &[usize]) -> u64 {
        let holds = |n: usize| lengths.iter().find(|&&length| length >= n * GRAIN).copied();
        (1..counts.len()).map(|n| counts[n] * holds(n).unwrap_or(lengths[lengths.len() - 1]) as u64).sum()
    }

    /// Every choice of two or three lengths costs at least as much.
    #[test]
    fn chosen_lengths_are_the_cheapest() {
        let mut rng = Rng::new(3, 0);
        for _ in 0..20 {
            let counts: Vec<u64> = (0..13).map(|n| if n == 0 { 0 } else { rng.below(40) as u64 }).collect();
            let Some(last) = counts.iter().rposition(|&c| c > 0) else { continue };
            for most in 1..4 {
                let chosen = choose(&counts, most, 12 * GRAIN);
                assert!(
                    chosen.len() <= most && chosen.is_sorted() && chosen.last() == Some(&(last * GRAIN)),
                    "{chosen:?}"
                );
                let got = tokens(&counts, &chosen);
                for a in 1..=last {
                    for b in a..=last {
                        let mut other = vec![a * GRAIN, b * GRAIN, last * GRAIN];
                        other.dedup();
                        if other.len() <= chosen.len() {
                            assert!(got <= tokens(&counts, &other), "{counts:?}: {chosen:?} and {other:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn there_are_no_more_lengths_than_are_worth_it() {
        // All alike; nothing known; and one far longer than all others, which are nearly alike.
        assert_eq!(choose(&[0, 0, 0, 90], 4, 48), [48]);
        assert_eq!(choose(&[0, 0, 0, 90], 4, 40), [40], "never longer than a row");
        assert_eq!(choose(&[], 4, 40), [40]);
        let mut counts = vec![0; 65];
        (counts[3], counts[4], counts[64]) = (500, 500, 10);
        assert_eq!(choose(&counts, 4, 1024), [48, 64, 1024]);
        (counts[3], counts[4]) = (20, 980);
        assert_eq!(choose(&counts, 4, 1024), [64, 1024]);
        assert_eq!(choose(&counts, 1, 1024), [1024]);
    }

    #[test]
    fn no_rows_have_longer_ones_than_the_longest() {
        assert_eq!(longest_lengths(3, 64), [32, 48, 64]);
        assert_eq!(longest_lengths(4, 40), [16, 32, 40]);
        assert_eq!(longest_lengths(1, 8), [8]);
        let mut counts = vec![0; 4];
        (counts[1], counts[2], counts[3]) = (9, 9, 9);
        assert_eq!(choose(&counts, 3, 40), longest_lengths(3, 40));
    }

    #[test]
    fn windows_are_dealt_whole_and_alike() {
        let used = |unit: u64| (unit * 37 % 101) as usize;
        for each in [1, 3] {
            let batches: Vec<Vec<u64>> = (0..3 * WINDOW).map(|step| deal(step, each, WINDOW, 5, used)).collect();
            for (window, batches) in batches.chunks(WINDOW as usize).enumerate() {
                let mut all: Vec<u64> = batches.concat();
                all.sort_unstable();
                let first = window as u64 * WINDOW * each;
                assert_eq!(all, (first..first + WINDOW * each).collect::<Vec<_>>());
                let spread = |batch: &Vec<u64>| {
                    let lens = || batch.iter().map(|&unit| used(unit));
                    lens().max().unwrap() - lens().min().unwrap()
                };
                assert!(batches.iter().all(|batch| spread(batch) <= 6), "rows of a batch are alike");
                assert!(!batches.iter().map(|batch| used(batch[0])).is_sorted(), "batches are not in order of length");
            }
            let first = |seed| deal(0, each, WINDOW, seed, used);
            assert_ne!(first(5), first(6), "another seed, another order");
        }
    }

    #[test]
    fn windows_are_no_longer_than_an_epoch() {
        for (all, each, steps) in [(1000, 4, WINDOW), (100, 4, 25), (100, 60, 1), (3, 8, 1)] {
            assert_eq!(window(all, each), steps, "{all}, {each}");
        }
    }
}
