//! Which processors of this machine to compute on, and in which order.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// A core with less than this part of the fastest one's capacity is a slow one. The cores of one kind differ by a few
/// percent, since the best of them may clock higher; see docs/design/0005-placement.md.
const FAST_MIN: f64 = 0.8;

/// The most processors a list may name; the kernel's own limit is 8192.
const PROCESSORS_MAX: usize = 1 << 16;

/// The processors that this process may use, in the order in which threads should get them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Processors {
    /// One of each fast core, one of each slow core, then the other threads of both.
    order: Vec<usize>,
    fast_cores: usize,
}

impl Processors {
    pub(super) fn read(root: &Path) -> Option<Processors> {
        let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let allowed: Vec<usize> = list(allowed)?.collect();
        let fast = fast(root, &allowed);
        let mut cores = BTreeSet::new();
        let mut groups: [Vec<usize>; 3] = Default::default();
        for cpu in allowed {
            // The two threads of a core share its arithmetic units, which one busy thread can fill.
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let siblings = fs::read_to_string(root.join(file)).ok()?;
            let first = cores.insert(siblings.trim().to_owned());
            groups[if !first { 2 } else { usize::from(!fast.contains(&cpu)) }].push(cpu);
        }
        let fast_cores = groups[0].len();
        (fast_cores > 0).then(|| Processors { order: groups.concat(), fast_cores })
    }

    /// Processors that are worth a thread each.
    pub(crate) fn fast_cores(&self) -> &[usize] {
        &self.order[..self.fast_cores]
    }

    /// All, the best first.
    pub(crate) fn best_first(&self) -> &[usize] {
        &self.order
    }
}

/// Those of `allowed` that are as fast as the fastest of them, or nearly so; all, where the kernel knows no difference.
fn fast(root: &Path, allowed: &[usize]) -> BTreeSet<usize> {
    // Intel's two kinds of cores have performance counters of their own, under the names of which they are listed.
    let performance: Option<BTreeSet<usize>> = fs::read_to_string(root.join("sys/devices/cpu_core/cpus"))
        .ok()
        .and_then(|cpus| Some(list(&cpus)?.collect()));
    let kind: BTreeSet<usize> = allowed
        .iter()
        .copied()
        .filter(|cpu| performance.as_ref().is_none_or(|list| list.contains(cpu)))
        .collect();
    let kind = if kind.is_empty() { allowed.iter().copied().collect() } else { kind };

    let capacity = |cpu: usize| {
        let file = format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity");
        f64::from_str(fs::read_to_string(root.join(file)).ok()?.trim()).ok()
    };
    let largest = kind.iter().filter_map(|&cpu| capacity(cpu)).fold(0.0, f64::max);
    kind.into_iter().filter(|&cpu| capacity(cpu).is_none_or(|own| own >= FAST_MIN * largest)).collect()
}

/// The numbers of a list such as `0-3,8`.
fn list(text: &str) -> Option<impl Iterator<Item = usize> + use<>> {
    let ranges: Option<Vec<_>> = text
        .trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (last < PROCESSORS_MAX).then_some(first..=last)
        })
        .collect();
    Some(ranges?.into_iter().flatten())
}
