//! What the extended checks need besides Rust, put where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::debian;
use crate::process::show;

/// Where programs for checks are kept.
const CLIENTS_DIR: &str = "target/clients";

/// A Python that has what `tests/clients/requirements.txt` asks for; the error says what is missing.
pub(super) fn python(root: &Path) -> anyhow::Result<PathBuf> {
    let dir = root.join(CLIENTS_DIR);
    let python = dir.join("bin/python");
    if !python.exists() {
        let made = show(Command::new("python3").args(["-m", "venv"]).arg(&dir));
        made.context("needs Python 3 with venv (Debian: python3-venv)")?;
    }
    let requirements = root.join("tests/clients/requirements.txt");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    show(pip.arg(requirements)).context("cannot install the clients")?;
    Ok(python)
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
