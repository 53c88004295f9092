//! Transfers inside the daemon: pull, import, export, tag, echo between registries, streams and the
//! store of a namespace.
//!
//! Invariant: a transfer works under a lease, the caller's or one of its own, and all that it began
//! ends when its future is dropped: streams are closed, the lease goes, ingests stay for a resume.
//!
//! ```text
//! services::transfer -> run -> [lease] -> transfer::{pull, import, ..} over the scoped stores
//!                        `---> Report: progress as events on the client's stream
//! ```

mod counts;
mod credentials;
mod lease;
mod noted;
mod open;
mod records;
mod renew;
mod report;
mod select;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ::transfer::{Deps, ImportOpts, Places, PullOpts, PushOpts};
use client::{ByteReader, ByteWriter};
use diff::Applier;
use images::archive::ExportOpts;
use images::{PlatformSet, Verifier};
use metadata::Metadata;
use protos::wire::transfer::endpoint_to_any;
use tokio::sync::oneshot;
use types::transfer::{Endpoint, ExportStream, ImportStream, Remote, Store};
use types::{Context as _, Descriptor, Error, Result, Scope};

use self::lease::Leased;
use self::noted::Noted;
use self::records::{Records, Storer, names};
use self::report::Report;
use self::select::{Chosen, Target, Unpacking};
use crate::config;
use crate::streams::Streams;

pub(crate) use self::counts::Counts;
pub(crate) use self::open::open;

/// Bytes moved at a time by an echo.
const ECHO: usize = 32 * 1024;

/// What transfers work on.
#[derive(Clone)]
pub(crate) struct Transfers(Arc<Shared>);

struct Shared {
    counts: Counts,
    metadata: Metadata,
    streams: Streams,
    /// What can be unpacked where.
    targets: Vec<Target>,
    verifiers: Vec<Arc<dyn Verifier>>,
    /// What can be changed while the daemon runs.
    live: Mutex<Live>,
    applier: Arc<dyn Applier>,
}

/// What a transfer takes as it is when it begins.
#[derive(Clone, Debug)]
struct Live {
    downloads: Room,
    uploads: Room,
    host_dirs: Vec<PathBuf>,
    /// Blobs at a time where nothing is configured.
    fitted: usize,
}

impl Live {
    fn new(section: &config::Transfer, fitted: usize) -> Self {
        Self {
            fitted,
            downloads: Room::new(section.max_concurrent_downloads.unwrap_or(fitted)),
            uploads: Room::new(section.max_concurrent_uploaded_layers.unwrap_or(fitted)),
            host_dirs: open::directories(&section.config_path),
        }
    }
}

/// How many blobs may be on their way at a time.
#[derive(Clone, Debug)]
struct Room {
    /// Of one transfer; 0: as many as it likes by itself.
    each: usize,
    /// Of all together.
    all: Option<Places>,
}

impl Room {
    /// Parity: core/transfer/local/transfer.go: the limit is the daemon's, not each transfer's.
    fn new(most: usize) -> Self {
        Self {
            each: most,
            all: (most > 0).then(|| Places::new(most)),
        }
    }
}

/// What [`Transfers::new`] needs.
struct Parts {
    /// Records and stores.
    metadata: Metadata,
    /// Streams of clients.
    streams: Streams,
    /// What can be unpacked where.
    unpacking: Vec<Unpacking>,
    /// A platform must be the configured one, not only its system.
    strict: bool,
    /// Who must agree to each pull.
    verifiers: Vec<Arc<dyn Verifier>>,
    /// Limits, and directories with what is configured for registries.
    live: Live,
    /// Where nothing is to be unpacked: never asked.
    applier: Arc<dyn Applier>,
}

impl Shared {
    fn live(&self) -> Live {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.clone()
    }
}

impl Transfers {
    fn new(parts: Parts) -> Self {
        let strict = parts.strict;
        let target = |unpacking| Target::new(unpacking, strict);
        Self(Arc::new(Shared {
            counts: Counts::default(),
            metadata: parts.metadata,
            streams: parts.streams,
            targets: parts.unpacking.into_iter().map(target).collect(),
            verifiers: parts.verifiers,
            live: Mutex::new(parts.live),
            applier: parts.applier,
        }))
    }

    /// Takes other limits and registry hosts for the transfers that begin from now on.
    pub(crate) fn adapt(&self, section: &config::Transfer) {
        let mut live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
        *live = Live::new(section, live.fitted);
    }

    /// Moves `source` to `destination` and tells of it on the stream `progress`, if one is named.
    ///
    /// # Errors
    /// `NotImplemented` for a pair that makes no transfer, with both types; `NotFound` for a stream or
    /// an image; those of the transfer.
    pub(crate) async fn run(
        &self,
        scope: Scope,
        source: Endpoint,
        destination: Endpoint,
        progress: &str,
    ) -> Result<()> {
        let this = &self.0;
        recorder::subject(scope.namespace.as_str(), image_of(&source, &destination));
        let report = Report::open(&this.streams, &scope, progress)?;
        let leased = Leased::hold(&this.metadata, scope).await?;
        let counted = this.counts.begin(&source, &destination);
        let work = Box::pin(this.transfer(&leased.scope, source, destination, &report));
        let done = report.during(work).await;
        counted.end(&done);
        leased.release().await;
        done
    }
}

