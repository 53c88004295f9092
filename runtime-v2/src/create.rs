//! Creating a task: bundle, shim, runtime `create`.
//!
//! Invariant: a failed or cancelled create leaves nothing: no bundle, no shim, no container, no
//! socket. The work runs on a task of its own, so that it is undone also when the caller goes away.
//!
//! ```text
//! bundle -> log -> shim start -> bootstrap.json -> connect -> Task.Create -> listed
//! ```

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use recorder::On;
use tokio::sync::oneshot;
use types::{Any, Code, ContainerId, Context as _, Error, Namespace, Result};

use crate::bootstrap::{Started, Target};
use crate::bundle::Bundle;
use crate::client::{self, Client, NewTask};
use crate::entry::Entry;
use crate::log::Tap;
use crate::tasks::{Config, Place, Shared, is_default_state};
use crate::turns::Turn;
use crate::undo::Undo;
use crate::{Checkpoint, CreateOpts, Status, Stdio, shims};

/// The shims that take runc's options.
const RUNC_SHIM: &str = "containerd-shim-runc-v2";

/// What is to be created.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) shared: Arc<Shared>,
    pub(crate) namespace: Namespace,
    pub(crate) id: ContainerId,
    pub(crate) binary: PathBuf,
    pub(crate) opts: CreateOpts,
}

/// Creates the task; dropping this future cancels and undoes the work.
///
/// # Errors
/// What failed first.
pub(crate) async fn run(job: Job, place: Place, turn: Turn) -> Result<Arc<Entry>> {
    // Dropped with this future: the signal for the worker.
    let (_caller, gone) = oneshot::channel();
    let worker = tokio::spawn(recorder::carry(work(job, place, turn, gone)));
    worker
        .await
        .map_err(|e| Error::internal("create task").with_source(e))?
}

async fn work(
    job: Job,
    place: Place,
    turn: Turn,
    gone: oneshot::Receiver<()>,
) -> Result<Arc<Entry>> {
    let mut undo = Undo::default();
    let built = {
        let building = pin!(build(&job, &place, &mut undo, gone));
        turn.during(building).await
    };
    match built {
        Ok((entry, client)) => {
            undo.keep();
            place.fill(&entry);
            let (shared, watched) = (Arc::clone(&job.shared), Arc::clone(&entry));
            // Before the caller has it: not only when the supervisor runs.
            entry.relink(crate::entry::Link::Ready(Arc::clone(&client)));
            tokio::spawn(shims::supervise(shared, watched, Some(client)));
            Ok(entry)
        }
        Err(error) => {
            undo.unwind().await;
            Err(error)
        }
    }
}

async fn build(
    job: &Job,
    place: &Place,
    undo: &mut Undo,
    gone: oneshot::Receiver<()>,
) -> Result<(Arc<Entry>, Arc<Client>)> {
    let opts = &job.opts;
    let options = with_root(&job.shared.config, &job.binary, opts.options.clone())?;
    let bundle = make_bundle(job).await?;
    let unwanted = bundle.clone();
    undo.after("bundle", move || async move {
        let removed = tokio::task::spawn_blocking(move || unwanted.remove()).await;
        removed.map_err(|e| Error::internal("remove bundle").with_source(e))?
    });
    let entry = Arc::new(Entry::new(
        job.namespace.clone(),
        job.id.clone(),
        bundle,
        opts.stdio.clone(),
    ));
    let _first = entry.turns.set(Arc::clone(&job.shared.turns));
    place.attach(&entry);
    if opts.stdio != Stdio::default() {
        entry.bundle.write_stdio(&opts.stdio)?;
    }
    let checkpoint = take_checkpoint(&entry.bundle, opts.checkpoint.clone()).await?;
    let client = start(job, &entry, undo, options.as_ref()).await?;

    let request = NewTask {
        bundle: entry.bundle.path().display().to_string(),
        rootfs: opts.rootfs.clone(),
        stdio: opts.stdio.clone(),
        checkpoint,
        options,
    };
    let created = tokio::select! {
        created = client.create(&request) => created.map_err(|e| entry.failed(e)),
        _ = gone => Err(Error::new(Code::Cancelled, "")),
    };
    let pid = created.ctx("failed to create shim task")?;
    entry.seen().alive(None, Status::Created, Some(pid));
    Ok((entry, Arc::new(client)))
}

/// Starts the shim and greets it.
async fn start(
    job: &Job,
    entry: &Arc<Entry>,
    undo: &mut Undo,
    options: Option<&Any>,
) -> Result<Client> {
    let bundle = &entry.bundle;
    bundle.write_binary(&job.binary)?;
    let _first = entry.binary.set(job.binary.clone());
    entry.tap(Tap::open(bundle, &job.namespace, &job.id)?);
    let (shared, unwanted) = (Arc::clone(&job.shared), Arc::clone(entry));
    undo.after("shim", move || async move {
        shims::abandon(&shared, &unwanted).await.map(drop)
    });
    let target = Target {
        config: &job.shared.config,
        namespace: &job.namespace,
        id: &job.id,
        bundle: bundle.path(),
        binary: &job.binary,
    };
    let named = || On::named(job.binary.display().to_string());
    let starting = recorder::stage("start of shim", named);
    let started = job
        .shared
        .shims
        .start(target, &job.opts.spec, options)
        .await;
    let Started { address, process } = started.ctx("failed to start shim")?;
    drop(starting);
    if let Some(process) = process {
        entry.started_shim(process);
    }
    let _first = entry.address.set(address.clone());
    bundle.write_address(&address)?;
    let greeted = shims::greet(entry, &address).await;
    if greeted.is_err() {
        // It has nothing yet, and is not asked a second time.
        shims::kill(entry).await;
    }
    greeted.ctx("failed to connect to shim")
}

