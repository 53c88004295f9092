//! Was the last stop a clean one? A file under the root says that a daemon runs; only a daemon that
//! stops by itself takes it away.
//!
//! ```text
//! start: file there? same boot -----> killed: the kernel has kept what was written
//!                    another boot --> the machine went down: verify what is younger than the file
//!                    not all of it could be looked at: the file stays as it is, and again later
//! every few minutes: the file is touched: all that is older has long been on the disk
//! stop:  file removed
//! ```
//! Invariant: the time of the file is never later than a moment up to which everything was safe.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use types::{CheckOpts, Error, Fault, Finding, Repair, Result};

use crate::fsck::Checker;
use crate::transfers::Transfers;

const FILE: &str = "running";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often the file is touched.
const BEAT: Duration = Duration::from_secs(5 * 60);
/// How long it is at most until what could not be verified is verified again.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
/// What the kernel may hold back (30 s), and a disk after that, several times over.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// The mark of a daemon that runs.
#[derive(Debug)]
pub(crate) struct Running {
    path: PathBuf,
    /// What is younger than this may have met a power cut.
    suspect: Option<SystemTime>,
}

impl Running {
    /// Looks how the last daemon of `root` ended, and marks that one runs.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn begin(root: &Path) -> Result<Self> {
        let boot = fs::read_to_string(BOOT_ID)
            .map_err(|e| Error::os(format_args!("read {BOOT_ID}"), e))?;
        Self::begin_in(root, boot.trim())
    }

    fn begin_in(root: &Path, boot: &str) -> Result<Self> {
        let path = root.join(FILE);
        let at = |what, e| Error::os(format_args!("{what} {}", path.display()), e);
        let suspect = match fs::read_to_string(&path) {
            Ok(text) if text.trim() == boot => None,
            Ok(_) => {
                let file = fs::metadata(&path).map_err(|e| at("stat", e))?;
                let touched = file.modified().map_err(|e| at("stat", e))?;
                Some(
                    touched
                        .checked_sub(MARGIN)
                        .unwrap_or(SystemTime::UNIX_EPOCH),
                )
            }
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(at("read", e)),
        };
        // As long as nothing was verified, the old mark stays.
        if suspect.is_none() {
            sys::fs::write_atomic_with(&path, boot.as_bytes(), 0o600, sys::fs::Flush::Durable)?;
        }
        Ok(Self { path, suspect })
    }

    /// Verifies what a power cut may have damaged, then keeps the mark fresh, for ever.
    pub(crate) fn watch(&self, checker: Checker, transfers: Option<Transfers>) {
        let verify = move |since| {
            let (checker, transfers) = (checker.clone(), transfers.clone());
            async move { verify(&checker, transfers.as_ref(), since).await }
        };
        tokio::spawn(keep(self.path.clone(), self.suspect, verify));
    }

    /// The daemon stops by itself.
    pub(crate) fn end(self) {
        // What was not verified is verified by the next one.
        let is_verified = self.suspect.is_none() || is_of_this_boot(&self.path);
        if is_verified && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "cannot mark a clean stop");
        }
    }
}

/// Keeps the mark at `path`. That of another boot stays as it is until all that it makes suspect was
/// verified: the next daemon takes its time for that up to which everything was safe.
async fn keep<V: Future<Output = bool>>(
    path: PathBuf,
    mut suspect: Option<SystemTime>,
    verify: impl Fn(SystemTime) -> V,
) {
    let mut is_ours = suspect.is_none();
    let mut pause = BEAT;
    loop {
        if let Some(since) = suspect
            && verify(since).await
        {
            suspect = None;
        }
        if suspect.is_none() && !is_ours {
            is_ours = told(&renew(&path));
            pause = BEAT;
        }
        tokio::time::sleep(pause).await;
        if is_ours {
            told(&touch(&path));
        } else {
            // What cannot be verified may never be.
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// True when the mark could be written; else the log has it.
fn told(written: &Result<()>) -> bool {
    if let Err(error) = written {
        tracing::warn!(%error, "cannot mark that a daemon runs");
    }
    written.is_ok()
}

fn is_of_this_boot(path: &Path) -> bool {
    let read = |path: &Path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    matches!((read(path), read(BOOT_ID.as_ref())), (Ok(mark), Ok(boot)) if mark == boot)
}

/// The mark of this boot, in place of an older one.
fn renew(path: &Path) -> Result<()> {
    let boot = fs::read(BOOT_ID).map_err(|e| Error::os(format_args!("read {BOOT_ID}"), e))?;
    sys::fs::write_atomic_with(path, boot.trim_ascii(), 0o600, sys::fs::Flush::Durable)
}

fn touch(path: &Path) -> Result<()> {
    let now = SystemTime::now();
    File::options()
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(now))
        .map_err(|e| Error::os(format_args!("touch {}", path.display()), e))
}

/// Takes away what is not what it should be; true when everything could be looked at.
async fn verify(checker: &Checker, transfers: Option<&Transfers>, since: SystemTime) -> bool {
    tracing::warn!("the machine went down under the last daemon: verifying what it wrote last");
    if let Some(transfers) = transfers {
        // Before the check, which can only take away what nothing stands on.
        transfers.renew(since).await;
    }
    let opts = CheckOpts {
        repair: true,
        quick: false,
        since: Some(since),
    };
    let report = checker.check_records(opts).await;
    for finding in &report.findings {
        tracing::warn!("{finding}");
    }
    tracing::info!("{report}");
    let left =
        |finding: &Finding| finding.fault == Fault::Damaged && finding.repair != Repair::Done;
    !report.findings.iter().any(left)
}

#[cfg(test)]
mod tests;
