//! The journal: a second copy of all records, for the day when the store's file is damaged.
//!
//! Invariant: replayed, a journal gives the records of the store at the journal's last commit. It is
//! written behind the store and never flushed but for its base: a killed process costs it nothing, a
//! power cut its tail. The store alone answers calls; nobody reads the journal while the store is well.
//!
//! ```text
//! magic | base, base, … end of base | change | change …      each: length, CRC-32, payload
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use types::Result;

use super::tx::Overlay;
use super::{Flow, Read, Records, beside, os, sync_parent};
use crate::codec::{Decoder, Encoder, damaged};

/// First bytes of a journal.
const MAGIC: &[u8; 8] = b"cdrsjnl1";
/// Version of a frame's payload.
const VERSION: u8 = 1;
/// Length and checksum before a payload.
const HEAD: usize = 8;
/// A frame of the base is closed beyond this size.
const PART: usize = 256 << 10;
/// No frame of ours is longer: a group has a bound, and so has a message.
const MAX_FRAME: usize = 1 << 30;
/// A journal is made anew when its changes outgrow its base by this factor, and this many bytes.
const OUTGROWN: u64 = 2;
const SMALL: u64 = 4 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Records that were there when the journal began.
    Base = 0,
    /// The same, and the last of them.
    BaseEnd = 1,
    /// What one commit changed.
    Change = 2,
}

/// The journal that changes are appended to.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// `None` after a failure: until it is made anew, its file is what it was before.
    file: Option<File>,
    base: u64,
    len: u64,
}

/// The records of a journal.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) records: Records,
    /// The store's commit that they are of.
    pub(super) commit: u64,
    /// When that was; a killed process leaves no later one.
    pub(super) written_at: Option<SystemTime>,
    /// The journal ends in something that cannot be read: commits after this one may be lost.
    pub(super) torn: bool,
}

impl Journal {
    /// Where the journal of the store at `path` is.
    pub(super) fn beside(path: &Path) -> PathBuf {
        beside(path, "journal")
    }

    /// Makes the journal of a store that is at `commit`. What was there before stays until it is
    /// complete.
    pub(super) fn make(store: &Path, records: &dyn Read, commit: u64) -> Result<Self> {
        let path = Self::beside(store);
        let draft = beside(&path, "new");
        let at = |e| os("write", &draft, e);
        let mut file = BufWriter::new(create(&draft)?);
        file.write_all(MAGIC).map_err(at)?;
        let mut len = MAGIC.len() as u64;
        let mut part = frame(Kind::Base, commit);
        records.scan(b"", &mut |key, value| {
            entry(&mut part, key, Some(value));
            if part.len() > PART {
                len += put(
                    &mut file,
                    &std::mem::replace(&mut part, frame(Kind::Base, commit)),
                )
                .map_err(at)?;
            }
            Ok(Flow::Continue(()))
        })?;
        len += put(&mut file, &part).map_err(at)?;
        len += put(&mut file, &frame(Kind::BaseEnd, commit)).map_err(at)?;
        let file = file.into_inner().map_err(|e| at(e.into_error()))?;
        file.sync_data().map_err(at)?;
        std::fs::rename(&draft, &path).map_err(|e| os("rename", &draft, e))?;
        sync_parent(&path)?;
        Ok(Self {
            path,
            file: Some(file),
            base: len,
            len,
        })
    }

    /// Goes on with a journal that is whole and ends at `commit`; `None` when it is not.
    pub(super) fn resume(store: &Path, commit: u64) -> Result<Option<Self>> {
        let path = Self::beside(store);
        let Some(mut scan) = Scan::open(&path)? else {
            return Ok(None);
        };
        let mut base = None;
        let mut last = 0;
        while let Some(frame) = scan.next()? {
            last = frame.commit;
            if frame.kind == Kind::BaseEnd {
                base = Some(scan.at);
            }
        }
        let (Some(base), false, true) = (base, scan.torn, last == commit) else {
            return Ok(None);
        };
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|e| os("open", &path, e))?;
        Ok(Some(Self {
            path,
            file: Some(file),
            base,
            len: scan.at,
        }))
    }

    /// Appends what a commit changed. A failure ends the journal until [`Journal::make`]: a store
    /// without a second copy is better than no store.
    pub(super) fn append<'a>(&mut self, commit: u64, changes: impl Iterator<Item = &'a Overlay>) {
        let Some(file) = &mut self.file else { return };
        let mut change = frame(Kind::Change, commit);
        for (key, value) in changes.flatten() {
            entry(&mut change, key, value.as_deref());
        }
        match put(file, &change) {
            Ok(written) => self.len += written,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "metadata journal stops");
                // Half a frame would hide what a later run appends.
                if let Err(error) = file.set_len(self.len) {
                    tracing::debug!(%error, "metadata journal keeps half a frame");
                }
                self.file = None;
            }
        }
    }

    /// The store may hold what this journal does not: it has to be made anew.
    pub(super) fn stop(&mut self) {
        self.file = None;
    }

    /// True when it is time to make it anew.
    pub(super) fn is_due(&self) -> bool {
        let grown = self.len - self.base;
        self.file.is_none() || (grown > SMALL && grown > OUTGROWN * self.base)
    }

    /// The last commit of the journal of `store`; `None` without one that has its base.
    pub(super) fn last(store: &Path) -> Result<Option<u64>> {
        let Some(mut scan) = Scan::open(&Self::beside(store))? else {
            return Ok(None);
        };
        let mut based = false;
        let mut last = 0;
        while let Some(frame) = scan.next()? {
            based |= frame.kind == Kind::BaseEnd;
            last = frame.commit;
        }
        Ok(based.then_some(last))
    }

    /// The records of the journal of `store`; `None` without one that has its base.
    pub(super) fn replay(store: &Path) -> Result<Option<Replay>> {
        let Some(mut scan) = Scan::open(&Self::beside(store))? else {
            return Ok(None);
        };
        let mut replay = Replay::default();
        let mut based = false;
        while let Some(frame) = scan.next()? {
            based |= frame.kind == Kind::BaseEnd;
            replay.commit = frame.commit;
            let mut entries = frame.rest;
            while let Some((key, value)) = next_entry(&mut entries)? {
                match value {
                    Some(value) => drop(replay.records.insert(key.into(), value.into())),
                    None => drop(replay.records.remove(key)),
                }
            }
        }
        replay.torn = scan.torn;
        let written = scan
            .file
            .get_ref()
            .metadata()
            .and_then(|file| file.modified());
        replay.written_at = written.ok();
        Ok(based.then_some(replay))
    }
}

