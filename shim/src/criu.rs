//! One run of CRIU by the runtime: where it works, which descriptors are not the container's, and what
//! its log says when it fails.
//!
//! Invariant: the files that it needs go with it, but for the log of one that failed.

mod log;
mod streams;

use std::path::{Path, PathBuf};

use types::{Error, Result, bundle_file};

use log::{reasons, tail};
pub(crate) use streams::Streams;

/// The variable with which CRIU's file of options is named.
pub(crate) const OPTIONS_VARIABLE: &str = "CRIU_CONFIG_FILE";
/// That file, in the bundle.
const OPTIONS: &str = "criu.conf";
/// Below the bundle's work directory, where a run works unless told otherwise.
const WORK: &str = "criu-work";

/// What the runtime has CRIU do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write an image.
    Dump,
    /// Read one.
    Restore,
}

impl Action {
    /// The log in the work directory, and the copy in the bundle.
    fn logs(self) -> (&'static str, &'static str) {
        match self {
            Self::Dump => ("dump.log", "criu-dump.log"),
            Self::Restore => ("restore.log", "criu-restore.log"),
        }
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    action: Action,
    bundle: PathBuf,
    work: PathBuf,
    /// The work directory is ours and goes with the run.
    own: bool,
    options: Option<PathBuf>,
}

impl Run {
    /// Prepares a run that works in `work`, or for an empty text in a directory of its own.
    ///
    /// # Errors
    /// The errno of making the directory.
    pub(crate) fn new(action: Action, bundle: &Path, work: &str) -> Result<Self> {
        let own = work.is_empty();
        let work = if own {
            bundle.join(bundle_file::WORK).join(WORK)
        } else {
            PathBuf::from(work)
        };
        std::fs::create_dir_all(&work)
            .map_err(|e| Error::os(format_args!("mkdir {}", work.display()), e))?;
        // A log of an earlier run must not explain this one.
        drop(std::fs::remove_file(work.join(action.logs().0)));
        Ok(Self {
            action,
            bundle: bundle.to_owned(),
            work,
            own,
            options: None,
        })
    }

    /// The work directory, as a flag has it.
    pub(crate) fn work(&self) -> String {
        self.work.display().to_string()
    }

    /// The file of options, when this run has one.
    pub(crate) fn options(&self) -> Option<&Path> {
        self.options.as_deref()
    }

    /// Tells a dump or a restore about streams that are not in the container.
    ///
    /// # Errors
    /// The errno of writing.
    pub(crate) fn streams(&mut self, streams: &Streams) -> Result<()> {
        let text = streams.options(self.action);
        if text.is_empty() {
            return Ok(());
        }
        let path = self.bundle.join(OPTIONS);
        sys::fs::write_atomic_with(&path, text.as_bytes(), 0o600, sys::fs::Flush::Volatile)?;
        self.options = Some(path);
        Ok(())
    }

    /// The runtime's error with what CRIU says itself. The log stays in the bundle.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let (name, kept) = self.action.logs();
        let mut log = self.work.join(name);
        let Some(tail) = tail(&log) else { return error };
        if self.own {
            let copy = self.bundle.join(kept);
            if std::fs::copy(&log, &copy).is_ok() {
                log = copy;
            }
        }
        // runc's second line names the log where it was.
        let text = error.to_string();
        let told: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("log file:"))
            .collect();
        let mut text = told.join(": ");
        for reason in reasons(&tail) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        Error::new(error.code(), format!("{text} (log: {})", log.display()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(options) = &self.options {
            drop(std::fs::remove_file(options));
        }
        if self.own {
            // What stays goes with the bundle.
            drop(std::fs::remove_dir_all(&self.work));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::LOG;

    #[test]
    fn a_failure_says_why_and_keeps_the_log() {
        let bundle = tempfile::tempdir().unwrap();
        let run = Run::new(Action::Dump, bundle.path(), "").unwrap();
        let told = || Error::unknown("checkpoint failed: criu failed: type DUMP\nlog file: /w/d");
        // Without a log there is nothing to add.
        assert_eq!(
            run.explain(told()).to_string(),
            "checkpoint failed: criu failed: type DUMP\nlog file: /w/d"
        );
        let work = PathBuf::from(run.work());
        std::fs::write(work.join("dump.log"), LOG).unwrap();
        let kept = bundle.path().join("criu-dump.log");
        assert_eq!(
            run.explain(told()).to_string(),
            format!(
                "checkpoint failed: criu failed: type DUMP: vdso: Unexpected rt vDSO area bounds: \
                 vdso: Failed to fill self vdso symtable (log: {})",
                kept.display()
            )
        );
        drop(run);
        assert!(!work.exists() && kept.exists());
    }

    #[test]
    fn a_work_directory_that_was_given_stays_without_its_old_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("restore.log"), LOG).unwrap();
        let given = dir.path().display().to_string();
        let run = Run::new(Action::Restore, Path::new("/no/bundle"), &given).unwrap();
        assert_eq!(run.work(), given);
        assert_eq!(run.explain(Error::unknown("x")).to_string(), "x");
        drop(run);
        assert!(dir.path().exists());
    }
}
