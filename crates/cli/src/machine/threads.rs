//! Physical cores among the processors that this process may run on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// How many cores the allowed processors belong to; `None` where the kernel does not say. The two threads of a core share
/// its arithmetic units, which one busy thread can fill.
pub(super) fn physical_cores(root: &Path) -> Option<usize> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: Option<BTreeSet<String>> = processors(allowed)?
        .map(|cpu| {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            fs::read_to_string(root.join(file)).ok().map(|siblings| siblings.trim().to_owned())
        })
        .collect();
    cores.map(|cores| cores.len()).filter(|&cores| cores > 0)
}

/// The most processors a list may name; the kernel's own limit is 8192.
const PROCESSORS_MAX: usize = 1 << 16;

/// The numbers of a list such as `0-3,8`.
fn processors(list: &str) -> Option<impl Iterator<Item = usize>> {
    let ranges: Option<Vec<_>> = list
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    fn check(allowed: &str, siblings: &[&str], expected: Option<usize>) {
        let tree = Tree::new();
        tree.file("proc/self/status", &format!("Name:\tdunlin\nCpus_allowed_list:\t{allowed}\n"));
        for (cpu, siblings) in siblings.iter().enumerate() {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            tree.file(&file, &format!("{siblings}\n"));
        }
        assert_eq!(physical_cores(tree.root()), expected, "{allowed} of {siblings:?}");
    }

    #[test]
    fn cores_are_counted_once() {
        check("0-1", &["0", "1"], Some(2));
        check("0-3", &["0,2", "1,3", "0,2", "1,3"], Some(2));
        check("0-3", &["0-1", "0-1", "2-3", "2-3"], Some(2));
        check("1,3", &["0-1", "0-1", "2-3", "2-3"], Some(2));
        check("2-3", &["0-1", "0-1", "2-3", "2-3"], Some(1));
    }

    #[test]
    fn what_the_kernel_does_not_say_is_unknown() {
        check("0-1", &["0"], None);
        check("", &["0"], None);
        check("0-99999999999", &["0"], None);
        assert_eq!(physical_cores(Tree::new().root()), None);
    }
}
