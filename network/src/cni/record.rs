//! Attachments on disk: what is about to be made, what was made, and what each plugin answered.
//!
//! Invariant: a record is on disk before the first plugin runs and is removed after `DEL` of every
//! plugin has worked, so what a plugin may have made always has a record. It has the configuration of
//! its time: `DEL` undoes what `ADD` was told, whatever the files say meanwhile.
//!
//! ```text
//! <directory>/<namespace>/<container>/<network>:<interface>.json     the directory is the lock
//! <directory>/.damaged/<namespace>--<container>--<file>              put aside
//! ```

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sys::fs::{Flush, fsync_dir, write_atomic_with};
use types::network::TenantId;
use types::{Context as _, Error, Result};

use super::conf::{self, Network};
use crate::netns::Identity;

/// How long a plugin of a daemon that died may still be at work: it was killed with the daemon.
const LAST_WORK: Duration = Duration::from_secs(5);
/// Between two looks at a lock, which nothing else tells about.
const LOOK: Duration = Duration::from_millis(20);
/// How often a place for records is made that others take away with their own.
const MOST_TRIES: usize = 64;
/// No such file.
const ENOENT: i32 = 2;
/// Where damaged records are put: no namespace is called that.
const DAMAGED: &str = ".damaged";

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Some of it may exist.
    Adding,
    /// All of it exists.
    Added,
    /// Some of it may still exist.
    Deleting,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct Record {
    network: Value,
    pub(super) interface: String,
    pub(super) netns: PathBuf,
    /// Which one it was: the path may stand for another one by now.
    #[serde(default)]
    pub(super) place: Option<Identity>,
    /// As `CNI_ARGS` has them.
    pub(super) args: String,
    pub(super) capabilities: Map<String, Value>,
    pub(super) phase: Phase,
    /// What the last plugin answered that did.
    pub(super) result: Option<Value>,
}

impl Record {
    pub(super) fn new(network: &Network, interface: String, netns: PathBuf) -> Self {
        Self {
            network: network.to_json(),
            interface,
            netns,
            place: None,
            args: String::new(),
            capabilities: Map::new(),
            phase: Phase::Adding,
            result: None,
        }
    }

    /// The network as it was at `ADD`.
    ///
    /// # Errors
    /// `DataLoss`: it was one when it was written.
    pub(super) fn network(&self) -> Result<Network> {
        let read = conf::from_json(self.network.clone());
        read.map_err(|e| e.reclass(types::Code::DataLoss))
    }

    /// True when it would make what `other` has made.
    pub(super) fn is_same_wish(&self, other: &Self) -> bool {
        let all = |one: &Self| (one.netns.clone(), one.place.clone(), one.args.clone());
        all(self) == all(other) && self.capabilities == other.capabilities
    }

    fn file(&self) -> String {
        let name = self.network.get("name").and_then(Value::as_str);
        format!("{}:{}.json", name.unwrap_or_default(), self.interface)
    }
}

/// A record that cannot be read.
#[derive(Debug)]
pub(super) struct Damaged {
    file: String,
    pub(super) error: Error,
}

impl Damaged {
    /// Network and interface, which the name of its file has.
    pub(super) fn about(&self) -> Option<(&str, &str)> {
        self.file.strip_suffix(".json")?.rsplit_once(':')
    }
}

/// The records of all containers.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

/// The records of one container, locked.
#[derive(Debug)]
pub(super) struct Shelf {
    path: PathBuf,
    lock: File,
    /// Where damaged records go, and what they are called there first.
    aside: PathBuf,
    name: String,
}

impl Records {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, id: &TenantId) -> PathBuf {
        let tenant = self.directory.join(id.namespace.as_str());
        tenant.join(id.container.as_str())
    }

    /// Everybody who has records.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn list(&self) -> Result<Vec<TenantId>> {
        let mut found = Vec::new();
        for namespace in names(&self.directory)? {
            let Ok(id) = namespace.parse() else {
                continue;
            };
            for container in names(&self.directory.join(&namespace))? {
                let Ok(container) = container.parse() else {
                    continue;
                };
                found.push(TenantId {
                    namespace: types::Namespace::clone(&id),
                    container,
                });
            }
        }
        found.sort();
        Ok(found)
    }

    /// What a container has, without a turn and without waiting for whoever has it: each record is whole,
    /// whenever it is read.
    ///
    /// # Errors
    /// The errno of reading the directory.
    pub(super) fn look(&self, id: &TenantId) -> Result<Vec<Result<Record, Damaged>>> {
        let path = self.path(id);
        let mut found = Vec::new();
        for name in names(&path)?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
        {
            match read(&path.join(&name)).absent_ok() {
                Ok(record) => found.extend(record.map(Ok)),
                Err(error) => found.push(Err(Damaged { file: name, error })),
            }
        }
        Ok(found)
    }

    /// True for a record that was written just now: its container may be about to be made.
    pub(super) fn is_new(&self, id: &TenantId, record: &Record) -> bool {
        let written = std::fs::metadata(self.path(id).join(record.file()));
        let age = written
            .and_then(|found| found.modified())
            .map(|at| at.elapsed());
        age.is_ok_and(|age| age.unwrap_or_default() < crate::SOON)
    }

    /// Makes place for a container's records.
    ///
    /// # Errors
    /// As [`Records::open`].
    pub(super) fn create(&self, id: &TenantId) -> Result<Shelf> {
        let path = self.path(id);
        for _ in 0..MOST_TRIES {
            match std::fs::create_dir_all(&path) {
                // It, or what it is in, went while it was made sure of.
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
                    continue;
                }
                made => {
                    made.map_err(|e| Error::os(format_args!("mkdir {}", path.display()), e))?;
                }
            }
            // The tenant's, that of all records, and what that is in.
            let parents = path.ancestors().skip(1).take(3);
            let mut parents = parents.filter(|parent| !parent.as_os_str().is_empty());
            match parents.try_for_each(fsync_dir) {
                Err(error) if error.errno() == Some(ENOENT) => continue,
                done => done?,
            }
            if let Some(shelf) = self.open(id)? {
                return Ok(shelf);
            }
            // Somebody else has closed the tenant's last one meanwhile, with the empty directory.
        }
        Err(Error::aborted(format_args!(
            "{} vanishes again and again",
            path.display()
        )))
    }

    /// The records of a container, if it has any. Blocks while a plugin of a dead daemon is at work.
    ///
    /// # Errors
    /// `Unavailable` when that takes too long, else the errno.
    pub(super) fn open(&self, id: &TenantId) -> Result<Option<Shelf>> {
        let path = self.path(id);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::os(format_args!("open {}", path.display()), e)),
        };
        let until = Instant::now() + LAST_WORK;
        while lock.try_lock().is_err() {
            if Instant::now() > until {
                return Err(Error::unavailable(format_args!(
                    "a CNI plugin is still at work for {id}{}",
                    sys::lock::holder(&lock)
                )));
            }
            std::thread::sleep(LOOK);
        }
        let links = lock.metadata().map(|found| found.nlink());
        if links.map_err(|e| Error::os(format_args!("stat {}", path.display()), e))? == 0 {
            // Removed while this waited for it.
            return Ok(None);
        }
        let aside = self.directory.join(DAMAGED);
        let name = format!("{}--{}", id.namespace, id.container);
        Ok(Some(Shelf {
            path,
            lock,
            aside,
            name,
        }))
    }
}

