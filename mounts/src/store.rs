//! The activations in memory and on disk, and how one comes, goes, and is taken up again.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use types::{
    Activation, ActiveMount, Error, Filter, Held, Labels, LeaseId, Mount, Namespace, Result,
};

use crate::handler::Handler;
use crate::place::{Busy, Place};
use crate::plan::{Plan, Planned};
use crate::record::{self, Entry, Phase};
use crate::{Key, OpenOpts};

/// Directory of the places. Parity: core/mount/manager: clients see it in paths.
pub(crate) const TARGETS: &str = "t";
/// Directory of the records.
pub(crate) const RECORDS: &str = "records";

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) targets: PathBuf,
    pub(crate) records: PathBuf,
    roots: Vec<PathBuf>,
    entries: Mutex<BTreeMap<Key, Entry>>,
    /// Greater than all that have a record or a place.
    next: AtomicU64,
    /// The first of this daemon's own.
    pub(crate) first: u64,
}

impl Store {
    pub(crate) fn open(opts: OpenOpts) -> Result<Self> {
        let targets = opts.directory.join(TARGETS);
        let records = opts.directory.join(RECORDS);
        for directory in [&targets, &records] {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.mode(0o700).recursive(true).create(directory);
            made.map_err(|e| Error::os(format_args!("mkdir {}", directory.display()), e))?;
        }
        let mut roots = opts.roots;
        roots.push(targets.clone());
        let mut store = Self {
            targets,
            records,
            roots,
            entries: Mutex::default(),
            next: AtomicU64::new(1),
            first: 1,
        };
        store.first = store.recover()?;
        store.next = AtomicU64::new(store.first);
        Ok(store)
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, number: u64) -> Place {
        Place::new(&self.targets, number)
    }

    pub(crate) fn record(&self, number: u64) -> PathBuf {
        self.records.join(number.to_string())
    }

    /// The directory of the places as the kernel calls it: the configured one may go through links, and
    /// another way than that of the daemon before.
    pub(crate) fn real_targets(&self) -> Result<PathBuf> {
        let real = self.targets.canonicalize();
        real.map_err(|e| Error::os(format_args!("resolve {}", self.targets.display()), e))
    }

    /// Keeps what is there as a whole; all else goes. The number that comes after all of that.
    fn recover(&self) -> Result<u64> {
        let mounted = sys::mount::info::load()?.into_iter();
        let mounted: HashSet<PathBuf> = mounted.map(|mount| mount.mount_point).collect();
        let real = self.real_targets()?;
        let is_whole = |entry: &Entry| {
            let place = Place::new(&real, entry.number);
            place.missing(entry.activation.active.len(), &mounted) == 0
        };
        let recorded = numbers(&self.records)?;
        for number in &recorded {
            match record::read(&self.record(*number), *number) {
                Ok((key, entry)) => {
                    let is_whole = is_whole(&entry);
                    self.take_up(key, entry, is_whole);
                }
                Err(error) => {
                    tracing::warn!(number, %error, "mounts without a record that can be read go");
                    self.forget_orphan(*number);
                }
            }
        }
        let placed = numbers(&self.targets)?;
        for number in placed.iter().filter(|number| !recorded.contains(number)) {
            self.forget_orphan(*number);
        }
        let last = recorded.iter().chain(&placed).max().copied();
        Ok(last.unwrap_or(0) + 1)
    }

    fn take_up(&self, key: Key, mut entry: Entry, is_whole: bool) {
        let name = key.1.clone();
        if entry.phase == Phase::Active {
            if is_whole {
                self.entries().insert(key, entry);
                return;
            }
            tracing::warn!(name, "mounts are not what they were, and go");
        }
        let cleared = self.place(entry.number).clear(Busy::Detach);
        if let Err(error) = cleared.and_then(|()| self.remove_record(entry.number)) {
            tracing::warn!(name, %error, "mounts that were not finished stay for now");
            entry.phase = Phase::Going;
            self.entries().insert(key, entry);
        }
    }

    fn forget_orphan(&self, number: u64) {
        if let Err(error) = self.drop_orphan(number) {
            tracing::warn!(number, %error, "mounts that nobody knows stay");
        }
    }

    /// Takes away what no activation has.
    pub(crate) fn drop_orphan(&self, number: u64) -> Result<()> {
        self.place(number).clear(Busy::Detach)?;
        self.remove_record(number)
    }

