//! Import: the images of an archive, as `ctr images import` names and unpacks them.

use std::collections::BTreeMap;
use std::io::Read;

use images::archive::Archive;
use images::{Compress, Entry, Frontier, PlatformSet};
use types::{Context as _, Descriptor, Error, Image, Labels, Result};

use crate::Deps;
use crate::names::Names;
use crate::progress::{OnProgress, Status};
use crate::unpack::unpack_image;

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOpts {
    /// How images are named.
    pub names: Names,
    /// Which platforms; this host's by default.
    pub platforms: PlatformSet,
    /// Labels of the image records.
    pub labels: Labels,
    /// Compress plain layers of a Docker archive.
    pub compress: bool,
    /// Leave the layers to the collector: who has them unpacked can do without. Other images that have
    /// the same manifest keep theirs.
    pub discard_layers: bool,
    /// What to unpack where.
    pub unpacks: Vec<(Deps, PlatformSet)>,
    /// Who is told.
    pub progress: OnProgress,
}

impl ImportOpts {
    /// Unpacks nothing; takes what is for this host.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            names,
            platforms: PlatformSet::default(),
            labels: Labels::new(),
            compress: false,
            discard_layers: false,
            unpacks: Vec::new(),
            progress: OnProgress::default(),
        }
    }
}

/// Imports an OCI layout or a Docker archive and writes its image records, ordered by name. Images
/// without a name get none unless a rule names them by digest.
///
/// # Errors
/// Those of [`images::archive::import`]; `NotFound` when no image is for the platform, none has a
/// name, or a blob is missing; those of [`crate::unpack()`].
pub async fn import(
    reader: Box<dyn Read + Send>,
    deps: &Deps,
    opts: ImportOpts,
) -> Result<Vec<Image>> {
    let on = opts.progress.clone();
    let saving = |name: &str, at: u64, total: u64| {
        let status = if at < total {
            Status::Saving
        } else {
            Status::Done
        };
        on.tell(name, status, at, total);
    };
    let compress = opts.compress.then_some(Compress::Gzip);
    let archive = images::archive::import(reader, &deps.content, compress, &saving).await?;
    let roots: Vec<Entry> = archive
        .images
        .iter()
        .filter(|image| opts.platforms.matches(image.platform.as_ref()))
        .cloned()
        .collect();
    if roots.is_empty() {
        return Err(Error::not_found(
            "no image in the archive is for this platform",
        ));
    }
    complete(deps, &roots, &opts).await?;
    let records = records(deps, &archive, &roots, &opts.names).await?;
    if records.is_empty() {
        // Without a record the collector would take all of it again.
        return Err(Error::not_found(
            "no image in the archive has a name to keep it under",
        ));
    }
    for root in records.values().collect::<Distinct<'_>>().0 {
        for (deps, wanted) in &opts.unpacks {
            unpack_root(deps, root, wanted, &opts).await?;
        }
    }
    let mut made = Vec::with_capacity(records.len());
    for (name, target) in records {
        let labels = opts.names.labels(&name, &opts.labels)?;
        made.push(deps.images.put(&name, target, labels).await?);
        opts.progress.tell(&name, Status::Done, 0, 0);
    }
    Ok(made)
}

/// Checks that all wanted blobs are there, as long as they should be, and labels the parents of those to
/// keep.
async fn complete(deps: &Deps, roots: &[Entry], opts: &ImportOpts) -> Result<()> {
    let wanted = &opts.platforms;
    let store = deps.content.as_ref();
    let mut frontier = Frontier::new(roots.to_vec());
    while let Some((entry, depth)) = frontier.take() {
        let descriptor = &entry.descriptor;
        let missing = || format!("image is incomplete: content {}", descriptor.digest);
        let info = store.info(&descriptor.digest).await.ctx_with(missing)?;
        if info.size != descriptor.size {
            return Err(Error::failed_precondition(format_args!(
                "{} has {} bytes, its descriptor says {}",
                descriptor.digest, info.size, descriptor.size
            )));
        }
        let mut children = images::children(store, descriptor).await?;
        if images::is_index(&descriptor.media_type) {
            let platforms: Vec<_> = children
                .iter()
                .map(|child| child.platform.clone())
                .collect();
            let chosen = wanted.choose(&platforms);
            children = chosen
                .into_iter()
                .filter_map(|at| children.get(at).cloned())
                .collect();
        }
        let key = images::ref_key(descriptor);
        for child in &children {
            opts.progress.child(&key, &child.descriptor);
        }
        let is_kept =
            |child: &Entry| !opts.discard_layers || !images::is_layer(&child.descriptor.media_type);
        let kept: Vec<_> = children
            .iter()
            .filter(|child| is_kept(child))
            .cloned()
            .collect();
        images::label_children(store, &descriptor.digest, &kept).await?;
        frontier.push(children, depth)?;
    }
    Ok(())
}

/// The records to write, by name.
async fn records(
    deps: &Deps,
    archive: &Archive,
    roots: &[Entry],
    names: &Names,
) -> Result<BTreeMap<String, Descriptor>> {
    let mut records = BTreeMap::new();
    for root in roots {
        for name in names.of(&root.descriptor) {
            records.insert(name, root.descriptor.clone());
        }
    }
    let of_index = names.whole(&archive.digest()?);
    if !of_index.is_empty() {
        let index = archive.put_index(deps.content.as_ref()).await?;
        images::label_children(deps.content.as_ref(), &index.digest, roots).await?;
        let named = of_index.into_iter().map(|name| (name, index.clone()));
        records.extend(named);
    }
    Ok(records)
}

/// Of an archive for many platforms, an image need not be for the one that is unpacked.
async fn unpack_root(
    deps: &Deps,
    root: &Descriptor,
    wanted: &PlatformSet,
    opts: &ImportOpts,
) -> Result<()> {
    match unpack_image(deps, root, wanted, &opts.progress).await {
        Err(error) if opts.platforms == PlatformSet::All && error.is_not_found() => Ok(()),
        done => done.map(drop),
    }
}

/// Targets, each once.
struct Distinct<'a>(Vec<&'a Descriptor>);

impl<'a> FromIterator<&'a Descriptor> for Distinct<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Descriptor>>(all: I) -> Self {
        let mut distinct: Vec<&Descriptor> = Vec::new();
        for one in all {
            if distinct.iter().all(|seen| seen.digest != one.digest) {
                distinct.push(one);
            }
        }
        Self(distinct)
    }
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
