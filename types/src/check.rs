//! What a check of a daemon's records and files is asked and finds.

use std::fmt;
use std::time::SystemTime;

/// What to check and what to do about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOpts {
    /// Repair what can be repaired.
    pub repair: bool,
    /// Read no blobs: compare lengths only.
    pub quick: bool,
    /// Read only blobs that are not older than this.
    pub since: Option<SystemTime>,
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is there, but not as it was.
    Damaged,
    /// It has a record and nothing behind it.
    Missing,
    /// It has no record.
    Orphan,
    /// It names something that is not there.
    Dangling,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::Orphan => "orphan",
            Self::Dangling => "dangling",
        })
    }
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It was repaired.
    Done,
    /// It can be, by a check that repairs.
    Possible,
    /// Somebody has to decide: the text says what.
    Impossible,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// With what, as in `content sha256:…` or `snapshot default/overlayfs/key`.
    pub object: String,
    /// The facts, and what to do.
    pub text: String,
    /// What became of it.
    pub repair: Repair,
}

/// What a check found, and how much it looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The faults.
    pub findings: Vec<Finding>,
    /// Blobs in the backend.
    pub blobs: u64,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// Ingests in the backend.
    pub ingests: u64,
    /// Snapshots in the backends.
    pub snapshots: u64,
    /// Images of all namespaces.
    pub images: u64,
    /// Containers of all namespaces.
    pub containers: u64,
}

impl Report {
    /// Notes a fault.
    pub fn note(&mut self, fault: Fault, object: String, text: impl Into<String>, repair: Repair) {
        self.findings.push(Finding {
            fault,
            object,
            text: text.into(),
            repair,
        });
    }

    /// True when nothing is wrong, and nothing was.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// True when something is wrong still.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.repair != Repair::Done)
    }
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Damaged, Self::Missing, Self::Orphan, Self::Dangling];
}

impl Repair {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Done, Self::Possible, Self::Impossible];
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "repaired",
            Self::Possible => "to repair",
            Self::Impossible => "left",
        })
    }
}

/// One line, as in `damaged content sha256:…: its bytes are … [to repair]`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            object,
            text,
            repair,
        } = self;
        write!(f, "{fault} {object}: {text} [{repair}]")
    }
}

/// The sum, in one line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "checked {} blobs ({} bytes read), {} ingests, {} snapshots, {} images, {} containers: ",
            self.blobs, self.bytes, self.ingests, self.snapshots, self.images, self.containers
        )?;
        let count = |repair| {
            let findings = self.findings.iter();
            findings.filter(|finding| finding.repair == repair).count()
        };
        if self.is_clean() {
            return f.write_str("nothing is wrong");
        }
        write!(
            f,
            "{} faults, {} repaired, {} to repair, {} left",
            self.findings.len(),
            count(Repair::Done),
            count(Repair::Possible),
            count(Repair::Impossible)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_lines() {
        let mut report = Report::default();
        assert!(report.is_clean() && report.to_string().ends_with("nothing is wrong"));
        report.note(Fault::Missing, "content x".into(), "gone", Repair::Done);
        assert!(!report.is_clean() && !report.is_faulty());
        report.note(Fault::Orphan, "ingest y".into(), "alone", Repair::Possible);
        assert!(report.is_faulty());
        assert_eq!(
            report.findings[1].to_string(),
            "orphan ingest y: alone [to repair]"
        );
        let sum = report.to_string();
        assert!(
            sum.ends_with("2 faults, 1 repaired, 1 to repair, 0 left"),
            "{sum}"
        );
    }
}
