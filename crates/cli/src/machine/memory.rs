//! Free memory: what the kernel says is available, or what the control group leaves, whichever is less.

use super::cgroup::{self, Version};
use std::fs;
use std::path::{Path, PathBuf};

/// Memory that a new program could take without pushing others out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) available_bytes: u64,
    /// What sets the limit, for messages.
    pub(crate) limited_by: &'static str,
}

const MACHINE: &str = "this machine";
const CGROUP: &str = "the control group (container) this runs in";

pub(super) fn available(root: &Path) -> Option<Memory> {
    let of_machine =
        mem_available(root).map(|available_bytes| Memory { available_bytes, limited_by: MACHINE });
    let of_cgroup = cgroup_left(root).map(|available_bytes| Memory { available_bytes, limited_by: CGROUP });
    of_machine.into_iter().chain(of_cgroup).min_by_key(|memory| memory.available_bytes)
}

fn mem_available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files of one version of control groups.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The lines of `memory.stat` that count file pages, which are given back when memory is wanted.
    file_pages: [&'static str; 2],
}

const V2: Files =
    Files { limit: "memory.max", usage: "memory.current", file_pages: ["inactive_file", "active_file"] };

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_inactive_file", "total_active_file"],
};

/// The least that any group around this process leaves; `None` without a limit.
fn cgroup_left(root: &Path) -> Option<u64> {
    let left = |(version, group): (Version, PathBuf)| match version {
        Version::V1 => left(&group, &V1),
        Version::V2 => left(&group, &V2),
    };
    cgroup::around(root, "memory").into_iter().filter_map(left).min()
}

fn left(group: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max" is no number, and without a limit version 1 says about 2^63.
    let limit = number(files.limit).filter(|&limit| limit < 1 << 60)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let file_pages: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| files.file_pages.contains(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(number(files.usage).unwrap_or(0).saturating_sub(file_pages)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tree::Tree;

    const MIB: u64 = 1 << 20;

    fn check(files: &[(&str, &str)], expected: Option<(u64, &'static str)>) {
        let tree = Tree::new();
        for (path, text) in files {
            tree.file(path, text);
        }
        let expected = expected.map(|(available_bytes, limited_by)| Memory { available_bytes, limited_by });
        assert_eq!(available(tree.root()), expected, "{files:?}");
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  4096000 kB\nMemFree: 1024 kB\nMemAvailable:    2048 kB\n");

    #[test]
    fn the_kernel_says_what_is_available() {
        check(&[MEMINFO], Some((2 * MIB, MACHINE)));
        check(&[("proc/meminfo", "MemTotal: 1 kB\n")], None);
        check(&[], None);
    }

    #[test]
    fn groups_of_version_2_limit_with_all_that_are_above_them() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let limit = ("sys/fs/cgroup/a/memory.max", "1048576\n");
        let usage = ("sys/fs/cgroup/a/memory.current", "524288\n");
        let stat = ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 131072\nactive_file 131072\n");
        let none = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        check(&[MEMINFO, group, none], Some((2 * MIB, MACHINE)));
        check(&[MEMINFO, group, none, limit], Some((MIB, CGROUP)));
        check(&[MEMINFO, group, none, limit, usage], Some((MIB / 2, CGROUP)));
        check(&[MEMINFO, group, none, limit, usage, stat], Some((MIB * 3 / 4, CGROUP)));
    }

    #[test]
    fn groups_of_version_1_limit_by_the_mount_where_their_path_is_not_visible() {
        let group = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/1234\n0::/\n");
        let root = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n");
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        let usage = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2097152\n");
        check(&[MEMINFO, group, unlimited], Some((2 * MIB, MACHINE)));
        check(&[MEMINFO, group, root], Some((MIB, CGROUP)));
        check(&[MEMINFO, group, root, usage], Some((0, CGROUP)));
    }
}
