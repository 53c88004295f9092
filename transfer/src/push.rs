//! Push: an image out of the content store into a registry.
//!
//! Invariant: children before parents, and the name last: a registry never has a document whose parts
//! it lacks, and a failed push leaves the name as it was. Blobs that the registry has are not sent;
//! those that are not here are taken from a repository that has them, if the registry can.
//!
//! ```text
//! walk --> blobs, some at a time --> manifests --> indexes --> the root, by its tag
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use content::{Blob, ContentStore};
use futures::stream::{FuturesUnordered, StreamExt as _};
use images::{Entry, Frontier, PlatformSet};
use registry::{BlobSource, Budget, OnSent, Pushed, Reference, RegistryOpts, Repository};
use types::{Context as _, Descriptor, Digest, Error, Labels, Result, label};

use crate::progress::{OnProgress, Status};
use crate::turns::{Place, Places, fitted};

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOpts {
    /// Which platforms of an index; all by default. Of an index that has one of them, that is pushed
    /// without the index.
    pub platforms: PlatformSet,
    /// Blobs sent at a time; 0: as many as [`crate::fitted`] says.
    pub max_concurrent: usize,
    /// Places for blobs that this push shares with others; `None`: it has its own.
    pub places: Option<Places>,
    /// Also send layers that their owners do not let registries store.
    pub allow_non_distributable: bool,
    /// How to talk to the registry; without a budget the push gets one of five minutes without
    /// progress.
    pub registry: RegistryOpts,
    /// Who is told.
    pub progress: OnProgress,
}

impl Default for PushOpts {
    fn default() -> Self {
        Self {
            platforms: PlatformSet::All,
            max_concurrent: 0,
            places: None,
            allow_non_distributable: false,
            registry: RegistryOpts::default(),
            progress: OnProgress::default(),
        }
    }
}

/// Pushes `target` and what is below it as `reference`, a full one.
///
/// Dropping the future stops the push; what the registry has by then it keeps, without a name.
///
/// # Errors
/// `InvalidArgument` for a bad reference, or one with another digest; `NotFound` when a blob is neither
/// here nor there; those of [`Repository::push_blob`] and [`Repository::push_manifest`].
pub async fn push(
    reference: &str,
    target: &Descriptor,
    content: &Arc<dyn ContentStore>,
    mut opts: PushOpts,
) -> Result<()> {
    let parsed: Reference = reference.parse()?;
    let tree = Tree::walk(content.as_ref(), target, &opts).await?;
    if let Some(digest) = parsed.digest()?
        && digest != tree.root.digest
    {
        return Err(Error::invalid_argument(format_args!(
            "{reference} cannot name {}",
            tree.root.digest
        )));
    }
    let budget = crate::budget(&mut opts.registry, &opts.progress);
    let push = Push {
        repository: Repository::new(&parsed, opts.registry.clone())?,
        content: Arc::clone(content),
        source: format!("{}.{}", label::DISTRIBUTION_SOURCE, parsed.hostname()),
        path: parsed.path().to_owned(),
        tag: Some(parsed.tag().to_owned()).filter(|tag| !tag.is_empty()),
        budget,
        places: opts.places.clone(),
        on: opts.progress.clone(),
    };
    tree.tell(reference, &opts.progress);
    let concurrent = match opts.max_concurrent {
        0 => fitted(),
        n => n,
    };
    let blobs = tree.blobs.iter();
    run(
        blobs.map(|(blob, parent)| push.blob(blob, parent)),
        concurrent,
    )
    .await?;
    for level in tree.levels()? {
        run(
            level
                .into_iter()
                .map(|(document, is_root)| push.document(document, is_root)),
            concurrent,
        )
        .await?;
    }
    Ok(())
}

/// Runs all, `concurrent` at a time, until the first failure.
async fn run(
    all: impl Iterator<Item = impl Future<Output = Result<()>>>,
    concurrent: usize,
) -> Result<()> {
    let mut left = all;
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < concurrent
            && let Some(next) = left.next()
        {
            running.push(next);
        }
        match running.next().await {
            Some(done) => done?,
            None => return Ok(()),
        }
    }
}

/// What there is to push.
struct Tree {
    root: Descriptor,
    /// With a parent of each, whose labels tell where it came from.
    blobs: Vec<(Descriptor, Digest)>,
    /// With those of their children that are documents, too.
    documents: Vec<(Descriptor, Vec<Digest>)>,
    family: Vec<(Descriptor, Descriptor)>,
}