/// Reads frames until the end, or until the first that is not whole.
struct Scan {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    /// Where the next frame begins.
    at: u64,
    torn: bool,
    /// Commit of the frame before.
    last: u64,
    payload: Vec<u8>,
}

/// One frame, as it stands in the journal.
struct Frame<'a> {
    kind: Kind,
    commit: u64,
    rest: Decoder<'a>,
}

impl<'a> Frame<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self> {
        let (version, mut rest) = Decoder::new(payload)?;
        let kind = match (version, rest.number()?) {
            (VERSION, 0) => Kind::Base,
            (VERSION, 1) => Kind::BaseEnd,
            (VERSION, 2) => Kind::Change,
            _ => return Err(damaged()),
        };
        let commit = rest.number()?;
        Ok(Self { kind, commit, rest })
    }
}

impl Scan {
    /// `None` when there is no journal; one that begins with something else is torn at once.
    fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(os("open", path, e)),
        };
        let size = file.metadata().map_err(|e| os("stat", path, e))?.len();
        let mut scan = Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(PART, file),
            size,
            at: 0,
            torn: false,
            last: 0,
            payload: Vec::new(),
        };
        let mut magic = [0; MAGIC.len()];
        scan.torn = !scan.read(&mut magic)? || magic != *MAGIC;
        scan.at = MAGIC.len() as u64;
        Ok(Some(scan))
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>> {
        if self.torn || self.at >= self.size {
            return Ok(None);
        }
        // Until it has shown to be whole.
        self.torn = true;
        let mut head = [0; HEAD];
        if !self.read(&mut head)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let left = self.size.saturating_sub(self.at + HEAD as u64);
        if len > MAX_FRAME || len as u64 > left {
            return Ok(None);
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(len, 0);
        let whole = self.read(&mut payload)?
            && crc32fast::hash(&payload) == u32::from_le_bytes([c0, c1, c2, c3]);
        self.payload = payload;
        if !whole {
            return Ok(None);
        }
        let Ok(frame) = Frame::parse(&self.payload) else {
            return Ok(None);
        };
        // A commit that is left out may have changed anything.
        if frame.kind == Kind::Change && frame.commit != self.last + 1 {
            return Ok(None);
        }
        self.last = frame.commit;
        self.torn = false;
        self.at += (HEAD + len) as u64;
        Ok(Some(frame))
    }

    /// False when the file ends before `buffer` is full.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(os("read", &self.path, e)),
        }
    }
}

/// A frame's payload up to its entries, with room for its head.
fn frame(kind: Kind, commit: u64) -> Encoder {
    let mut frame = Encoder::new(VERSION);
    frame.number(kind as u64);
    frame.number(commit);
    frame
}

fn entry(frame: &mut Encoder, key: &[u8], value: Option<&[u8]>) {
    frame.bytes(key);
    frame.option(value, Encoder::bytes);
}

/// A key, and its value unless it was removed.
type Entry<'a> = (&'a [u8], Option<&'a [u8]>);

/// The next entry of a frame; `None` at its end.
fn next_entry<'a>(entries: &mut Decoder<'a>) -> Result<Option<Entry<'a>>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let key = entries.bytes()?;
    Ok(Some((key, entries.option(Decoder::bytes)?)))
}

/// Writes a frame and returns its length.
fn put(file: &mut impl std::io::Write, frame: &Encoder) -> std::io::Result<u64> {
    let payload = frame.as_bytes();
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|len| *len as usize <= MAX_FRAME)
        .ok_or(ErrorKind::FileTooLarge)?;
    let mut whole = Vec::with_capacity(HEAD + payload.len());
    whole.extend_from_slice(&len.to_le_bytes());
    whole.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    whole.extend_from_slice(payload);
    file.write_all(&whole)?;
    Ok(whole.len() as u64)
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| os("create", path, e))
}
