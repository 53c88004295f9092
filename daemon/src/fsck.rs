//! `containerd fsck`, and the same of a daemon at work: everything that is kept, against everything
//! else.
//!
//! Invariant: what checks a stopped daemon's files holds its locks; what checks beside a daemon at work
//! is that daemon. What does not repair changes nothing under the root: records and indexes are opened
//! as copies, since opening one that is damaged restores it.

mod images;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metadata::Metadata;
use mounts::Mounts;
use network::Networks;
use runtime_v2::Survey;
use tokio::sync::{Mutex, Semaphore};
use tracing::Instrument as _;
use types::{
    BUNDLES_DIR, CheckOpts, Code, Error, Fault, Finding, Holders, Namespace, Repair, Report,
    Resource, Result, Scope,
};

use crate::activations;
use crate::config::Config;
use crate::drivers::Drivers;
use crate::engine::TEMPORARY;
use crate::ground::{self, Ground};
use crate::lock::{self, Lock};
use crate::networks;
use crate::store::{self, Store};

/// Exit codes, as of fsck(8).
pub(crate) const CLEAN: u8 = 0;
pub(crate) const CORRECTED: u8 = 1;
pub(crate) const LEFT: u8 = 4;
pub(crate) const FAILED: u8 = 8;

/// Checks that may wait for the one that is under way.
const MOST_WAITING: usize = 8;
/// Directory under the state for copies of what is looked at.
const SCRATCH: &str = "fsck";
/// Room for copies, in their sizes: one that is damaged is written anew beside itself, and one of an older
/// schema is kept beside what becomes of it.
const COPIES: u64 = 3;

/// Checks what a daemon keeps: one check at a time, for all clones. Each reads every byte that there
/// is, and two that repair would meet.
#[derive(Clone, Debug)]
pub(crate) struct Checker {
    metadata: Metadata,
    networks: Option<(Networks, Drivers)>,
    root: PathBuf,
    state: PathBuf,
    /// Directory of the mount manager.
    activations: PathBuf,
    /// The manager, of a daemon at work.
    mounts: Option<Mounts>,
    turn: Arc<Mutex<()>>,
    /// For who is at it and who waits.
    places: Arc<Semaphore>,
    /// The same of questions for what keeps an object: each reads all references of a namespace.
    asking: Arc<Mutex<()>>,
    askers: Arc<Semaphore>,
    /// Nobody makes tasks meanwhile.
    is_stopped: bool,
}

impl Checker {
    pub(crate) fn new(metadata: &Metadata, config: &Config) -> Self {
        Self {
            metadata: metadata.clone(),
            networks: None,
            root: config.root.clone(),
            state: config.state.clone(),
            activations: activations::directory(config),
            mounts: None,
            turn: Arc::default(),
            places: Arc::new(Semaphore::new(1 + MOST_WAITING)),
            asking: Arc::default(),
            askers: Arc::new(Semaphore::new(1 + MOST_WAITING)),
            is_stopped: false,
        }
    }

    /// The same of a daemon at work, with its mounts.
    pub(crate) fn with_mounts(self, mounts: &Mounts) -> Self {
        Self {
            mounts: Some(mounts.clone()),
            ..self
        }
    }

    /// The same of networks as well.
    pub(crate) fn with_networks(self, networks: Networks, drivers: Drivers) -> Self {
        Self {
            networks: Some((networks, drivers)),
            ..self
        }
    }

    /// Checks records, content and snapshots, after the check that is under way: for the daemon itself.
    pub(crate) async fn check_records(&self, opts: CheckOpts) -> Report {
        let _turn = self.turn.lock().await;
        self.metadata.check(opts).await
    }

