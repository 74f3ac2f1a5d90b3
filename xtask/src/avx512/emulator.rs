//! Bochs: a machine with a processor of Intel's Ice Lake, whose serial line is printed as it is written.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::process::Running;
use crate::stop;

/// A model of Bochs 2.7 that has AVX-512 VNNI.
pub(super) const PROCESSOR: &str = "corei7_icelake_u";

/// Begins the last line of the machine's output; the exit status of the tests follows.
pub(super) const END: &str = "@@ the tests ended with status ";

/// The program itself: `bochs` is a script that starts it.
const PROGRAM: &str = "bochs-bin";
/// How often the serial line is looked at.
const POLL: Duration = Duration::from_millis(200);

/// What one run of the machine came to.
#[derive(Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) status: u8,
    pub(super) printed: String,
}

/// Boots `iso` and prints what the machine writes until its tests have ended.
pub(super) fn run(dir: &Path, iso: &Path, limit: Duration, stop: &AtomicBool) -> anyhow::Result<Ended> {
    let serial = dir.join("serial.txt");
    fs::write(&serial, "")?;
    let mut bochs = start(dir, iso, &serial)?;
    let (started, mut serial) = (Instant::now(), Serial::open(&serial)?);
    loop {
        // Asked before the last look at what it wrote.
        let alive = bochs.ensure_alive();
        if let Some(status) = serial.print_new()? {
            return Ok(Ended { status, printed: serial.text });
        }
        alive.context("the emulator ended before the tests")?;
        stop::check(stop)?;
        ensure!(
            started.elapsed() < limit,
            "the tests did not end within {} s (choose fewer, or a greater --limit)",
            limit.as_secs()
        );
        thread::sleep(POLL);
    }
}

/// It heeds no SIGTERM: dropping what is returned kills it.
fn start(dir: &Path, iso: &Path, serial: &Path) -> anyhow::Result<Running> {
    let (configuration_file, commands) = (dir.join("bochsrc"), dir.join("commands"));
    fs::write(&configuration_file, configuration(iso, serial, &dir.join("bochs.log")))?;
    // Debian's Bochs has its debugger built in, which waits to be told to continue.
    fs::write(&commands, "c\n")?;
    let mut command = Command::new(PROGRAM);
    command.arg("-q").arg("-f").arg(configuration_file).arg("-rc").arg(commands);
    // The display is a terminal that Bochs opens for itself, but it wants to know of what kind.
    command.env("TERM", "xterm");
    // Ctrl-C is for us: the debugger would stop at it and wait.
    command.process_group(0);
    Running::start(&mut command)
}

fn configuration(iso: &Path, serial: &Path, log: &Path) -> String {
    let (iso, serial, log) = (iso.display(), serial.display(), log.display());
    // ips: how many instructions make an emulated second; more make timers rarer.
    // error: action=ignore, since with `report` a boot that hung wrote a log of 1.9 GB.
    format!(
        "config_interface: textconfig
display_library: term
cpu: model={PROCESSOR}, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
clock: sync=none, time0=1700000000
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
sound: waveoutdrv=dummy
"
    )
}

/// The file that the machine's serial line is written to, read as it grows.
struct Serial {
    file: File,
    /// Bytes of a line that has no end yet.
    begun: Vec<u8>,
    /// Whole lines.
    text: String,
}

impl Serial {
    fn open(path: &Path) -> anyhow::Result<Serial> {
        Ok(Serial { file: File::open(path)?, begun: Vec::new(), text: String::new() })
    }

    /// Prints the lines that were added; the status if one of them is the last.
    fn print_new(&mut self) -> anyhow::Result<Option<u8>> {
        self.file.read_to_end(&mut self.begun)?;
        while let Some(len) = self.begun.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=len).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(status) = status(line) {
                return Ok(Some(status));
            }
            println!("{line}");
            self.text.push_str(line);
            self.text.push('\n');
        }
        Ok(None)
    }
}

/// What the last line says, even if it follows on something that broke off.
fn status(line: &str) -> Option<u8> {
    line.split_once(END)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_status() {
        let check = |line: &str, expected| assert_eq!(status(line), expected, "{line}");
        check(&format!("{END}0"), Some(0));
        check(&format!("test a ... {END}101"), Some(101));
        check(&format!("{END}$status"), None);
        check("test result: ok. 3 passed", None);
    }

    #[test]
    fn the_configuration_names_the_files_and_keeps_the_log_small() {
        let text = configuration(Path::new("/r/boot.iso"), Path::new("/r/serial.txt"), Path::new("/r/log"));
        for line in [
            "ata0-master: type=cdrom, path=/r/boot.iso, status=inserted",
            "com1: enabled=1, mode=file, dev=/r/serial.txt",
            "log: /r/log",
            "error: action=ignore",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing:\n{text}");
        }
        assert!(text.contains("model=corei7_icelake_u, count=1"), "{text}");
    }
}
