//! Checkpoints as blobs: what CRIU wrote into a directory, as an archive in the content store and back.
//!
//! ```text
//! task checkpoint: private directory <- shim dumps -> archive blob, spec blob
//! task create:     archive blob -> private directory -> looked through -> the task's own
//! ```
//! Invariant: images hold the memory of processes, so their directories are for root alone; what was
//! not handed on goes with its value, and with the next start of the daemon at the latest.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use content::{ContentStore, IngestSpec};
use diff::{ApplyOpts, CompareOpts};
use types::{Context as _, Descriptor, Error, Labels, Mount, Result, media_type};

use crate::engine::Differs;
use crate::lock;

/// Extension of the directory where leftovers wait for their removal.
const OLD: &str = "old";
/// Extension of the directory of those that may be all that is left of a task: nothing here removes
/// them.
const KEPT: &str = "kept";

/// Makes and reads checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    directory: PathBuf,
    differs: Arc<Differs>,
}

/// A directory for root alone that goes with the value, unless somebody moved it away.
#[derive(Debug)]
pub(crate) struct Private(PathBuf);

impl Private {
    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Moves it to where it stays, and returns that place.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn keep(self) -> Result<PathBuf> {
        let kept = self.0.parent().unwrap_or(&self.0).with_extension(KEPT);
        let moved = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&kept)?;
            let free = free_name(&kept);
            std::fs::rename(&self.0, &free).map(|()| free)
        };
        moved().map_err(|e| Error::os(format_args!("keep checkpoint in {}", kept.display()), e))
    }

    /// As the only mount of a tree.
    fn mounts(&self) -> [Mount; 1] {
        [Mount {
            kind: "bind".into(),
            source: self.0.display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Mount::default()
        }]
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        remove(std::mem::take(&mut self.0));
    }
}

/// A path below `directory` that is not taken.
fn free_name(directory: &Path) -> PathBuf {
    let mut serial = 0_u64;
    loop {
        let name = directory.join(serial.to_string());
        if !name.exists() {
            return name;
        }
        serial += 1;
    }
}

/// Removes a directory in the background: images are large, and somebody waits for an answer.
fn remove(path: PathBuf) {
    let work = move || match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "remove checkpoint");
        }
        _ => {}
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

/// Moves what a daemon that was killed left in `directory` out of the way, into `old`, which then goes.
/// Gigabytes must not hold up the start, nor must a directory that cannot be removed.
fn put_aside(directory: &Path, old: PathBuf) {
    let moved = || {
        let empty = std::fs::read_dir(directory).map_or(true, |mut all| all.next().is_none());
        if empty {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&old)?;
        // More than one when earlier removals were cut off, too.
        std::fs::rename(directory, free_name(&old))
    };
    if let Err(error) = moved() {
        tracing::warn!(path = %directory.display(), %error, "checkpoints of an earlier daemon stay");
    }
    remove(old);
}

impl Checkpoints {
    /// Keeps private directories below `directory`, and takes away what is there from a daemon that
    /// was killed; where that fails, it stays.
    ///
    /// # Errors
    /// The errno when the directory cannot be made.
    pub(crate) fn open(directory: PathBuf, differs: Arc<Differs>) -> Result<Self> {
        put_aside(&directory, directory.with_extension(OLD));
        lock::create(&directory, lock::ROOT_MODE)?;
        Ok(Self { directory, differs })
    }

    /// An empty directory.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn private(&self) -> Result<Private> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = self.directory.join(serial.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Private(path)),
                // Of an earlier daemon, and it could not be put aside.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::os(format_args!("mkdir {}", path.display()), e)),
            }
        }
    }

    /// Unpacks a checkpoint.
    ///
    /// # Errors
    /// `InvalidArgument` for another media type and for an archive that holds more than files;
    /// `NotFound` for the blob; those of unpacking.
    pub(crate) async fn unpack(
        &self,
        store: &Arc<dyn ContentStore>,
        checkpoint: &Descriptor,
    ) -> Result<Private> {
        if checkpoint.media_type != media_type::CHECKPOINT {
            return Err(Error::invalid_argument(format_args!(
                "unsupported checkpoint type {:?}",
                checkpoint.media_type
            )));
        }
        let private = self.private()?;
        let archive = Descriptor {
            media_type: media_type::OCI_LAYER.into(),
            ..checkpoint.clone()
        };
        let (mounts, opts) = (private.mounts(), ApplyOpts::default());
        let unpacked = self.differs.apply(store, &archive, &mounts, opts);
        unpacked.await.ctx("unpack checkpoint")?;
        let path = private.path().to_owned();
        let looked = tokio::task::spawn_blocking(move || only_files(&path)).await;
        looked.map_err(|e| Error::internal("look through checkpoint").with_source(e))??;
        Ok(private)
    }

    /// Makes a blob of a directory that a checkpoint was written into.
    ///
    /// # Errors
    /// Those of packing.
    pub(crate) async fn pack(
        &self,
        store: &Arc<dyn ContentStore>,
        private: &Private,
    ) -> Result<Descriptor> {
        let opts = CompareOpts {
            media_type: media_type::OCI_LAYER.into(),
            ..CompareOpts::default()
        };
        let mounts = private.mounts();
        let packed = self.differs.compare(store, &[], &mounts, opts);
        let packed = packed.await.ctx("pack checkpoint")?;
        Ok(Descriptor {
            media_type: media_type::CHECKPOINT.into(),
            ..packed
        })
    }

    /// Makes a blob of a spec.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn put_config(
        &self,
        store: &Arc<dyn ContentStore>,
        private: &Private,
        spec: Vec<u8>,
    ) -> Result<Descriptor> {
        let name = private.path().file_name().unwrap_or_default().display();
        let reference = format!("checkpoint-config-{}-{name}", std::process::id());
        let spec_of = IngestSpec {
            reference: reference.parse()?,
            total: None,
            expected: None,
        };
        let size = spec.len() as u64;
        let mut ingest = store.ingest(spec_of).await.ctx("write spec")?;
        ingest.truncate(0).await?;
        ingest.write(spec.into()).await?;
        let digest = ingest.digest().await?;
        match ingest.commit(Some(size), None, Labels::new()).await {
            Err(error) if !error.is_already_exists() => return Err(error.ctx("write spec")),
            _ => {}
        }
        Ok(Descriptor {
            media_type: media_type::CHECKPOINT_CONFIG.into(),
            digest,
            size,
            annotations: Labels::new(),
        })
    }
}

