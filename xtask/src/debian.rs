//! Debian's packages: which are missing, and how they get onto this machine.

use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Installs what is missing of `packages` where that is possible; otherwise says why it is not. `architecture` is a
/// foreign one that packages are of.
pub(crate) fn provide(
    packages: &[&str],
    architecture: Option<&str>,
    install: bool,
) -> anyhow::Result<Option<String>> {
    let Ok(missing) = missing(packages) else {
        return Ok(Some("the tools come from Debian packages and this machine has no dpkg".to_owned()));
    };
    if missing.is_empty() {
        return Ok(None);
    }
    let names = missing.join(" ");
    let add = architecture.map(|name| format!("dpkg --add-architecture {name}"));
    if !install || !is_root() {
        let hint = add.map_or("install them".to_owned(), |step| format!("{step}, then install them"));
        return Ok(Some(format!("missing packages: {names} ({hint})")));
    }
    let steps = [
        "apt-get update --quiet=2".to_owned(),
        format!("apt-get install --yes --quiet=2 --no-install-recommends {names}"),
    ];
    for step in add.into_iter().chain(steps) {
        if let Err(error) = step_of_installation(&step) {
            return Ok(Some(format!("{error:#}")));
        }
    }
    let missing = self::missing(packages)?;
    ensure!(missing.is_empty(), "installed, and still missing: {}", missing.join(" "));
    Ok(None)
}

pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// An error means that there is no dpkg.
fn missing<'a>(packages: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    for package in packages {
        let out = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}\n", package])
            .output()?;
        if !out.stdout.split(|&b| b == b'\n').any(|status| status == b"installed") {
            missing.push(*package);
        }
    }
    Ok(missing)
}

/// Prints the command and runs it; of what it writes only errors are shown.
fn step_of_installation(step: &str) -> anyhow::Result<()> {
    eprintln!("{step}");
    let mut words = step.split(' ');
    let program = words.next().expect("a step has a program");
    let out = Command::new(program).args(words).env("DEBIAN_FRONTEND", "noninteractive").output();
    let out = out.with_context(|| format!("`{step}` failed"))?;
    if !out.status.success() {
        eprint!("{}", String::from_utf8_lossy(&out.stderr));
        bail!("`{step}` failed: {}", out.status);
    }
    Ok(())
}