impl Tree {
    async fn walk(store: &dyn ContentStore, target: &Descriptor, opts: &PushOpts) -> Result<Self> {
        let root = root(store, target, &opts.platforms).await?;
        let mut tree = Self {
            root: root.clone(),
            blobs: Vec::new(),
            documents: Vec::new(),
            family: Vec::new(),
        };
        let mut blobs = HashSet::new();
        let mut frontier = Frontier::new(vec![root.into()]);
        while let Some((entry, depth)) = frontier.take() {
            let parent = entry.descriptor;
            let children = children(store, &parent, &opts.platforms).await?;
            let is_sent = |child: &Entry| {
                opts.allow_non_distributable
                    || !images::is_non_distributable(&child.descriptor.media_type)
            };
            let (documents, leaves): (Vec<_>, Vec<_>) = children
                .into_iter()
                .filter(is_sent)
                .partition(|child| is_document(&child.descriptor));
            for child in documents.iter().chain(&leaves) {
                tree.family.push((parent.clone(), child.descriptor.clone()));
            }
            for leaf in leaves {
                if blobs.insert(leaf.descriptor.digest.clone()) {
                    tree.blobs.push((leaf.descriptor, parent.digest.clone()));
                }
            }
            let below = documents.iter().map(|d| d.descriptor.digest.clone());
            tree.documents.push((parent, below.collect()));
            frontier.push(documents, depth)?;
        }
        Ok(tree)
    }

    /// The documents, each level above those that its documents name; true for the root.
    fn levels(&self) -> Result<Vec<Vec<(&Descriptor, bool)>>> {
        let mut done: HashSet<&Digest> = HashSet::new();
        let mut left: Vec<_> = self.documents.iter().collect();
        let mut levels = Vec::new();
        while !left.is_empty() {
            let is_ready = |below: &[Digest]| below.iter().all(|digest| done.contains(digest));
            let (ready, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, below)| is_ready(below));
            if ready.is_empty() {
                return Err(Error::invalid_argument("image contains itself"));
            }
            done.extend(ready.iter().map(|(document, _)| &document.digest));
            let level = ready
                .into_iter()
                .map(|(document, _)| (document, document.digest == self.root.digest));
            levels.push(level.collect());
            left = rest;
        }
        Ok(levels)
    }

    /// Tells what belongs to what, and that all of it waits.
    fn tell(&self, reference: &str, on: &OnProgress) {
        on.child(reference, &self.root);
        let mut keys = HashMap::new();
        for (parent, child) in &self.family {
            let key = keys
                .entry(&parent.digest)
                .or_insert_with(|| images::ref_key(parent));
            on.child(key, child);
        }
        let documents = self.documents.iter().map(|(document, _)| document);
        for descriptor in documents.chain(self.blobs.iter().map(|(blob, _)| blob)) {
            let key = images::ref_key(descriptor);
            on.tell(&key, Status::Waiting, 0, descriptor.size);
        }
    }
}

/// What gets the name: of an index from which one image is wanted, that image.
async fn root(
    store: &dyn ContentStore,
    target: &Descriptor,
    platforms: &PlatformSet,
) -> Result<Descriptor> {
    if *platforms == PlatformSet::All || !images::is_index(&target.media_type) {
        return Ok(target.clone());
    }
    let mut chosen = children(store, target, platforms).await?;
    match (chosen.pop(), chosen.is_empty()) {
        (Some(only), true) => Ok(only.descriptor),
        (Some(_), false) => Ok(target.clone()),
        (None, _) => Err(Error::not_found(format_args!(
            "no match for platform in manifest {}",
            target.digest
        ))),
    }
}

async fn children(
    store: &dyn ContentStore,
    parent: &Descriptor,
    platforms: &PlatformSet,
) -> Result<Vec<Entry>> {
    let all = images::children(store, parent).await?;
    if !images::is_index(&parent.media_type) {
        return Ok(all);
    }
    let named: Vec<_> = all.iter().map(|child| child.platform.clone()).collect();
    let chosen = platforms.choose(&named);
    let chosen = chosen.into_iter().filter_map(|at| all.get(at).cloned());
    Ok(chosen.collect())
}

fn is_document(descriptor: &Descriptor) -> bool {
    images::is_index(&descriptor.media_type) || images::is_manifest(&descriptor.media_type)
}

struct Push {
    repository: Repository,
    content: Arc<dyn ContentStore>,
    /// Label that says which repositories of this registry have a blob.
    source: String,
    path: String,
    tag: Option<String>,
    /// Of the whole push.
    budget: Budget,
    /// For blobs, shared with other pushes.
    places: Option<Places>,
    on: OnProgress,
}

