//! The journal: where a commit becomes durable, and a second copy of all records.
//!
//! Invariant: replayed, a journal gives the records of its last commit, and no commit of the store is
//! answered or seen before its frame is here, on the disk. The store's own file follows behind: what it
//! lacks after a crash it gets from here, and when it is damaged, so it does everything.
//!
//! ```text
//! magic | base, base, … end of base | change | change … | zeros      each: length, CRC-32, payload
//! ```
//!
//! The zeros are room that was written before: a frame in it changes nothing but data, so that one
//! write and one flush of the disk make it durable. What is left of one that was never answered is made
//! zeros again before anything is written there.

mod room;
mod scan;
mod tail;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use types::{Error, Result};

#[cfg(test)]
pub(super) use self::room::Faults;
use self::room::{Room, STEP};
use self::scan::{Entry, Scan};
use super::tx::Overlay;
use super::{Flow, Read, Records, beside, os, sync_parent};
use crate::codec::Encoder;

/// First bytes of a journal.
const MAGIC: &[u8; 8] = b"cdrsjnl2";
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
    room: Option<Room>,
    base: u64,
    len: u64,
    /// A frame of a commit that failed, which could not be cleared away: where it is and its end.
    unclean: Option<(Room, u64)>,
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

/// What a journal holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Survey {
    /// Commit of its base.
    pub(super) first: u64,
    /// Its last commit.
    pub(super) last: u64,
    /// It ends in something that cannot be read.
    pub(super) torn: bool,
    /// Commits that were answered cannot be read.
    pub(super) damaged: bool,
    base: u64,
    len: u64,
    /// Where what cannot be read ends.
    torn_end: u64,
}

#[cfg(test)]
impl Survey {
    /// Where the next frame will be.
    pub(super) fn end(&self) -> u64 {
        self.len
    }
}

impl Journal {
    /// Where the journal of the store at `path` is.
    pub(super) fn beside(path: &Path) -> PathBuf {
        beside(path, "journal")
    }

    /// Makes the journal of a store whose file is at `commit`. What was there before stays until it is
    /// complete.
    pub(super) fn make(store: &Path, records: &dyn Read, commit: u64) -> Result<Self> {
        let path = Self::beside(store);
        let draft = beside(&path, "new");
        let at = |e| os("write", &draft, e);
        let mut file = BufWriter::new(create(&draft)?);
        file.write_all(MAGIC).map_err(at)?;
        let mut len = MAGIC.len() as u64;
        let mut put = |file: &mut BufWriter<File>, frame: &Encoder| {
            let bytes = bytes(frame).map_err(at)?;
            len += bytes.len() as u64;
            file.write_all(&bytes).map_err(at)
        };
        let mut part = frame(Kind::Base, commit);
        records.scan(b"", &mut |key, value| {
            entry(&mut part, (key, Some(value)));
            if part.len() > PART {
                let full = std::mem::replace(&mut part, frame(Kind::Base, commit));
                put(&mut file, &full)?;
            }
            Ok(Flow::Continue(()))
        })?;
        put(&mut file, &part)?;
        put(&mut file, &frame(Kind::BaseEnd, commit))?;
        file.write_all(&vec![0; STEP]).map_err(at)?;
        let file = file.into_inner().map_err(|e| at(e.into_error()))?;
        file.sync_data().map_err(at)?;
        std::fs::rename(&draft, &path).map_err(|e| os("rename", &draft, e))?;
        sync_parent(&path)?;
        Ok(Self {
            path,
            room: Some(Room::new(file, len + STEP as u64)),
            base: len,
            len,
            unclean: None,
        })
    }

    /// Goes on with a journal that is as `survey` says; half a frame at its end is cleared away.
    pub(super) fn resume(store: &Path, survey: &Survey) -> Result<Self> {
        let path = Self::beside(store);
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.map_err(|e| os("open", &path, e))?;
        let size = file.metadata().map_err(|e| os("stat", &path, e))?.len();
        let room = Room::new(file, size);
        if survey.torn {
            let cleared = room.clear(survey.len, survey.torn_end);
            cleared.map_err(|e| os("clear the end of", &path, e))?;
        }
        Ok(Self {
            path,
            room: Some(room),
            base: survey.base,
            len: survey.len,
            unclean: None,
        })
    }

