//! What the harness of Rust's tests and the tests themselves print, read back.

/// The instruction sets that every test names in its `ran on: a, b` line.
pub(crate) fn instruction_sets(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().filter_map(|line| line.split_once(" ran on: "));
    let mut lines = lines.map(|(_, sets)| sets.split(", ").map(str::to_owned).collect::<Vec<_>>());
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |common, sets| common.into_iter().filter(|set| sets.contains(set)).collect())
}

/// Tests that passed, by the harness's own count.
pub(crate) fn passed(stdout: &str) -> usize {
    let counts = stdout.lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next());
    counts.filter_map(|count| count.parse::<usize>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_every_test_ran_on_counts() {
        let check =
            |stdout: &str, expected: &[&str]| assert_eq!(instruction_sets(stdout), expected, "{stdout}");
        check("", &[]);
        check("running 2 tests\na ran on: scalar, neon\ntest a ... ok\n", &["scalar", "neon"]);
        check("a ran on: scalar, neon\ntest x ... b ran on: neon\n", &["neon"]);
    }

    #[test]
    fn counts_of_several_harnesses_add_up() {
        let stdout = "test result: ok. 11 passed; 0 failed\n\ntest result: ok. 10 passed; 0 failed\n";
        assert_eq!(passed(stdout), 21);
    }
}
