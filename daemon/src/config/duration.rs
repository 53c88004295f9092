//! Durations in Go's notation (`100ms`, `1m30s`), as the configuration writes them.

use std::fmt;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserializer, Serializer};

/// Reads a duration. Negative ones make no sense here.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let nanos = types::go_duration(text).ok()?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
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
    fn durations_are_those_of_go_and_not_negative() {
        assert_eq!(parse("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
        for bad in ["", "1", "-1s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