    /// What keeps a blob or a snapshot of a namespace, after who asked before.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for another object; `ResourceExhausted` when enough wait already; those of
    /// the records.
    pub(crate) async fn holders(&self, namespace: &Namespace, of: &Resource) -> Result<Holders> {
        let place = Arc::clone(&self.askers).try_acquire_owned().map_err(|_| {
            Error::resource_exhausted(format_args!(
                "{MOST_WAITING} wait for an answer of that kind: try again later"
            ))
        })?;
        let turn = Arc::clone(&self.asking).lock_owned().await;
        // Who is gone does not end the reading.
        self.metadata.holders(namespace, of, (place, turn)).await
    }

    /// Checks records, content, snapshots, bundles and mounts, after the check that is under way. It may be
    /// dropped at any await: then it ends, unless it has begun to repair.
    ///
    /// # Errors
    /// `ResourceExhausted` when enough of them wait for that already.
    pub(crate) async fn check(&self, opts: CheckOpts) -> Result<Report> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::resource_exhausted(format_args!(
                "a check is under way and {MOST_WAITING} wait for it: try again later"
            ))
        })?;
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if !opts.repair {
            return Ok(self.look(opts).await);
        }
        let this = self.clone();
        let repair = async move {
            let _held = (place, turn);
            this.look(opts).await
        };
        let done = tokio::spawn(repair.in_current_span()).await;
        done.map_err(|e| Error::internal("repair").with_source(e))
    }

    async fn look(&self, opts: CheckOpts) -> Report {
        // What a daemon at work is making or removing looks broken for a moment: what was there before
        // the long part of the check and is there after it is not that.
        let before = self.survey().await;
        let mut report = self.metadata.check(opts).await;
        if let Err(error) = self.images(&mut report).await {
            let text = format!("what they are made of cannot be checked: {error}");
            report.note(Fault::Damaged, "images".into(), text, Repair::Impossible);
        }
        if let Some((networks, drivers)) = &self.networks {
            let found = networks.check(opts.repair).await;
            note_networks(&mut report, "networks", found);
            let found = drivers.inspect(&self.metadata, opts.repair).await;
            note_networks(&mut report, "network-attachments", found);
        }
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
        match self.activations(opts).await {
            Ok(mut activations) => report.findings.append(&mut activations.findings),
            Err(error) => {
                let object = format!("activations under {}", self.activations.display());
                let text = format!("they cannot be checked: {error}");
                report.note(Fault::Damaged, object, text, Repair::Impossible);
            }
        }
        report
    }

    async fn activations(&self, opts: CheckOpts) -> Result<Report> {
        match &self.mounts {
            Some(mounts) => mounts.check(opts).await,
            None => {
                let directory = self.activations.clone();
                blocking(move || mounts::check_stopped(&directory, opts)).await
            }
        }
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

fn note_networks(report: &mut Report, what: &str, found: Result<Vec<Finding>>) {
    match found {
        Ok(found) => report.findings.extend(found),
        Err(error) => {
            let text = format!("they cannot be checked: {error}");
            report.note(Fault::Damaged, what.into(), text, Repair::Impossible);
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
    let hint = |error: Error| {
        let hint = if error.is(Code::FailedPrecondition) {
            "ask it with `ctr fsck`"
        } else {
            "check"
        };
        error.ctx(hint)
    };
    let _root = Lock::hold(&config.root).map_err(hint)?;
    let _state = Lock::take(&config.state, lock::STATE_MODE).map_err(hint)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::os("start runtime", e))?;
    // First: what is mounted in what another task has left is not swept with it.
    let mut mounted = Report::default();
    left_mounted(config, opts, &mut mounted)?;
    let mut report = runtime.block_on(check_stopped(config, opts))?;
    report.findings.append(&mut mounted.findings);
    for finding in &report.findings {
        print(&format!("{finding}\n"))?;
    }
    print(&format!("{report}\n"))?;
    Ok(code(&report))
}

/// What opening has restored is the first thing to tell: all the rest was checked against that.
async fn check_stopped(config: &Config, opts: CheckOpts) -> Result<Report> {
    let scratch = Scratch(config.state.join(SCRATCH));
    let (store, repair) = if opts.repair {
        let store = Store::open(Ground::open(config)?, config).await?;
        (store, Repair::Done)
    } else {
        let records = scratch.make(store::copied(config).chain(ground::copied(config)?))?;
        let ground = Ground::examine(config, &scratch.0)?;
        let store = Store::examine(ground, config, &records).await?;
        (store, Repair::Possible)
    };
    let mut report = Report::default();
    for (object, text) in store.metadata.damages() {
        let text = scratch.named(&text, &store::directory(config));
        report.note(Fault::Damaged, object, text, repair);
    }
    let networks = networks::examine(config)?;
    let drivers = Drivers::open(&networks, &Arc::default(), config)?;
    let checker = Checker {
        is_stopped: true,
        ..Checker::new(&store.metadata, config).with_networks(networks, drivers)
    };
    let checked = checker.check(opts).await?;
    let damages = std::mem::take(&mut report.findings);
    report = checked;
    report.findings.splice(0..0, damages);
    Ok(report)
}

/// Copies of records and indexes; they end with it.
struct Scratch(PathBuf);

impl Scratch {
    fn records(&self) -> PathBuf {
        self.0.join("records")
    }

    /// Makes it, empty, with room for copies of `files`, and tells where the records go. One that was
    /// killed may have left its own.
    fn make(&self, files: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
        self.clear()?;
        let mut needed = 0_u64;
        for file in files {
            needed = needed.saturating_add(size(&file)?.saturating_mul(COPIES));
        }
        let state = self.0.parent().unwrap_or(&self.0);
        let free = sys::fs::free_bytes(state)?;
        if needed > free {
            return Err(Error::resource_exhausted(format_args!(
                "a check works on copies of records and indexes, which need {needed} bytes under {}, \
                 and {free} are free: make room there",
                state.display()
            )));
        }
        let records = self.records();
        lock::create(&records, lock::ROOT_MODE)?;
        Ok(records)
    }

    fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                let path = self.0.display();
                Err(Error::os(format_args!("remove {path}"), e))
            }
            _ => Ok(()),
        }
    }

    /// A text about the copy of the records as one about the records in `directory`.
    fn named(&self, text: &str, directory: &Path) -> String {
        let copy = self.records();
        text.replace(&*copy.to_string_lossy(), &directory.to_string_lossy())
    }
}

