//! Numbers with units, for people.

use std::fmt;
use std::str::FromStr;

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

/// A number with a unit: `4096`, `512MiB`, `1.5 GiB`, `2G`. Letters alone are binary units, too.
impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size; sizes look like 512MiB or 2GiB");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        let power = match unit.trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * 1024f64.powi(power);
        if bytes <= u64::MAX as f64 { Ok(Bytes(bytes as u64)) } else { Err(wrong()) }
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
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1k", 1024),
            ("512MiB", 512 << 20),
            ("1.5 GiB", 3 << 29),
            ("2gb", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.2.3", "4 apples", "1e9", "9999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

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
