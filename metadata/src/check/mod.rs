//! Self-check: records against backends, and each against itself.
//!
//! Invariant: the daemon may be at work meanwhile, so what looks wrong is looked at once more before it
//! is told; a repair takes away only what no call could have used, and never what something else needs.
//!
//! ```text
//! backends listed -> records read -> differences looked at again -> findings -> repairs
//! ```

mod blobs;
mod records;
mod snapshots;

use std::collections::BTreeSet;
use std::path::PathBuf;

use types::{CheckOpts, Code, Fault, Filter, Repair, Report, Result};

use crate::Metadata;
use crate::db::Marks;

/// A check on its way.
struct Check<'a> {
    metadata: &'a Metadata,
    opts: CheckOpts,
    report: Report,
    /// Orphans are the collector's work.
    orphans: Marks,
    /// What it may be able to remove, with the finding that it is in.
    collectable: Vec<(usize, Orphan)>,
}

impl Metadata {
    /// Checks content, ingests, snapshots and records of all namespaces. What cannot be checked is a
    /// finding, too.
    pub async fn check(&self, opts: CheckOpts) -> Report {
        let mut check = Check {
            metadata: self,
            opts,
            report: Report::default(),
            orphans: Marks::default(),
            collectable: Vec::new(),
        };
        // Records first: what they name wrongly shows as a fault of its own later on.
        let done = check.records();
        check.done("records", done);
        let done = check.blobs().await;
        check.done("content", done);
        let done = check.ingests().await;
        check.done("ingests", done);
        for name in self.snapshotters() {
            let done = check.snapshots(name).await;
            check.done(&format!("snapshots of {name}"), done);
        }
        let done = check.collect().await;
        check.done("orphans", done);
        check.report
    }
}

/// An orphan, by what the backend calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Orphan {
    Content(String),
    Ingest(String),
    Snapshot(String, String),
    /// What has no name but its path.
    Path(PathBuf),
}

impl Check<'_> {
    /// A part of the check has ended.
    fn done(&mut self, part: &str, done: Result<()>) {
        if let Err(error) = done {
            let text = format!("it cannot be checked: {error}");
            self.report
                .note(Fault::Damaged, part.to_owned(), text, Repair::Impossible);
        }
    }

    /// Lets the collector have the orphans, and looks what it has left.
    async fn collect(&mut self) -> Result<()> {
        let orphans = std::mem::take(&mut self.orphans);
        if !self.opts.repair || orphans == Marks::default() {
            return Ok(());
        }
        self.metadata.0.db.outlet.add(orphans);
        let collected = self.metadata.gc().await.map(drop);
        let left = self.there().await?;
        for (finding, orphan) in std::mem::take(&mut self.collectable) {
            let stays = match &orphan {
                Orphan::Path(path) => path.symlink_metadata().is_ok(),
                orphan => left.contains(orphan),
            };
            self.report.findings[finding].repair = if stays {
                Repair::Impossible
            } else {
                Repair::Done
            };
        }
        collected
    }

    /// Everything that the backends hold.
    async fn there(&self) -> Result<BTreeSet<Orphan>> {
        let all = Filter::default();
        let shared = &self.metadata.0;
        let blobs = shared.content.list(&all).await?.into_iter();
        let ingests = shared.content.statuses(&all).await?.into_iter();
        let mut there: BTreeSet<_> = blobs
            .map(|blob| Orphan::Content(blob.digest.to_string()))
            .chain(ingests.map(|ingest| Orphan::Ingest(ingest.reference.to_string())))
            .collect();
        for (name, backend) in &shared.snapshotters {
            let snapshots = backend.snapshotter.list(&all).await?.into_iter();
            there.extend(
                snapshots.map(|info| Orphan::Snapshot(name.clone(), info.name.to_string())),
            );
        }
        Ok(there)
    }

    fn orphan(&mut self, orphan: Orphan) {
        let object = match &orphan {
            Orphan::Content(digest) => format!("content {digest}"),
            Orphan::Ingest(reference) => format!("ingest {reference}"),
            Orphan::Snapshot(snapshotter, key) => format!("snapshot {snapshotter}/{key}"),
            Orphan::Path(path) => path.display().to_string(),
        };
        match &orphan {
            Orphan::Content(_) | Orphan::Ingest(_) => self.orphans.content = true,
            Orphan::Snapshot(snapshotter, _) => {
                self.orphans.snapshotters.insert(snapshotter.clone());
            }
            // Whoever has found it has said whose it is.
            Orphan::Path(_) => {}
        }
        self.collectable.push((self.report.findings.len(), orphan));
        let text = "no namespace has it";
        self.report
            .note(Fault::Orphan, object, text, Repair::Possible);
    }
}

/// What was among a backend's files at two moments and belongs to nothing: what is being made or removed
/// is gone by the second one, or belongs to something.
type Strangers = Vec<(PathBuf, bool)>;

/// Not every backend can tell.
fn told(strangers: Result<Strangers>) -> Result<Strangers> {
    match strangers {
        Err(error) if error.is(Code::NotImplemented) => Ok(Vec::new()),
        strangers => strangers,
    }
}

impl Check<'_> {
    /// Names strangers, and tells whether any of them is the collector's work.
    fn strangers(&mut self, before: &Strangers, now: Strangers) -> bool {
        let mut any = false;
        for (path, is_garbage) in now {
            if !before.contains(&(path.clone(), is_garbage)) {
                continue;
            }
            if is_garbage {
                any = true;
                self.orphan(Orphan::Path(path));
            } else {
                let text = "it belongs to nothing; look at it and remove it";
                let object = path.display().to_string();
                self.report
                    .note(Fault::Orphan, object, text, Repair::Impossible);
            }
        }
        any
    }
}

/// Names, for a text.
fn listed(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
