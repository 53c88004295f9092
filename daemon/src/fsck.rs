//! `containerd fsck`, and the same of a daemon at work: everything that is kept, against everything
//! else.
//!
//! Invariant: what checks a stopped daemon's files holds its locks; what checks beside a daemon at work
//! is that daemon.

use std::path::PathBuf;
use std::sync::Arc;

use metadata::Metadata;
use runtime_v2::Survey;
use tokio::sync::Mutex;
use types::{CheckOpts, Code, Error, Fault, Repair, Report, Result, Scope};

use crate::config::Config;
use crate::engine::TEMPORARY;
use crate::ground::Ground;
use crate::lock::{self, Lock};
use crate::store::Store;

/// Exit codes, as of fsck(8).
pub(crate) const CLEAN: u8 = 0;
pub(crate) const CORRECTED: u8 = 1;
pub(crate) const LEFT: u8 = 4;
pub(crate) const FAILED: u8 = 8;

/// Checks what a daemon keeps: one check at a time, for all clones. Each reads every byte that there
/// is, and two that repair would meet.
#[derive(Clone, Debug)]
pub(crate) struct Checker {
    metadata: Metadata,
    root: PathBuf,
    state: PathBuf,
    turn: Arc<Mutex<()>>,
    /// Nobody makes tasks meanwhile.
    is_stopped: bool,
}

impl Checker {
    pub(crate) fn new(metadata: &Metadata, config: &Config) -> Self {
        Self {
            metadata: metadata.clone(),
            root: config.root.clone(),
            state: config.state.clone(),
            turn: Arc::default(),
            is_stopped: false,
        }
    }

    /// Checks records, content, snapshots and bundles, after the check that is under way.
    ///
    /// # Errors
    /// What kept it from checking.
    pub(crate) async fn check(&self, opts: CheckOpts) -> Result<Report> {
        let _turn = self.turn.lock().await;
        // What a daemon at work is making or removing looks broken for a moment: what was there before
        // the long part of the check and is there after it is not that.
        let before = self.survey().await;
        let mut report = self.metadata.check(opts).await;
        match self.survey().await {
            Ok(mut survey) => {
                if let Ok(before) = &before {
                    survey.retain_old(before);
                }
                self.tasks(&survey, &mut report).await;
                self.leftovers(&survey, opts, &mut report).await;
            }
            Err(error) => report.note(
                Fault::Damaged,
                format!("directories of tasks under {}", self.state.display()),
                format!("they cannot be listed: {error}"),
                Repair::Impossible,
            ),
        }
        Ok(report)
    }

    async fn survey(&self) -> Result<Survey> {
        let (state, root) = (self.state.clone(), self.root.clone());
        blocking(move || runtime_v2::survey(&state, &root)).await
    }

    /// A task lives in its container: without its record nobody can name it but by its own id.
    async fn tasks(&self, survey: &Survey, report: &mut Report) {
        for (namespace, id) in &survey.tasks {
            let scope = Scope::new(namespace.clone());
            let record = self.metadata.containers(&scope).get(id).await;
            if let Some((fault, text)) = judge(record.map(drop)) {
                let object = format!("task {namespace}/{id}");
                report.note(fault, object, text, Repair::Impossible);
            }
        }
        // One at work takes away what a cut-off creation has left, a while after its start.
        let unreadable = survey.unreadable.iter().filter(|_| self.is_stopped);
        for (namespace, id, error) in unreadable {
            report.note(
                Fault::Damaged,
                format!("task {namespace}/{id}"),
                format!("its bundle does not tell what it is: {error}; delete the task"),
                Repair::Impossible,
            );
        }
    }

    /// Of a stopped daemon: one at work sweeps them itself, a while after its start.
    async fn leftovers(&self, survey: &Survey, opts: CheckOpts, report: &mut Report) {
        const TEXT: &str = "an earlier task has left it";
        if !self.is_stopped {
            return;
        }
        let (state, root) = (self.state.clone(), self.root.clone());
        let is_swept = opts.repair && !survey.leftovers.is_empty();
        let swept = if is_swept {
            blocking(move || runtime_v2::sweep(&state, &root)).await
        } else {
            Ok(())
        };
        for path in &survey.leftovers {
            let (text, repair) = match &swept {
                _ if is_swept && path.symlink_metadata().is_err() => (TEXT.into(), Repair::Done),
                Err(error) => (format!("{TEXT}, and it stays: {error}"), Repair::Impossible),
                Ok(()) => (TEXT.into(), Repair::Possible),
            };
            let object = format!("directory {}", path.display());
            report.note(Fault::Orphan, object, text, repair);
        }
    }
}

/// What is wrong with a task, by the record of its container.
fn judge(record: Result<()>) -> Option<(Fault, String)> {
    match record {
        Ok(()) => None,
        Err(error) if error.is_not_found() => Some((
            Fault::Orphan,
            "its container has no record; delete the task".into(),
        )),
        Err(error) => Some((
            Fault::Dangling,
            format!("the record of its container cannot be read: {error}"),
        )),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Error::internal)?
}

/// Checks the files of a daemon that does not run, and prints what it finds.
///
/// # Errors
/// What kept it from checking: most of all a daemon that has the files.
pub(crate) fn run(
    config: &Config,
    opts: CheckOpts,
    print: impl Fn(&str) -> Result<()>,
) -> Result<u8> {
    if !config.root.is_dir() {
        let root = config.root.display();
        return Err(Error::not_found(format_args!(
            "{root} is no root of containerd"
        )));
    }
    let lock = |directory, mode| {
        Lock::take(directory, mode).map_err(|error| {
            let hint = if error.is(Code::FailedPrecondition) {
                "ask it with `ctr fsck`"
            } else {
                "check"
            };
            error.ctx(hint)
        })
    };
    let _root = lock(&config.root, lock::ROOT_MODE)?;
    let _state = lock(&config.state, lock::STATE_MODE)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::os("start runtime", e))?;
    let mut report = runtime.block_on(async {
        let store = Store::open(Ground::open(config)?, config).await?;
        let checker = Checker {
            is_stopped: true,
            ..Checker::new(&store.metadata, config)
        };
        checker.check(opts).await
    })?;
    mounts(config, opts, &mut report)?;
    for finding in &report.findings {
        print(&format!("{finding}\n"))?;
    }
    print(&format!("{report}\n"))?;
    Ok(code(&report))
}

/// Nothing stays mounted for a call after its daemon has gone.
fn mounts(config: &Config, opts: CheckOpts, report: &mut Report) -> Result<()> {
    let directory = config.root.join(TEMPORARY);
    let mut left = sys::mount::info::load()?;
    left.retain(|mount| mount.mount_point.starts_with(&directory));
    if left.is_empty() {
        return Ok(());
    }
    let repair = if opts.repair {
        sys::mount::unmount_recursive(&directory)?;
        Repair::Done
    } else {
        Repair::Possible
    };
    for mount in left {
        let object = format!("mount {}", mount.mount_point.display());
        let text = "a daemon that is gone has left it";
        report.note(Fault::Orphan, object, text, repair);
    }
    Ok(())
}

fn code(report: &Report) -> u8 {
    if report.is_faulty() {
        LEFT
    } else if report.is_clean() {
        CLEAN
    } else {
        CORRECTED
    }
}

#[cfg(test)]
mod tests;
