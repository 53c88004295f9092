//! Records of activations against what is mounted, both ways.
//!
//! Invariant: what is told was looked at while nobody could change it: under the lock of its name, or,
//! without a name, when it is older than this daemon. A repair does what the next start would do.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use types::{CheckOpts, Error, Fault, Repair, Report, Result};

use crate::place::Place;
use crate::record::{self, Entry, Phase};
use crate::store::{RECORDS, Store, TARGETS, numbers};
use crate::{Key, Mounts, OpenOpts};

/// What is wrong with an activation.
#[derive(Debug)]
enum Flaw {
    /// So many of its mounts are not there.
    Gone(usize),
    /// A call that made it or took it away has not come to its end.
    Halfway,
    /// Its record cannot be read, or is not that of what is mounted.
    Record(Error),
    /// It has no record.
    Unknown,
}

impl Flaw {
    fn told(&self) -> (Fault, String) {
        match self {
            Self::Gone(count) => (
                Fault::Missing,
                format!("{count} of its mounts are gone; what uses it has to be started again"),
            ),
            Self::Halfway => (Fault::Orphan, "it was left halfway".into()),
            Self::Record(error) => (
                Fault::Damaged,
                format!("its record cannot be used: {error}"),
            ),
            Self::Unknown => (Fault::Orphan, "no activation has it".into()),
        }
    }

    fn note(&self, object: String, repaired: Option<Result<()>>, report: &mut Report) {
        let (fault, text) = self.told();
        let (text, repair) = match repaired {
            None => (text, Repair::Possible),
            Some(Ok(())) => (text, Repair::Done),
            Some(Err(error)) => (format!("{text}, and it stays: {error}"), Repair::Impossible),
        };
        report.note(fault, object, text, repair);
    }
}

fn named(key: &Key) -> String {
    format!("activation {}/{}", key.0, key.1)
}

fn mounted() -> Result<HashSet<PathBuf>> {
    let mounted = sys::mount::info::load()?.into_iter();
    Ok(mounted.map(|mount| mount.mount_point).collect())
}

/// What is wrong with `entry`, whose mounts are below `targets`, named without links.
fn flaw(entry: &Entry, targets: &Path, mounted: &HashSet<PathBuf>) -> Option<Flaw> {
    if entry.phase != Phase::Active {
        return Some(Flaw::Halfway);
    }
    let place = Place::new(targets, entry.number);
    match place.missing(entry.activation.active.len(), mounted) {
        0 => None,
        count => Some(Flaw::Gone(count)),
    }
}

impl Mounts {
    /// Checks the activations of all namespaces against what is mounted, and the other way round, beside
    /// all other calls.
    ///
    /// # Errors
    /// I/O on the directory.
    pub async fn check(&self, opts: CheckOpts) -> Result<Report> {
        let store = std::sync::Arc::clone(&self.store);
        let (suspects, mut report) = blocking(move || {
            let mut report = Report::default();
            store.strangers(opts, &mut report)?;
            Ok((store.suspects()?, report))
        })
        .await?;
        for key in suspects {
            let checked = self.alone(key, move |store, key| store.check(key, opts));
            report.findings.append(&mut checked.await?.findings);
        }
        Ok(report)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("check of mounts failed").with_source(e))?
}

impl Store {
    /// Activations that do not look right at this moment.
    fn suspects(&self) -> Result<Vec<Key>> {
        let (targets, mounted) = (self.real_targets()?, mounted()?);
        let known = self.entries().clone();
        let suspects = known.into_iter().filter(|(key, entry)| {
            // One that is coming is somebody's work.
            let is_wrong = || {
                flaw(entry, &targets, &mounted).is_some() || self.unrecorded(key, entry).is_some()
            };
            entry.phase != Phase::Coming && is_wrong()
        });
        Ok(suspects.map(|(key, _)| key).collect())
    }

    /// Why the record of an active `entry` is not what the next daemon has to read.
    fn unrecorded(&self, key: &Key, entry: &Entry) -> Option<Error> {
        match record::read(&self.record(entry.number), entry.number) {
            Ok((of, found)) if of == *key && found.activation == entry.activation => None,
            Ok(_) => Some(Error::data_loss("it is that of another")),
            Err(error) => Some(error),
        }
    }

