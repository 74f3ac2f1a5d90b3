//! What the emulated machine is made with: programs from Debian's packages, and a kernel that is unpacked and not
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::{debian, process};

const PACKAGES: [&str; 8] = [
    "bochs",
    "bochsbios",
    "vgabios",
    // The display without a window, and the only one that waits for no client.
    "bochs-term",
    "isolinux",
    "syslinux-common",
    "xorriso",
    "busybox-static",
];

/// Depends on the current kernel for virtual machines: the smallest of Debian's, whose drivers are built in as far as
/// they are needed here.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";
/// 30 MB from a slow mirror.
const DOWNLOAD_MAX: Duration = Duration::from_secs(600);

/// Installs and downloads what is missing, where that is possible, and returns the kernel; the error says what is
/// missing.
pub(super) fn provide(dir: &Path, install: bool, stop: &AtomicBool) -> anyhow::Result<PathBuf> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "the tests are built on x86-64 Linux only"
    );
    if let Some(reason) = debian::provide(&PACKAGES, None, install)? {
        bail!("{reason}");
    }
    let dir = dir.join("kernel");
    if let Some(kernel) = unpacked_kernel(&dir) {
        return Ok(kernel);
    }
    if !install || !debian::is_root() {
        bail!(
            "missing: a kernel in {0} (apt-get download the package that {KERNEL_METAPACKAGE} depends on, then \
             dpkg-deb --extract it to {0})",
            dir.display()
        );
    }
    // Half a package must not look like a whole one.
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    download_kernel(&partial, stop)?;
    fs::rename(&partial, &dir)?;
    unpacked_kernel(&dir).context("the package has no boot/vmlinuz-*")
}

fn unpacked_kernel(dir: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(dir.join("boot")).ok()?.filter_map(Result::ok);
    entries
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|entry| entry.path())
}

fn download_kernel(dir: &Path, stop: &AtomicBool) -> anyhow::Result<()> {
    let run = |program: &str, args: &[&str]| {
        eprintln!("{program} {}", args.join(" "));
        process::output(Command::new(program).args(args).current_dir(dir), DOWNLOAD_MAX, stop)
    };
    run("apt-get", &["update", "--quiet=2"])?;
    let depends = run("apt-cache", &["depends", KERNEL_METAPACKAGE])?;
    let package = kernel_package(&depends)
        .with_context(|| format!("{KERNEL_METAPACKAGE} is not among this machine's packages"))?;
    run("apt-get", &["download", "--quiet=2", package])?;
    let mut files = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let file = file.context("apt-get downloaded nothing")?;
    run("dpkg-deb", &["--extract", &file.to_string_lossy(), "."])?;
    fs::remove_file(file)?;
    Ok(())
}

/// The first package that the metapackage depends on, by what apt-cache says.
fn kernel_package(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metapackage_names_the_kernel() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_package(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel_package(""), None);
    }
}
