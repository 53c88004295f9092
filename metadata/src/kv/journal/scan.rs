//! Reading a journal, frame by frame.
//!
//! Invariant: a frame that the power cut off is an unfinished end; a journal is damaged when a frame is not
//! as it was written and something that was written later is there.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use types::Result;

use super::tail::Behind;
use super::{HEAD, Kind, MAGIC, MAX_FRAME, PART, VERSION};
use crate::codec::{Decoder, damaged};
use crate::kv::os;

/// A disk writes no less than this at once.
const SECTOR: u64 = 512;
/// Length of a frame's length.
const LENGTH: u64 = 4;

/// A key, and its value unless it was removed.
pub(super) type Entry<'a> = (&'a [u8], Option<&'a [u8]>);

/// Reads frames until the end, or until the first that is not whole.
pub(super) struct Scan {
    path: PathBuf,
    pub(super) file: BufReader<File>,
    size: u64,
    /// Where the next frame begins.
    pub(super) at: u64,
    pub(super) torn: bool,
    /// It is torn, and more than its last frame is: something that was answered cannot be read.
    pub(super) damaged: bool,
    /// Where what is torn ends: zeros follow.
    pub(super) end: u64,
    is_ended: bool,
    /// The end of the base has come.
    is_based: bool,
    /// Commit of the frame before.
    last: u64,
    payload: Vec<u8>,
}

/// One frame, as it stands in the journal.
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) commit: u64,
    rest: Decoder<'a>,
}

impl<'a> Frame<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self> {
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

    /// The next entry; `None` at the end.
    pub(super) fn entry(&mut self) -> Result<Option<Entry<'a>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.rest.bytes()?;
        Ok(Some((key, self.rest.option(Decoder::bytes)?)))
    }
}

impl Scan {
    /// `None` when there is no journal; one that begins with something else is torn at once.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
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
            damaged: false,
            end: 0,
            is_ended: false,
            is_based: false,
            last: 0,
            payload: Vec::new(),
        };
        let mut magic = [0; MAGIC.len()];
        scan.torn = !scan.read(&mut magic)? || magic != *MAGIC;
        scan.damaged = scan.torn;
        scan.at = MAGIC.len() as u64;
        Ok(Some(scan))
    }

    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>> {
        if self.torn || self.is_ended {
            return Ok(None);
        }
        // Until it has shown to be whole, or at its end.
        (self.torn, self.damaged) = (true, true);
        let mut head = [0; HEAD];
        if !self.read(&mut head)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len == 0 {
            return self.rest(None).map(|()| None);
        }
        // Room is on the disk before what is written into it.
        let left = self.size.saturating_sub(self.at + HEAD as u64);
        if len as usize > MAX_FRAME || u64::from(len) > left {
            return Ok(None);
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(len as usize, 0);
        let whole = self.read(&mut payload)?
            && crc32fast::hash(&payload) == u32::from_le_bytes([c0, c1, c2, c3]);
        self.payload = payload;
        if !whole {
            // A length that is there, and in one piece, is the true one.
            let is_known = self.at % SECTOR <= SECTOR - LENGTH;
            let end = self.at + HEAD as u64 + u64::from(len);
            return self.rest(is_known.then_some(end)).map(|()| None);
        }
        let Ok(frame) = Frame::parse(&self.payload) else {
            return Ok(None);
        };
        // A commit that is left out may have changed anything, and a base has one end and stands before all.
        let is_next = match frame.kind {
            Kind::Change => frame.commit == self.last + 1,
            Kind::Base | Kind::BaseEnd => !self.is_based,
        };
        if !is_next {
            return Ok(None);
        }
        self.is_based |= frame.kind == Kind::BaseEnd;
        self.last = frame.commit;
        (self.torn, self.damaged) = (false, false);
        self.at += HEAD as u64 + u64::from(len);
        Ok(Some(frame))
    }

    /// Judges what follows the last whole frame: room, or a frame that ends at `end`, if that is known.
    fn rest(&mut self, end: Option<u64>) -> Result<()> {
        self.is_ended = true;
        let behind = Behind {
            file: self.file.get_ref(),
            size: self.size,
            at: self.at,
            last: self.last,
        };
        let tail = behind.look().map_err(|e| os("read", &self.path, e))?;
        self.end = tail.end;
        self.torn = tail.end > self.at;
        self.damaged = tail.has_frame || end.is_some_and(|end| tail.end > end);
        Ok(())
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
