//! How the index is opened: as it is, made, or made anew from its copy and its log.
//!
//! Invariant: no directory becomes garbage because the index has lost its row: an index is never empty
//! over directories of snapshots, and what a restored one does not know is set aside.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use types::{Code, Error, Result, SnapshotKey, SnapshotKind, Usage};

use crate::directories::Directories;
use crate::note::Note;

use super::db::{self, Db, Loaded};
use super::log::Log;
use super::mirror::Mirror;
use super::row::{Change, Group, Row};
use super::{Index, State};

/// Names of log and copy in the root.
const LOG: &str = "metadata.log";
const COPY: &str = "metadata.copy";
/// The files of an index.
pub(crate) const FILES: [&str; 3] = [db::FILE, LOG, COPY];

impl Index {
    /// Opens the index in `root`, or makes it where there is no snapshot. A directory that tells of a
    /// row which the index has lost gets it again. A row whose id is not among
    /// `directories` is dropped when nothing hangs on it (its making or removal was cut off by a power
    /// failure). An index that is damaged or gone is made anew from its copy and its log, and snapshots
    /// that it does not know are set aside.
    ///
    /// # Errors
    /// `Unavailable` while another process has it; `DataLoss` when it is damaged, its copy as well;
    /// `FailedPrecondition` when there are snapshots and nothing of an index; I/O.
    pub(crate) fn open(root: &Path, directories: &Directories) -> Result<Self> {
        let opened = match Db::open(&root.join(db::FILE)) {
            // Another process has it, or the disk fails: the log is not ours to cut.
            Err(e) if !e.is(Code::DataLoss) && !e.is_not_found() => return Err(e),
            opened => opened,
        };
        // A file that is made anew has all of the log.
        let held = opened.as_ref().map_or(u64::MAX, |(_, had)| had.sequence);
        let copy = root.join(COPY);
        let mut mirror = Mirror::read(&copy);
        let mut newer = Vec::new();
        let (log, damage) = Log::open(&root.join(LOG), |group| {
            mirror.add(&group);
            if group.seq > held {
                newer.push(group);
            }
        })?;
        let (whole, copied) = (mirror.sequence(), mirror.len);
        let mut damages: Vec<String> = damage.into_iter().collect();
        let (db, loaded) = file(root, opened, mirror, directories, &mut damages)?;
        let mut state = State {
            rows: BTreeMap::new(),
            children: HashMap::new(),
            reserved: HashMap::new(),
            next_id: loaded.next_id.max(1),
            sequence: loaded.sequence,
            flushed: loaded.sequence,
            dirty: Vec::new(),
            unplaced: HashSet::new(),
            logged: log.len(),
            unflushed: 0,
            copied,
            has_gap: false,
            retry: None,
        };
        state.fill(loaded.rows, newer, directories);
        state.has_gap = whole != Some(state.sequence);
        let index = Self {
            state: Mutex::new(state),
            log: Mutex::new(log),
            db: Mutex::new(db),
            copy,
            directories: directories.to_flush(),
            damages,
        };
        index.adopt(directories)?;
        drop_orphans(&index, directories)?;
        if index.state().has_gap {
            index.catch_up();
        }
        Ok(index)
    }

    /// Makes rows of what directories tell that have none: a power cut has taken the log's tail.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn adopt(&self, directories: &Directories) -> Result<()> {
        let found = lost(&self.state(), directories);
        if found.is_empty() {
            return Ok(());
        }
        self.change(|_| Ok((found, ()))).map(drop)
    }

    /// Makes the mirror anew. The index can be used without it: what fails is tried again by a flush.
    fn catch_up(&self) {
        if let Err(error) = self.flush_all() {
            tracing::warn!(%error, "snapshot index not flushed; the log has the rest");
            return;
        }
        let image = {
            let state = self.state();
            let is_open = state.has_gap && state.retry.is_none();
            is_open.then(|| state.image())
        };
        if let Some(image) = image {
            self.mirror(&image);
        }
    }
}

impl State {
    /// The rows of the file, and what the log has beyond them.
    fn fill(
        &mut self,
        rows: Vec<(SnapshotKey, Row)>,
        groups: Vec<Group>,
        directories: &Directories,
    ) {
        let rows = rows.into_iter().map(|(key, row)| Change {
            key,
            row: Some(row),
        });
        self.apply(&rows.collect::<Vec<_>>());
        for Group { seq, next, changes } in groups {
            if seq <= self.flushed {
                continue;
            }
            self.apply(&changes);
            let rows = changes.iter().filter_map(|change| change.row.as_ref());
            self.unplaced.extend(rows.map(|row| row.id));
            self.dirty.extend(changes);
            self.sequence = self.sequence.max(seq);
            self.next_id = self.next_id.max(next);
        }
        let ids = self.rows.values().map(|row| row.id);
        let used = ids.chain(directories.highest()).max();
        self.next_id = used.map_or(self.next_id, |id| self.next_id.max(id + 1));
    }
}

