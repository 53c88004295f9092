//! What is in a stream that may be compressed, and no more of it than a stranger may have stored.
//!
//! ```text
//! reader -> count -> gunzip | unzstd (window by window) | as it is -> count -> below the ceiling?
//! ```
//! Invariant: what comes out is counted, and has an end however little came in. Called by imports and
//! conversions, which store what they read as it is, zeroes and all.

use std::cell::Cell;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::rc::Rc;

use compression::{COMMON_WINDOW, Compression, LARGEST_WINDOW, Turns, within};
use types::{Error, Result};

/// How much of the reader is taken at a time.
const BUFFER: usize = 256 * 1024;

/// Ceilings for what a stream holds. By default it is stored as it is, zeroes and all: the ceilings are those
/// of what a layer takes when it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Bytes that no ratio is asked about: a disk has room for so much.
    pub free: u64,
    /// How many times the bytes that came in may come out, beyond [`Ceilings::free`].
    pub ratio: u64,
    /// Bytes in any case.
    pub most: u64,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            free: 1 << 30,
            ratio: 200,
            most: 1 << 40,
        }
    }
}

impl Ceilings {
    /// For what is compressed again, where zeroes take no room: those of the stream of a layer that is
    /// unpacked, where they take none either. Images of disks are full of them.
    pub(crate) const STREAM: Self = Self {
        free: 64 << 30,
        ratio: 2000,
        most: 1 << 40,
    };

    /// Most bytes of what so many bytes hold.
    fn of(self, bytes: u64) -> u64 {
        bytes
            .saturating_mul(self.ratio)
            .max(self.free)
            .min(self.most)
    }
}

/// Where a stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whence {
    /// From a client, who may stop in the middle.
    Outside,
    /// From the store.
    Store,
}

impl Whence {
    fn turns(self) -> Turns {
        match self {
            Self::Outside => Turns::arriving(),
            Self::Store => Turns::stored(),
        }
    }
}

/// How a stream is read.
pub(crate) struct PlainOpts {
    pub(crate) ceilings: Ceilings,
    pub(crate) whence: Whence,
    /// Bytes of the whole stream, where they are known.
    pub(crate) total: u64,
    /// Nobody waits for it any more.
    pub(crate) is_unwanted: Box<dyn Fn() -> bool>,
}

impl fmt::Debug for PlainOpts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainOpts")
            .field("ceilings", &self.ceilings)
            .field("whence", &self.whence)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// What is in a stream.
pub(crate) struct Plain {
    decoder: Box<dyn Read>,
    ceilings: Ceilings,
    total: u64,
    taken: Rc<Cell<u64>>,
    given: u64,
}

/// Undoes gzip or zstd around all of `reader`; `None` when there is nothing in it.
///
/// # Errors
/// That of reading. Reading the result fails with a [`types::Error`] inside: `ResourceExhausted` beyond a
/// ceiling or a window of zstd, `Unavailable` when another has that window for too long, `Cancelled` when
/// nobody waits any more.
pub(crate) fn decompress(reader: Box<dyn Read + Send>, opts: PlainOpts) -> Result<Option<Plain>> {
    let taken = Rc::new(Cell::new(0));
    let counted = Counted {
        reader,
        count: Rc::clone(&taken),
    };
    let mut buffered = BufReader::with_capacity(BUFFER, counted);
    let head = buffered
        .fill_buf()
        .map_err(|e| Error::os("read archive", e))?;
    if head.is_empty() {
        return Ok(None);
    }
    let compression = Compression::of(head);
    let admit = windows(opts.whence, opts.is_unwanted);
    let decoder = compression::decoder(compression, buffered, admit);
    Ok(Some(Plain {
        decoder: decoder.map_err(|e| Error::os("zstd", e))?,
        ceilings: opts.ceilings,
        total: opts.total,
        taken,
        given: 0,
    }))
}

/// Lets windows of zstd pass; from a large one on, the turn is held.
fn windows(
    whence: Whence,
    is_unwanted: Box<dyn Fn() -> bool>,
) -> impl FnMut(u64) -> Result<()> + 'static {
    let mut turn = None;
    move |window| {
        within(window, LARGEST_WINDOW)?;
        if window > COMMON_WINDOW && turn.is_none() {
            turn = Some(whence.turns().wait(&*is_unwanted)?);
        }
        Ok(())
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.decoder.read(buffer)?;
        self.given += got as u64;
        let taken = self.taken.get().max(self.total);
        let most = self.ceilings.of(taken);
        if self.given > most {
            return Err(std::io::Error::other(Error::resource_exhausted(
                format_args!("more than {most} bytes of data in {taken} compressed bytes"),
            )));
        }
        Ok(got)
    }
}

/// A reader that counts.
struct Counted {
    reader: Box<dyn Read + Send>,
    count: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.reader.read(buffer)?;
        self.count.set(self.count.get() + got as u64);
        Ok(got)
    }
}

#[cfg(test)]
mod tests;
