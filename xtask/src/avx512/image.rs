//! The CD that the emulated machine boots from: a kernel, and a file system in memory that holds the tests and a shell.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use super::emulator::END;
use crate::process::{output, show};

/// Debian's busybox-static puts it here.
const BUSYBOX: &str = "/bin/busybox";
const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
/// What the loader loads first.
const LOADER_MODULE: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// 20 MB on a slow disk.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// Features of the emulated processor that the kernel must not use, by the numbers of Linux's `cpufeatures.h`.
const FEATURES_CLEARED: [(u16, &str); 6] = [
    // Bochs offers the state of protection keys in XCR0 and leaves its size, CPUID 0xD.9, empty.
    (515, "PKU"),
    (516, "OSPKE"),
    // The sizes that Bochs reports for compacted states are ones that Linux finds inconsistent.
    (321, "XSAVEC"),
    (323, "XSAVES"),
    // Short `rep movsb` is said to be fast and long not, and the boot hangs where Linux chooses between them.
    (580, "FSRM"),
    // Counters of how fast the processor runs, which says nothing here.
    (124, "APERFMPERF"),
];

/// Writes `boot.iso` into `dir`. The tests are run one after the other with `filters`.
pub(super) fn write(
    dir: &Path,
    kernel: &Path,
    tests: &[PathBuf],
    filters: &[String],
    stop: &AtomicBool,
) -> anyhow::Result<PathBuf> {
    let (root, cd, iso) = (dir.join("root"), dir.join("cd"), dir.join("boot.iso"));
    fs::create_dir_all(cd.join("isolinux"))?;
    write_root(&root, tests, filters)?;
    archive(&root, tests.len(), &cd.join("initrd.img"))?;
    copy(kernel, &cd.join("vmlinuz"))?;
    copy(Path::new(LOADER), &cd.join("isolinux/isolinux.bin"))?;
    copy(Path::new(LOADER_MODULE), &cd.join("isolinux/ldlinux.c32"))?;
    fs::write(cd.join("isolinux/isolinux.cfg"), loader_configuration())?;
    let mut xorriso = Command::new("xorriso");
    xorriso
        .args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o"]);
    output(xorriso.arg(&iso).arg(&cd), WRITE_MAX, stop)?;
    Ok(iso)
}

/// What the archive is made of.
fn write_root(root: &Path, tests: &[PathBuf], filters: &[String]) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("bin"))?;
    copy(Path::new(BUSYBOX), &root.join("bin/busybox"))?;
    for (i, test) in tests.iter().enumerate() {
        copy(test, &root.join(format!("test{i}")))?;
    }
    let init_file = root.join("init");
    fs::write(&init_file, init(tests.len(), filters))?;
    fs::set_permissions(init_file, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Packs `root` in the form that the kernel unpacks at its start.
fn archive(root: &Path, tests: usize, to: &Path) -> anyhow::Result<()> {
    let names = root.with_extension("names");
    let mut list = "bin\nbin/busybox\ninit\n".to_owned();
    for i in 0..tests {
        writeln!(list, "test{i}").expect("a string takes everything");
    }
    fs::write(&names, list)?;
    let mut cpio = Command::new(BUSYBOX);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root);
    show(cpio.stdin(File::open(names)?).stdout(File::create(to)?))
}

/// The first process: runs the tests with the serial line as their output, and ends with a line that says how they did:
/// the status of the first program that failed.
fn init(tests: usize, filters: &[String]) -> String {
    let filters: String = filters.iter().map(|filter| format!(" {}", quoted(filter))).collect();
    let mut script = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
cd /tmp
status=0
"
    .to_owned();
    for i in 0..tests {
        let test = format!("/test{i} --test-threads=1 --nocapture{filters}");
        writeln!(script, "{test} || {{ ended=$?; [ $status -ne 0 ] || status=$ended; }}")
            .expect("a string takes everything");
    }
    // Whoever reads the line ends the machine.
    script + &format!("echo \"{END}$status\"\n/bin/busybox sleep 1000000\n")
}

/// As one word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn loader_configuration() -> String {
    let cleared = FEATURES_CLEARED.map(|(number, _)| number.to_string()).join(",");
    // idle=poll: an idle processor turns in a loop instead of waiting in `mwait`, one thing less for the emulator to
    // get right.
    // tsc=reliable, nowatchdog: against real time, emulated time is too slow for the kernel's checks of itself.
    // nokaslr, mitigations=off: less to emulate.
    let options = "quiet nokaslr mitigations=off tsc=reliable nowatchdog panic=1 idle=poll nopku";
    format!(
        "DEFAULT linux
PROMPT 0
TIMEOUT 0
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd.img
  APPEND console=ttyS0,115200 {options} clearcpuid={cleared}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_run_in_turn_and_the_first_failure_counts() {
        let script = init(2, &["matrix::".to_owned(), "it's".to_owned()]);
        let lines: Vec<&str> = script.lines().filter(|line| line.contains("--nocapture")).collect();
        let end = "|| { ended=$?; [ $status -ne 0 ] || status=$ended; }";
        for (i, line) in lines.iter().enumerate() {
            let test = format!(r"/test{i} --test-threads=1 --nocapture 'matrix::' 'it'\''s' {end}");
            assert_eq!(*line, test);
        }
        assert_eq!(lines.len(), 2);
        assert!(script.contains(&format!("\necho \"{END}$status\"\n")), "{script}");
    }

    #[test]
    fn the_kernel_is_told_what_not_to_use() {
        let text = loader_configuration();
        assert!(text.ends_with(" idle=poll nopku clearcpuid=515,516,321,323,580,124\n"), "{text}");
    }
}
