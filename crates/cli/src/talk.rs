//! The two voices of a command line: standard output is data, standard error is talk.

use crate::error::CliError;
use std::fmt;
use std::io::{self, Write};

/// Says a line to whoever is watching. Nobody watching is no error.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes data to standard output, at once.
pub(crate) fn write(data: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(data)?;
    Ok(out.flush()?)
}

/// Writes a line of data to standard output, at once.
pub(crate) fn write_line(line: impl fmt::Display) -> Result<(), CliError> {
    write(format!("{line}\n").as_bytes())
}
