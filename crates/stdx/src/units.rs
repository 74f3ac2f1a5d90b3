//! Numbers with units, for people.

use std::fmt;

/// A number of bytes, shown in binary units: `512 B`, `1.5 KiB`, `23.0 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A count, shown with the letter of its thousands: `950`, `3.2 M`, `1.2 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match scaled(self.0, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]) {
            (_, "B") => write!(f, "{} B", self.0),
            (value, unit) => write!(f, "{value:.1} {unit}"),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match scaled(self.0, 1000, &["", "k", "M", "B", "T"]) {
            (_, "") => write!(f, "{}", self.0),
            (value, unit) => write!(f, "{value:.1} {unit}"),
        }
    }
}

/// The value in the largest unit that leaves at least 1 before the point once it is rounded to one digit after it.
fn scaled(value: u64, step: u64, units: &[&'static str]) -> (f64, &'static str) {
    let mut scaled = value as f64;
    let mut units = units.iter().peekable();
    while let Some(&unit) = units.next() {
        // 1023.96 would print as 1024.0.
        if scaled < step as f64 - 0.05 || units.peek().is_none() {
            return (scaled, unit);
        }
        scaled /= step as f64;
    }
    (scaled, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_550, "1.0 MiB"),
            (3_202_720, "3.1 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), expected, "{bytes}");
        }
    }

    #[test]
    fn counts() {
        for (count, expected) in
            [(0, "0"), (999, "999"), (1000, "1.0 k"), (3_150_000, "3.1 M"), (1_236_000_000, "1.2 B")]
        {
            assert_eq!(Count(count).to_string(), expected, "{count}");
        }
    }
}
