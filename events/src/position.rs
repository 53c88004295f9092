//! Positions: how far a subscriber has got, in a form that survives its connection.
//!
//! Invariant: a position is good for one run of the exchange only. Numbers begin anew with each, so
//! every position names its run, and one of another run is told apart instead of misread.

use std::fmt;
use std::str::FromStr;

use types::{Error, Result};

/// The place behind one event; `<run>:<number>` as text, which others need not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub(crate) run: u64,
    pub(crate) sequence: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.run, self.sequence)
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (run, sequence) = text.split_once(':')?;
            Some(Self {
                run: u64::from_str_radix(run, 16).ok()?,
                sequence: sequence.parse().ok()?,
            })
        };
        let bad = || Error::invalid_argument(format_args!("event position {text:?}"));
        parse().ok_or_else(bad)
    }
}

/// Why a subscription cannot go on where it was: something is missed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The position that was asked for.
    pub after: Position,
    /// How many events after it are not held any more, filters aside; `None` when they cannot be
    /// counted, because the position is of another run.
    pub missed: Option<u64>,
    /// The oldest position from which nothing is missed.
    pub from: Position,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, from, .. } = self;
        match self.missed {
            Some(missed) => write!(f, "{missed} events after {after} are gone, up to {from}"),
            None => write!(
                f,
                "events after {after}, of another run, are gone; this is {from}"
            ),
        }
    }
}

impl From<Gap> for Error {
    fn from(gap: Gap) -> Self {
        Self::out_of_range(gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn positions_read_as_they_are_written() {
        for (run, sequence) in [(0, 0), (7, 12), (u64::MAX, u64::MAX)] {
            let position = Position { run, sequence };
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
        for bad in [
            "",
            ":",
            "1",
            "1:",
            ":1",
            "x:1",
            "1:-1",
            "1:1:1",
            "11112222333344445:1",
        ] {
            let error = bad.parse::<Position>().unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}");
        }
    }
}
