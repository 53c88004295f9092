//! Values as text and back: labels, sizes, ages, times, as Go's `ctr` writes and reads them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::Labels;

/// Labels as `a=b,c=d`.
pub(crate) fn labels(labels: &Labels) -> String {
    let pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

/// Labels as `a=b,c=d`, or `-` when there are none.
pub(crate) fn labels_or_dash(all: &Labels) -> String {
    if all.is_empty() {
        return "-".to_owned();
    }
    labels(all)
}

/// Labels from arguments `key=value`; a key alone has the value `true`.
pub(crate) fn parse_labels(arguments: &[String]) -> Labels {
    labels_with(arguments, "true")
}

/// Labels from arguments `key=value`; a key alone has the value `lone`.
pub(crate) fn labels_with(arguments: &[String], lone: &str) -> Labels {
    let mut made = Labels::new();
    for argument in arguments {
        let (key, value) = argument.split_once('=').unwrap_or((argument, lone));
        made.insert(key.to_owned(), value.to_owned());
    }
    made
}

/// Splits a size into a number below `base` and a unit.
#[expect(clippy::cast_precision_loss, reason = "shown with four digits at most")]
fn scaled(size: u64, base: f64, units: [&'static str; 7]) -> (f64, &'static str) {
    let (mut rest, mut at) = (size as f64, 0);
    while rest >= base && at + 1 < units.len() {
        rest /= base;
        at += 1;
    }
    (rest, units[at])
}

/// A size in decimal units with four digits, as `1.454kB`.
pub(crate) fn size(size: u64) -> String {
    let (number, unit) = scaled(size, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB", "EB"]);
    // Digits before the point take from those after it.
    let decimals = match number {
        n if n < 10.0 => 3,
        n if n < 100.0 => 2,
        _ => 1,
    };
    let text = format!("{number:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", if text.is_empty() { "0" } else { text })
}

/// A size in binary units with one decimal, as `1.5 MiB`.
pub(crate) fn bytes(size: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (number, unit) = scaled(size, 1024.0, units);
    format!("{number:.1} {unit}")
}

/// How long ago `then` was, roughly.
pub(crate) fn age(then: SystemTime) -> String {
    rough(then.elapsed().unwrap_or_default())
}

/// A time span in one unit, as `3 minutes`.
pub(crate) fn rough(span: Duration) -> String {
    let (seconds, hours) = (span.as_secs(), (span.as_secs() + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ => match hours {
            0..=1 => "About an hour".to_owned(),
            2..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 24 / 7),
            1440..17520 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", seconds / 3600 / 24 / 365),
        },
    }
}

/// A time as RFC 3339, in UTC, with the fraction that it has.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// A time as RFC 3339, in UTC, without a fraction.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    rfc3339(time.replace_nanosecond(0).unwrap_or(time).into())
}

/// A time as Go prints it: `2006-01-02 15:04:05.999999999 +0000 UTC`.
pub(crate) fn go_time(time: SystemTime) -> String {
    let text = rfc3339(time);
    let text = text.trim_end_matches('Z').replacen('T', " ", 1);
    format!("{text} +0000 UTC")
}

/// A time as the name of a checkpoint has it: month, day and year first.
pub(crate) fn checkpoint_date(time: SystemTime) -> String {
    let t = OffsetDateTime::from(time);
    let (month, day, year) = (u8::from(t.month()), t.day(), t.year());
    let (hour, minute, second) = t.to_hms();
    format!("{month:02}-{day:02}-{year}-{hour:02}:{minute:02}:{second:02}")
}

/// Reads a time span as Go writes it: `1h30m`, `1.5s`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let nanos = types::go_duration(text)?;
    let nanos = u64::try_from(nanos).map_err(|_| format!("invalid duration {text:?}"))?;
    Ok(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_round_trip() {
        let arguments: Vec<String> = ["c=d=e", "a=", "b"].map(String::from).to_vec();
        assert_eq!(labels(&parse_labels(&arguments)), "a=,b=true,c=d=e");
        assert_eq!(labels(&labels_with(&arguments, "")), "a=,b=,c=d=e");
        assert_eq!(labels_or_dash(&Labels::new()), "-");
    }

    #[test]
    fn checkpoints_are_dated_to_the_second() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(951_827_696_700);
        assert_eq!(checkpoint_date(time), "02-29-2000-12:34:56");
    }

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (100, "100B"),
            (999, "999B"),
            (1000, "1kB"),
            (1454, "1.454kB"),
            (12_345, "12.35kB"),
            (123_456, "123.5kB"),
            (999_999, "1000kB"),
            (1_500_000, "1.5MB"),
            (2_000_000_000, "2GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn binary_sizes_have_one_decimal() {
        for (size, text) in [
            (0, "0.0 B"),
            (1023, "1023.0 B"),
            (4096, "4.0 KiB"),
            (1_572_864, "1.5 MiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn spans_are_rough() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (730 * 86_400, "2 years"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("0", 0),
            ("0s", 0),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("24h", 86_400_000),
            ("10ms", 10),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)));
        }
        for bad in ["", "1", "h", "1x", "-1s", "1..s", "1h2"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_go() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1, 500_000_000);
        assert_eq!(go_time(time), "1970-01-01 00:00:01.5 +0000 UTC");
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01.5Z");
        assert_eq!(rfc3339_seconds(time), "1970-01-01T00:00:01Z");
    }
}
