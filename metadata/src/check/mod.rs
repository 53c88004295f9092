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

use types::{CheckOpts, Errors, Fault, Repair, Report, Result};

use crate::Metadata;
use crate::db::Marks;

/// A check on its way.
struct Check<'a> {
    metadata: &'a Metadata,
    opts: CheckOpts,
    report: Report,
    /// Orphans are the collector's work.
    orphans: Marks,
}

impl Metadata {
    /// Checks content, ingests, snapshots and records of all namespaces.
    ///
    /// # Errors
    /// What kept it from checking at all, after everything was tried.
    pub async fn check(&self, opts: CheckOpts) -> Result<Report> {
        let mut check = Check {
            metadata: self,
            opts,
            report: Report::default(),
            orphans: Marks::default(),
        };
        let mut errors = Errors::default();
        // Records first: what they name wrongly shows as a fault of its own later on.
        errors.note(check.records());
        errors.note(check.blobs().await);
        errors.note(check.ingests().await);
        for name in self.snapshotters() {
            errors.note(check.snapshots(name).await);
        }
        errors.note(check.collect().await);
        errors.into_result()?;
        Ok(check.report)
    }
}

impl Check<'_> {
    /// What a fault that can be repaired is, as far as it was said to do so.
    fn repaired(&self) -> Repair {
        if self.opts.repair {
            Repair::Done
        } else {
            Repair::Possible
        }
    }

    /// Lets the collector have the orphans.
    async fn collect(&mut self) -> Result<()> {
        let orphans = std::mem::take(&mut self.orphans);
        if !self.opts.repair || orphans == Marks::default() {
            return Ok(());
        }
        self.metadata.0.db.outlet.add(orphans);
        self.metadata.gc().await.map(drop)
    }

    fn orphan_content(&mut self, object: String, text: &str) {
        self.orphans.content = true;
        let repair = self.repaired();
        self.report.note(Fault::Orphan, object, text, repair);
    }

    fn orphan_snapshot(&mut self, snapshotter: &str, object: String) {
        self.orphans.snapshotters.insert(snapshotter.to_owned());
        let repair = self.repaired();
        let text = "no namespace has it";
        self.report.note(Fault::Orphan, object, text, repair);
    }
}

/// Names, for a text.
fn listed(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
