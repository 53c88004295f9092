//! Names of things, validated once. None of the identifier types can hold a path separator.

use std::fmt;

use crate::{Error, Result};

/// The identifier rule that containers, tasks, execs, namespaces and topic parts share.
#[derive(Debug)]
pub struct Identifier;

impl Identifier {
    /// Longest identifier, in bytes.
    pub const MAX: usize = 76;

    /// Checks `[A-Za-z0-9]+` groups joined by single `.`, `_` or `-`, 76 bytes at most.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(text: &str) -> Result<()> {
        if text.is_empty() {
            return Err(Error::invalid_argument("identifier must not be empty"));
        }
        if text.len() > Self::MAX {
            return Err(Error::invalid_argument(format_args!(
                "identifier {text:?} greater than maximum length ({} characters)",
                Self::MAX
            )));
        }
        let mut separator = true;
        let fits = text.bytes().all(|b| {
            let here = matches!(b, b'.' | b'_' | b'-');
            let ok = if here {
                !separator
            } else {
                b.is_ascii_alphanumeric()
            };
            separator = here;
            ok
        });
        if !fits || separator {
            return Err(Error::invalid_argument(format_args!(
                "identifier {text:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
            )));
        }
        Ok(())
    }

    /// Checks a name that may be any text: `what` it is the error says.
    ///
    /// # Errors
    /// `InvalidArgument` when it is empty or holds a NUL.
    pub fn check_free(text: &str, what: &str) -> Result<()> {
        if text.is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "{what} must not be empty"
            )));
        }
        if text.contains('\0') {
            return Err(Error::invalid_argument(format_args!(
                "{what} must not contain a NUL byte"
            )));
        }
        Ok(())
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                let check: fn(&str) -> Result<()> = $check;
                check(&text)?;
                Ok(Self(text.into()))
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                text.to_owned().try_into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

id! {
    /// A tenant's name.
    Namespace, Identifier::check
}
id! {
    /// Id of a container and of its task.
    ContainerId, Identifier::check
}
id! {
    /// Id of an additional process in a task.
    ExecId, Identifier::check
}
id! {
    /// Id of a lease: a free, non-empty string.
    LeaseId, |text| Identifier::check_free(text, "lease id")
}
id! {
    /// Key of an active snapshot or name of a committed one: a free, non-empty string.
    SnapshotKey, |text| Identifier::check_free(text, "snapshot key")
}
id! {
    /// Name of an ingest: a free, non-empty string.
    IngestRef, |text| Identifier::check_free(text, "ref")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_groups_joined_by_single_separators() {
        for good in ["a", "a-b", "a.b_c-d", "0", &"x".repeat(76)] {
            assert!(Identifier::check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a-",
            "a..b",
            "a/b",
            "../a",
            "a b",
            "a\0",
            "é",
            "a._b",
            &"x".repeat(77),
        ] {
            let error = Identifier::check(bad).unwrap_err();
            assert!(error.is(crate::Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn free_names_may_hold_anything_but_nul() {
        "extract-1 sha256:ab/../x".parse::<SnapshotKey>().unwrap();
        "".parse::<LeaseId>().unwrap_err();
        "a\0b".parse::<IngestRef>().unwrap_err();
    }
}
