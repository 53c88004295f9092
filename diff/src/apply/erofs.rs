//! The erofs differ: a layer as one image, for snapshotters that keep layers so.
//!
//! ```text
//!   layer that is an image:  blob -> digest, decoder -> layer.erofs.part -> looked at -> layer.erofs
//!   archive:                 blob -> digest, decoder -> mkfs.erofs       -> looked at -> layer.erofs
//! ```
//! Invariant: an image has its name when it is whole and the blob had its digest, or there is none. Whatever
//! is not for it is `NotImplemented`, so that the next differ is asked.
//!
//! Parity: plugins/diff/erofs: media types, and by which file a snapshot says that it takes an image.

use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use content::ContentStore;
use rustix::fs::{CWD, RenameFlags};
use tokio::sync::OnceCell;
use types::{
    Code, Descriptor, EROFS_IMAGE, EROFS_LAYER, EROFS_PART, Error, Mount, Result, media_type,
};

use super::mkfs::{Making, packs_archives};
use super::{Job, Walking, superblock};
use crate::compression::Compression;
use crate::stream::Source;
use crate::tar::{self, Entry, stream_error};
use crate::{Applier, ApplyOpts, CompareOpts, Comparer, mounts, processor, work};

/// The program that makes images.
const MKFS: &str = "mkfs.erofs";
/// Part of the free room that is left to others.
const LEFT: u64 = 10;

/// Settings of the erofs differ.
#[derive(Clone, Debug)]
pub struct ErofsOpts {
    /// Further options of `mkfs.erofs`.
    pub mkfs_options: Vec<String>,
    /// Take layers that are images already: the kernel will read what strangers have made.
    pub take_images: bool,
}

impl Default for ErofsOpts {
    fn default() -> Self {
        Self {
            mkfs_options: Vec::new(),
            take_images: true,
        }
    }
}

/// Gives layers as EROFS images to snapshots that take these.
#[derive(Clone, Debug)]
pub struct Erofs {
    /// How blobs are read, and within which ceilings.
    walking: Walking,
    opts: ErofsOpts,
    program: PathBuf,
    /// The program makes images of archives: asked once.
    packs: Arc<OnceCell<bool>>,
}

impl Erofs {
    /// A differ with the ceilings and programs of `walking`.
    #[must_use]
    pub fn new(walking: Walking, opts: ErofsOpts) -> Self {
        Self {
            walking,
            opts,
            program: MKFS.into(),
            packs: Arc::default(),
        }
    }

    /// True when images are made of archives here.
    async fn packs(&self) -> Result<bool> {
        let asked = self.packs.get_or_try_init(|| async {
            let program = self.program.clone();
            let asked = tokio::task::spawn_blocking(move || packs_archives(&program));
            asked.await.map_err(Error::internal)
        });
        asked.await.copied()
    }

    /// What kind of layer a media type says, unless it is none for here.
    async fn kind(&self, layer: &Descriptor) -> Result<Kind> {
        if media_type::is_erofs(&layer.media_type) {
            if !self.opts.take_images {
                return Err(Error::permission_denied(
                    "the configuration forbids layers that are EROFS images (take_images)",
                ));
            }
            return Kind::of_image(&layer.media_type);
        }
        // Before a process is started for it.
        let chain = processor::chain(&self.walking.processors, &layer.media_type)?;
        if !self.packs().await? {
            return Err(Error::not_implemented(format_args!(
                "{} makes no images of archives: that takes erofs-utils 1.7",
                self.program.display()
            )));
        }
        Ok(Kind::Archive { chain })
    }
}

/// A layer.
#[derive(Debug)]
enum Kind {
    /// An image, packed so.
    Image { base: String, packed: Compression },
    /// An archive, after these programs.
    Archive { chain: Vec<processor::Link> },
}

impl Kind {
    fn of_image(media_type: &str) -> Result<Self> {
        let (base, packed) = match media_type.split_once('+') {
            None => (media_type, Compression::Plain),
            Some((base, "zstd")) => (base, Compression::Zstd),
            Some(_) => {
                return Err(Error::not_implemented(format_args!(
                    "unsupported layer media type {media_type:?}"
                )));
            }
        };
        Ok(Self::Image {
            base: base.to_owned(),
            packed,
        })
    }
}