impl Shelf {
    /// A descriptor that holds the lock as long as anybody has it open.
    ///
    /// # Errors
    /// The errno of `dup`.
    pub(super) fn lock(&self) -> Result<OwnedFd> {
        let copy = self.lock.try_clone();
        Ok(copy.map_err(|e| Error::os("dup", e))?.into())
    }

    /// What is there, in the order of file names; a damaged one as its error.
    ///
    /// # Errors
    /// The errno of reading the directory.
    pub(super) fn records(&self) -> Result<Vec<Result<Record, Damaged>>> {
        let mut found = Vec::new();
        for name in names(&self.path)? {
            let path = self.path.join(&name);
            if name.starts_with('.') {
                // Half a record of a daemon that was killed; the lock says that nobody writes it.
                remove(&path)?;
            } else {
                found.push(read(&path).map_err(|error| Damaged { file: name, error }));
            }
        }
        Ok(found)
    }

    /// Whether a record of the same network and interface is there.
    ///
    /// # Errors
    /// `DataLoss` for one that cannot be read, else the errno.
    pub(super) fn find(&self, like: &Record) -> Result<Option<Record>, Damaged> {
        let file = like.file();
        let found = read(&self.path.join(&file)).absent_ok();
        found.map_err(|error| Damaged { file, error })
    }

    /// Puts a damaged record where it is in nobody's way, for whoever wants to look at it.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn put_aside(&self, damaged: &Damaged) -> Result<()> {
        let to = self.aside.join(format!("{}--{}", self.name, damaged.file));
        let failed = |e| Error::os(format_args!("put {} aside", damaged.file), e);
        std::fs::create_dir_all(&self.aside).map_err(failed)?;
        std::fs::rename(self.path.join(&damaged.file), to).map_err(failed)?;
        fsync_dir(&self.aside)?;
        fsync_dir(&self.path)
    }

    /// True for a record from before this boot: its network namespace is no more, whichever it was.
    pub(super) fn is_of_another_boot(&self, damaged: &Damaged) -> bool {
        let written = std::fs::metadata(self.path.join(&damaged.file)).map(|found| found.mtime());
        let booted = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = booted.lines().find_map(|line| line.strip_prefix("btime "));
        let booted = booted.and_then(|text| text.trim().parse::<i64>().ok());
        booted.is_some_and(|booted| written.is_ok_and(|written| written < booted))
    }

    /// Writes a record, to last: a newer one that a power cut damages is worse than none.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record)
            .map_err(|e| Error::internal("write record").with_source(e))?;
        write_atomic_with(&self.path.join(record.file()), &text, 0o600, Flush::Durable)
    }

    /// Removes a record: nothing is left of what it is about.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn remove(&self, record: &Record) -> Result<()> {
        remove(&self.path.join(record.file()))
    }

    /// Removes the place when nothing is in it.
    pub(super) fn close(self) {
        // Not empty is what it often is; the tenant's own is left for the next container.
        if std::fs::remove_dir(&self.path).is_ok()
            && let Some(tenant) = self.path.parent()
        {
            drop(std::fs::remove_dir(tenant));
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // A plugin may have left a process that holds a copy; what it was called for has ended.
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(%error, "cannot unlock");
        }
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::os(format_args!("read {}", directory.display()), e);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        found.push(name.to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Record> {
    let shown = path.display();
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::not_found(format_args!("{shown}")));
        }
        Err(e) => return Err(Error::os(format_args!("read {shown}"), e)),
    };
    let record: Record = serde_json::from_slice(&text)
        .map_err(|e| Error::data_loss(format_args!("record {shown}: {e}")).with_source(e))?;
    record.network().ctx_with(|| format!("record {shown}"))?;
    Ok(record)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::os(format_args!("remove {}", path.display()), e)),
    }
}