impl Transfers {
    /// What was transferred since the start.
    pub(crate) fn counts(&self) -> &Counts {
        &self.0.counts
    }
}

impl fmt::Debug for Transfers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfers")
            .field("targets", &self.0.targets)
            .field("verifiers", &self.0.verifiers)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn transfer(
        &self,
        scope: &Scope,
        source: Endpoint,
        destination: Endpoint,
        report: &Report,
    ) -> Result<()> {
        match (source, destination) {
            (Endpoint::Registry(remote), Endpoint::Store(store)) => {
                self.pull(scope, remote, store, report).await
            }
            (Endpoint::Import(import), Endpoint::Store(store)) => {
                self.import(scope, import, store, report).await
            }
            (Endpoint::Store(store), Endpoint::Export(export)) => {
                self.export(scope, store, export, report).await
            }
            (Endpoint::Store(store), Endpoint::Registry(remote)) => {
                self.push(scope, store, remote, report).await
            }
            (Endpoint::Store(from), Endpoint::Store(to)) => self.tag(scope, &from, &to).await,
            (Endpoint::Import(import), Endpoint::Export(export)) => {
                self.echo(scope, &import, &export).await
            }
            (source, destination) => Err(Error::not_implemented(format_args!(
                "method Transfer not implemented for {} to {}",
                type_of(&source)?,
                type_of(&destination)?
            ))),
        }
    }

    async fn pull(
        &self,
        scope: &Scope,
        remote: Remote,
        store: Store,
        report: &Report,
    ) -> Result<()> {
        let from = Endpoint::Registry(remote.clone()).to_string();
        report.say(format!("Resolving from {from}"));
        report.on_resolved(format!("Pulling from {from}"));
        let (registry, talk) = self.registry(scope, &remote)?;
        let chosen = self.chosen(scope, &store)?;
        let (during, later) = chosen.for_pull(&store.platforms);
        let unpack = during.is_some();
        let records = Storer {
            images: self.metadata.images(scope),
            names: names(&store),
            labels: store.labels,
            later,
            report: report.clone(),
        };
        let mut deps = during.map_or_else(|| self.plain(scope), Ok)?;
        deps.images = Arc::new(records);
        deps.content = self.metadata.scoped(scope).patient_content();
        let downloads = self.live().downloads;
        let opts = PullOpts {
            platforms: set(&store.platforms),
            unpack,
            max_concurrent: downloads.each,
            places: downloads.all,
            registry,
            all_metadata: store.all_metadata,
            manifest_limit: store.manifest_limit,
            verifiers: self.verifiers.clone(),
            progress: report.listener(),
            ..PullOpts::default()
        };
        let pulled = ::transfer::pull(&remote.reference, &deps, opts).await;
        talk.finish().await;
        drop(pulled?);
        report.say(format!("Completed pull from {from}"));
        Ok(())
    }

    async fn push(
        &self,
        scope: &Scope,
        store: Store,
        remote: Remote,
        report: &Report,
    ) -> Result<()> {
        let image = self.metadata.images(scope).get(&store.name).await?;
        let to = Endpoint::Registry(remote.clone()).to_string();
        report.say(format!("Pushing to {to}"));
        report.image("pushing content", &image.name, &image.target);
        let (registry, talk) = self.registry(scope, &remote)?;
        let uploads = self.live().uploads;
        let opts = PushOpts {
            platforms: set(&store.platforms),
            max_concurrent: uploads.each,
            places: uploads.all,
            registry,
            progress: report.listener(),
            ..PushOpts::default()
        };
        let content = self.metadata.scoped(scope).content();
        let pushed = ::transfer::push(&remote.reference, &image.target, &content, opts).await;
        talk.finish().await;
        pushed?;
        report.image("pushed content", &image.name, &image.target);
        report.say(format!("Completed push to {to}"));
        Ok(())
    }

    async fn import(
        &self,
        scope: &Scope,
        import: ImportStream,
        store: Store,
        report: &Report,
    ) -> Result<()> {
        let (stream, _held) = self.streams.take(&scope.namespace, &import.stream)?;
        report.say("Importing".into());
        let opts = ImportOpts {
            platforms: set(&store.platforms),
            labels: store.labels.clone(),
            compress: import.force_compress,
            unpacks: self.chosen(scope, &store)?.all(),
            progress: report.listener(),
            ..ImportOpts::new(names(&store))
        };
        let deps = self.plain(scope)?;
        let reader = Box::new(ByteReader::new(stream));
        for image in ::transfer::import(reader, &deps, opts).await? {
            report.saved(&image.name, &image.target);
        }
        report.say("Completed import".into());
        Ok(())
    }

    async fn export(
        &self,
        scope: &Scope,
        store: Store,
        export: ExportStream,
        report: &Report,
    ) -> Result<()> {
        // Taken first: it ends with a failure, too.
        let (stream, held) = self.streams.take(&scope.namespace, &export.stream)?;
        let images = self.metadata.images(scope);
        let mut found: Vec<(String, Descriptor)> = Vec::new();
        let main = Some(&store.name).filter(|name| !name.is_empty());
        for rule in &store.references {
            if rule.is_prefix {
                // Parity: core/transfer/image/imagestore.go: neither does Go.
                return Err(Error::not_implemented("prefix lookup on export"));
            }
        }
        for name in main
            .into_iter()
            .chain(store.references.iter().map(|r| &r.name))
        {
            let image = images.get(name).await?;
            found.push((image.name, image.target));
        }
        report.say("Exporting".into());
        let opts = ExportOpts {
            platforms: match export.all_platforms {
                true => PlatformSet::All,
                false if export.platforms.is_empty() => PlatformSet::default(),
                false => PlatformSet::Only(export.platforms),
            },
            skip_docker_manifest: export.skip_compatibility_manifest,
            skip_non_distributable: export.skip_non_distributable,
        };
        let content = self.metadata.scoped(scope).content();
        let writer = Box::new(ByteWriter::new(stream));
        images::archive::export(content.as_ref(), &found, &opts, writer).await?;
        // A client may leave as soon as it has the answer.
        held.close().await;
        report.say("Completed export".into());
        Ok(())
    }

    async fn tag(&self, scope: &Scope, from: &Store, to: &Store) -> Result<()> {
        let images = self.metadata.images(scope);
        let target = images.get(&from.name).await?.target;
        let names = names(to);
        Records(images).put_all(&names, &target, &to.labels).await?;
        Ok(())
    }

    async fn echo(&self, scope: &Scope, from: &ImportStream, to: &ExportStream) -> Result<()> {
        let (source, _from) = self.streams.take(&scope.namespace, &from.stream)?;
        let (sink, to) = self.streams.take(&scope.namespace, &to.stream)?;
        let copy = move || {
            let mut reader = std::io::BufReader::with_capacity(ECHO, ByteReader::new(source));
            std::io::copy(&mut reader, &mut ByteWriter::new(sink)).map(drop)
        };
        // Not one of the runtime's threads: a client may let it wait as long as it likes.
        let (done, copied) = oneshot::channel();
        let thread = std::thread::Builder::new().name("echo".into());
        let started = thread.spawn(move || drop(done.send(copy())));
        drop(started.map_err(|e| Error::os("start echo thread", e))?);
        let copied = copied.await;
        let copied = copied.map_err(|_| Error::internal("echo thread panicked"))?;
        copied.map_err(|e| Error::os("echo", e))?;
        to.close().await;
        Ok(())
    }

    /// The stores of the namespace, for transfers that unpack nothing.
    fn plain(&self, scope: &Scope) -> Result<Deps> {
        let any = self.metadata.snapshotters().next();
        let any = any.ok_or_else(|| Error::failed_precondition("no snapshotter works"))?;
        self.deps(scope, any, &self.applier)
    }

    fn deps(&self, scope: &Scope, snapshotter: &str, applier: &Arc<dyn Applier>) -> Result<Deps> {
        let scoped = self.metadata.scoped(scope);
        Ok(Deps {
            content: scoped.content(),
            images: Arc::new(Records(self.metadata.images(scope))),
            snapshotter: scoped.snapshotter(snapshotter)?,
            snapshotter_name: snapshotter.to_owned(),
            applier: Arc::new(Noted {
                metadata: self.metadata.clone(),
                applier: Arc::clone(applier),
                scope: scope.clone(),
            }),
        })
    }

    /// What is to be unpacked, as far as it can be.
    fn chosen(&self, scope: &Scope, store: &Store) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        for unpack in &store.unpacks {
            let Some(target) = select::choose(&self.targets, unpack) else {
                tracing::warn!(
                    platform = %unpack.platform,
                    snapshotter = unpack.snapshotter,
                    "unpack configuration not supported, skipping"
                );
                continue;
            };
            let deps = self
                .deps(scope, &target.snapshotter, &target.applier)
                .ctx("unpack")?;
            chosen.add(deps, unpack.platform.clone());
        }
        Ok(chosen)
    }
}

/// The image that a transfer is about, as far as it has a name beforehand.
fn image_of<'a>(source: &'a Endpoint, destination: &'a Endpoint) -> &'a str {
    match (source, destination) {
        (Endpoint::Registry(remote), _) | (_, Endpoint::Registry(remote)) => &remote.reference,
        (_, Endpoint::Store(store)) | (Endpoint::Store(store), _) => &store.name,
        _ => "",
    }
}

/// The type by which the client named this end.
fn type_of(endpoint: &Endpoint) -> Result<String> {
    Ok(endpoint_to_any(endpoint)?.type_url)
}

/// The set that a list means: an empty one is everything.
fn set(platforms: &[types::Platform]) -> PlatformSet {
    if platforms.is_empty() {
        PlatformSet::All
    } else {
        PlatformSet::Only(platforms.to_vec())
    }
}
