//! A tar reader for foreign archives: names and sizes, nothing is ever extracted.
//!
//! The `tar` crate parses the headers; the stream is walked here because long names and PAX records
//! must not be read into memory without a limit.
//!
//! Invariant: where an entry begins and ends is what the reader of layers says too, or the archive is
//! refused: nobody shall see other files in it than those that were looked at. That reader takes no entries
//! of types that are not known, as labels of volumes; here they end where their size says, as in Go's.

use std::io::{self, Read};

use types::{Error, Result};

/// Size of a tar block.
const BLOCK: usize = 512;
/// Largest long name or PAX record.
const MAX_SPECIAL: u64 = 1 << 20;
/// Longest name that an image archive has use for.
const MAX_NAME: usize = 4096;
/// Largest size, as everywhere in the kernel. Larger ones are negative numbers that were misread.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// Where the size and the type of an entry stand in its header.
const SIZE: std::ops::Range<usize> = 124..136;
const FLAG: usize = 156;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A symbolic link: its target is relative to its directory.
    Symlink,
    /// A hard link: its target is relative to the archive.
    Hardlink,
    /// A directory, a device, ...
    Other,
}

/// One entry; its data follows in the stream.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) link: String,
    pub(super) size: u64,
}

/// Names and sizes that special entries give to the next one.
#[derive(Default)]
struct Overrides {
    name: Option<String>,
    link: Option<String>,
    pax: Pax,
}

/// What a PAX record says; the next one has it all to say again.
#[derive(Default)]
struct Pax {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

/// A tar stream, positioned in the data of the current entry.
pub(super) struct Tar<R> {
    reader: R,
    /// Data of the current entry that was not read yet.
    left: u64,
    padding: u64,
    begun: bool,
}

impl<R: Read> Tar<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
            begun: false,
        }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not a tar stream, or one that ends in the middle.
    pub(super) fn next(&mut self) -> Result<Option<Header>> {
        let mut overrides = Overrides::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            if is_special(kind) {
                let data = self.special(size_of(&header)?)?;
                if kind.is_gnu_longname() {
                    overrides.name = Some(text(&data));
                } else if kind.is_gnu_longlink() {
                    overrides.link = Some(text(&data));
                } else if kind.is_pax_local_extensions() {
                    overrides.pax = pax(&data)?;
                }
                continue;
            }
            return self.entry(&header, overrides).map(Some);
        }
    }

    fn entry(&mut self, header: &::tar::Header, overrides: Overrides) -> Result<Header> {
        let Overrides { name, link, pax } = overrides;
        let name = name.or(pax.name);
        let name = name.unwrap_or_else(|| text(&header.path_bytes()));
        let link = link
            .or(pax.link)
            .or_else(|| header.link_name_bytes().map(|link| text(&link)))
            .unwrap_or_default();
        if name.len() > MAX_NAME || link.len() > MAX_NAME {
            return Err(Error::invalid_argument(
                "archive has a name that is too long",
            ));
        }
        let flag = header.as_bytes()[FLAG];
        let kind = kind(flag, &name)?;
        // Only files, and what nobody knows here, have data, whatever the size field says.
        let has_data = kind == Kind::File || !matches!(flag, 0 | b'0'..=b'7');
        let size = match (has_data, pax.size) {
            (true, Some(size)) => size,
            (true, None) => size_of(header)?,
            (false, _) => 0,
        };
        self.set_left(size)?;
        Ok(Header {
            name,
            kind,
            link,
            size,
        })
    }

    /// Reads data of the current entry; 0 at its end.
    ///
    /// # Errors
    /// `InvalidArgument` when the archive ends in the middle.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let mut filled = 0;
        while filled < want {
            match self.reader.read(&mut buffer[filled..want]) {
                Ok(0) => return Err(self.damaged(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.damaged(e)),
            }
        }
        self.left -= filled as u64;
        Ok(filled)
    }

    /// Reads the rest of the stream, so that a writer at the other end of a pipe can finish.
    pub(super) fn drain(&mut self, limit: u64) {
        let _rest = io::copy(&mut (&mut self.reader).take(limit), &mut io::sink());
    }

    fn set_left(&mut self, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::invalid_argument(
                "archive is damaged: size out of range",
            ));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        self.left = self.left.saturating_add(self.padding);
        self.padding = 0;
        while self.left > 0 {
            self.read(&mut buffer)?;
        }
        Ok(())
    }

    /// Reads a block; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.damaged(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.damaged(e)),
            }
        }
        Ok(true)
    }

    /// The next header block; `None` at the end mark or at the end of the stream.
    fn header(&mut self) -> Result<Option<::tar::Header>> {
        let mut header = ::tar::Header::new_old();
        let block = header.as_mut_bytes();
        let is_empty = |block: &[u8; BLOCK]| block.iter().all(|b| *b == 0);
        if !self.block(block)? {
            return Ok(None);
        }
        if is_empty(block) {
            // The end mark has two of them; without the other there is nothing more.
            if self.block(block)? && !is_empty(block) {
                return Err(self.damaged(io::Error::other("archive/tar: invalid tar header")));
            }
            return Ok(None);
        }
        // The checksum: all bytes, its own field taken as blanks.
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|b| u32::from(*b))
            .sum();
        if header.cksum().ok() != Some(sum + 8 * 32) {
            return Err(self.damaged(io::Error::other("archive/tar: invalid tar header")));
        }
        self.begun = true;
        Ok(Some(header))
    }

    fn special(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_SPECIAL {
            return Err(Error::invalid_argument(
                "archive has a name record that is too long",
            ));
        }
        self.set_left(size)?;
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read(&mut data)?;
        Ok(data)
    }

    /// What a stage before has said, or that these bytes are no archive.
    fn damaged(&self, error: io::Error) -> Error {
        let error = match error.downcast::<Error>() {
            Ok(error) => return error,
            Err(error) => error,
        };
        if !self.begun {
            return unrecognized().with_source(io::Error::other(error.to_string()));
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Error::invalid_argument("archive is truncated: unexpected EOF");
        }
        Error::invalid_argument(format_args!("archive is damaged: {error}"))
    }
}