    fn remove_record(&self, number: u64) -> Result<()> {
        let path = self.record(number);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::os(format_args!("remove {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// The caller has `key` alone.
    pub(crate) fn activate(
        &self,
        key: &Key,
        lease: Option<LeaseId>,
        labels: Labels,
        plan: Plan,
    ) -> Result<Activation> {
        let old = self.entries().get(key).map(|entry| entry.phase);
        match old {
            Some(Phase::Active) => {
                return Err(Error::already_exists(format_args!("mount {:?}", key.1)));
            }
            // What an earlier call has left halfway is in nobody's use.
            Some(Phase::Coming | Phase::Going) => self.remove(key, None)?,
            None => {}
        }
        let mut entry = Entry {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            phase: Phase::Coming,
            lease,
            activation: Activation {
                name: key.1.clone(),
                labels,
                ..Activation::default()
            },
        };
        record::write(&self.record(entry.number), key.0.as_str(), &entry)?;
        self.entries().insert(key.clone(), entry.clone());
        let done = self.mount(&mut entry, plan).and_then(|()| {
            entry.phase = Phase::Active;
            record::write(&self.record(entry.number), key.0.as_str(), &entry)
        });
        if let Err(error) = done {
            if let Err(left) = self.undo(key, entry.number) {
                tracing::warn!(name = key.1, error = %left, "mounts of a failed activation stay");
            }
            return Err(error);
        }
        self.entries().insert(key.clone(), entry.clone());
        Ok(entry.activation)
    }

    fn mount(&self, entry: &mut Entry, plan: Plan) -> Result<()> {
        let place = self.place(entry.number);
        place.make()?;
        let active = &mut entry.activation.active;
        for (position, planned) in plan.ours.into_iter().enumerate() {
            let mount = self.change(planned, active)?;
            let point = place.point(position);
            Handler::of(&mount.kind).mount(&mount, &point)?;
            active.push(ActiveMount {
                mount,
                mounted_at: Some(SystemTime::now()),
                mount_point: point.display().to_string(),
                ..ActiveMount::default()
            });
        }
        for planned in plan.theirs {
            let mount = self.change(planned, active)?;
            entry.activation.system.push(mount);
        }
        if let (true, Some(last)) = (plan.bind, active.last()) {
            entry.activation.system.push(Mount {
                kind: "bind".into(),
                source: last.mount_point.clone(),
                options: vec!["rbind".into()],
                ..Mount::default()
            });
        }
        Ok(())
    }

    fn change(&self, planned: Planned, active: &[ActiveMount]) -> Result<Mount> {
        let mut mount = planned.mount;
        for change in planned.changes {
            mount = change.apply(mount, active, &self.roots)?;
        }
        Ok(mount)
    }

    /// Takes a failed activation away.
    fn undo(&self, key: &Key, number: u64) -> Result<()> {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.phase = Phase::Going;
        }
        self.finish_removal(key, number, Busy::Detach)
    }

    /// The caller has `key` alone. `number`: only that one.
    pub(crate) fn remove(&self, key: &Key, number: Option<u64>) -> Result<()> {
        let going = {
            let mut entries = self.entries();
            let found = entries.get_mut(key);
            let Some(entry) = found.filter(|e| number.is_none_or(|n| n == e.number)) else {
                return match number {
                    // Somebody was faster.
                    Some(_) => Ok(()),
                    None => Err(Error::not_found(format_args!("mount {:?}", key.1))),
                };
            };
            entry.phase = Phase::Going;
            entry.clone()
        };
        // A crash from here on is finished by the next start.
        record::write(&self.record(going.number), key.0.as_str(), &going)?;
        self.finish_removal(key, going.number, Busy::Wait)
    }

    fn finish_removal(&self, key: &Key, number: u64, busy: Busy) -> Result<()> {
        self.place(number).clear(busy)?;
        self.remove_record(number)?;
        self.entries().remove(key);
        Ok(())
    }

    pub(crate) fn info(&self, key: &Key) -> Result<Activation> {
        let entries = self.entries();
        let found = entries.get(key).filter(|e| e.phase == Phase::Active);
        let missing = || Error::not_found(format_args!("mount {:?}", key.1));
        Ok(found.ok_or_else(missing)?.activation.clone())
    }

    pub(crate) fn list(&self, namespace: &Namespace, filter: &Filter) -> Vec<Activation> {
        let entries = self.entries();
        let active = entries.iter().filter(|(key, entry)| {
            key.0 == *namespace && entry.phase == Phase::Active && filter.matches(&entry.activation)
        });
        active.map(|(_, entry)| entry.activation.clone()).collect()
    }

    pub(crate) fn held(&self) -> Vec<Held> {
        let entries = self.entries();
        let known = entries.iter().filter(|(_, e)| e.phase != Phase::Coming);
        let held = known.map(|(key, entry)| {
            let kept = entry.phase == Phase::Active;
            Held {
                namespace: key.0.clone(),
                name: key.1.clone(),
                number: entry.number,
                lease: entry.lease.clone().filter(|_| kept),
                labels: if kept {
                    entry.activation.labels.clone()
                } else {
                    Labels::new()
                },
            }
        });
        held.collect()
    }
}

/// Names in a directory that are numbers.
pub(crate) fn numbers(directory: &Path) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(directory)
        .map_err(|e| Error::os(format_args!("read {}", directory.display()), e))?;
    let name = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.flatten().filter_map(name).collect())
}
