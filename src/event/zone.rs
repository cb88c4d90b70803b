//! Times of any zone, brought to UTC.
//!
//! A `timestamptz` is an instant, and its text in JSON is the same instant in the time zone of whoever made
//! the text: for the log, the writer. A writer that set its own zone aside for each row would pay a third more
//! (measured), so that is done here, and gives the bytes that PostgreSQL writes where the zone is UTC.

use std::fmt::Write;

use super::Image;

/// The image with the times of its zoned columns in UTC; `None` when that is what it is. Everything else
/// stays as it is, to the byte.
#[must_use]
pub fn in_utc(image: &str, is_zoned: impl Fn(&str) -> bool) -> Option<String> {
    if !may_tell_another(image) {
        return None;
    }
    let mut text = String::with_capacity(image.len() + 8);
    let mut done = 0;
    for (name, value) in Image::parse(image).ok()?.members {
        if !is_zoned(&name) {
            continue;
        }
        // Values are parts of the image.
        let mut at = value.as_ptr().addr() - image.as_ptr().addr();
        // A string, or an array of such; PostgreSQL writes no quote inside a time.
        for (place, part) in value.split('"').enumerate() {
            if place % 2 == 1
                && let Some(time) = utc(part)
            {
                text.push_str(&image[done..at]);
                text.push_str(&time);
                done = at + part.len();
            }
            at += part.len() + 1;
        }
    }
    if done == 0 {
        return None;
    }
    text.push_str(&image[done..]);
    Some(text)
}

/// Whether some string in the image ends as a time of another zone does (`+05:30`, `+00:53:28`), or one before
/// Christ. Most images hold none, and this is soon seen.
fn may_tell_another(image: &str) -> bool {
    let bytes = image.as_bytes();
    memchr::memchr_iter(b'"', bytes).any(|end| {
        let sign = |back: usize| matches!(bytes[end - back], b'+' | b'-');
        match end {
            ..6 => false,
            _ if sign(6) => &bytes[end - 5..end] != b"00:00",
            9.. if sign(9) => true,
            _ => bytes[..end].ends_with(b" BC"),
        }
    })
}

const DAY: i64 = 24 * 60 * 60;

/// The time in UTC; `None` when it is, or is not one on the calendar (`infinity`).
fn utc(time: &str) -> Option<String> {
    let (common, before_christ) = match time.strip_suffix(" BC") {
        Some(common) => (common, true),
        None => (time, false),
    };
    let (date, clock) = common.split_once('T')?;
    let (clock, zone) = clock.split_at(clock.find(['+', '-'])?);
    let offset = seconds(&zone[1..])? * if zone.starts_with('-') { -1 } else { 1 };
    if offset == 0 {
        return None;
    }
    let (clock, fraction) = clock.split_at(clock.find('.').unwrap_or(clock.len()));
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i32>().ok());
    let mut part = || Some(i64::from(date.next()??));
    let (year, month, day) = (part()?, part()?, part()?);
    let year = if before_christ { 1 - year } else { year };
    let instant = days(year, month, day) * DAY + seconds(clock)? - offset;
    let (year, month, day) = date_of(instant.div_euclid(DAY));
    let clock = instant.rem_euclid(DAY);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let (year, era) = if year > 0 {
        (year, "")
    } else {
        (1 - year, " BC")
    };
    let mut text = String::with_capacity(time.len() + 3);
    let _infallible = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}+00:00{era}"
    );
    Some(text)
}

/// Seconds of `hh:mm` or `hh:mm:ss`.
fn seconds(clock: &str) -> Option<i64> {
    let mut sum = 0;
    let mut worth = 3600;
    for part in clock.split(':') {
        sum += i64::from(part.parse::<i32>().ok()?) * worth;
        worth /= 60;
    }
    Some(sum)
}

/// Days of four centuries.
const ERA: i64 = 146_097;

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar; year 0 is 1 BC. A year begins in March
/// here, so that its last day is the one that may be missing. jiff ends at the year 9999, PostgreSQL does not.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year.div_euclid(400) * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date, by the days from 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let of_era = days.rem_euclid(ERA);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = days.div_euclid(ERA) * 400 + year + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_brought_to_utc_in_postgresql_s_own_form() {
        for (time, wanted) in [
            ("2026-03-04T05:06:07+05:30", "2026-03-03T23:36:07+00:00"),
            ("2026-12-31T23:59:59.5-00:30", "2027-01-01T00:29:59.5+00:00"),
            (
                "2024-03-01T00:00:00.000001+01:00",
                "2024-02-29T23:00:00.000001+00:00",
            ),
            (
                "0001-01-01T00:00:00+00:53:28",
                "0001-12-31T23:06:32+00:00 BC",
            ),
            ("0001-12-31T23:30:00-01:00 BC", "0001-01-01T00:30:00+00:00"),
            (
                "4714-11-24T00:00:00+00:00 BC",
                "4714-11-24T00:00:00+00:00 BC",
            ),
            (
                "294276-12-31T23:59:59.999999-01:00",
                "294277-01-01T00:59:59.999999+00:00",
            ),
            ("10000-01-01T00:30:00+01:00", "9999-12-31T23:30:00+00:00"),
            ("2026-03-04T05:06:07+00:00", "2026-03-04T05:06:07+00:00"),
            ("infinity", "infinity"),
            // No times: a column of that name was once another.
            (
                "99999999999-01-01T00:00:00+01:00",
                "99999999999-01-01T00:00:00+01:00",
            ),
            ("2026-03-04T05:06:07+", "2026-03-04T05:06:07+"),
        ] {
            assert_eq!(utc(time).as_deref().unwrap_or(time), wanted, "{time}");
        }
    }

    #[test]
    fn only_zoned_columns_are_touched_and_all_else_keeps_its_bytes() {
        let at = "2026-03-04T05:06:07+05:30";
        let image = format!(
            "{{\"id\" : 1,\"text\":\"{at}\",\"é\":\"{at}\",\"all\":[[\"{at}\",null],[\"infinity\",\"{at}\"]], \"doc\":{{\"at\":\"{at}\"}},\"none\":null}}"
        );
        let zoned = |name: &str| ["é", "all", "none"].contains(&name);
        let utc = "2026-03-03T23:36:07+00:00";
        let wanted = format!(
            "{{\"id\" : 1,\"text\":\"{at}\",\"é\":\"{utc}\",\"all\":[[\"{utc}\",null],[\"infinity\",\"{utc}\"]], \"doc\":{{\"at\":\"{at}\"}},\"none\":null}}"
        );
        assert_eq!(in_utc(&image, zoned), Some(wanted.clone()));
        assert_eq!(in_utc(&wanted, zoned), None);
        assert_eq!(in_utc("[", zoned), None);
    }

    proptest! {
        #[test]
        fn days_and_dates_agree(day in -2_500_000_i64..110_000_000) {
            let (year, month, of_month) = date_of(day);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&of_month));
            prop_assert_eq!(days(year, month, of_month), day);
            if let (Ok(year), Ok(month), Ok(of_month)) =
                (i16::try_from(year), i8::try_from(month), i8::try_from(of_month))
                && (-9000..9000).contains(&year)
            {
                let date = jiff::civil::date(1970, 1, 1) + jiff::Span::new().days(day);
                prop_assert_eq!(date, jiff::civil::date(year, month, of_month));
            }
        }

        /// Whatever a text is like, nothing else is done to it and nothing panics.
        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,40}", time in "[0-9T:+. BC-]{0,40}") {
            let image = serde_json::json!({ "at": text, "b": [time] }).to_string();
            let _changed = in_utc(&image, |_| true);
        }
    }
}
