//! What repeats in a list of layers: the shortest way to write it as runs and as groups of runs that come several times.

use std::cmp::Reverse;
use std::fmt;
use std::iter::repeat_n;

/// Groups of runs, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern<T>(pub Vec<Group<T>>);

/// Runs that come `times` times, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<T> {
    pub times: usize,
    pub runs: Vec<Run<T>>,
}

/// The same `count` times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<T> {
    pub count: usize,
    pub item: T,
}

/// What a part of a pattern costs: runs are what a reader has to keep in mind, and a repetition is easier than a run.
const RUN_COST: usize = 4;
const REPEAT_COST: usize = 2;
/// Of two equally short patterns the one with fewer groups.
const GROUP_COST: usize = 1;

/// The cheapest way to go on from an item, and where it leads.
#[derive(Clone, Copy)]
struct Step {
    cost: usize,
    len: usize,
    times: usize,
}

impl Step {
    /// The smaller the better. Of the cheapest the one that goes furthest, so that what repeats does so from its start.
    fn rank(self) -> (usize, Reverse<usize>) {
        (self.cost, Reverse(self.len * self.times))
    }
}

impl<T: PartialEq + Clone> Pattern<T> {
    /// The shortest pattern that is `items`. Takes time and memory with the square of their number.
    pub fn of(items: &[T]) -> Pattern<T> {
        let n = items.len();
        // By `i` and `period`: how many items from `i` on are the same as those a period later.
        let mut same = vec![vec![0u32; n + 1]; n + 1];
        for i in (0..n).rev() {
            for period in 1..n - i {
                if items[i] == items[i + period] {
                    same[i][period] = same[i + 1][period] + 1;
                }
            }
        }
        let mut steps = vec![Step { cost: 0, len: 0, times: 0 }; n + 1];
        for i in (0..n).rev() {
            let mut best = Step { cost: usize::MAX, len: 0, times: 0 };
            let mut runs = 0;
            for len in 1..=n - i {
                runs += usize::from(len == 1 || items[i + len - 1] != items[i + len - 2]);
                let times_max = 1 + same[i].get(len).map_or(0, |&same| same as usize / len);
                for times in (1..=times_max).rev() {
                    let repeat = if times > 1 { REPEAT_COST } else { 0 };
                    let cost = runs * RUN_COST + repeat + GROUP_COST + steps[i + len * times].cost;
                    let step = Step { cost, len, times };
                    if step.rank() < best.rank() {
                        best = step;
                    }
                }
            }
            steps[i] = best;
        }
        let mut groups = Vec::new();
        let mut i = 0;
        while i < n {
            let Step { len, times, .. } = steps[i];
            groups.push(Group { times, runs: runs(&items[i..i + len]) });
            i += len * times;
        }
        Pattern(groups)
    }

    /// The items that the pattern is made from.
    pub fn expand(&self) -> Vec<T> {
        let of_group = |group: &Group<T>| {
            let once = group.runs.iter().flat_map(|run| repeat_n(&run.item, run.count));
            repeat_n(once, group.times).flatten().cloned().collect::<Vec<T>>()
        };
        self.0.iter().flat_map(of_group).collect()
    }
}

fn runs<T: PartialEq + Clone>(items: &[T]) -> Vec<Run<T>> {
    let runs = items.chunk_by(PartialEq::eq);
    runs.map(|run| Run { count: run.len(), item: run[0].clone() }).collect()
}

/// `5 x a, 1 x b, repeated 3 times, then 2 x a`.
impl<T: fmt::Display> fmt::Display for Pattern<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Group { times, runs }) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", then " })?;
            for (i, Run { count, item }) in runs.iter().enumerate() {
                write!(f, "{}{count} x {item}", if i == 0 { "" } else { ", " })?;
            }
            if *times > 1 {
                write!(f, ", repeated {times} times")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stdx::random::Random;

    fn check(items: &str, expected: &str) {
        let items: Vec<char> = items.chars().collect();
        let pattern = Pattern::of(&items);
        assert_eq!(pattern.to_string(), expected, "{items:?}");
        assert_eq!(pattern.expand(), items);
    }

    #[test]
    fn what_repeats_is_written_once() {
        check("", "");
        check("a", "1 x a");
        check("aaaa", "4 x a");
        check("aab", "2 x a, 1 x b");
        check("abab", "1 x a, 1 x b, repeated 2 times");
        // Gemma 3 with 18 and with 26 layers, SmolLM3 with 36, DeepSeek V2 Lite.
        check(&"aaaaab".repeat(3), "5 x a, 1 x b, repeated 3 times");
        check(&("aaaaab".repeat(4) + "aa"), "5 x a, 1 x b, repeated 4 times, then 2 x a");
        check(&"aaab".repeat(9), "3 x a, 1 x b, repeated 9 times");
        check(&("a".to_owned() + &"b".repeat(26)), "1 x a, 26 x b");
        // A period that begins and ends with the same, as one of Granite 4 H does.
        check(&"aabaa".repeat(3), "2 x a, 1 x b, 2 x a, repeated 3 times");
        // Two patterns in a row.
        check("ababababccdccd", "1 x a, 1 x b, repeated 4 times, then 2 x c, 1 x d, repeated 2 times");
    }

    /// LFM2-1.2B: the ends are not like the middle.
    #[test]
    fn irregular_lists_stay_readable() {
        check(
            "ccaccaccacacacac",
            "2 x c, 1 x a, repeated 3 times, then 1 x c, 1 x a, repeated 3 times, then 1 x c",
        );
    }

    #[test]
    fn any_pattern_gives_its_items_back_and_is_no_longer_than_their_runs() {
        for seed in 0..400 {
            let mut random = Random::new(seed);
            let kinds = 1 + random.below(4);
            let mut items = Vec::new();
            while items.len() < 60 {
                let unit: Vec<u64> = (0..1 + random.below(6)).map(|_| random.below(kinds)).collect();
                items.extend(unit.repeat(1 + random.below(5) as usize));
            }
            let pattern = Pattern::of(&items);
            assert_eq!(pattern.expand(), items, "seed {seed}");
            let written: usize = pattern.0.iter().map(|group| group.runs.len()).sum();
            assert!(written <= runs(&items).len(), "seed {seed}: {pattern}");
        }
    }

    /// The most layers a file may claim, all different.
    #[test]
    fn the_longest_list_is_short_work() {
        let items: Vec<usize> = (0..super::super::super::config::LAYERS_MAX).collect();
        assert_eq!(Pattern::of(&items).expand(), items);
    }
}
