//! Pull: an image from a registry, unpacked while its layers come in.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt as _};
use images::{Entry, Frontier, Index, Manifest, PlatformSet, Verifier};
use registry::{Reference, RegistryOpts, Repository};
use types::{Descriptor, Error, Image, Labels, Result};

use crate::Deps;
use crate::fetch::Fetcher;
use crate::progress::{OnProgress, Status};
use crate::rooms::Rooms;
use crate::turns::{Places, fitted};
use crate::unpack::{Arrival, Arriving, is_image, unpack_arriving};
use crate::verify::verify;

/// Images of one pull on their way at a time, of several platforms: each has layers to wait for.
const IMAGES: usize = 4;

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOpts {
    /// Which platforms; this host's by default.
    pub platforms: PlatformSet,
    /// Labels of the image record.
    pub labels: Labels,
    /// Unpack into snapshots.
    pub unpack: bool,
    /// Layers fetched at a time; 0: as many as [`crate::fitted`] says.
    pub max_concurrent: usize,
    /// Places for layers that this pull shares with others; `None`: it has its own. Connections that a
    /// large layer has besides its first take those that nobody waits for.
    pub places: Option<Places>,
    /// How to talk to the registry; without a budget the pull gets one of five minutes without
    /// progress.
    pub registry: RegistryOpts,
    /// Also fetch manifests and configs of the other platforms.
    pub all_metadata: bool,
    /// Most manifests of an index; 0: all that are wanted.
    pub manifest_limit: usize,
    /// Who must agree before anything is fetched.
    pub verifiers: Vec<Arc<dyn Verifier>>,
    /// Who is told.
    pub progress: OnProgress,
}

/// Pulls `reference`, a full one, and writes the image record of that name.
///
/// Dropping the future stops the pull; the bytes that came in stay in their ingests for the next one.
///
/// # Errors
/// `InvalidArgument` for a bad reference, document or layer; those of [`Repository::resolve`];
/// `NotFound` when there is nothing for the platform; `FailedPrecondition` when bytes are not what
/// their digest says; those of [`crate::verify()`].
pub async fn pull(reference: &str, deps: &Deps, mut opts: PullOpts) -> Result<Image> {
    let budget = crate::budget(&mut opts.registry, &opts.progress);
    if opts.max_concurrent == 0 {
        opts.max_concurrent = fitted();
    }
    let own = || Places::new(opts.max_concurrent);
    let places = opts.places.clone().unwrap_or_else(own);
    opts.registry.room = Some(places.free());
    let on = opts.progress.clone();
    let parsed: Reference = reference.parse()?;
    on.tell(reference, Status::Resolving, 0, 0);
    let repository = Repository::new(&parsed, opts.registry.clone())?;
    let target = repository.resolve().await?;
    on.tell(reference, Status::Resolved, 0, 0);
    verify(&opts.verifiers, reference, &target).await?;
    on.child(reference, &target);
    let fetcher = Fetcher::new(&deps.content, repository, &parsed, budget, places, &on);
    let pull = Pull {
        deps,
        fetcher: Arc::new(fetcher),
        opts: &opts,
        rooms: Rooms::new(deps),
    };
    let fetched = pull.all(&target).await;
    fetched.map_err(|error| placed(error, &parsed))?;
    let image = deps
        .images
        .put(reference, target, opts.labels.clone())
        .await?;
    on.tell(reference, Status::Done, 0, 0);
    Ok(image)
}

struct Pull<'a> {
    deps: &'a Deps,
    fetcher: Arc<Fetcher>,
    opts: &'a PullOpts,
    rooms: Rooms,
}

