//! Help and completions. `DUNLIN_UPDATE_GOLDEN=1 cargo test -p cli help` writes the golden file anew.

use crate::process::{output, stdout};
use std::fs;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden/help.txt");

const COMMANDS: [&[&str]; 7] =
    [&[], &["up"], &["serve"], &["run"], &["inspect"], &["pack"], &["completions"]];

#[test]
fn help_is_as_agreed() {
    let help = COMMANDS.map(|command| {
        let arguments = [command, &["--help"]].concat();
        format!("$ dunlin {}\n{}", arguments.join(" "), stdout(&arguments, ""))
    });
    let found = help.join("\n");
    if std::env::var_os("DUNLIN_UPDATE_GOLDEN").is_some() {
        fs::write(GOLDEN, &found).expect("the checkout can be written");
    }
    let expected = fs::read_to_string(GOLDEN).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(found == expected, "{differs:?} differ; DUNLIN_UPDATE_GOLDEN=1 accepts the new help");
}

#[test]
fn help_fits_a_terminal_and_gives_examples() {
    for command in COMMANDS {
        let help = stdout(&[command, &["--help"]].concat(), "");
        assert!(help.contains("Examples:"), "{command:?}");
        for line in help.lines() {
            assert!(line.chars().count() <= 120, "{command:?}: {line}");
        }
    }
}

#[test]
fn there_are_completions_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell], "");
        assert!(script.contains("dunlin") && script.contains("inspect"), "{shell}");
    }
}

#[test]
fn the_version_is_one_line() {
    assert_eq!(stdout(&["--version"], ""), format!("dunlin {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn no_command_is_answered_with_help() {
    let output = output(&[], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("dunlin up"));
}
