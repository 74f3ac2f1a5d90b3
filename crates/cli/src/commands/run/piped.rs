//! What was piped in. It does not wait for ever where there is a prompt already: the standard input of a service or of
//! a script may be open and silent until the end of all things.

use crate::defaults;
use crate::error::{CliError, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

/// All of `input` up to its end, which must be text of a reasonable length. With `silence_max`, `None` if for so long
/// nothing comes and it does not end; once something came, its end is waited for.
pub(super) fn read(
    input: &mut (impl Read + AsFd),
    silence_max: Option<Duration>,
) -> Result<Option<String>, CliError> {
    match silence_max {
        Some(silence_max) if !says_something(input, silence_max)? => Ok(None),
        _ => read_to_end(input).map(Some),
    }
}

/// Whether there is something to read, or the end, within `silence_max`.
fn says_something(input: &impl AsFd, silence_max: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(silence_max).expect("silence is of seconds");
    let ready = retry_on_intr(|| poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&timeout)))?;
    Ok(ready > 0)
}

fn read_to_end(input: &mut impl Read) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    input.take(defaults::STDIN_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > defaults::STDIN_BYTES_MAX {
        let message = format!("standard input is longer than {} bytes", defaults::STDIN_BYTES_MAX);
        return Err(CliError::new(Kind::Usage, message));
    }
    String::from_utf8(bytes).map_err(|_| CliError::new(Kind::Usage, "standard input is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeWriter, Write, pipe};
    use std::thread;

    /// Reads a pipe while `write` has its other end.
    fn check(
        silence_max: Option<Duration>,
        write: impl FnOnce(PipeWriter) -> Option<PipeWriter>,
        expected: Option<&str>,
    ) {
        let (mut reader, writer) = pipe().unwrap();
        let held = write(writer);
        let read = read(&mut reader, silence_max).unwrap();
        assert_eq!(read.as_deref(), expected);
        drop(held);
    }

    fn say(writer: &mut PipeWriter, text: &str) {
        writer.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_pipe_that_is_open_and_silent_is_left_alone() {
        check(Some(Duration::ZERO), Some, None);
    }

    #[test]
    fn a_pipe_that_says_something_or_ends_is_read_to_its_end() {
        for silence_max in [None, Some(Duration::ZERO)] {
            check(silence_max, |_| None, Some(""));
            let all = |mut writer: PipeWriter| {
                say(&mut writer, "all");
                None
            };
            check(silence_max, all, Some("all"));
            // The rest comes when it comes.
            let slowly = |mut writer: PipeWriter| {
                say(&mut writer, "the first, ");
                thread::spawn(move || say(&mut writer, "the rest"));
                None
            };
            check(silence_max, slowly, Some("the first, the rest"));
        }
    }

    #[test]
    fn without_a_prompt_silence_is_waited_out() {
        let later = |mut writer: PipeWriter| {
            thread::spawn(move || say(&mut writer, "later"));
            None
        };
        check(None, later, Some("later"));
    }
}