/// Bytes of a file, if there is one.
fn size(path: &Path) -> Result<u64> {
    match path.metadata() {
        Ok(found) => Ok(found.len()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::os(format_args!("stat {}", path.display()), e)),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, "copies are left");
        }
    }
}

/// Nothing stays mounted for a call after its daemon has gone, nor in a bundle after its task.
fn left_mounted(config: &Config, opts: CheckOpts, report: &mut Report) -> Result<()> {
    let mut left = sys::mount::info::load()?;
    left.retain(|mount| {
        mount.mount_point.starts_with(&config.root) || mount.mount_point.starts_with(&config.state)
    });
    if left.is_empty() {
        return Ok(());
    }
    let temporary = config.root.join(TEMPORARY);
    let bundles = config.state.join(BUNDLES_DIR);
    let survey = runtime_v2::survey(&config.state, &config.root)?;
    let mut tasks = HashSet::new();
    for (namespace, id) in &survey.tasks {
        tasks.insert(bundles.join(namespace.as_str()).join(id.as_str()));
    }
    for mount in left {
        let point = &mount.mount_point;
        let text = if point.starts_with(&temporary) {
            "a daemon that is gone has left it"
        } else if point.starts_with(&bundles) && !point.ancestors().any(|at| tasks.contains(at)) {
            "a task that is gone has left it"
        } else {
            continue;
        };
        let repair = if opts.repair {
            // One of another may have gone with the one that it is in.
            sys::mount::unmount_recursive(point)?;
            Repair::Done
        } else {
            Repair::Possible
        };
        let object = format!("mount {}", point.display());
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