/// CRIU follows links and opens what it finds: an image is files in directories, nothing else.
fn only_files(directory: &Path) -> Result<()> {
    let at = |e| Error::os(format_args!("read {}", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(at)? {
        let entry = entry.map_err(at)?;
        let kind = entry.file_type().map_err(at)?;
        if kind.is_dir() {
            only_files(&entry.path())?;
        } else if !kind.is_file() {
            return Err(Error::invalid_argument(format_args!(
                "checkpoint holds {:?}, which is no file",
                entry.file_name()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoints(place: &Path, temporary: &Path) -> Checkpoints {
        let walking = diff::Walking::new(temporary.join("mounts"));
        let differs = Arc::new(Differs::only(Arc::new(walking)));
        Checkpoints::open(place.to_owned(), differs).unwrap()
    }

    #[tokio::test]
    async fn what_is_packed_is_unpacked_unless_it_is_more_than_files() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ContentStore> =
            Arc::new(content::Local::open(dir.path().join("content")).unwrap());
        let checkpoints = checkpoints(&dir.path().join("checkpoints"), dir.path());
        let dump = checkpoints.private().unwrap();
        std::fs::write(dump.path().join("inventory.img"), "image").unwrap();
        let packed = checkpoints.pack(&store, &dump).await.unwrap();
        assert_eq!(packed.media_type, media_type::CHECKPOINT);
        let unpacked = checkpoints.unpack(&store, &packed).await.unwrap();
        let text = std::fs::read_to_string(unpacked.path().join("inventory.img")).unwrap();
        assert_eq!(text, "image");

        let spec = checkpoints.put_config(&store, &dump, b"spec".to_vec());
        let spec = spec.await.unwrap();
        assert_eq!(
            (spec.size, &*spec.media_type),
            (4, media_type::CHECKPOINT_CONFIG)
        );
        let again = checkpoints.put_config(&store, &dump, b"spec".to_vec());
        assert_eq!(again.await.unwrap(), spec);

        std::os::unix::fs::symlink("/etc/shadow", dump.path().join("pages-1.img")).unwrap();
        let hostile = checkpoints.pack(&store, &dump).await.unwrap();
        let layer = Descriptor {
            media_type: media_type::OCI_LAYER.into(),
            ..packed.clone()
        };
        let absent = Descriptor {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            ..packed
        };
        for (bad, code) in [
            (hostile, types::Code::InvalidArgument),
            (layer, types::Code::InvalidArgument),
            (absent, types::Code::NotFound),
        ] {
            let error = checkpoints.unpack(&store, &bad).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn an_image_is_files_in_directories() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/pages-1.img"), "").unwrap();
        only_files(dir.path()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("d/pages-2.img")).unwrap();
        let error = only_files(dir.path()).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
        assert!(error.to_string().contains("pages-2.img"), "{error}");
    }

    #[test]
    fn leftovers_go_and_where_they_cannot_they_are_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let (place, old) = (dir.path().join("c"), dir.path().join("c.old"));
        for path in ["0/x", "1"] {
            std::fs::create_dir_all(place.join(path)).unwrap();
            std::fs::create_dir_all(old.join(path)).unwrap();
        }
        drop(checkpoints(&place, dir.path()).private().unwrap());
        assert!(!old.exists());
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);

        let taken = place.join("kept");
        std::fs::create_dir(&taken).unwrap();
        std::fs::write(&old, "in the way").unwrap();
        let checkpoints = checkpoints(&place, dir.path());
        for n in 0..64 {
            std::fs::create_dir(place.join(n.to_string())).unwrap();
        }
        let private = checkpoints.private().unwrap();
        assert!(private.path().exists() && taken.exists());
    }

    #[test]
    fn private_directories_go_with_their_value_or_are_given_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("checkpoints");
        std::fs::create_dir_all(place.join("old/x")).unwrap();
        let checkpoints = checkpoints(&place, dir.path());
        let count = || std::fs::read_dir(&place).unwrap().count();
        assert_eq!(count(), 0);
        let (first, second) = (
            checkpoints.private().unwrap(),
            checkpoints.private().unwrap(),
        );
        assert_ne!(first.path(), second.path());
        let mode = std::fs::metadata(first.path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::write(first.path().join("f"), "").unwrap();
        drop(first);
        assert_eq!(count(), 1);
        std::fs::rename(second.path(), dir.path().join("given")).unwrap();
        drop(second);
        assert!(dir.path().join("given").exists());
    }
}
