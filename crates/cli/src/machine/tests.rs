//! Machines as their kernels describe them.

use super::processors::Processors;
use super::tree::Tree;
use super::{quota, threads_of};

/// A machine of cores: the processors of each, and the capacity that the kernel gives them.
fn machine(allowed: &str, cores: &[(&[usize], Option<u32>)]) -> Tree {
    let tree = Tree::new();
    tree.file("proc/self/status", &format!("Name:\tdunlin\nCpus_allowed_list:\t{allowed}\n"));
    for (processors, capacity) in cores {
        let siblings = processors.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        for cpu in *processors {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}");
            tree.file(&format!("{folder}/topology/thread_siblings_list"), &format!("{siblings}\n"));
            if let Some(capacity) = capacity {
                tree.file(&format!("{folder}/cpu_capacity"), &format!("{capacity}\n"));
            }
        }
    }
    tree
}

fn check(tree: &Tree, fast_cores: &[usize], best_first: &[usize], threads: usize) {
    let processors = Processors::read(tree.root()).expect("the tree describes processors");
    assert_eq!((processors.fast_cores(), processors.best_first()), (fast_cores, best_first));
    let usable = best_first.len();
    assert_eq!(threads_of(Some(&processors), quota::read(tree.root()), usable), threads);
}

const SINGLE: [(&[usize], Option<u32>); 4] = [(&[0], None), (&[1], None), (&[2], None), (&[3], None)];

#[test]
fn raspberry_pi_5() {
    let cores = SINGLE.map(|(processors, _)| (processors, Some(1024)));
    check(&machine("0-3", &cores), &[0, 1, 2, 3], &[0, 1, 2, 3], 4);
}

#[test]
fn rk3588_with_four_fast_and_four_slow_cores() {
    let processors: [&[usize]; 8] = [&[0], &[1], &[2], &[3], &[4], &[5], &[6], &[7]];
    // Pairs of fast cores may reach different clocks.
    let capacities = [400, 400, 400, 400, 1000, 1000, 1024, 1024];
    let cores: Vec<_> = processors.into_iter().zip(capacities.map(Some)).collect();
    check(&machine("0-7", &cores), &[4, 5, 6, 7], &[4, 5, 6, 7, 0, 1, 2, 3], 4);
    // Whoever may use slow cores only has them all.
    check(&machine("0-3", &cores), &[0, 1, 2, 3], &[0, 1, 2, 3], 4);
    check(&machine("2-4", &cores), &[4], &[4, 2, 3], 1);
}

#[test]
fn intel_hybrid_with_two_performance_and_eight_efficiency_cores() {
    let mut cores: Vec<(&[usize], Option<u32>)> = vec![(&[0, 1], None), (&[2, 3], None)];
    let efficiency: [&[usize]; 8] = [&[4], &[5], &[6], &[7], &[8], &[9], &[10], &[11]];
    cores.extend(efficiency.map(|processors| (processors, None)));
    let hybrid = |allowed: &str| {
        let tree = machine(allowed, &cores);
        tree.file("sys/devices/cpu_core/cpus", "0-3\n");
        tree.file("sys/devices/cpu_atom/cpus", "4-11\n");
        tree
    };
    check(&hybrid("0-11"), &[0, 2], &[0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 1, 3], 2);
    check(&hybrid("4-7"), &[4, 5, 6, 7], &[4, 5, 6, 7], 4);
}

#[test]
fn amd_with_two_threads_a_core() {
    let cores: [(&[usize], Option<u32>); 4] =
        [(&[0, 4], None), (&[1, 5], None), (&[2, 6], None), (&[3, 7], None)];
    check(&machine("0-7", &cores), &[0, 1, 2, 3], &[0, 1, 2, 3, 4, 5, 6, 7], 4);
    // Both threads of one core, and one of another.
    check(&machine("0,4-5", &cores), &[0, 5], &[0, 5, 4], 2);
}

#[test]
fn a_container_with_a_set_of_three_processors() {
    check(&machine("0,2-3", &SINGLE), &[0, 2, 3], &[0, 2, 3], 3);
}

#[test]
fn a_container_with_a_quota() {
    let check_quota = |files: &[(&str, &str)], expected: Option<f64>, threads| {
        let tree = machine("0-3", &SINGLE);
        for (path, text) in files {
            tree.file(path, text);
        }
        assert_eq!(quota::read(tree.root()), expected, "{files:?}");
        check(&tree, &[0, 1, 2, 3], &[0, 1, 2, 3], threads);
    };
    let (own, v1) =
        (("proc/self/cgroup", "0::/a/b\n"), ("proc/self/cgroup", "4:cpu,cpuacct:/docker/1\n0::/\n"));
    let (inner, outer) = ("sys/fs/cgroup/a/b/cpu.max", "sys/fs/cgroup/a/cpu.max");
    check_quota(&[own], None, 4);
    check_quota(&[own, (inner, "150000 100000\n")], Some(1.5), 1);
    check_quota(&[own, (inner, "max 100000\n")], None, 4);
    check_quota(&[own, (inner, "400000 100000\n"), (outer, "100000 50000\n")], Some(2.0), 2);
    check_quota(&[own, (inner, "50000 100000\n")], Some(0.5), 1);
    check_quota(&[own, (inner, "100000\n"), (outer, "0 0\n")], None, 4);
    // The group's own path is that of the host: only the mount's root is visible.
    check_quota(&[own, ("sys/fs/cgroup/cpu.max", "300000 100000\n")], Some(3.0), 3);

    let (quota, period) =
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us");
    check_quota(&[v1, (quota, "150000\n"), (period, "100000\n")], Some(1.5), 1);
    check_quota(&[v1, (quota, "-1\n"), (period, "100000\n")], None, 4);
    let (linked, linked_period) =
        ("sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us");
    check_quota(&[v1, (linked, "250000\n"), (linked_period, "100000\n")], Some(2.5), 2);
}

#[test]
fn what_the_kernel_does_not_say_is_unknown() {
    let unknown = |tree: &Tree| assert_eq!(Processors::read(tree.root()), None);
    unknown(&Tree::new());
    unknown(&machine("", &SINGLE));
    unknown(&machine("0-99999999999", &SINGLE));
    unknown(&machine("0-4", &SINGLE));
    assert_eq!(threads_of(None, None, 6), 6);
    assert_eq!(threads_of(None, Some(2.5), 6), 2);
}