impl Pull<'_> {
    async fn all(&self, target: &Descriptor) -> Result<()> {
        let manifests = self.documents(target).await?;
        // They share the places for layers and the room to extract them, and wait for each other where they share layers.
        let (mut left, mut running) = (manifests.iter(), FuturesUnordered::new());
        loop {
            while running.len() < IMAGES
                && let Some(manifest) = left.next()
            {
                running.push(self.image(manifest));
            }
            match running.next().await {
                Some(done) => done?,
                None => return Ok(()),
            }
        }
    }

    /// Fetches indexes, manifests and configs, labels them, and returns the manifests to take.
    async fn documents(&self, target: &Descriptor) -> Result<Vec<Manifest>> {
        let store = self.deps.content.as_ref();
        let mut found = Vec::new();
        let mut frontier = Frontier::new(vec![target.clone().into()]);
        while let Some((entry, depth)) = frontier.take() {
            let descriptor = &entry.descriptor;
            if images::is_index(&descriptor.media_type) {
                limited(descriptor)?;
                self.fetcher.fetch(descriptor).await?;
                let index = images::read_index(store, descriptor).await?;
                images::label_children(store, &descriptor.digest, &index.manifests).await?;
                let platforms: Vec<_> = index
                    .manifests
                    .iter()
                    .map(|entry| entry.platform.clone())
                    .collect();
                let mut chosen = self.opts.platforms.choose(&platforms);
                if self.opts.manifest_limit > 0 {
                    chosen.truncate(self.opts.manifest_limit);
                }
                if self.opts.all_metadata {
                    self.metadata(descriptor, &index, &chosen).await?;
                }
                let next = chosen
                    .into_iter()
                    .filter_map(|at| index.manifests.get(at).cloned());
                let next: Vec<Entry> = next.collect();
                self.family(descriptor, &next);
                frontier.push(next, depth)?;
            } else if images::is_manifest(&descriptor.media_type) {
                if let Some(manifest) = self.manifest(&entry, depth).await? {
                    found.push(manifest);
                }
            } else {
                tracing::debug!(media_type = descriptor.media_type, "not fetched");
            }
        }
        if found.is_empty() {
            return Err(Error::not_found(format_args!(
                "no match for platform in manifest {}",
                target.digest
            )));
        }
        Ok(found)
    }

    /// Fetches what the manifests that were not chosen say of themselves: without it the index cannot
    /// be pushed, and nobody can tell what else there is.
    async fn metadata(&self, parent: &Descriptor, index: &Index, chosen: &[usize]) -> Result<()> {
        let store = self.deps.content.as_ref();
        for (at, entry) in index.manifests.iter().enumerate() {
            let descriptor = &entry.descriptor;
            if chosen.contains(&at) || !images::is_manifest(&descriptor.media_type) {
                continue;
            }
            self.opts
                .progress
                .child(&images::ref_key(parent), descriptor);
            limited(descriptor)?;
            self.fetcher.fetch(descriptor).await?;
            let config = images::read_manifest(store, descriptor).await?.config;
            if images::is_config(&config.media_type) && config.size <= images::MAX_CONFIG {
                self.family(descriptor, &[config.clone().into()]);
                self.fetcher.fetch(&config).await?;
                images::label_children(store, &descriptor.digest, &[config.into()]).await?;
            }
        }
        Ok(())
    }

    fn family(&self, parent: &Descriptor, children: &[Entry]) {
        let parent = images::ref_key(parent);
        for child in children {
            self.opts.progress.child(&parent, &child.descriptor);
        }
    }

    async fn manifest(&self, entry: &Entry, depth: usize) -> Result<Option<Manifest>> {
        let store = self.deps.content.as_ref();
        let descriptor = &entry.descriptor;
        limited(descriptor)?;
        self.fetcher.fetch(descriptor).await?;
        let manifest = images::read_manifest(store, descriptor).await?;
        let config = &manifest.config;
        if images::is_config(&config.media_type) && config.size > images::MAX_CONFIG {
            return Err(Error::resource_exhausted(format_args!(
                "rejecting image config {} of {} bytes, the limit is {}",
                config.digest,
                config.size,
                images::MAX_CONFIG
            )));
        }
        let children: Vec<Entry> = std::iter::once(config)
            .chain(&manifest.layers)
            .map(|child| Entry::from(child.clone()))
            .collect();
        self.family(descriptor, &children);
        self.fetcher.fetch(config).await?;
        images::label_children(store, &descriptor.digest, &children).await?;
        if depth > 0 && entry.platform.is_none() && images::is_config(&config.media_type) {
            let platform = images::read_config(store, config).await?.platform;
            if !self.opts.platforms.matches(Some(&platform)) {
                return Ok(None);
            }
        }
        Ok(Some(manifest))
    }

    /// Fetches the layers of one image and unpacks them as they arrive.
    async fn image(&self, manifest: &Manifest) -> Result<()> {
        for layer in &manifest.layers {
            self.fetcher.waiting(layer);
        }
        let (senders, arrivals): (Vec<_>, Vec<_>) =
            manifest.layers.iter().map(|_| Arrival::expected()).unzip();
        let layers = manifest.layers.iter().cloned().zip(senders).collect();
        let fetch = fetch_layers(Arc::clone(&self.fetcher), layers, self.opts.max_concurrent);
        if !self.opts.unpack || !is_image(manifest) {
            return fetch.await;
        }
        let store = self.deps.content.as_ref();
        let config = images::read_config(store, &manifest.config).await?;
        let (on, rooms) = (&self.opts.progress, &self.rooms);
        let unpack = unpack_arriving(self.deps, manifest, &config, on, arrivals, rooms);
        // The fetch comes first: when it fails, its error is the one to tell.
        futures::future::try_join(fetch, unpack).await.map(drop)
    }
}

/// Fetches the layers, `concurrent` at a time, and tells of each that has arrived.
async fn fetch_layers(
    fetcher: Arc<Fetcher>,
    layers: Vec<(Descriptor, Arriving)>,
    concurrent: usize,
) -> Result<()> {
    let mut left = layers.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < concurrent
            && let Some((layer, arrived)) = left.next()
        {
            running.push(fetch_layer(Arc::clone(&fetcher), layer, arrived));
        }
        match running.next().await {
            Some(done) => done?,
            None => return Ok(()),
        }
    }
}

async fn fetch_layer(fetcher: Arc<Fetcher>, layer: Descriptor, arrived: Arriving) -> Result<()> {
    let Arriving { started, done } = arrived;
    fetcher.fetch_followed(&layer, Some(started)).await?;
    // Nobody waits when nothing is unpacked.
    let _waiting = done.send(true);
    Ok(())
}

/// Says which image it is about, where the error does not.
fn placed(error: Error, reference: &Reference) -> Error {
    if error.to_string().contains(reference.host()) {
        return error;
    }
    error.ctx(reference.to_string())
}

fn limited(descriptor: &Descriptor) -> Result<()> {
    if descriptor.size > images::MAX_MANIFEST {
        return Err(Error::resource_exhausted(format_args!(
            "rejecting manifest {} of {} bytes, the limit is {}",
            descriptor.digest,
            descriptor.size,
            images::MAX_MANIFEST
        )));
    }
    Ok(())
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "shared_tests.rs"]
mod shared_tests;