/// Makes the bundle. A directory of that name without a task in the list is a leftover.
async fn make_bundle(job: &Job) -> Result<Bundle> {
    let bundles = job.shared.bundles.clone();
    let (namespace, id) = (job.namespace.clone(), job.id.clone());
    let (spec, sandbox) = (job.opts.spec.clone(), job.opts.sandbox.clone());
    let make = move || match bundles.create(&namespace, &id, &spec, &sandbox) {
        Err(error) if error.is_already_exists() => {
            tracing::warn!(%namespace, %id, "removing a bundle that was left behind");
            bundles.of(&namespace, &id).remove()?;
            bundles.create(&namespace, &id, &spec, &sandbox)
        }
        made => made,
    };
    let _making = recorder::stage("bundle", On::default);
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|e| Error::internal("make bundle").with_source(e))?
}

/// Path of the checkpoint to restore, empty for none. One that is given goes with the bundle.
async fn take_checkpoint(bundle: &Bundle, checkpoint: Option<Checkpoint>) -> Result<String> {
    let given = match checkpoint {
        None => return Ok(String::new()),
        Some(Checkpoint::At(path)) => return Ok(path),
        Some(Checkpoint::Given(given)) => given,
    };
    let own = bundle.checkpoint();
    let moved = tokio::fs::rename(&given, &own).await;
    moved.map_err(|e| Error::os(format_args!("move checkpoint to {}", own.display()), e))?;
    Ok(own.display().to_string())
}

/// runc keeps its containers under `/run/containerd/runc` unless it is told otherwise: two daemons
/// would meet there. With a state directory of our own the containers go below it.
fn with_root(config: &Config, binary: &Path, options: Option<Any>) -> Result<Option<Any>> {
    let options = options.filter(|any| !any.is_empty());
    let is_runc = binary.file_name().is_some_and(|name| name == RUNC_SHIM);
    if !is_runc || is_default_state(&config.state) {
        return Ok(options);
    }
    client::options::with_root(options, &config.state.join("runc"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::any::{pack, unpack};
    use protos::runc::Options;

    #[test]
    fn a_private_state_has_a_private_runtime_root() {
        let runc = Path::new("/usr/bin/containerd-shim-runc-v2");
        let crun = Options {
            binary_name: "crun".into(),
            ..Options::default()
        };
        let own = Options {
            root: "/own".into(),
            ..Options::default()
        };
        let root = |options: Option<&Options>, binary, state| {
            let given = options.map(|o| pack(o).unwrap());
            let made = with_root(&Config::of(Path::new(state)), binary, given).unwrap();
            made.map(|any| unpack::<Options>(&any).unwrap())
        };
        let filled = root(Some(&crun), runc, "/tmp/s").unwrap();
        assert_eq!(
            (&*filled.binary_name, &*filled.root),
            ("crun", "/tmp/s/runc")
        );
        assert_eq!(root(None, runc, "/tmp/s").unwrap().root, "/tmp/s/runc");
        assert_eq!(root(Some(&own), runc, "/tmp/s").unwrap().root, "/own");
        assert_eq!(root(None, runc, "/run/containerd"), None);
        assert_eq!(root(None, Path::new("/bin/kata"), "/tmp/s"), None);
    }

    #[tokio::test]
    async fn a_given_checkpoint_becomes_the_bundles() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = crate::bundle::Bundles::new(&dir.path().join("s"), &dir.path().join("r"));
        let (namespace, id) = ("ns".parse().unwrap(), "c".parse().unwrap());
        let bundle = bundles.create(&namespace, &id, b"{}", "").unwrap();
        let given = dir.path().join("given");
        std::fs::create_dir(&given).unwrap();
        std::fs::write(given.join("inventory.img"), "").unwrap();
        let take = |checkpoint| take_checkpoint(&bundle, checkpoint);
        assert_eq!(take(None).await.unwrap(), "");
        let at = Checkpoint::At("/c".into());
        assert_eq!(take(Some(at)).await.unwrap(), "/c");
        let path = take(Some(Checkpoint::Given(given.clone()))).await.unwrap();
        let own = bundle.checkpoint();
        assert_eq!(Path::new(&path), own);
        assert!(own.join("inventory.img").exists() && !given.exists());
        take(Some(Checkpoint::Given(given))).await.unwrap_err();
        let served = bundle.forget_checkpoint().unwrap();
        assert!(!own.exists() && served.join("inventory.img").exists());
        assert_eq!(bundle.forget_checkpoint(), None);
        bundle.remove().unwrap();
    }

    #[test]
    fn options_of_other_shims_are_left_alone() {
        let other = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![1, 2],
        };
        let runc = Path::new("/x/containerd-shim-runc-v2");
        let made = with_root(&Config::of(Path::new("/tmp/s")), runc, Some(other.clone())).unwrap();
        assert_eq!(made, Some(other));
    }
}
