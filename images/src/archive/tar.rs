//! A tar reader for foreign archives: names and sizes, nothing is ever extracted.
//!
//! The `tar` crate parses the headers; the stream is walked here because long names and PAX records
//! must not be read into memory without a limit.

use std::io::{self, Read};

use types::{Error, Result};

/// Size of a tar block.
const BLOCK: usize = 512;
/// Largest long name or PAX record.
const MAX_SPECIAL: u64 = 1 << 20;
/// Longest name that an image archive has use for.
const MAX_NAME: usize = 4096;

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
            let size = match overrides.size {
                Some(size) => size,
                None => header.entry_size().map_err(|e| self.damaged(&e))?,
            };
            let kind = header.entry_type();
            let special = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            if special {
                let size = header.entry_size().map_err(|e| self.damaged(&e))?;
                self.set_left(size);
                let data = self.special(size)?;
                if kind.is_gnu_longname() {
                    overrides.name = Some(text(&data));
                } else if kind.is_gnu_longlink() {
                    overrides.link = Some(text(&data));
                } else if kind.is_pax_local_extensions() {
                    pax(&data, &mut overrides)?;
                }
                continue;
            }
            let name = overrides.name.unwrap_or_else(|| text(&header.path_bytes()));
            let link = overrides
                .link
                .or_else(|| header.link_name_bytes().map(|link| text(&link)))
                .unwrap_or_default();
            if name.len() > MAX_NAME || link.len() > MAX_NAME {
                return Err(Error::invalid_argument(
                    "archive has a name that is too long",
                ));
            }
            let kind = match kind {
                k if k.is_file() || k.is_contiguous() => Kind::File,
                k if k.is_symlink() => Kind::Symlink,
                k if k.is_hard_link() => Kind::Hardlink,
                _ => Kind::Other,
            };
            // A hard link may carry the size of its file, but never its data.
            let size = if kind == Kind::Hardlink { 0 } else { size };
            self.set_left(size);
            return Ok(Some(Header {
                name,
                kind,
                link,
                size,
            }));
        }
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
                Ok(0) => return Err(self.damaged(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.damaged(&e)),
            }
        }
        self.left -= filled as u64;
        Ok(filled)
    }

    /// Reads the rest of the stream, so that a writer at the other end of a pipe can finish.
    pub(super) fn drain(&mut self, limit: u64) {
        let _rest = io::copy(&mut (&mut self.reader).take(limit), &mut io::sink());
    }

    fn set_left(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
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

    /// The next header block; `None` at the end mark or at the end of the stream.
    fn header(&mut self) -> Result<Option<::tar::Header>> {
        let mut header = ::tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.damaged(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.damaged(&e)),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum: all bytes, its own field taken as blanks.
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|b| u32::from(*b))
            .sum();
        if header.cksum().ok() != Some(sum + 8 * 32) {
            return Err(self.damaged(&io::Error::other("archive/tar: invalid tar header")));
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
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read(&mut data)?;
        Ok(data)
    }

    fn damaged(&self, error: &io::Error) -> Error {
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

/// Records `length key=value\n`.
fn pax(data: &[u8], overrides: &mut Overrides) -> Result<()> {
    let bad = || Error::invalid_argument("archive has a damaged PAX record");
    let mut rest = data;
    while !rest.is_empty() {
        let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = text(&rest[..space]).parse().map_err(|_| bad())?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let value = &record[equals + 1..];
        match &record[..equals] {
            b"path" => overrides.name = Some(text(value)),
            b"linkpath" => overrides.link = Some(text(value)),
            b"size" => overrides.size = Some(text(value).parse().map_err(|_| bad())?),
            _ => {}
        }
        rest = &rest[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(data: &[u8]) -> Result<Vec<(String, u64)>> {
        let mut tar = Tar::new(data);
        let mut all = Vec::new();
        while let Some(header) = tar.next()? {
            all.push((header.name, header.size));
        }
        Ok(all)
    }

    fn archive(name: &str, data: &[u8]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn long_names_and_pax_records_are_followed() {
        let long = "d/".repeat(90) + "file";
        assert_eq!(names(&archive(&long, b"abc")).unwrap(), [(long, 3)]);
        let mut builder = ::tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions([("path", b"other".as_slice()), ("size", b"2")])
            .unwrap();
        let mut header = ::tar::Header::new_ustar();
        header.set_path("x").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut data = builder.into_inner().unwrap();
        data.truncate(data.len() - 1024);
        data.extend_from_slice(header.as_bytes());
        data.extend_from_slice(&[b'a'; 512]);
        assert_eq!(names(&data).unwrap(), [("other".to_owned(), 2)]);
    }

    #[test]
    fn damage_is_named() {
        let good = archive("a", &[7; 2000]);
        for (data, want) in [
            (&b"no archive at all"[..], "unrecognized image format"),
            (&[0x55; 4096], "unrecognized image format"),
            (&good[..700], "truncated"),
            (&good[..513], "truncated"),
        ] {
            let error = names(data).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument));
            assert!(error.to_string().contains(want), "{error}");
        }
        assert!(names(b"").unwrap().is_empty());
        let mut flipped = good.clone();
        flipped.splice(2560..2560, [0x55; 512]);
        assert!(names(&flipped).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn name_bombs_are_refused() {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = names(header.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    proptest! {
        #[test]
        fn reading_never_panics(
            mut data in proptest::collection::vec(any::<u8>(), 0..3000),
            flips in proptest::collection::vec((0usize..2560, any::<u8>()), 0..8),
        ) {
            drop(names(&data));
            let mut near = archive("a/b", &data);
            for (at, value) in flips {
                if let Some(byte) = near.get_mut(at) {
                    *byte = value;
                }
            }
            drop(names(&near));
            data.clear();
        }
    }
}