/// The error for what is no image archive.
pub(super) fn unrecognized() -> Error {
    Error::invalid_argument("unrecognized image format")
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn is_special(kind: ::tar::EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}

/// The size field: octal text, or base 256 when the first bit is set. The crate looks at the last eight bytes
/// only, and a negative number becomes a large one.
fn size_of(header: &::tar::Header) -> Result<u64> {
    let field = &header.as_bytes()[SIZE];
    let size = match field.split_first_chunk() {
        Some(([0x80, 0, 0, 0], low)) => low.try_into().ok().map(u64::from_be_bytes),
        _ => {
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            let digits = std::str::from_utf8(field[..end].trim_ascii()).ok();
            let digits = digits.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|text| u64::from_str_radix(text, 8).ok())
        }
    };
    size.ok_or_else(|| Error::invalid_argument("archive is damaged: invalid size in tar header"))
}

/// What an entry is. Where the old sparse files of GNU's end stands in blocks that follow the header.
fn kind(flag: u8, name: &str) -> Result<Kind> {
    Ok(match flag {
        // Before types existed a directory was a name with a slash at its end.
        0 if name.ends_with('/') => Kind::Other,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'S' => {
            return Err(Error::invalid_argument(
                "archive is damaged: a sparse file of GNU's, whose end is not known",
            ));
        }
        // A directory, a fifo, the label of a volume, ...
        _ => Kind::Other,
    })
}

/// Records `length key=value\n`.
fn pax(data: &[u8]) -> Result<Pax> {
    let bad = || Error::invalid_argument("archive has a damaged PAX record");
    let number = |text: &[u8]| -> Option<u64> {
        let text = std::str::from_utf8(text).ok()?;
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let name = |value: &[u8]| match value.contains(&0) {
        true => Err(bad()),
        false => Ok(Some(text(value))),
    };
    let (mut found, mut rest) = (Pax::default(), data);
    while !rest.is_empty() {
        let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length = number(&rest[..space]).and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or_else(bad)?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let value = &record[equals + 1..];
        match &record[..equals] {
            b"path" => found.name = name(value)?,
            b"linkpath" => found.link = name(value)?,
            b"size" => found.size = Some(number(value).ok_or_else(bad)?),
            _ => {}
        }
        rest = &rest[length..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
