//! Reading a journal, frame by frame.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use types::Result;

use super::{HEAD, Kind, MAGIC, MAX_FRAME, PART, VERSION};
use crate::codec::{Decoder, damaged};
use crate::kv::os;

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
    is_ended: bool,
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
            is_ended: false,
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
        if head == [0; HEAD] {
            self.torn = !self.rests()?;
            self.damaged = self.torn;
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
            // Each frame waits for the flush of the one before: one alone can be half there.
            self.damaged = !self.rests()?;
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
        (self.torn, self.damaged) = (false, false);
        self.at += (HEAD + len) as u64;
        Ok(Some(frame))
    }

    /// At its end: true when nothing but room follows. Something else is frames behind a hole.
    fn rests(&mut self) -> Result<bool> {
        self.is_ended = true;
        loop {
            let part = self
                .file
                .fill_buf()
                .map_err(|e| os("read", &self.path, e))?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            let len = part.len();
            if len == 0 {
                return Ok(true);
            }
            self.file.consume(len);
        }
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