    /// Appends what a commit changed and tells the frame's length once it is on the disk. After a failure
    /// there is no journal until [`Journal::make`].
    pub(super) fn append<'a>(
        &mut self,
        commit: u64,
        changes: impl Iterator<Item = &'a Overlay>,
    ) -> Option<u64> {
        let mut room = self.room.take()?;
        let mut change = frame(Kind::Change, commit);
        for (key, value) in changes.flatten() {
            entry(&mut change, (key, value.as_deref()));
        }
        // Zeros stay behind it.
        let ready = bytes(&change).and_then(|bytes| {
            room.reach(self.len + (bytes.len() + HEAD) as u64)?;
            Ok(bytes)
        });
        let bytes = ready.map_err(|error| self.tell(&error)).ok()?;
        let end = self.len + bytes.len() as u64;
        if let Err(error) = room.write(&bytes, self.len) {
            self.tell(&error);
            self.unclean = Some((room, end));
            // Of a frame that nobody knows to be on the disk nothing should be.
            if let Err(error) = self.clear() {
                tracing::warn!(%error, "metadata journal may keep a frame of a failed commit");
            }
            return None;
        }
        self.room = Some(room);
        self.len = end;
        Some(bytes.len() as u64)
    }

    fn tell(&self, error: &std::io::Error) {
        tracing::warn!(%error, path = %self.path.display(), "metadata journal stops");
    }

    /// Clears away what is left of a frame that failed.
    pub(super) fn clear(&mut self) -> std::io::Result<()> {
        if let Some((room, end)) = &self.unclean {
            room.clear(self.len, *end)?;
            self.unclean = None;
        }
        Ok(())
    }

    /// True while a frame that failed may stand in it, and come up after a restart.
    pub(super) fn is_unclean(&self) -> bool {
        self.unclean.is_some()
    }

    /// True after a failure: commits go to the store's file, until it is made anew.
    pub(super) fn is_stopped(&self) -> bool {
        self.room.is_none()
    }

    /// The store may hold what this journal does not: it has to be made anew.
    pub(super) fn stop(&mut self) {
        self.room = None;
    }

    /// The store's file has the last commit: whatever is left of its frame may stay.
    pub(super) fn stands(&mut self) {
        self.unclean = None;
    }

    /// Lets the disk fail.
    #[cfg(test)]
    pub(super) fn fail(&mut self, faults: Faults) {
        let unclean = self.unclean.as_mut().map(|(room, _)| room);
        for room in self.room.as_mut().into_iter().chain(unclean) {
            room.faults = faults;
        }
    }

    /// True when it is time to make it anew.
    pub(super) fn is_due(&self) -> bool {
        let grown = self.len - self.base;
        self.is_stopped() || (grown > SMALL && grown > OUTGROWN * self.base)
    }

    /// Looks through the journal of `store`; `None` without one that has its base.
    pub(super) fn survey(store: &Path) -> Result<Option<Survey>> {
        let Some(mut scan) = Scan::open(&Self::beside(store))? else {
            return Ok(None);
        };
        let mut found = None::<Survey>;
        while let Some(frame) = scan.next()? {
            let (kind, last) = (frame.kind, frame.commit);
            let len = scan.at;
            if kind == Kind::BaseEnd {
                found = Some(Survey {
                    first: last,
                    last,
                    torn: false,
                    damaged: false,
                    base: len,
                    len,
                    torn_end: len,
                });
            } else if let Some(found) = &mut found {
                (found.last, found.len) = (last, len);
            }
        }
        let (torn, damaged, torn_end) = (scan.torn, scan.damaged, scan.end);
        Ok(found.map(|found| Survey {
            torn,
            damaged,
            torn_end,
            ..found
        }))
    }

    /// Applies the commits after `commit` of the journal of `store`, in order, up to commit `until`, and
    /// tells the last.
    ///
    /// # Errors
    /// `DataLoss` when the journal began after `commit`.
    pub(super) fn follow(
        store: &Path,
        commit: u64,
        until: u64,
        apply: &mut dyn FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<u64> {
        let mut last = commit;
        let Some(mut scan) = Scan::open(&Self::beside(store))? else {
            return Ok(last);
        };
        while let Some(mut frame) = scan.next()? {
            if frame.kind == Kind::BaseEnd && frame.commit > commit {
                let first = frame.commit;
                return Err(Error::data_loss(format_args!(
                    "{} is at commit {commit}, its journal began at {first}",
                    store.display()
                )));
            }
            if frame.kind != Kind::Change || frame.commit <= commit {
                continue;
            }
            if frame.commit > until {
                break;
            }
            last = frame.commit;
            while let Some(entry) = frame.entry()? {
                apply(entry)?;
            }
        }
        Ok(last)
    }

    /// The records of the journal of `store`; `None` without one that has its base.
    pub(super) fn replay(store: &Path) -> Result<Option<Replay>> {
        let Some(mut scan) = Scan::open(&Self::beside(store))? else {
            return Ok(None);
        };
        let mut replay = Replay::default();
        let mut based = false;
        while let Some(mut frame) = scan.next()? {
            based |= frame.kind == Kind::BaseEnd;
            replay.commit = frame.commit;
            while let Some((key, value)) = frame.entry()? {
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

/// A frame's payload up to its entries, with room for its head.
fn frame(kind: Kind, commit: u64) -> Encoder {
    let mut frame = Encoder::new(VERSION);
    frame.number(kind as u64);
    frame.number(commit);
    frame
}

fn entry(frame: &mut Encoder, (key, value): Entry<'_>) {
    frame.bytes(key);
    frame.option(value, Encoder::bytes);
}

/// The bytes of a frame.
fn bytes(frame: &Encoder) -> std::io::Result<Vec<u8>> {
    let payload = frame.as_bytes();
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|len| *len as usize <= MAX_FRAME)
        .ok_or(ErrorKind::FileTooLarge)?;
    let mut whole = Vec::with_capacity(HEAD + payload.len());
    whole.extend_from_slice(&len.to_le_bytes());
    whole.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    whole.extend_from_slice(payload);
    Ok(whole)
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
