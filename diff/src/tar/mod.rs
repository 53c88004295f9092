//! Tar as a format: reading and writing, no files.
//!
//! Invariant: pure functions of bytes. Whatever the bytes, the reader uses bounded memory, never
//! panics, and either yields an [`Entry`] that is consistent in itself or fails with
//! `InvalidArgument`.

mod header;
mod pax;
mod reader;
mod writer;

pub(crate) use reader::{Reader, extents};
pub(crate) use writer::Writer;

use types::Error;

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;
/// Longest special record (PAX headers, long names, sparse maps): reliability rules, section 4.
pub(crate) const MAX_SPECIAL: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Regular file.
    File,
    /// Hard link.
    Link,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
}

/// A point in time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// A run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Name as written: may be absolute, may hold `..`; never a NUL byte.
    pub(crate) name: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Length of the file, holes included.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Extended attributes, in archive order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes, ascending; `None`: all of it, from the start.
    pub(crate) sparse: Option<Vec<Extent>>,
}

impl Entry {
    /// One without anything else: root's, of 1970, nobody may use it.
    pub(crate) fn bare(kind: Kind, name: Vec<u8>) -> Self {
        Self {
            kind,
            name,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            atime: None,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
            sparse: None,
        }
    }
}

/// The error for bytes that are no tar.
pub(crate) fn damaged(why: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format_args!("archive/tar: {why}"))
}

/// The error of a stream: what a stage before put into it, or its class by kind.
pub(crate) fn stream_error(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::invalid_argument("unexpected EOF")
        }
        Err(error) => Error::os("read layer", error),
    }
}
