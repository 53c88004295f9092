//! Reading an archive entry by entry.
//!
//! ```text
//!   [x PAX][L long name][K long link] header [sparse map] data padding ... zero zero
//! ```
//! Invariant: at most [`MAX_SPECIAL`] bytes of a special record are held; data is lent from the stream's
//! own buffer and never gathered.

use std::io::BufRead;

use types::Result;

use super::header::{Block, Dialect, c_text, sparse_entries};
use super::pax::{Records, decimal, is_comment, sparse_map};
use super::{BLOCK, Entry, Extent, Kind, MAX_SPECIAL, damaged, stream_error};

/// Most extents of one sparse file: with two numbers each far below the special record's limit.
const MAX_EXTENTS: usize = 64 * 1024;

/// Most special records in front of one header. Writers have four at most: one of each kind.
const MAX_SPECIALS: usize = 16;

/// An archive being read.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    stream: R,
    /// Data of the current entry that was not read.
    data: u64,
    /// Padding after it.
    padding: u64,
    done: bool,
    unusual: Option<&'static str>,
}

/// Special records in front of a header.
#[derive(Default)]
struct Special {
    pax: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    /// Reads from the start of `stream`.
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            data: 0,
            padding: 0,
            done: false,
            unusual: None,
        }
    }

    /// What there was up to the current entry that other programs read otherwise, or not at all.
    pub(crate) fn unusual(&self) -> Option<&'static str> {
        self.unusual
    }

    /// The next entry; `None` at the end of the archive.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes that are no tar; the stream's own error.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut special = Special::default();
        let mut block = [0; BLOCK];
        for _ in 0..=MAX_SPECIALS {
            self.skip()?;
            if self.done || !self.block(&mut block)? {
                self.done = true;
                return Ok(None);
            }
            let Some(header) = Block::parse(&block)? else {
                return self.end();
            };
            match header.flag() {
                b'x' => special.pax = Records::parse(&self.record(&header)?)?,
                // Parity: containerd ignores global records.
                b'g' => {
                    if !is_comment(&self.record(&header)?) {
                        self.unusual = Some("there are global records before it");
                    }
                }
                b'L' => special.name = Some(c_text(&self.record(&header)?).to_vec()),
                b'K' => special.link = Some(c_text(&self.record(&header)?).to_vec()),
                _ => return self.entry(&header, special).map(Some),
            }
        }
        // A stream of them compresses to nothing, and would keep a thread at work that makes no file.
        Err(damaged("too many special records before an entry"))
    }

    /// Data of the current entry as it stands in the buffer; empty at its end.
    ///
    /// # Errors
    /// `InvalidArgument` when the archive ends first; the stream's own error.
    pub(crate) fn fill(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let buffer = self.stream.fill_buf().map_err(stream_error)?;
        if buffer.is_empty() {
            return Err(damaged("unexpected EOF"));
        }
        let take = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        Ok(&buffer[..take])
    }

    /// Marks `count` bytes of what [`Reader::fill`] lent as read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.data = self.data.saturating_sub(count as u64);
    }

    /// Reads what follows the archive, so that a digest of the stream covers all of it.
    ///
    /// # Errors
    /// The stream's own error.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let got = self.stream.fill_buf().map_err(stream_error)?.len();
            if got == 0 {
                return Ok(());
            }
            self.stream.consume(got);
        }
    }

    fn skip(&mut self) -> Result<()> {
        let mut left = self.data + self.padding;
        while left > 0 {
            let got = self.stream.fill_buf().map_err(stream_error)?.len();
            if got == 0 {
                // Parity: the padding of the last entry may be missing.
                if left <= self.padding {
                    break;
                }
                return Err(damaged("unexpected EOF"));
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(got);
            self.stream.consume(step);
            left -= step as u64;
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads a block; false at a clean end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        if self.stream.fill_buf().map_err(stream_error)?.is_empty() {
            return Ok(false);
        }
        self.stream.read_exact(block).map_err(stream_error)?;
        Ok(true)
    }

    /// After a block of zeroes: another one, or nothing.
    fn end(&mut self) -> Result<Option<Entry>> {
        let mut block = [0; BLOCK];
        if self.block(&mut block)? && block.iter().any(|b| *b != 0) {
            return Err(damaged("invalid tar header"));
        }
        self.done = true;
        Ok(None)
    }

    fn begin(&mut self, size: u64) -> Result<()> {
        let block = BLOCK as u64;
        self.data = size;
        self.padding = (block - size % block) % block;
        size.checked_add(self.padding)
            .map(drop)
            .ok_or_else(|| damaged("size out of range"))
    }

    /// The data of a special record.
    fn record(&mut self, header: &Block<'_>) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > MAX_SPECIAL {
            return Err(damaged(format_args!(
                "special record of {size} bytes is too long"
            )));
        }
        self.begin(size)?;
        let mut data = Vec::new();
        while self.data > 0 {
            let part = self.fill()?;
            data.extend_from_slice(part);
            let got = part.len();
            self.consume(got);
        }
        Ok(data)
    }

    fn entry(&mut self, header: &Block<'_>, special: Special) -> Result<Entry> {
        let Special {
            mut pax,
            name,
            link,
        } = special;
        let name = name.or(pax.path.take()).unwrap_or_else(|| header.name());
        let link = link.or(pax.link.take()).unwrap_or_else(|| header.link());
        if name.contains(&0) || link.contains(&0) {
            return Err(damaged("NUL byte in a name"));
        }
        if header.flag() == 0 {
            self.unusual = Some("it is of a time before types");
        } else if pax.has_foreign_xattrs {
            self.unusual = Some("it has attributes in another notation");
        }
        let stored = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        let kind = kind(header, &name)?;
        let (major, minor) = match kind {
            Kind::Char | Kind::Block => header.device()?,
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            name,
            link,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            size: 0,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
            atime: match pax.atime {
                Some(time) => Some(time),
                None => header.atime()?,
            },
            major,
            minor,
            xattrs: std::mem::take(&mut pax.xattrs),
            sparse: None,
        };
        // Parity: only files have data, whatever the size field says.
        if kind == Kind::File {
            self.begin(stored)?;
            entry.size = stored;
            self.sparse(header, pax, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads the sparse map, of whichever kind.
    fn sparse(&mut self, header: &Block<'_>, pax: Records, entry: &mut Entry) -> Result<()> {
        let sparse = pax.sparse;
        if header.flag() == b'S' {
            if header.dialect() != Dialect::Gnu {
                return Err(damaged("sparse entry without a GNU header"));
            }
            let (pairs, real) = self.old_gnu(header)?;
            // The extension blocks lie before the data and are not part of it.
            entry.sparse = Some(sparse_map(&pairs, real, self.data)?);
            entry.size = real;
            return Ok(());
        }
        let pairs = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => self.inline_map()?,
            (None, None) | (Some(0), Some(0 | 1)) if !sparse.map.is_empty() => {
                if !sparse.map.len().is_multiple_of(2)
                    || sparse
                        .blocks
                        .is_some_and(|n| n != sparse.map.len() as u64 / 2)
                {
                    return Err(damaged("invalid sparse map"));
                }
                sparse
                    .map
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect()
            }
            (None, None) => return Ok(()),
            _ => return Err(damaged("unknown sparse format")),
        };
        if let Some(name) = sparse.name {
            entry.name = name;
        }
        let real = sparse
            .real_size
            .ok_or_else(|| damaged("sparse entry without a size"))?;
        entry.sparse = Some(sparse_map(&pairs, real, self.data)?);
        entry.size = real;
        Ok(())
    }

    /// Old GNU: four pairs in the header, 21 in each block that follows.
    fn old_gnu(&mut self, header: &Block<'_>) -> Result<(Vec<(u64, u64)>, u64)> {
        let (mut pairs, mut more, real) = header.gnu_sparse()?;
        let mut block = [0; BLOCK];
        while more {
            self.stream.read_exact(&mut block).map_err(stream_error)?;
            pairs.extend(sparse_entries(&block[..504])?);
            more = block[504] != 0;
            if pairs.len() > MAX_EXTENTS {
                return Err(damaged("sparse map is too long"));
            }
        }
        Ok((pairs, real))
    }

    /// PAX 1.0: decimal lines at the head of the data, padded to a block.
    fn inline_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut read = 0_u64;
        let count = self.line(&mut read)?;
        if count > MAX_EXTENTS as u64 {
            return Err(damaged("sparse map is too long"));
        }
        let mut pairs = Vec::new();
        for _ in 0..count {
            pairs.push((self.line(&mut read)?, self.line(&mut read)?));
        }
        let block = BLOCK as u64;
        for _ in 0..(block - read % block) % block {
            self.byte()?;
        }
        Ok(pairs)
    }

    fn line(&mut self, read: &mut u64) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            *read += 1;
            match self.byte()? {
                b'\n' => return decimal(&digits),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(damaged("invalid sparse map")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = *self
            .fill()?
            .first()
            .ok_or_else(|| damaged("invalid sparse map"))?;
        self.consume(1);
        Ok(byte)
    }
}

fn kind(header: &Block<'_>, name: &[u8]) -> Result<Kind> {
    Ok(match header.flag() {
        // Parity: before types existed a directory was a name with a slash at its end.
        0 if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::Link,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(damaged(format_args!("unhandled tar header type {other}"))),
    })
}

/// Runs of data in an entry: those of its map, or one.
pub(crate) fn extents(entry: &Entry) -> Vec<Extent> {
    match &entry.sparse {
        Some(map) => map.clone(),
        None => vec![Extent {
            offset: 0,
            len: entry.size,
        }],
    }
}

#[cfg(test)]
mod old_tests;
#[cfg(test)]
mod tests;
