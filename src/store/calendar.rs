//! Days, months and RFC 3339, in UTC, from milliseconds since the Unix epoch.
//!
//! Roll-ups are by UTC day and caps by UTC month: one calendar for everyone, without a time zone database.

use crate::engine::budget::MonthIndex;

/// Milliseconds in a day.
pub const DAY_MS: u64 = 86_400_000;

/// A calendar date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// Year.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, from 1.
    pub day: u32,
}

/// Days since 1970-01-01.
pub fn day_of(ms: u64) -> i64 {
    (ms / DAY_MS) as i64
}

/// The first day of a month.
pub fn first_day_of_month(month: MonthIndex) -> i64 {
    day_of_date(Date { year: i64::from(month.0 / 12), month: month.0 % 12 + 1, day: 1 })
}

/// The month of a day since 1970-01-01.
pub fn month_of_day(day: i64) -> MonthIndex {
    MonthIndex::of_ms(u64::try_from(day).unwrap_or(0).saturating_mul(DAY_MS))
}

/// The date of a day since 1970-01-01 (proleptic Gregorian; the 400-year cycle has 146,097 days).
pub fn date_of_day(day: i64) -> Date {
    // Years are counted from March, so that the leap day is the last of its year.
    let shifted = day + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let day_of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    Date { year: year_of_cycle + cycle * 400 + i64::from(month <= 2), month, day }
}

/// The day since 1970-01-01 of a date.
pub fn day_of_date(date: Date) -> i64 {
    let year = date.year - i64::from(date.month <= 2);
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    let month_from_march = i64::from((date.month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(date.day) - 1;
    cycle * 146_097 + year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year - 719_468
}

/// `2026-11-22T02:08:12.345Z`.
pub fn rfc3339(ms: u64) -> String {
    let mut text = Vec::with_capacity(24);
    put_rfc3339(&mut text, ms);
    // Digits and separators are ASCII, so the fallback is never taken.
    String::from_utf8(text).unwrap_or_default()
}

/// Appends what [`rfc3339`] returns.
pub fn put_rfc3339(out: &mut Vec<u8>, ms: u64) {
    let Date { year, month, day } = date_of_day(day_of(ms));
    let in_day = ms % DAY_MS;
    // Four digits reach the year 9999; time enough.
    out.extend_from_slice(&[1000, 100, 10, 1].map(|unit| b'0' + (year / unit % 10) as u8));
    out.push(b'-');
    let mut two = |value: u64, end: u8| out.extend_from_slice(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8, end]);
    two(u64::from(month), b'-');
    two(u64::from(day), b'T');
    two(in_day / 3_600_000, b':');
    two(in_day / 60_000 % 60, b':');
    two(in_day / 1000 % 60, b'.');
    let milli = in_day % 1000;
    out.extend_from_slice(&[b'0' + (milli / 100) as u8, b'0' + (milli / 10 % 10) as u8, b'0' + (milli % 10) as u8, b'Z']);
}

/// `2026-11-22`.
pub fn iso_day(day: i64) -> String {
    let Date { year, month, day } = date_of_day(day);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A day from `2026-11-22` (what follows a `T` is ignored), or so many days back from `now_ms` from `30d`, but none before 1970-01-01,
/// where days begin; `None`: neither.
pub fn parse_since(text: &str, now_ms: u64) -> Option<i64> {
    if let Some(days) = text.strip_suffix('d') {
        return Some((day_of(now_ms) - days.parse::<u32>().ok().map(i64::from)?).max(0));
    }
    let mut parts = text.split('T').next()?.splitn(3, '-');
    let date = Date { year: parts.next()?.parse().ok()?, month: parts.next()?.parse().ok()?, day: parts.next()?.parse().ok()? };
    // A day that the calendar does not have (31 April) comes back as another one.
    let day = day_of_date(date);
    (date.year < 10_000 && (1..=12).contains(&date.month) && date_of_day(day) == date).then_some(day.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        // `date -u -d @…` gives the same.
        for (ms, expected, month) in [
            (0, "1970-01-01T00:00:00.000Z", 1970 * 12),
            (951_782_400_000, "2000-02-29T00:00:00.000Z", 2000 * 12 + 1),
            (1_795_313_292_345, "2026-11-22T02:08:12.345Z", 2026 * 12 + 10),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z", 2100 * 12 + 1),
        ] {
            assert_eq!((rfc3339(ms).as_str(), MonthIndex::of_ms(ms)), (expected, MonthIndex(month)));
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in 0..146_097 {
            assert_eq!(day_of_date(date_of_day(day)), day);
        }
        assert_eq!(iso_day(first_day_of_month(MonthIndex(2024 * 12 + 1)) + 28), "2024-02-29");
    }

    #[test]
    fn since() {
        let now = 1_795_313_292_345;
        for (text, expected) in [
            ("2026-11-22", Some("2026-11-22")),
            ("2026-11-01T10:00:00Z", Some("2026-11-01")),
            ("7d", Some("2026-11-15")),
            ("4294967295d", Some("1970-01-01")),
            ("4294967296d", None),
            ("1969-12-31", Some("1970-01-01")),
            ("2026-02-30", None),
            ("2026-13-01", None),
            ("yesterday", None),
            ("-1d", None),
            ("", None),
        ] {
            assert_eq!(parse_since(text, now).map(iso_day).as_deref(), expected, "{text}");
        }
    }
}
