//! Addresses of streams, as clients write them.

use std::path::Path;

use types::{Error, Result};

/// A stream's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// `/dev/null`.
    Null,
    /// A fifo that the client made.
    Fifo(&'a Path),
    /// A log file of the bare output.
    File(&'a Path),
    /// A log file with a time, a stream and a mark on each line, as the CRI defines it.
    Cri(&'a Path),
    /// A logger, with the whole address.
    Logger(&'a str),
    /// A pipe of the shim: who attaches gets its other end.
    Held,
}

impl<'a> Target<'a> {
    /// What an address means.
    ///
    /// # Errors
    /// `NotImplemented` for an unknown scheme, `InvalidArgument` for a relative path.
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let (scheme, path) = text.split_once("://").unwrap_or(("fifo", text));
        let of_path: fn(&'a Path) -> Self = match scheme {
            "binary" | "binary-v2" => return Ok(Self::Logger(text)),
            "attach" => return Ok(Self::Held),
            "fifo" => Self::Fifo,
            "file" => Self::File,
            "cri" => Self::Cri,
            _ => {
                return Err(Error::not_implemented(format_args!(
                    "stdio scheme {scheme:?}"
                )));
            }
        };
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(Error::invalid_argument(format_args!("stdio path {text:?}")));
        }
        Ok(of_path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn addresses_are_told_apart() {
        let path = Path::new("/a/b");
        let cases = [
            ("", Target::Null),
            ("/a/b", Target::Fifo(path)),
            ("fifo:///a/b", Target::Fifo(path)),
            ("file:///a/b", Target::File(path)),
            ("cri:///a/b", Target::Cri(path)),
            ("attach://", Target::Held),
            ("binary:///a/b?x=y", Target::Logger("binary:///a/b?x=y")),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse(text).unwrap(), want, "{text}");
        }
        for bad in ["a/b", "file://a", "cri://a/b", "fifo://"] {
            let error = Target::parse(bad).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
        let error = Target::parse("npipe://x").unwrap_err();
        assert!(error.is(Code::NotImplemented), "{error}");
    }
}
