//! What was made, in memory and on disk: how it comes, goes, and is taken up again.
//!
//! ```text
//! records/<number>          see `record`
//! netns/<tenant>/<name>     see `netns`
//! ```
//! Invariant: a record is written before what it is about is made, and goes after it; an event is told
//! when both are done. Nothing is believed of a record that the kernel does not confirm.

mod check;
mod gone;
mod links;
mod namespaces;
mod recover;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use types::network::{NetNamespace, Place};
use types::{Error, Event, Fields, Held, Labels, Namespace, Result, Scope};

use crate::grave::Grave;
use crate::link::Inside;
use crate::netns::Pins;
use crate::record::{Entry, LinkFacts, LinkKey, NsFacts, NsKey, Phase};
use crate::{OpenOpts, Publisher};

pub(crate) use links::Transfer;

/// Directory of the files of namespaces; it stands in paths that clients see.
const PINS: &str = "netns";
/// Directory of the records.
const RECORDS: &str = "records";

pub(crate) struct Store {
    records: PathBuf,
    pins: Pins,
    /// Mark of our interfaces: no other daemon has the same directory and the same identity.
    group: u32,
    /// What they were marked with before identities counted.
    old_group: u32,
    /// Where wires and namespaces go.
    grave: Grave,
    /// Marks of what others than tenants make.
    hidden: Vec<u32>,
    publisher: Publisher,
    known: Mutex<Known>,
    /// Greater than all that have a record.
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    namespaces: BTreeMap<NsKey, Entry<NsFacts>>,
    links: BTreeMap<LinkKey, Entry<LinkFacts>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn open(opts: OpenOpts) -> Result<Self> {
        let records = opts.directory.join(RECORDS);
        let pins = opts.directory.join(PINS);
        // Users of a container may follow its path: the names below are no secret to them.
        for (directory, mode) in [(&opts.directory, 0o711), (&records, 0o700), (&pins, 0o711)] {
            let made = std::fs::DirBuilder::new()
                .mode(mode)
                .recursive(true)
                .create(directory);
            made.map_err(|e| Error::os(format_args!("mkdir {}", directory.display()), e))?;
        }
        let store = Self::new(opts, records, pins);
        store.recover()?;
        Ok(store)
    }

    /// As [`Store::open`] of what is there, which stays as it is.
    pub(crate) fn examine(opts: OpenOpts) -> Result<Self> {
        let records = opts.directory.join(RECORDS);
        let pins = opts.directory.join(PINS);
        let store = Self::new(opts, records, pins);
        store.read_all()?;
        Ok(store)
    }

    fn new(opts: OpenOpts, records: PathBuf, pins: PathBuf) -> Self {
        let group = mark(&opts.directory, &opts.identity);
        Self {
            records,
            group,
            grave: Grave::new(group),
            old_group: mark(&opts.directory, ""),
            hidden: opts.hidden,
            pins: Pins::new(pins),
            publisher: opts.publisher,
            known: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn grave(&self) -> &Grave {
        &self.grave
    }

    fn record(&self, number: u64) -> PathBuf {
        self.records.join(number.to_string())
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

    fn publish(&self, tenant: &Namespace, event: Event) {
        (self.publisher)(tenant.clone(), event);
    }

    /// A record of something that comes.
    fn entry<T>(&self, scope: &Scope, labels: Labels, what: T) -> Entry<T> {
        let now = SystemTime::now();
        Entry {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            phase: Phase::Coming,
            lease: scope.lease.clone(),
            labels,
            created_at: now,
            updated_at: now,
            what,
        }
    }

    fn namespace(&self, key: &NsKey) -> Result<Entry<NsFacts>> {
        let known = self.known();
        let found = known.namespaces.get(key).filter(|entry| entry.is_active());
        found
            .cloned()
            .ok_or_else(|| Error::not_found(format_args!("network namespace {:?}", key.1)))
    }

    fn described(&self, key: &NsKey, entry: &Entry<NsFacts>) -> NetNamespace {
        NetNamespace {
            name: key.1.clone(),
            path: self.pins.path(&key.0, &key.1),
            inode: entry.what.inode,
            adopted: entry.what.adopted.clone(),
            labels: entry.labels.clone(),
            created_at: entry.created_at,
            updated_at: entry.updated_at,
        }
    }

    /// A place, from the inside.
    fn inside(&self, tenant: &Namespace, place: &Place) -> Result<Inside> {
        match place {
            Place::Host => Inside::host(),
            Place::Named(name) => {
                let key = (tenant.clone(), name.clone());
                let inode = self.namespace(&key)?.what.inode;
                let inside = Inside::open(&self.pins.path(tenant, name))?;
                if inside.ns().inode() != inode {
                    return Err(Error::failed_precondition(format_args!(
                        "network namespace {name:?} is not the one that was made: somebody has mounted another one at {}",
                        self.pins.path(tenant, name).display()
                    )));
                }
                Ok(inside)
            }
        }
    }

    pub(crate) fn held(&self) -> Vec<Held> {
        let known = self.known();
        let held = |tenant: &Namespace, name: String, number, entry: (Option<_>, &Labels)| Held {
            namespace: tenant.clone(),
            name,
            number,
            lease: entry.0,
            labels: entry.1.clone(),
        };
        let namespaces = known
            .namespaces
            .iter()
            .filter(|(_, entry)| entry.is_active());
        let namespaces = namespaces.map(|(key, e)| {
            held(
                &key.0,
                key.1.clone(),
                e.number,
                (e.lease.clone(), &e.labels),
            )
        });
        let links = known.links.iter().filter(|(_, entry)| entry.is_active());
        let links = links.map(|(key, e)| {
            let name = format!("{}/{}", key.1.name(), key.2);
            held(&key.0, name, e.number, (e.lease.clone(), &e.labels))
        });
        namespaces.chain(links).collect()
    }
}

/// A number from the directory's name and the daemon's identity (FNV-1a), in the range that people leave to
/// programs.
fn mark(directory: &Path, identity: &str) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    let directory = directory.as_os_str().as_encoded_bytes();
    for byte in directory.iter().chain(identity.as_bytes()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    0x4000_0000 | (hash >> 2)
}

/// New labels of a thing that has nothing else to change here.
fn relabelled(current: &Labels, new: &Labels, fields: &Fields, what: &str) -> Result<Labels> {
    let mut labels = current.clone();
    if fields.is_all() {
        labels = new.clone();
    }
    for (path, split) in fields.iter().zip(fields.split()) {
        match split {
            ("labels", None) => labels = new.clone(),
            ("labels", Some(key)) => labels.set(key, new.get(key).map_or("", String::as_str)),
            _ => return Fields::refuse(path, what),
        }
    }
    labels.validate()?;
    Ok(labels.without_empty())
}

#[cfg(test)]
mod tests;