/// The durable file and what is in it; made anew from the mirror when it is damaged or gone.
fn file(
    root: &Path,
    opened: Result<(Db, Loaded)>,
    mirror: Mirror,
    directories: &Directories,
    damages: &mut Vec<String>,
) -> Result<(Db, Loaded)> {
    let path = root.join(db::FILE);
    let is_whole = mirror.sequence().is_some();
    let cause = match opened {
        // The engine goes back a step when its last one cannot be read, and says nothing.
        Ok((db, loaded)) if is_whole && mirror.copied > loaded.sequence => {
            drop(db);
            Error::data_loss("the file is behind its copy")
        }
        Ok(whole) => return Ok(whole),
        Err(e) => e,
    };
    let loaded = match mirror.loaded() {
        Some(loaded) => loaded,
        None if directories.present().is_empty() => {
            // There is nothing that it could have named.
            if !cause.is_not_found() {
                tracing::warn!("snapshot index is made anew over no snapshots: {cause}");
                damages.push(format!("it is made anew over no snapshots: {cause}"));
            }
            return Ok((Db::make(&path, &Loaded::default())?.0, Loaded::default()));
        }
        // Without its index every directory would be garbage.
        None => {
            let what = format!(
                "{} has snapshots without an index: restore it or choose another root",
                root.display()
            );
            let code = if cause.is_not_found() {
                Code::FailedPrecondition
            } else {
                Code::DataLoss
            };
            return Err(cause.reclass(code).ctx(what));
        }
    };
    // Before there is a file: the next open would see nothing missing, and the log may have lost its tail.
    let lost = directories.set_aside(&loaded.rows.iter().map(|(_, row)| row.id).collect())?;
    let (db, aside) = Db::make(&path, &loaded)?;
    let kept = aside.map_or_else(String::new, |aside| {
        format!(" (the damaged file is kept as {})", aside.display())
    });
    tracing::warn!("snapshot index was restored from its copy and log: {cause}{kept}");
    let lost = match lost {
        0 => String::new(),
        lost => format!(", but not of {lost} directories: these are set aside"),
    };
    let told = loaded.rows.len();
    damages.push(format!(
        "{cause}; copy and log tell of {told} snapshots{lost}"
    ));
    Ok((db, loaded))
}

/// Rows that directories tell of, and the index does not have.
fn lost(state: &State, directories: &Directories) -> Vec<Change> {
    let known = state.rows.values().map(|row| row.id).collect();
    let mut found = Vec::new();
    for (id, note) in directories.notes(&known) {
        let Note {
            kind,
            parent,
            labels,
            key,
        } = note;
        let mut rows = state.rows.iter();
        let parent = match parent.map(|id| rows.find(|(_, row)| row.id == id)) {
            None => None,
            Some(Some((parent, row))) if row.kind == SnapshotKind::Committed => {
                Some(parent.clone())
            }
            // What it stood on is no more.
            Some(_) => continue,
        };
        if state.rows.contains_key(&key) {
            continue;
        }
        tracing::warn!(%key, id, "snapshot was lost with the power: its directory has told of it");
        let now = SystemTime::now();
        let row = Row {
            id,
            kind,
            parent,
            labels,
            created_at: now,
            updated_at: now,
            usage: Usage::default(),
            print: None,
            bare: None,
        };
        found.push(Change {
            key,
            row: Some(row),
        });
    }
    found
}

/// Takes away rows without a directory, leaves first; those with children stay and are named.
fn drop_orphans(index: &Index, directories: &Directories) -> Result<()> {
    let present = directories.present();
    let orphans = || -> Vec<Change> {
        let state = index.state();
        let is_orphan = |(key, row): &(&SnapshotKey, &Row)| {
            !present.contains(&row.id) && !state.children.contains_key(*key)
        };
        let keys = state
            .rows
            .iter()
            .filter(is_orphan)
            .map(|(key, _)| key.clone());
        keys.map(|key| Change { key, row: None }).collect()
    };
    loop {
        let gone = orphans();
        if gone.is_empty() {
            break;
        }
        for change in &gone {
            tracing::warn!(key = %change.key, "snapshot has no directory: dropped");
        }
        index.change(|_| Ok((gone, ())))?;
    }
    let state = index.state();
    for (key, row) in state
        .rows
        .iter()
        .filter(|(_, row)| !present.contains(&row.id))
    {
        tracing::error!(%key, id = row.id, "snapshot has lost its directory but has children");
    }
    Ok(())
}
