//! Snapshots whose files are not what they were, and how a good one takes the place of such a one.

use std::path::Path;
use std::time::SystemTime;

use rustix::io::Errno;
use types::{Context as _, Error, Filter, Result, SnapshotKey, SnapshotKind};

use super::{Store, make_dir};
use crate::Broken;
use crate::storage::{Chain, Row, Sealed};

/// True when a look failed for want of memory or descriptors: that says nothing of what was looked at.
fn is_of_machine(error: &Error) -> bool {
    let scarce = [Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    let errno = error.errno();
    scarce.iter().any(|it| errno == Some(it.raw_os_error()))
}

impl Store {
    /// Puts the files of active `key` in the place of those of committed `name`, of the same parent. `seal`
    /// makes the active one ready, and says what it takes.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn renew(
        &self,
        names: (&SnapshotKey, &SnapshotKey),
        seal: impl FnOnce(&Chain) -> Result<Sealed>,
    ) -> Result<()> {
        let (name, key) = names;
        let (old, new) = self.index.look_renew(names)?;
        let _alone = (self.sealing.alone(old), self.sealing.alone(new));
        let sealed = seal(&self.index.chain(key)?)?;
        self.forget(new);
        // All of it may be gone.
        make_dir(&self.directory(old), 0o700)?;
        // Whatever comes in between, both directories are there, and the good one is the layer's from
        // here on.
        sys::fs::exchange(&self.directory(old), &self.directory(new))?;
        sys::fs::fsync_dir(&self.directories)?;
        self.index
            .renew(names, sealed)
            .ctx_with(|| format!("failed to renew snapshot {name}"))
    }

    /// The snapshots that miss one of `parts` in their directory, those of which `flaw` tells something,
    /// and the committed ones of which `is_same` says that they have not the print that they had, or that it
    /// cannot be taken any more; only those made after `since` are looked into.
    pub(crate) fn broken(
        &self,
        since: Option<SystemTime>,
        parts: impl Fn(SnapshotKind) -> &'static [&'static str],
        flaw: impl Fn(&Path, SnapshotKind) -> Option<String>,
        is_same: impl Fn(u64, u64) -> Result<bool>,
    ) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (id, info) in self.list(&Filter::default()) {
            let directory = self.directory(id);
            let mut paths = parts(info.kind).iter().map(|part| directory.join(part));
            let gone = paths.find(|path| !path.exists());
            let is_gone = gone.is_some();
            let why = match gone {
                Some(gone) => Some(format!("{} is not there", gone.display())),
                None if since.is_some_and(|since| info.updated_at < since) => None,
                None => flaw(&directory, info.kind).or_else(|| self.changed(&info.name, &is_same)),
            };
            // Looked at once more: it may have been removed meanwhile, or committed.
            let is_there = |row: Row| row.id == id && row.kind == info.kind;
            if let Some(why) = why
                && self.row(&info.name).is_ok_and(is_there)
            {
                let key = info.name;
                broken.push(Broken { key, why, is_gone });
            }
        }
        broken
    }

    /// What is wrong with the files of a committed snapshot.
    fn changed(
        &self,
        key: &SnapshotKey,
        is_same: impl Fn(u64, u64) -> Result<bool>,
    ) -> Option<String> {
        let row = self.row(key).ok()?;
        let known = row.print?;
        match is_same(row.id, known) {
            Ok(false) => Some(format!(
                "files in {} are gone or are not what they were",
                self.directory(row.id).display()
            )),
            Ok(true) => None,
            // The disk's own word, as btrfs has it for a block that has not its checksum, is that of a damage.
            Err(error) if !is_of_machine(&error) => Some(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, %key, "snapshot cannot be looked at");
                None
            }
        }
    }
}
