//! Writing an archive: ustar headers, PAX records where ustar has no room.
//!
//! Invariant: the same entries give the same bytes, and what [`super::Reader`] reads back is what was
//! written.

use std::io::{Error, ErrorKind, Result, Write};

use super::pax::XATTR;
use super::{BLOCK, Entry, Kind, Time};

/// Largest number in 7 and 11 octal digits.
const MAX_7: u64 = 0o7_777_777;
const MAX_11: u64 = 0o77_777_777_777;

/// An archive being written.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    to: W,
    /// Data of the current entry that is still owed.
    owed: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Writes to `to`, which should buffer.
    pub(crate) fn new(to: W) -> Self {
        Self {
            to,
            owed: 0,
            padding: 0,
        }
    }

    /// Begins an entry; for a file, `entry.size` bytes of data must follow.
    ///
    /// # Errors
    /// Those of the stream; `InvalidInput` when data of the entry before is missing, and for an extended
    /// attribute whose name would be read as another one.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        // Parity: archive/tar: what would not be read back is not written.
        if entry.xattrs.iter().any(|(name, _)| name.contains(&b'=')) {
            return Err(Error::new(ErrorKind::InvalidInput, "invalid PAX record"));
        }
        let records = records(entry);
        if !records.is_empty() {
            let name = [b"PaxHeaders.0/".as_slice(), base(&entry.name)].concat();
            let size = records.len() as u64;
            let block = block(&name, b'x', &Entry { size, ..special() });
            self.to.write_all(&block)?;
            self.to.write_all(&records)?;
            self.pad(size)?;
        }
        let size = if entry.kind == Kind::File {
            entry.size
        } else {
            0
        };
        self.to
            .write_all(&block(&entry.name, flag(entry.kind), entry))?;
        self.owed = size;
        self.padding = padding(size);
        Ok(())
    }

    /// Data of the current entry.
    ///
    /// # Errors
    /// Those of the stream; `InvalidInput` for more than the entry's size.
    pub(crate) fn data(&mut self, data: &[u8]) -> Result<()> {
        let left = self.owed.checked_sub(data.len() as u64);
        self.owed = left.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "entry grew"))?;
        self.to.write_all(data)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of the stream; `InvalidInput` when data of the last entry is missing.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.close()?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(self.to)
    }

    fn close(&mut self) -> Result<()> {
        if self.owed > 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "entry shrank"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.to.write_all(&[0; BLOCK][..padding])
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        self.to.write_all(&[0; BLOCK][..padding(size)])
    }
}

fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

/// Base values of a PAX header's own header.
fn special() -> Entry {
    Entry {
        mode: 0o644,
        ..Entry::bare(Kind::File, Vec::new())
    }
}

fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Link => b'1',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

fn base(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    name.rsplit(|b| *b == b'/').next().unwrap_or(name)
}

/// Fits a name field: short and plain.
fn fits(name: &[u8]) -> bool {
    name.len() <= 100 && name.is_ascii()
}

fn records(entry: &Entry) -> Vec<u8> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut add = |key: &str, value: Vec<u8>| all.push((key.as_bytes().to_vec(), value));
    if u64::from(entry.gid) > MAX_7 {
        add("gid", entry.gid.to_string().into_bytes());
    }
    if !fits(&entry.link) {
        add("linkpath", entry.link.clone());
    }
    if entry.mtime.nanos != 0 || u64::try_from(entry.mtime.seconds).is_ok_and(|s| s > MAX_11) {
        add("mtime", time(entry.mtime));
    } else if entry.mtime.seconds < 0 {
        add("mtime", entry.mtime.seconds.to_string().into_bytes());
    }
    if !fits(&entry.name) {
        add("path", entry.name.clone());
    }
    if entry.kind == Kind::File && entry.size > MAX_11 {
        add("size", entry.size.to_string().into_bytes());
    }
    if u64::from(entry.uid) > MAX_7 {
        add("uid", entry.uid.to_string().into_bytes());
    }
    for (name, value) in &entry.xattrs {
        all.push(([XATTR, name].concat(), value.clone()));
    }
    all.sort();
    let mut out = Vec::new();
    for (key, value) in all {
        record(&mut out, &key, &value);
    }
    out
}

