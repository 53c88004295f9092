//! Stream processors: programs that turn a layer of one media type into one of another, until it is one
//! that is unpacked here.
//!
//! ```text
//!   blob -> stdin  PROGRAM  stdout -> next program, or decoder
//!                    3: the caller's payload for it, an encoded Any
//! ```
//! Parity: core/diff/stream_unix.go: what the program is given.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use sys::process::Spawn;
use types::{Any, Error, Result, media_type};

use crate::compression;

/// Where the program finds what it is to process.
const MEDIA_TYPE: &str = "STREAM_PROCESSOR_MEDIATYPE";
/// Descriptor of the payload.
const PAYLOAD: i32 = 3;
/// Longest chain: programs that return what others take would go on for ever.
const LONGEST: usize = 16;

/// One program, as the configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Payloads are addressed to it.
    pub id: String,
    /// Media types that it takes.
    pub accepts: Vec<String>,
    /// Media type of what it makes of them.
    pub returns: String,
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, besides the daemon's own environment.
    pub env: Vec<String>,
}

/// A program, and the media type that it is to take.
pub(crate) type Link = (Processor, String);

/// The programs that a layer of `kind` goes through.
///
/// # Errors
/// `NotImplemented` when they do not lead to a layer that is unpacked here.
pub(crate) fn chain(all: &[Processor], kind: &str) -> Result<Vec<Link>> {
    let mut chain = Vec::new();
    let mut at = kind.to_owned();
    // A plain layer needs nobody; of the others the configuration has the first word.
    while at != media_type::OCI_LAYER {
        let takes = |one: &&Processor| one.accepts.contains(&at);
        let Some(next) = all.iter().find(takes) else {
            compression::check(&at)?;
            break;
        };
        if chain.len() == LONGEST {
            return Err(Error::not_implemented(format_args!(
                "stream processors of media type {kind:?} lead nowhere"
            )));
        }
        let taken = std::mem::replace(&mut at, next.returns.clone());
        chain.push((next.clone(), taken));
    }
    Ok(chain)
}

/// The process of a link, but for what goes in and out.
///
/// # Errors
/// `InvalidArgument` for an environment that is none; that of a file for the payload.
pub(crate) fn spawn((one, kind): &Link, payloads: &[(String, Any)]) -> Result<Spawn> {
    let mut spawn = Spawn::new(&one.path).args(&one.args);
    for text in &one.env {
        let bad = || Error::invalid_argument(format_args!("environment {text:?} of {}", one.id));
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        spawn = spawn.env(name, value);
    }
    spawn = spawn.env(MEDIA_TYPE, kind);
    match payloads.iter().find(|(id, _)| *id == one.id) {
        Some((_, payload)) => Ok(spawn.fd(readable(&encoded(payload))?, PAYLOAD)),
        None => Ok(spawn),
    }
}

/// A file in memory that reads as `data`.
fn readable(data: &[u8]) -> Result<OwnedFd> {
    let fail = |e| Error::os("file for a payload", e);
    let made = rustix::fs::memfd_create("payload", MemfdFlags::CLOEXEC);
    let mut file = File::from(made.map_err(|e| fail(e.into()))?);
    file.write_all(data).map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok(file.into())
}

/// `google.protobuf.Any` as it goes over the wire: two fields of bytes.
fn encoded(any: &Any) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, data) in [(0x0a, any.type_url.as_bytes()), (0x12, any.value.as_ref())] {
        if data.is_empty() {
            continue;
        }
        out.push(tag);
        let mut len = data.len();
        while len >= 0x80 {
            out.push(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
            len >>= 7;
        }
        out.push(u8::try_from(len).unwrap_or(0));
        out.extend_from_slice(data);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(accepts: &str, returns: &str) -> Processor {
        Processor {
            id: accepts.into(),
            accepts: vec![accepts.into()],
            returns: returns.into(),
            path: "/bin/cat".into(),
            ..Processor::default()
        }
    }

    #[test]
    fn chains_end_at_a_layer_or_nowhere() {
        let all = [
            processor("b", media_type::OCI_LAYER_GZIP),
            processor("a", "b"),
            processor("circle", "circle"),
            processor("astray", "text/plain"),
            processor(media_type::DOCKER_LAYER, media_type::OCI_LAYER),
        ];
        let through = |kind: &str| {
            let chain = chain(&all, kind)?;
            Ok::<_, Error>(chain.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>())
        };
        assert_eq!(through("a").unwrap(), ["a", "b"]);
        assert_eq!(through("b").unwrap(), ["b"]);
        assert!(through(media_type::OCI_LAYER).unwrap().is_empty());
        assert!(through(media_type::OCI_LAYER_ZSTD).unwrap().is_empty());
        let own = media_type::DOCKER_LAYER;
        assert_eq!(through(own).unwrap(), [own]);
        for nowhere in ["circle", "astray", "text/plain", ""] {
            let error = through(nowhere).unwrap_err();
            assert!(error.is(types::Code::NotImplemented), "{nowhere}: {error}");
        }
    }

    #[test]
    fn payloads_are_encoded_as_on_the_wire() {
        let any = Any {
            type_url: "t".into(),
            value: vec![7; 300],
        };
        let got = encoded(&any);
        assert_eq!(got[..6], [0x0a, 1, b't', 0x12, 0xac, 2]);
        assert_eq!(got.len(), 306);
        assert!(encoded(&Any::default()).is_empty());
    }
}
