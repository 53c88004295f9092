//! Durations in Go's notation (`100ms`, `1m30s`), as the configuration writes them.

use std::fmt;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserializer, Serializer};

/// Units, in nanoseconds; a longer name before the shorter one that begins it.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Reads `[number unit]…`; `0` needs no unit. Negative durations make no sense here.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let (unit, scale) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        nanos += number.parse::<f64>().ok()? * scale;
        rest = &tail[unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(nanos / 1e9).ok())?
}

/// Writes a duration so that [`parse`] and Go read it back.
pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    let text = if value.subsec_nanos() == 0 {
        format!("{}s", value.as_secs())
    } else if value.subsec_nanos().is_multiple_of(1_000_000) {
        format!("{}ms", value.as_millis())
    } else {
        format!("{}ns", value.as_nanos())
    };
    to.serialize_str(&text)
}

/// Reads a duration from a string.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"100ms\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).ok_or_else(|| E::custom(format_args!("invalid duration {text:?}")))
        }
    }
    from.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("100ms", 100_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("3us", 3_000),
            ("7ns", 7),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for bad in ["", "1", "ms", "-1s", "1x", "1s2", "1..5s", "s1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
