//! What was found in an archive, by its names there.
//!
//! Invariant: names never lead out of the archive, and a chain of links has an end.

use std::collections::HashMap;

use bytes::Bytes;
use compression::Compression;
use types::{Digest, Error, Result};

use crate::MAX_CONFIG;

/// Longest chain of links from a layer's name to its file.
const MAX_LINKS: usize = 8;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) layout: Option<Bytes>,
    pub(super) index: Option<Bytes>,
    pub(super) manifest: Option<Bytes>,
    pub(super) files: HashMap<String, File>,
    pub(super) links: HashMap<String, String>,
}

/// A blob of the archive, in the store now.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) compression: Compression,
}

impl Found {
    /// The file that `name` is, also over links.
    pub(super) fn file(&self, name: &str, what: &str) -> Result<&File> {
        let missing =
            || Error::invalid_argument(format_args!("{what} {name:?} not found in archive"));
        let mut at = clean(name)?;
        for _ in 0..MAX_LINKS {
            if let Some(file) = self.files.get(&at) {
                return Ok(file);
            }
            at = self.links.get(&at).ok_or_else(missing)?.clone();
        }
        Err(missing())
    }

    /// The config that `name` is, unless it is too large for one.
    pub(super) fn config(&self, name: &str) -> Result<&File> {
        let file = self.file(name, "image config")?;
        if file.size > MAX_CONFIG {
            return Err(Error::resource_exhausted(format_args!(
                "image config {name:?} is larger than {MAX_CONFIG} bytes"
            )));
        }
        Ok(file)
    }
}

/// A name without `.` and double slashes. Names that lead out of the archive are refused, though
/// nothing here ever uses one as a path.
pub(super) fn clean(name: &str) -> Result<String> {
    let unsafe_name = || Error::invalid_argument(format_args!("unsafe name {name:?} in archive"));
    if name.starts_with('/') {
        return Err(unsafe_name());
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(unsafe_name)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}
