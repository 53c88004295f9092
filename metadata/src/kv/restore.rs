//! How a store is opened: as it is, anew, or from its journal.
//!
//! Invariant: the file under the store's name is complete or not there, and as long as it is not there
//! its journal is: whoever is killed anywhere in here begins again with nothing lost. Where the last changes
//! may be lost the store says so, in a record, before what shows it is moved or cleared away.
//!
//! ```text
//! whole, journal at the same commit or newer ---------------> what the file lacks is read; go on with both
//! whole, journal ending in half a frame --------------------> the same, say so, and clear that away
//! whole, journal older -------------------------------------> make the journal anew; say so if it is torn
//! whole, journal damaged or gone ---------------------------> the file gets the rest; keep it aside, say so
//! whole, but older than the journal's base --.
//! damaged, or gone ---------------------------+-> journal? keep the file aside, write it anew
//!                                                 none? the caller's turn
//! ```

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::{Database, Durability};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Code, Error, Result};

use super::engine::{self, Engine, failure, opening};
use super::journal::{Journal, Replay};
use super::{
    CACHE_BYTES, COMMIT, Flow, RECORDS, Read, Records, STORE, Snapshot, beside, number, os,
    sync_parent,
};

/// A record that the store itself makes: the last changes may be lost, and nobody was asked yet for what
/// they named. Whoever has asked everybody removes it. Its key is one of the facts of the store, as those
/// that have it as records call them.
pub(crate) const INCOMPLETE: &[u8] = b"\0incomplete";

/// A record of those that nobody has asked yet since an earlier loss: names, between zeros, and before them
/// [`TORN`] if that was all. A mark with names says the same: it is what earlier daemons know.
pub(crate) const UNASKED: &[u8] = b"\0unasked";

/// What it is when more is wrong than a journal that ends in half a frame.
pub(super) const LOST: &[u8] = b"";

/// What a mark begins with when that is all: most likely nobody was told of that change.
pub(crate) const TORN: &[u8] = b"\0";

/// How a store came to be open.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It was there, and whole.
    Whole,
    /// Something was damaged: the last changes may be lost.
    Restored(Restored),
}

/// An open store.
pub(super) struct Store {
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    /// The file lacks commits: they are in memory, and in the journal.
    pub(super) is_behind: bool,
}

/// Which of the two copies was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The file.
    File,
    /// The journal, as far as it can be read.
    Journal,
}

/// What a store was restored from, and why.
#[derive(Debug)]
pub(crate) struct Restored {
    /// What was wrong with the other copy.
    pub(crate) cause: Error,
    /// What the records are from.
    pub(crate) from: Source,
    /// Where the damaged one is kept, if it was there.
    pub(crate) aside: Option<PathBuf>,
    /// When the journal was last written.
    pub(crate) written_at: Option<SystemTime>,
    /// The journal ended in something that cannot be read: the last changes may be lost.
    pub(crate) torn: bool,
}

impl Restored {
    /// Tells the log, in a few lines.
    pub(crate) fn tell(&self) {
        let kept = self.aside.as_ref().map_or_else(String::new, |path| {
            format!(" (the damaged file is kept as {})", path.display())
        });
        match self.from {
            Source::File => tracing::warn!("metadata has a new journal: {}{kept}", self.cause),
            Source::Journal => tracing::warn!(
                "metadata was restored from its journal: {}{kept}",
                self.cause
            ),
        }
        let written = self.written_at.and_then(|at| {
            let at = OffsetDateTime::from(at);
            at.format(&Rfc3339).ok()
        });
        let written = written.as_deref().unwrap_or("an unknown time");
        let damaged = if self.torn && self.from == Source::Journal {
            ", where the journal is damaged as well"
        } else {
            ""
        };
        tracing::warn!(
            "the journal's last change is of {written}{damaged}: later ones are lost, if there were any"
        );
    }
}

/// Opens the store at `path`; its lock is held. Where nothing is damaged this needs no room on the disk,
/// but a page or two for the mark when the journal ends in half a frame: the reserve has them.
pub(super) fn open(path: &Path) -> Result<(Store, Opened)> {
    if !path.try_exists().map_err(|e| os("stat", path, e))? {
        let gone = Error::not_found(format_args!("metadata {}", path.display()));
        return restore(path, gone);
    }
    let (engine, commit) = match Engine::open(path) {
        Ok(opened) => opened,
        Err(error) if error.is(Code::DataLoss) => return restore(path, error),
        Err(error) => return Err(error),
    };
    let Some(found) = Journal::survey(path)? else {
        return go_on_without(path, engine);
    };
    if found.first > commit {
        drop(engine);
        let lost = found.last - commit;
        let what = format!("{} is {lost} commits behind its journal", path.display());
        return restore(path, Error::data_loss(what));
    }
    let mut is_behind = found.last > commit;
    if is_behind {
        // In memory: whoever was killed on a full disk starts on it.
        engine.with(|database| engine::catch_up(database, path, u64::MAX, Durability::None))?;
        tracing::info!(
            commits = found.last - commit,
            "metadata got its last commits from its journal"
        );
    }
    if found.damaged {
        return go_on_without(path, engine);
    }
    if found.last < commit {
        if found.torn {
            // The half frame is of a change that the file has, or of the one after that: then it is as below.
            // What is further behind may have had whole ones.
            let is_next = commit == found.last + 1;
            let kind = if is_next { TORN } else { LOST };
            engine.with(|database| engine::mark(database, kind))?;
        }
        tracing::info!(
            commits = commit - found.last,
            "metadata went on without its journal"
        );
        return Ok((Store::anew(path, engine)?, Opened::Whole));
    }
    if found.torn {
        tracing::warn!(
            "the journal of {} ends in half a change: nobody was told that it is done, or it is lost",
            path.display()
        );
        // Before it is cleared away: the next start could not know any more.
        engine.with(|database| engine::mark(database, TORN))?;
        is_behind = false;
    }
    let journal = Journal::resume(path, &found)?;
    let store = Store {
        engine,
        journal,
        is_behind,
    };
    Ok((store, Opened::Whole))
}