#[async_trait]
impl Applier for Erofs {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        mounts::check(mounts)?;
        let place = Place::of(mounts)?;
        let kind = self.kind(layer).await?;
        let chain = match &kind {
            Kind::Image { .. } => Vec::new(),
            Kind::Archive { chain } => {
                place.takes_archive()?;
                chain.clone()
            }
        };
        let (mut job, room, _guard) = self.walking.job(store, layer, opts, chain).await?;
        let (program, options) = (self.program.clone(), self.opts.mkfs_options.clone());
        let work = move || match kind {
            Kind::Image { base, packed } => {
                job.packed = Some(packed);
                let found = place.fill(job, copy)?;
                Ok(Descriptor {
                    media_type: base,
                    ..found
                })
            }
            Kind::Archive { .. } => pack(&place, job, &program, &options),
        };
        work::run("layer-image", room, work).await
    }

    fn follows(&self) -> bool {
        true
    }

    fn settles(&self) -> bool {
        true
    }

    fn flushes(&self) -> bool {
        true
    }
}

#[async_trait]
impl Comparer for Erofs {
    /// What changed is packed as an archive: by the other differ.
    async fn compare(
        &self,
        _: &Arc<dyn ContentStore>,
        _: &[Mount],
        _: &[Mount],
        _: CompareOpts,
    ) -> Result<Descriptor> {
        Err(Error::not_implemented("a comparison as an EROFS image"))
    }
}

/// Has an image made of an archive.
fn pack(place: &Place, job: Job, program: &Path, options: &[String]) -> Result<Descriptor> {
    let (limits, stop) = (job.limits, job.from.stop.clone());
    let data = limits.data_of(job.from.blob.size());
    let root = place.root()?;
    place.fill(job, |source, image, longest| {
        Making {
            program,
            options,
            image,
            directory: &place.directory,
            root,
            limits,
            data,
            longest,
            stop: stop.clone(),
        }
        .make(source)?;
        let file = File::open(image)
            .map_err(|e| Error::os(format_args!("open {}", image.display()), e))?;
        // It is the program's, and not what the layer holds.
        superblock::check(&file).map_err(|e| e.reclass(Code::NotImplemented))
    })
}

/// The directory of a snapshot that takes an image.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    /// Where files would go instead.
    files: PathBuf,
    /// Its overlay marks deletions by attributes that `mkfs.erofs` does not write.
    userxattr: bool,
}

impl Place {
    /// # Errors
    /// `NotImplemented` for mounts of no such snapshot; `FailedPrecondition` for one that is not to be
    /// written to, or has been.
    fn of(mounts: &[Mount]) -> Result<Self> {
        let other = || Error::not_implemented("the snapshot takes no EROFS image");
        let mount = mounts.last().ok_or_else(other)?;
        let files = match mount.kind.as_str() {
            "bind" => Some(mount.source.as_str()),
            "overlay" => mount.option("upperdir"),
            _ => None,
        };
        let files = PathBuf::from(files.ok_or_else(other)?);
        let directory = files.parent().ok_or_else(other)?.to_owned();
        if !mount.target.is_empty() || !directory.join(EROFS_LAYER).is_file() {
            return Err(other());
        }
        if mount.is_read_only() {
            return Err(Error::failed_precondition(
                "cannot apply a layer to a read-only mount",
            ));
        }
        // An image has the ids that are in it.
        if mount.option("uidmap").is_some() || mount.option("gidmap").is_some() {
            return Err(other());
        }
        let userxattr = mount.options.iter().any(|option| option == "userxattr");
        let place = Self {
            directory,
            files,
            userxattr,
        };
        if place.image().exists() {
            return Err(Error::failed_precondition(
                "the snapshot has been given a layer already",
            ));
        }
        Ok(place)
    }

    fn image(&self) -> PathBuf {
        self.directory.join(EROFS_IMAGE)
    }

    fn takes_archive(&self) -> Result<()> {
        if self.userxattr || !self.is_untouched()? {
            return Err(Error::not_implemented(
                "an image for a snapshot that has files, or marks of its own",
            ));
        }
        Ok(())
    }