impl Push {
    async fn blob(&self, blob: &Descriptor, parent: &Digest) -> Result<()> {
        let (source, labels) = self.source(blob, parent).await?;
        let key = images::ref_key(blob);
        let (on, told, total) = (self.on.clone(), key.clone(), blob.size);
        let turn = Arc::new(Turn {
            places: self.places.clone(),
            budget: self.budget.clone(),
            place: Mutex::default(),
        });
        let ours = Arc::clone(&turn);
        let sent: OnSent = Arc::new(move |sent| {
            on.tell(&told, Status::Uploading, sent, total);
            ours.progress();
        });
        let from = candidates(&labels, &self.source, &self.path);
        let (source, missing) = match source {
            Some(blob) => {
                let turn = Arc::clone(&turn);
                (Arc::new(Stored { blob, turn }) as Arc<dyn BlobSource>, None)
            }
            None => {
                let missing = Arc::new(Missing::default());
                (Arc::clone(&missing) as Arc<dyn BlobSource>, Some(missing))
            }
        };
        // Finding the bytes is not the registry's time.
        self.budget.progress();
        let pushing = self.repository.push_blob(blob, source, &from, sent);
        let pushed = Box::pin(pushing).await;
        turn.end();
        if missing.is_some_and(|missing| missing.asked.load(Ordering::Relaxed)) {
            return Err(Error::not_found(format_args!("content {}", blob.digest)));
        }
        let pushed = pushed?;
        self.budget.done();
        let status = match pushed {
            Pushed::Existed => Status::Exists,
            Pushed::Mounted(_) | Pushed::Uploaded => Status::Done,
        };
        self.on.tell(&key, status, blob.size, blob.size);
        Ok(())
    }

    /// The bytes of a blob, if they are here, and the labels that tell where else it is.
    async fn source(
        &self,
        blob: &Descriptor,
        parent: &Digest,
    ) -> Result<(Option<Arc<dyn Blob>>, Labels)> {
        let Some(info) = self.content.info(&blob.digest).await.absent_ok()? else {
            let labels = self.content.info(parent).await?.labels;
            return Ok((None, labels));
        };
        if info.size != blob.size {
            return Err(Error::failed_precondition(format_args!(
                "{} has {} bytes, its descriptor says {}",
                blob.digest, info.size, blob.size
            )));
        }
        let opened = self.content.open(&blob.digest).await?;
        Ok((Some(opened), info.labels))
    }

    async fn document(&self, document: &Descriptor, is_root: bool) -> Result<()> {
        let key = images::ref_key(document);
        let tag = self.tag.as_deref().filter(|_| is_root);
        self.budget.progress();
        if tag.is_none() && self.repository.exists(document).await? {
            self.on
                .tell(&key, Status::Exists, document.size, document.size);
            return Ok(());
        }
        self.on.tell(&key, Status::Uploading, 0, document.size);
        let store = self.content.as_ref();
        let bytes = images::read_blob(store, document, images::MAX_MANIFEST).await?;
        self.repository.push_manifest(document, bytes, tag).await?;
        self.budget.done();
        self.on
            .tell(&key, Status::Done, document.size, document.size);
        Ok(())
    }
}

/// The repositories of the same registry that have a blob, nearest first.
fn candidates(labels: &Labels, source: &str, path: &str) -> Vec<String> {
    let known = labels.get(source).map_or("", String::as_str);
    let mut all: Vec<&str> = known
        .split(',')
        .filter(|repository| !repository.is_empty() && *repository != path)
        .collect();
    let common = |repository: &str| {
        let both = repository.split('/').zip(path.split('/'));
        both.take_while(|(a, b)| a == b).count()
    };
    all.sort_by_key(|repository| std::cmp::Reverse(common(repository)));
    all.into_iter().map(str::to_owned).collect()
}

/// A blob's turn to be sent: it has a place from when it is known that the registry lacks it.
struct Turn {
    places: Option<Places>,
    budget: Budget,
    place: Mutex<Option<Place>>,
}

impl Turn {
    async fn begin(&self) -> Result<()> {
        if let Some(places) = &self.places {
            let place = places.take(&self.budget).await?;
            *self.held() = Some(place);
        }
        Ok(())
    }

    fn progress(&self) {
        if let Some(place) = self.held().as_ref() {
            place.progress();
        }
    }

    fn end(&self) {
        drop(self.held().take());
    }

    fn held(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob of the store.
struct Stored {
    blob: Arc<dyn Blob>,
    turn: Arc<Turn>,
}

#[async_trait]
impl BlobSource for Stored {
    async fn ready(&self) -> Result<()> {
        self.turn.begin().await
    }

    async fn read(&self, offset: u64, max: usize) -> Result<Bytes> {
        self.blob.read_at(offset, max).await
    }
}

/// A blob that only the registry may have.
#[derive(Default)]
struct Missing {
    /// It has not: somebody wanted the bytes.
    asked: AtomicBool,
}

#[async_trait]
impl BlobSource for Missing {
    async fn read(&self, _: u64, _: usize) -> Result<Bytes> {
        self.asked.store(true, Ordering::Relaxed);
        Err(Error::not_found("content"))
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
