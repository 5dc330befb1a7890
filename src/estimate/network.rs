//! What messages cost between ranks: seconds that one takes to begin, and seconds a byte, at each level of a machine
//! (Hockney's model, 1994), for collectives as textbooks have them (Thakur, Rabenseifner and Gropp, 2005).

use serde::{Deserialize, Serialize};

/// One level of a machine's network. The first joins the ranks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Ranks that it joins; nothing for all that there are.
    pub ranks: Option<usize>,
    /// Seconds until the first byte of a message arrives.
    pub seconds: f64,
    /// Bytes per second into each rank, and as many out of it.
    pub bytes_per_second: f64,
}

/// A group of ranks along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Members.
    pub size: usize,
    /// Ranks from one member to the next.
    pub stride: usize,
}

/// The levels, and the share of their rates that collectives reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Network<'a> {
    /// From the innermost to the outermost.
    pub levels: &'a [Level],
    /// Reached of every level's bytes per second.
    pub reached: f64,
}

impl Network<'_> {
    /// For each level that the group meets: its members that the level before joins, those that it joins, and the level.
    fn met(&self, group: Group) -> Vec<(f64, f64, &Level)> {
        let mut found = Vec::new();
        let mut before = 1;
        for (i, level) in self.levels.iter().enumerate() {
            let last = i + 1 == self.levels.len();
            let joined = level.ranks.filter(|_| !last).map_or(group.size, |ranks| (ranks / group.stride).max(1));
            let joined = joined.min(group.size).max(before);
            if joined > before {
                found.push((before as f64, joined as f64, level));
            }
            before = joined;
        }
        found
    }

    /// Every member gets `bytes` of which each had a part; or each gets its part of the sum of what all had.
    pub fn gather(&self, group: Group, bytes: f64) -> f64 {
        // Members that share a level's gate bring in each other's parts, and levels work at the same time.
        let time = |(before, joined, level): &(f64, f64, &Level)| {
            bytes * (1.0 - before / joined) / (before * level.bytes_per_second * self.reached)
        };
        let met = self.met(group);
        let latency: f64 = met.iter().map(|(before, joined, level)| level.seconds * (joined / before).log2()).sum();
        latency + met.iter().map(time).fold(0.0, f64::max)
    }

    /// Every member gets the sum of what all have: parts are summed, and then gathered.
    pub fn all_reduce(&self, group: Group, bytes: f64) -> f64 {
        2.0 * self.gather(group, bytes)
    }

    /// Every member has `bytes`, an equal part for each other; nodes exchange first, then their members.
    pub fn all_to_all(&self, group: Group, bytes: f64) -> f64 {
        let size = group.size as f64;
        let time = |(before, _, level): &(f64, f64, &Level)| {
            bytes * (1.0 - before / size) / (level.bytes_per_second * self.reached)
        };
        let met = self.met(group);
        let latency: f64 = met.iter().map(|(before, joined, level)| level.seconds * (joined / before - 1.0)).sum();
        latency + met.iter().map(time).fold(0.0, f64::max)
    }

    /// One message to the next member.
    pub fn send(&self, group: Group, bytes: f64) -> f64 {
        self.met(group)
            .last()
            .map_or(0.0, |(.., level)| level.seconds + bytes / (level.bytes_per_second * self.reached))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_take_what_textbooks_say() {
        let levels = [
            Level { ranks: Some(4), seconds: 0.0, bytes_per_second: 100.0 },
            Level { ranks: None, seconds: 0.0, bytes_per_second: 10.0 },
        ];
        let network = Network { levels: &levels, reached: 1.0 };
        let group = |size, stride| Group { size, stride };
        let close = |x: f64, y: f64| assert!((x - y).abs() < 1e-12 * y.max(1.0), "{x} {y}");
        // Within a node, and over nodes with one member each: (n - 1) / n of the bytes.
        close(network.gather(group(4, 1), 400.0), 3.0);
        close(network.gather(group(2, 4), 400.0), 20.0);
        // Four members of each of two nodes: half of the bytes come from the other node, through four gates.
        close(network.gather(group(8, 1), 400.0), 400.0 * 0.5 / 40.0);
        close(network.all_reduce(group(2, 4), 400.0), 40.0);
        close(network.all_to_all(group(8, 1), 800.0), 800.0 * 0.5 / 10.0);
        close(network.send(group(2, 4), 100.0), 10.0);
        close(network.send(group(1, 1), 100.0), 0.0);
        let slow = [Level { ranks: None, seconds: 1.0, bytes_per_second: f64::INFINITY }];
        let network = Network { levels: &slow, reached: 1.0 };
        close(network.gather(group(8, 1), 1.0), 3.0);
        close(network.all_to_all(group(8, 1), 1.0), 7.0);
    }
}