    fn is_untouched(&self) -> Result<bool> {
        let names = std::fs::read_dir(&self.files);
        let mut names =
            names.map_err(|e| Error::os(format_args!("list {}", self.files.display()), e))?;
        Ok(names.next().is_none())
    }

    /// The root as it is before a layer says anything of it.
    fn root(&self) -> Result<Entry> {
        let facts = std::fs::symlink_metadata(&self.files);
        let facts =
            facts.map_err(|e| Error::os(format_args!("stat {}", self.files.display()), e))?;
        Ok(Entry {
            mode: facts.mode() & 0o7777,
            uid: facts.uid(),
            gid: facts.gid(),
            mtime: tar::Time {
                seconds: facts.mtime(),
                nanos: 0,
            },
            ..Entry::bare(tar::Kind::Directory, b"./".to_vec())
        })
    }

    /// Has `make` write the image of the stream of `job`, of so many bytes at most, and gives it its name.
    fn fill(
        &self,
        job: Job,
        make: impl FnOnce(Source, &Path, u64) -> Result<()>,
    ) -> Result<Descriptor> {
        if !self.is_untouched()? {
            return Err(Error::failed_precondition(
                "the snapshot has files: an image would hide them",
            ));
        }
        let (sync, longest) = (job.sync, longest(&job, &self.directory)?);
        let stop = job.from.stop.clone();
        let part = self.directory.join(EROFS_PART);
        let fail = |what: &str, e| Error::os(format_args!("{what} {}", part.display()), e);
        let file = match File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&part)
        {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::failed_precondition(
                    "the snapshot is being given a layer",
                ));
            }
            file => file.map_err(|e| fail("create", e))?,
        };
        let done = job
            .extract(|source| make(source, &part, longest))
            .and_then(|found| {
                superblock::check(&file)?;
                if sync {
                    file.sync_all().map_err(|e| fail("fsync", e))?;
                }
                stop.check()?;
                self.name(&part)?;
                if sync {
                    sys::fs::fsync_dir(&self.directory)?;
                }
                Ok(found)
            });
        if done.is_err()
            && let Err(error) = std::fs::remove_file(&part)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %part.display(), "half an image stays");
        }
        done
    }

    /// Gives an image its name, unless the snapshot was committed meanwhile: then there is another.
    fn name(&self, part: &Path) -> Result<()> {
        rustix::fs::renameat_with(CWD, part, CWD, self.image(), RenameFlags::NOREPLACE).map_err(
            |e| match e {
                rustix::io::Errno::EXIST => Error::failed_precondition(
                    "the snapshot has been given a layer while this one was read",
                ),
                e => Error::os(format_args!("rename {}", part.display()), e.into()),
            },
        )
    }
}

/// Most bytes of the image of a layer: what its files may store, and what there is room for. Of one that a
/// program makes, also what it keeps meanwhile in the same file.
fn longest(job: &Job, directory: &Path) -> Result<u64> {
    let blob = job.from.blob.size();
    let most = job.limits.stored.min(job.limits.data_of(blob));
    let facts = rustix::fs::statvfs(directory)
        .map_err(|e| Error::os(format_args!("statfs {}", directory.display()), e.into()))?;
    // Not every file system tells.
    if facts.f_blocks == 0 {
        return Ok(most);
    }
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    Ok(most.min(free - free / LEFT))
}

/// Writes an image as it comes.
fn copy(mut source: Source, image: &Path, longest: u64) -> Result<()> {
    let fail = |e| Error::os(format_args!("write {}", image.display()), e);
    let mut file = File::options().write(true).open(image).map_err(fail)?;
    let mut len = 0_u64;
    loop {
        let data = source.fill_buf().map_err(stream_error)?;
        let got = data.len();
        if got == 0 {
            return Ok(());
        }
        len += got as u64;
        if len > longest {
            return Err(Error::resource_exhausted(format_args!(
                "image of layer has more than {longest} bytes, which is the most for it here"
            )));
        }
        file.write_all(data).map_err(fail)?;
        source.consume(got);
    }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