/// One record: its length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    if rest + len.to_string().len() > len {
        len += 1;
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn time(time: Time) -> Vec<u8> {
    let (seconds, nanos, sign) = if time.seconds < 0 && time.nanos > 0 {
        (-(time.seconds + 1), 1_000_000_000 - time.nanos, "-")
    } else {
        (time.seconds, time.nanos, "")
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0')
        .trim_end_matches('.')
        .as_bytes()
        .to_vec()
}

fn block(name: &[u8], flag: u8, entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let text = |field: &mut [u8], value: &[u8]| {
        let len = value.len().min(field.len());
        field[..len].copy_from_slice(&value[..len]);
    };
    text(&mut block[..100], name);
    let size = if flag == b'0' || flag == b'x' {
        entry.size
    } else {
        0
    };
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
    for (at, len, value) in [
        (100, 8, u64::from(entry.mode)),
        (108, 8, u64::from(entry.uid)),
        (116, 8, u64::from(entry.gid)),
        (124, 12, size),
        (136, 12, seconds),
        (329, 8, u64::from(entry.major)),
        (337, 8, u64::from(entry.minor)),
    ] {
        let digits = len - 1;
        let max = if digits == 7 { MAX_7 } else { MAX_11 };
        // What does not fit stands in a PAX record.
        let value = if value > max { 0 } else { value };
        text(
            &mut block[at..at + len],
            format!("{value:0digits$o}").as_bytes(),
        );
    }
    block[156] = flag;
    text(&mut block[157..257], &entry.link);
    text(&mut block[257..265], b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * u32::from(b' ');
    text(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::Reader;
    use proptest::prelude::*;

    fn read_back(bytes: &[u8]) -> Vec<(Entry, Vec<u8>)> {
        let mut reader = Reader::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            let mut data = Vec::new();
            loop {
                let part = reader.fill().unwrap();
                if part.is_empty() {
                    break;
                }
                data.extend_from_slice(part);
                let got = part.len();
                reader.consume(got);
            }
            all.push((entry, data));
        }
        all
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=255_u8, 1..300)
    }

    fn kind() -> impl Strategy<Value = Kind> {
        proptest::sample::select(vec![
            Kind::File,
            Kind::Link,
            Kind::Symlink,
            Kind::Char,
            Kind::Block,
            Kind::Directory,
            Kind::Fifo,
        ])
    }

    prop_compose! {
        fn entry()(
            kind in kind(),
            name in name(),
            link in name(),
            mode in 0..0o10000_u32,
            (uid, gid) in (0..u32::MAX, 0..u32::MAX),
            data in proptest::collection::vec(any::<u8>(), 0..1500),
            seconds in -1_i64 << 40..1_i64 << 40,
            nanos in prop_oneof![Just(0), 0..1_000_000_000_u32],
            (major, minor) in (0..4096_u32, 0..1_u32 << 20),
            value in proptest::collection::vec(any::<u8>(), 1..300),
            with_xattr in any::<bool>(),
        ) -> (Entry, Vec<u8>) {
            let device = matches!(kind, Kind::Char | Kind::Block);
            let data = if kind == Kind::File { data } else { Vec::new() };
            let entry = Entry {
                kind, name, link, mode, uid, gid,
                size: data.len() as u64,
                mtime: Time { seconds, nanos },
                atime: None,
                major: if device { major } else { 0 },
                minor: if device { minor } else { 0 },
                xattrs: if with_xattr { vec![(b"user.k".to_vec(), value)] } else { Vec::new() },
                sparse: None,
            };
            (entry, data)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..6)) {
            let mut writer = Writer::new(Vec::new());
            for (entry, data) in &entries {
                writer.entry(entry).unwrap();
                writer.data(data).unwrap();
            }
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() % BLOCK, 0);
            prop_assert_eq!(read_back(&bytes), entries);
        }
    }

    #[test]
    fn an_attribute_that_would_be_read_as_another_one_is_refused() {
        let file = Entry {
            name: b"f".to_vec(),
            xattrs: vec![(b"user.a=b".to_vec(), b"c".to_vec())],
            ..special()
        };
        assert!(Writer::new(Vec::new()).entry(&file).is_err());
    }

    #[test]
    fn too_little_and_too_much_data_are_refused() {
        let file = Entry {
            size: 3,
            name: b"f".to_vec(),
            ..special()
        };
        let mut writer = Writer::new(Vec::new());
        writer.entry(&file).unwrap();
        assert!(writer.data(b"four").is_err());
        let mut writer = Writer::new(Vec::new());
        writer.entry(&file).unwrap();
        writer.data(b"ab").unwrap();
        assert!(writer.entry(&file).is_err());
    }
}
