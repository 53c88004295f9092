//! Durations in Go's notation: `100ms`, `1m30s`, `-1.5h`.

/// Units, in nanoseconds; a longer name before the shorter one that begins it.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Digits after the point that can matter: more are below a nanosecond of the largest unit.
const PLACES: usize = 18;

/// The nanoseconds that a text of Go's notation means; `0` needs no unit.
///
/// # Errors
/// What is wrong with the text, in one line.
pub fn go_duration(text: &str) -> Result<i64, String> {
    let bad = || format!("invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, tail) = rest.split_at(end.unwrap_or(rest.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(bad());
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (name, next) = tail.split_at(end.unwrap_or(tail.len()));
        if name.is_empty() {
            return Err(format!("missing unit in duration {text:?}"));
        }
        let unit = UNITS.iter().find(|(unit, _)| *unit == name);
        let (_, unit) =
            unit.ok_or_else(|| format!("unknown unit {name:?} in duration {text:?}"))?;
        // A number that does not fit is refused: so many nanoseconds would not fit either.
        let whole: u64 = match whole {
            "" => 0,
            digits => digits.parse().map_err(|_| bad())?,
        };
        nanos += u128::from(whole) * u128::from(*unit) + part(fraction, *unit);
        if nanos > u128::from(i64::MAX.unsigned_abs()) {
            return Err(bad());
        }
        rest = next;
    }
    let nanos = i64::try_from(nanos).map_err(|_| bad())?;
    Ok(if negative { -nanos } else { nanos })
}

/// So much of a unit as the digits after the point say.
fn part(digits: &str, unit: u64) -> u128 {
    let digits = digits.get(..PLACES).unwrap_or(digits);
    let (mut sum, mut scale) = (0, 1);
    for digit in digits.bytes() {
        sum = sum * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    sum * u128::from(unit) / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("100ms", 100_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("+.5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("-24h", -86_400_000_000_000),
            ("3us", 3_000),
            ("3\u{b5}s", 3_000),
            ("0.000000000000000000999h", 0),
            ("7ns", 7),
        ] {
            assert_eq!(go_duration(text), Ok(nanos), "{text}");
        }
        for bad in [
            "",
            "-",
            "1",
            "ms",
            "1x",
            "1s2",
            "1..5s",
            "s1",
            ".s",
            " 1s",
            "1 s",
            "300y",
            "9999999h",
            "99999999999999999999s",
        ] {
            assert!(go_duration(bad).is_err(), "{bad}");
        }
    }
}