    /// The caller has `key` alone.
    fn check(&self, key: &Key, opts: CheckOpts) -> Result<Report> {
        let mut report = Report::default();
        let Some(entry) = self.entries().get(key).cloned() else {
            return Ok(report);
        };
        let object = named(key);
        if let Some(flaw) = flaw(&entry, &self.real_targets()?, &mounted()?) {
            let removed = opts.repair.then(|| self.remove(key, None));
            flaw.note(object, removed, &mut report);
        } else if let Some(error) = self.unrecorded(key, &entry) {
            let write = || record::write(&self.record(entry.number), key.0.as_str(), &entry);
            let written = opts.repair.then(write);
            Flaw::Record(error).note(object, written, &mut report);
        }
        Ok(report)
    }

    /// What an earlier daemon has left and this one could not take away when it began.
    fn strangers(&self, opts: CheckOpts, report: &mut Report) -> Result<()> {
        let found = numbers(&self.targets)?.into_iter();
        let mut found: Vec<_> = found.chain(numbers(&self.records)?).collect();
        let known: HashSet<u64> = self.entries().values().map(|entry| entry.number).collect();
        found.retain(|number| {
            let parts = [&self.targets, &self.records].map(|part| part.join(number.to_string()));
            let is_strange = *number < self.first && !known.contains(number);
            // One that was known a moment ago has gone from the disk first.
            is_strange && parts.iter().any(|path| path.symlink_metadata().is_ok())
        });
        found.sort_unstable();
        found.dedup();
        for number in found {
            let cleared = opts.repair.then(|| self.drop_orphan(number));
            let object = format!("mounts {}", self.targets.join(number.to_string()).display());
            Flaw::Unknown.note(object, cleared, report);
        }
        Ok(())
    }
}

/// Checks what a daemon that does not run has left in `directory`. Without repair nothing is changed.
///
/// # Errors
/// I/O on the directory.
pub fn check_stopped(directory: &Path, opts: CheckOpts) -> Result<Report> {
    let mut report = Report::default();
    let flaws = left_in(directory)?;
    if flaws.is_empty() {
        return Ok(report);
    }
    if opts.repair {
        // That is what it does.
        drop(Store::open(OpenOpts {
            directory: directory.to_owned(),
            roots: Vec::new(),
        })?);
    }
    for (number, object, flaw) in flaws {
        let name = number.to_string();
        let stays = [TARGETS, RECORDS].map(|part| directory.join(part).join(&name));
        let stays = stays.iter().find(|path| path.symlink_metadata().is_ok());
        let repaired = opts.repair.then(|| match stays {
            None => Ok(()),
            Some(path) => Err(Error::unknown(format_args!("{} is there", path.display()))),
        });
        flaw.note(object, repaired, &mut report);
    }
    Ok(report)
}

/// What is wrong in the directory of a daemon that does not run, by number.
fn left_in(directory: &Path) -> Result<Vec<(u64, String, Flaw)>> {
    let (targets, records) = (directory.join(TARGETS), directory.join(RECORDS));
    let there = |directory: &Path| match directory.is_dir() {
        true => numbers(directory),
        false => Ok(Vec::new()),
    };
    let (recorded, placed) = (there(&records)?, there(&targets)?);
    let mounted = mounted()?;
    let real = targets.canonicalize().unwrap_or_else(|_| targets.clone());
    let mut flaws = Vec::new();
    for number in &recorded {
        let path = records.join(number.to_string());
        match record::read(&path, *number) {
            Ok((key, entry)) => {
                let flaw = flaw(&entry, &real, &mounted);
                flaws.extend(flaw.map(|flaw| (*number, named(&key), flaw)));
            }
            Err(error) => {
                let object = format!("activation {}", path.display());
                flaws.push((*number, object, Flaw::Record(error)));
            }
        }
    }
    for number in placed.iter().filter(|number| !recorded.contains(number)) {
        let object = format!("mounts {}", targets.join(number.to_string()).display());
        flaws.push((*number, object, Flaw::Unknown));
    }
    flaws.sort_by_key(|(number, ..)| *number);
    Ok(flaws)
}

#[cfg(test)]
mod tests;
