//! The date and time a template can ask for, and how it asks: C's `strftime`.

use std::fmt::Write;

use minijinja::{Error, ErrorKind};

/// What a calendar and a clock on the wall show. Public fields: a nonsense date prints nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CivilTime {
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

/// The start of 1970.
impl Default for CivilTime {
    fn default() -> Self {
        Self::from_unix(0)
    }
}

impl CivilTime {
    /// From seconds since 1970 in UTC, or in local time if the offset is added already. Years are kept within four digits.
    pub fn from_unix(seconds: i64) -> Self {
        const FIRST: i64 = -62_135_596_800; // 0001-01-01
        const LAST: i64 = 253_402_300_799; // 9999-12-31 23:59:59
        let seconds = seconds.clamp(FIRST, LAST);
        let (year, month, day) = date_of(seconds.div_euclid(86_400));
        let second = seconds.rem_euclid(86_400);
        Self {
            year,
            month,
            day,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// 0 is Sunday.
    fn weekday(self) -> u32 {
        let days = days_since_1970(self.year, self.month, self.day);
        (days + 4).rem_euclid(7) as u32
    }

    /// 0 is the first of January.
    fn day_of_year(self) -> u32 {
        (days_since_1970(self.year, self.month, self.day) - days_since_1970(self.year, 1, 1)).unsigned_abs()
            as u32
    }
}

/// Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.
fn days_since_1970(year: i32, month: u8, day: u8) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The same, `civil_from_days`.
fn date_of(days: i64) -> (i32, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u8;
    let month = (if shifted < 10 { shifted + 3 } else { shifted - 9 }) as u8;
    ((year_of_era + era * 400 + i64::from(month <= 2)) as i32, month, day)
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats like C's `strftime` in the C locale, for a time without a zone.
pub(super) fn strftime(format: &str, time: CivilTime) -> Result<String, Error> {
    let mut output = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut directive = chars.next();
        let flag = directive.filter(|c| matches!(c, '-' | '_' | '0' | '^'));
        if flag.is_some() {
            directive = chars.next();
        }
        push(&mut output, directive, flag, time)?;
    }
    Ok(output)
}

fn push(
    output: &mut String,
    directive: Option<char>,
    flag: Option<char>,
    time: CivilTime,
) -> Result<(), Error> {
    let Some(directive) = directive else {
        output.push('%');
        return Ok(());
    };
    let weekday = WEEKDAYS[time.weekday() as usize % 7];
    let month = MONTHS[(usize::from(time.month).max(1) - 1) % 12];
    let hour = u32::from(time.hour);
    let hour_12 = (hour + 11) % 12 + 1;
    let day_of_year = time.day_of_year();
    let nested = match directive {
        'D' | 'x' => "%m/%d/%y",
        'F' => "%Y-%m-%d",
        'T' | 'X' => "%H:%M:%S",
        'R' => "%H:%M",
        'r' => "%I:%M:%S %p",
        'c' => "%a %b %e %H:%M:%S %Y",
        _ => "",
    };
    if !nested.is_empty() {
        output.push_str(&strftime(nested, time)?);
        return Ok(());
    }
    let text = match directive {
        'A' => weekday,
        'a' => &weekday[..3],
        'B' => month,
        'b' | 'h' => &month[..3],
        'p' => ["AM", "PM"][usize::from(hour >= 12)],
        'P' => ["am", "pm"][usize::from(hour >= 12)],
        'n' => "\n",
        't' => "\t",
        '%' => "%",
        // A time without a zone has no name for one.
        'Z' | 'z' => return Ok(()),
        _ => "",
    };
    if !text.is_empty() {
        output.push_str(&if flag == Some('^') { text.to_uppercase() } else { text.to_owned() });
        return Ok(());
    }
    let (number, width, pad) = match directive {
        'Y' => (time.year.unsigned_abs(), 1, '0'),
        'C' => (time.year.unsigned_abs() / 100, 2, '0'),
        'y' => (time.year.unsigned_abs() % 100, 2, '0'),
        'm' => (u32::from(time.month), 2, '0'),
        'd' => (u32::from(time.day), 2, '0'),
        'e' => (u32::from(time.day), 2, ' '),
        'H' => (hour, 2, '0'),
        'k' => (hour, 2, ' '),
        'I' => (hour_12, 2, '0'),
        'l' => (hour_12, 2, ' '),
        'M' => (u32::from(time.minute), 2, '0'),
        'S' => (u32::from(time.second), 2, '0'),
        'f' => (0, 6, '0'),
        'j' => (day_of_year + 1, 3, '0'),
        'w' => (time.weekday(), 1, '0'),
        'u' => ((time.weekday() + 6) % 7 + 1, 1, '0'),
        'U' => ((day_of_year + 7 - time.weekday()) / 7, 2, '0'),
        'W' => ((day_of_year + 7 - (time.weekday() + 6) % 7) / 7, 2, '0'),
        _ => {
            let message = format!("strftime_now does not know %{directive}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let number = number.to_string();
    let pad = match flag {
        Some('-') => "",
        Some('_') => " ",
        Some('0') => "0",
        _ if pad == ' ' => " ",
        _ => "0",
    };
    for _ in number.len()..width {
        output.push_str(pad);
    }
    write!(output, "{number}").map_err(|_| Error::from(ErrorKind::WriteFailure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(time: CivilTime, format: &str, expected: &str) {
        assert_eq!(strftime(format, time).unwrap(), expected, "{format}");
    }

    #[test]
    fn prints_like_c() {
        let time = CivilTime { year: 2026, month: 1, day: 2, hour: 15, minute: 4, second: 5 };
        check(time, "%d %b %Y", "02 Jan 2026");
        check(time, "%A, %B %-d|%e|%y %j %U %W %u %w", "Friday, January 2| 2|26 002 00 00 5 5");
        check(time, "%F %T %R %D %I:%M %p %-I %-H%%%Z", "2026-01-02 15:04:05 15:04 01/02/26 03:04 PM 3 15%");
        check(time, "é%", "é%");
        assert!(strftime("%Q", time).is_err());
    }

    #[test]
    fn days_and_dates_agree() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu"),
            (951_782_400, "2000-02-29 00:00:00 Tue"),
            (1_767_323_045, "2026-01-02 03:04:05 Fri"),
            (-1, "1969-12-31 23:59:59 Wed"),
            (i64::MAX, "9999-12-31 23:59:59 Fri"),
        ] {
            check(CivilTime::from_unix(seconds), "%F %T %a", expected);
        }
        for day in (-800_000..2_900_000).step_by(97) {
            let (year, month, date) = date_of(day);
            assert_eq!(days_since_1970(year, month, date), day);
        }
    }
}
