//! Documents into rows of one length, by best fit in order of falling length (Johnson, 1974: never more than 11/9 of the
//! fewest rows possible, and 6/9 of one).

/// Rows, each a list of items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bins {
    items: Vec<u32>,
    ends: Vec<u32>,
}

impl Bins {
    /// Every item in a row of its own.
    pub fn single(items: impl Iterator<Item = u32>) -> Bins {
        let items: Vec<u32> = items.collect();
        let ends = (1..=items.len() as u32).collect();
        Bins { items, ends }
    }

    /// Packs items of these lengths, none longer than `room`, into rows of `room`: each goes where the least is left over.
    /// The same lengths in the same order give the same rows; takes time in proportion to their number.
    pub fn pack(items: &[u32], len: impl Fn(u32) -> usize, room: usize) -> Bins {
        let mut by_len: Vec<Vec<u32>> = vec![Vec::new(); room + 1];
        items.iter().for_each(|&item| by_len[len(item)].push(item));
        let mut rows: Vec<Vec<u32>> = Vec::new();
        let mut open = Open::new(room);
        for (len, items) in by_len.iter().enumerate().rev() {
            for &item in items {
                let (row, left) = open.take(len).unwrap_or_else(|| {
                    rows.push(Vec::new());
                    (rows.len() as u32 - 1, room)
                });
                rows[row as usize].push(item);
                open.put(row, left - len);
            }
        }
        let mut bins = Bins::default();
        for row in rows {
            bins.items.extend(row);
            bins.ends.push(bins.items.len() as u32);
        }
        bins
    }

    /// The number of rows.
    pub fn rows(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The items of a row.
    pub fn row(&self, index: u64) -> &[u32] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.items[start..self.ends[index] as usize]
    }
}

/// Rows that are not full, by what is left in them; a bit for each amount that some row has left.
struct Open {
    by_left: Vec<Vec<u32>>,
    bits: Vec<u64>,
}

impl Open {
    fn new(room: usize) -> Open {
        Open { by_left: vec![Vec::new(); room + 1], bits: vec![0; room / 64 + 1] }
    }

    fn put(&mut self, row: u32, left: usize) {
        self.by_left[left].push(row);
        self.bits[left / 64] |= 1 << (left % 64);
    }

    /// A row with the least left of those that have room for `len`.
    fn take(&mut self, len: usize) -> Option<(u32, usize)> {
        let mut mask = u64::MAX << (len % 64);
        for word in len / 64..self.bits.len() {
            let found = self.bits[word] & mask;
            if found != 0 {
                let left = word * 64 + found.trailing_zeros() as usize;
                let row = self.by_left[left].pop().expect("its bit is set");
                if self.by_left[left].is_empty() {
                    self.bits[word] &= !(1 << (left % 64));
                }
                return Some((row, left));
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    fn check(lens: &[usize], room: usize) -> Bins {
        let items: Vec<u32> = (0..lens.len() as u32).collect();
        let bins = Bins::pack(&items, |item| lens[item as usize], room);
        let mut seen: Vec<u32> = (0..bins.rows()).flat_map(|row| bins.row(row).to_vec()).collect();
        seen.sort_unstable();
        assert_eq!(seen, items, "every item once");
        for row in 0..bins.rows() {
            assert!(bins.row(row).iter().map(|&item| lens[item as usize]).sum::<usize>() <= room);
        }
        bins
    }

    #[test]
    fn rows_hold_every_item_once_and_no_more_than_they_can() {
        let mut rng = Rng::new(7, 0);
        for room in [1, 63, 64, 65, 1000] {
            let lens: Vec<usize> = (0..500).map(|_| 1 + rng.below(room)).collect();
            let bins = check(&lens, room);
            let fewest = lens.iter().sum::<usize>().div_ceil(room) as u64;
            assert!(9 * bins.rows() <= 11 * fewest.max(lens.iter().filter(|&&l| 2 * l > room).count() as u64) + 9);
        }
        assert_eq!(check(&[], 5).rows(), 0);
    }

    #[test]
    fn each_goes_where_the_least_is_left_over() {
        // 6 and 7 open rows; 3 fits the 7 best, 4 the 6, and 2 neither.
        let bins = check(&[6, 7, 4, 3, 2], 10);
        assert_eq!((0..3).map(|row| bins.row(row).to_vec()).collect::<Vec<_>>(), [vec![1, 3], vec![0, 2], vec![4]]);
    }
}