/// Keeps a damaged journal aside, if it is there. It may have had commits that the store's file lacks.
fn go_on_without(path: &Path, engine: Engine) -> Result<(Store, Opened)> {
    engine.with(|database| engine::mark(database, LOST))?;
    let journal = Journal::beside(path);
    let written = journal.metadata().and_then(|found| found.modified());
    let aside = sys::damage::keep_aside(&journal)?;
    let store = Store::anew(path, engine)?;
    let what = if aside.is_some() {
        "is damaged"
    } else {
        "is gone"
    };
    let restored = Restored {
        cause: Error::data_loss(format_args!("{} {what}", journal.display())),
        from: Source::File,
        aside,
        written_at: written.ok(),
        torn: true,
    };
    Ok((store, Opened::Restored(restored)))
}

impl Store {
    /// With a new journal of what the engine's file has.
    fn anew(path: &Path, engine: Engine) -> Result<Self> {
        let (snapshot, commit) = engine.with(|db| Ok((Snapshot::open(db)?, number(db)?)))?;
        Ok(Self {
            journal: Journal::make(path, &snapshot, commit)?,
            engine,
            is_behind: false,
        })
    }
}

/// Makes a store of these records at `path`, and tells where what was there is kept.
pub(super) fn make(path: &Path, records: &Records) -> Result<(Store, Option<PathBuf>)> {
    let aside = write(path, records, 0)?;
    let (engine, _) = Engine::open(path)?;
    Ok((Store::anew(path, engine)?, aside))
}

/// Writes the store anew from its journal, if it has one.
fn restore(path: &Path, cause: Error) -> Result<(Store, Opened)> {
    let Some(replay) = Journal::replay(path)? else {
        return Err(cause);
    };
    let Replay {
        mut records,
        commit,
        written_at,
        torn,
    } = replay;
    let [mark, kept] = [INCOMPLETE, UNASKED].map(|key| records.get(key).map(Vec::as_slice));
    if let Some(names) = unasked(mark, kept) {
        records.insert(UNASKED.into(), names);
    }
    records.insert(INCOMPLETE.into(), LOST.into());
    let aside = write(path, &records, commit)?;
    drop(records);
    let (engine, commit) = Engine::open(path)?;
    // A torn one cannot be gone on with.
    let store = match Journal::survey(path)? {
        Some(found) if !found.torn && found.last == commit => Store {
            journal: Journal::resume(path, &found)?,
            engine,
            is_behind: false,
        },
        _ => {
            drop(sys::damage::keep_aside(&Journal::beside(path))?);
            Store::anew(path, engine)?
        }
    };
    let restored = Restored {
        cause,
        from: Source::Journal,
        aside,
        written_at,
        torn,
    };
    Ok((store, Opened::Restored(restored)))
}

/// The names in a mark and in [`UNASKED`], as a record of that kind: what is to be kept when another mark takes
/// the place of this one.
pub(crate) fn unasked(mark: Option<&[u8]>, kept: Option<&[u8]>) -> Option<Vec<u8>> {
    let is_name = |name: &&[u8]| !name.is_empty();
    let records = [mark, kept].into_iter().flatten();
    let records =
        records.filter(|record| record.split(|byte| *byte == 0).any(|name| is_name(&name)));
    let (mut names, mut is_torn) = (BTreeSet::new(), true);
    for record in records {
        names.extend(record.split(|byte| *byte == 0).filter(is_name));
        is_torn &= record.starts_with(TORN);
    }
    if names.is_empty() {
        return None;
    }
    let mut record = if is_torn { TORN.into() } else { Vec::new() };
    record.extend(names.into_iter().collect::<Vec<_>>().join(&0));
    Some(record)
}

/// Writes a store under another name first: the real name is a complete store or nothing. What was
/// there is kept, and told.
fn write(path: &Path, records: &Records, commit: u64) -> Result<Option<PathBuf>> {
    let draft = draft(path, records, commit)?;
    let aside = sys::damage::keep_aside(path)?;
    std::fs::rename(&draft, path).map_err(|e| os("rename", &draft, e))?;
    sync_parent(path)?;
    Ok(aside)
}

/// Writes a store at `path`, in place of what is there.
pub(super) fn keep(path: &Path, records: &dyn Read, commit: u64) -> Result<PathBuf> {
    let draft = draft(path, records, commit)?;
    std::fs::rename(&draft, path).map_err(|e| os("rename", &draft, e))?;
    sync_parent(path)?;
    Ok(path.to_owned())
}

/// A store on its way to `path`, complete and durable but for its name.
fn draft(path: &Path, records: &dyn Read, commit: u64) -> Result<PathBuf> {
    let draft = beside(path, "new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(os("remove", &draft, e)),
        _ => {}
    }
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(&draft)
        .map_err(|e| opening(&draft, e))?;
    fill(&database, records, commit)?;
    Ok(draft)
}

fn fill(database: &Database, records: &dyn Read, commit: u64) -> Result<()> {
    let txn = database.begin_write().map_err(failure)?;
    {
        let mut table = txn.open_table(RECORDS).map_err(failure)?;
        records.scan(b"", &mut |key, value| {
            drop(table.insert(key, value).map_err(failure)?);
            Ok(Flow::Continue(()))
        })?;
        let mut store = txn.open_table(STORE).map_err(failure)?;
        drop(store.insert(COMMIT, commit).map_err(failure)?);
    }
    txn.commit().map_err(failure)
}
