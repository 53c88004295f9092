//! Versions of the CNI specification that are spoken here, and what each of them can do.
//!
//! Invariant: a version that is not in the table is refused by name, it is never taken for a near one.

use std::fmt;
use std::str::FromStr;

use types::{Error, Result};

/// A version of the specification. Later ones compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// One address for each family; what a configuration without a version means.
    V0_1_0,
    /// As 0.1.0.
    V0_2_0,
    /// Chains, and results with interfaces.
    V0_3_0,
    /// As 0.3.0.
    V0_3_1,
    /// `CHECK`, and `DEL` with the result of `ADD`.
    V0_4_0,
    /// Addresses without their family's number.
    V1_0_0,
    /// `GC` and `STATUS`.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// As written in configurations and results.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Results list interfaces; older ones have one address for each family and nothing else.
    pub(super) fn has_interfaces(self) -> bool {
        self >= Self::V0_3_0
    }

    /// `CHECK` exists, and `DEL` is told what `ADD` has answered.
    pub(super) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// `GC` and `STATUS` exist.
    pub(super) fn has_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // A configuration without one is as old as the oldest.
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| {
            Error::invalid_argument(format_args!(
                "CNI version {text:?} is not known here: 0.1.0 to 1.1.0"
            ))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
