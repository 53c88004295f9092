//! Whose trace a flight is part of.

use std::str::FromStr;

/// The place in a trace from which a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The trace.
    pub trace: u128,
    /// The caller's span.
    pub parent: u64,
    /// The caller's spans are kept.
    pub sampled: bool,
}

/// A `traceparent` of the W3C's Trace Context, level 1: `00-<trace id>-<parent id>-<flags>`. Of a later
/// version is read what this one has.
impl FromStr for Origin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let mut part = |len| hex(parts.next(), len);
        let version = part(2)?;
        let trace = part(32)?;
        let parent = u64::try_from(part(16)?).map_err(drop)?;
        let flags = part(2)?;
        let is_long = parts.next().is_some();
        if version == 0xff || (version == 0 && is_long) || trace == 0 || parent == 0 {
            return Err(());
        }
        Ok(Self {
            trace,
            parent,
            sampled: flags & 1 == 1,
        })
    }
}

/// Lower-case hexadecimal digits, as many as that.
fn hex(part: Option<&str>, len: usize) -> Result<u128, ()> {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let part = part.filter(|part| part.len() == len && part.bytes().all(is_digit));
    u128::from_str_radix(part.ok_or(())?, 16).map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_context_is_read() {
        let read = |text: &str| text.parse::<Origin>();
        let origin = Origin {
            trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            parent: 0x00f0_67aa_0ba9_02b7,
            sampled: true,
        };
        assert_eq!(read(&format!("00-{TRACE}-00f067aa0ba902b7-01")), Ok(origin));
        assert_eq!(
            read(&format!("cc-{TRACE}-00f067aa0ba902b7-09-more")),
            Ok(origin)
        );
        let unsampled = Origin {
            sampled: false,
            ..origin
        };
        assert_eq!(
            read(&format!("00-{TRACE}-00f067aa0ba902b7-00")),
            Ok(unsampled)
        );
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            String::new(),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-00f067aa0ba902b-01"),
            format!("00-{TRACE}-+0f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7"),
        ] {
            assert_eq!(text.parse::<Origin>(), Err(()), "{text}");
        }
    }
}
