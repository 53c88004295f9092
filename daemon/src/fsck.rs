//! `containerd fsck`, and the same of a daemon at work: everything that is kept, against everything
//! else.
//!
//! Invariant: what checks a stopped daemon's files holds its locks; what checks beside a daemon at work
//! is that daemon.

use std::path::PathBuf;
use std::sync::Arc;

use metadata::Metadata;
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
}

impl Checker {
    pub(crate) fn new(metadata: &Metadata, config: &Config) -> Self {
        Self {
            metadata: metadata.clone(),
            root: config.root.clone(),
            state: config.state.clone(),
            turn: Arc::default(),
        }
    }

    /// Checks records, content, snapshots and bundles, after the check that is under way.
    ///
    /// # Errors
    /// What kept it from checking.
    pub(crate) async fn check(&self, opts: CheckOpts) -> Result<Report> {
        let _turn = self.turn.lock().await;
        let mut report = self.metadata.check(opts).await;
        self.bundles(&mut report).await?;
        Ok(report)
    }

    /// A task lives in its container: without its record nobody can name it but by its own id.
    async fn bundles(&self, report: &mut Report) -> Result<()> {
        for task in runtime_v2::found(&self.state, &self.root)? {
            let scope = Scope::new(task.namespace.clone());
            match self.metadata.containers(&scope).get(&task.id).await {
                Err(error) if error.is_not_found() => report.note(
                    Fault::Orphan,
                    format!("task {}/{}", task.namespace, task.id),
                    "its container has no record; delete the task",
                    Repair::Impossible,
                ),
                found => drop(found?),
            }
        }
        Ok(())
    }
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
        let checker = Checker::new(&store.metadata, config);
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
