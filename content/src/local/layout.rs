//! Paths of the local store and the plain operations on them. All of it blocks.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use types::{Algorithm, BlobInfo, Digest, Error, Filter, IngestRef, IngestStatus, Labels, Result};

use super::ingest::Ticket;
use crate::Hasher;

/// Where things are.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    /// Nothing was made: what is not there is empty. Else it has been lost.
    is_examined: bool,
}

impl Layout {
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        make_dir(&root, 0o700)?;
        let layout = Self {
            root,
            is_examined: false,
        };
        make_dir(&layout.ingests(), 0o755)?;
        for algorithm in Algorithm::ALL {
            make_dir(&layout.blobs(algorithm), 0o755)?;
        }
        sync_dir(&layout.root.join("blobs"))?;
        sync_dir(&layout.root)?;
        Ok(layout)
    }

    /// As it is, down to its directories.
    pub(super) fn examine(root: PathBuf) -> Self {
        Self {
            root,
            is_examined: true,
        }
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.name())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    /// Directory of an ingest.
    pub(super) fn ingest(&self, reference: &IngestRef) -> Result<PathBuf> {
        Ok(self.ingests().join(ticket_name(reference)?))
    }

    pub(super) fn ingests(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// Names of the ingest directories, among them those of no use any more.
    pub(super) fn tickets(&self) -> Result<Vec<OsString>> {
        let entries = self.entries(&self.ingests())?;
        Ok(entries.iter().map(fs::DirEntry::file_name).collect())
    }

    fn entries(&self, path: &Path) -> Result<Vec<fs::DirEntry>> {
        match fs::read_dir(path).and_then(Iterator::collect) {
            Ok(entries) => Ok(entries),
            Err(e) if self.is_examined && e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(os("read directory", path, e)),
        }
    }

    pub(super) fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        let path = self.blob(digest);
        match fs::metadata(&path) {
            Ok(found) => Ok(blob_info(digest.clone(), &found)),
            Err(e) => Err(absent(e, "stat", &path, || missing(digest))),
        }
    }

    pub(super) fn list(&self, filter: &Filter) -> Result<Vec<BlobInfo>> {
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            for entry in self.entries(&self.blobs(algorithm))? {
                let name = entry.file_name();
                let text = format!("{}:{}", algorithm.name(), name.to_string_lossy());
                let Ok(digest) = text.parse::<Digest>() else {
                    tracing::warn!(path = %entry.path().display(), "not a blob: ignored");
                    continue;
                };
                // Gone since it was listed: not there.
                let Ok(found) = entry.metadata() else {
                    continue;
                };
                let info = blob_info(digest, &found);
                if filter.matches(&info) {
                    all.push(info);
                }
            }
        }
        all.sort_by(|a, b| a.digest.as_str().cmp(b.digest.as_str()));
        Ok(all)
    }

    /// What is among the blobs and is none.
    pub(super) fn foreign(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in self.entries(&self.root.join("blobs"))? {
            let is_known = |algorithm: Algorithm| entry.path() == self.blobs(algorithm);
            if !Algorithm::ALL.into_iter().any(is_known) {
                found.push(entry.path());
            }
        }
        for algorithm in Algorithm::ALL {
            for entry in self.entries(&self.blobs(algorithm))? {
                let name = entry.file_name();
                let text = format!("{}:{}", algorithm.name(), name.to_string_lossy());
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                if text.parse::<Digest>().is_err() || !is_file {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    pub(super) fn delete(&self, digest: &Digest) -> Result<()> {
        let path = self.blob(digest);
        fs::remove_file(&path).map_err(|e| absent(e, "remove", &path, || missing(digest)))
    }

    pub(super) fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let status = Ticket::new(self.ingest(reference)?).status();
        status.map_err(|e| {
            if e.is_not_found() {
                no_ingest(reference)
            } else {
                e
            }
        })
    }

    pub(super) fn statuses(&self, filter: &Filter) -> Result<Vec<IngestStatus>> {
        let mut all = Vec::new();
        for name in self.tickets()? {
            if is_discarded(&name) {
                continue;
            }
            match Ticket::new(self.ingests().join(&name)).status() {
                Ok(status) if filter.matches(&status) => all.push(status),
                Ok(_) => {}
                // Half-made or just gone: not an ingest that anybody could resume.
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(?name, %error, "ingest left out of a list"),
            }
        }
        all.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(all)
    }

    pub(super) fn abort(&self, reference: &IngestRef) -> Result<()> {
        discard(&self.ingest(reference)?).map_err(|e| {
            if e.is_not_found() {
                no_ingest(reference)
            } else {
                e
            }
        })
    }
}

/// Removes an ingest's directory, first from its name: whoever makes files there at this moment cannot
/// keep it, and whoever begins anew finds nothing half removed.
///
/// # Errors
/// `NotFound`, I/O.
pub(super) fn discard(path: &Path) -> Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // No two at once, and none that a crash has left.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_extension(format!("{now:x}-{count:x}"));
    let gone = || Error::not_found(format_args!("{}", path.display()));
    fs::rename(path, &aside).map_err(|e| absent(e, "rename", path, gone))?;
    // From here on the name is free. What stays, or what the cleanup takes first, is no ingest any more.
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %aside.display(), %error, "ingest directory stays");
        }
        _ => {}
    }
    Ok(())
}

/// True for a directory that [`discard`] was about to remove.
pub(super) fn is_discarded(ticket: &OsStr) -> bool {
    Path::new(ticket).extension().is_some()
}

/// Name of an ingest's directory: hashed, so that the reference may hold anything.
pub(super) fn ticket_name(reference: &IngestRef) -> Result<String> {
    let name = Hasher::digest(reference.as_str().as_bytes())?;
    Ok(name.hex().to_owned())
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format_args!("content {digest}"))
}

fn no_ingest(reference: &IngestRef) -> Error {
    Error::not_found(format_args!("ingest ref {:?}", reference.as_str()))
}

fn blob_info(digest: Digest, found: &Metadata) -> BlobInfo {
    BlobInfo {
        digest,
        size: found.len(),
        created_at: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        updated_at: found.accessed().unwrap_or(SystemTime::UNIX_EPOCH),
        labels: Labels::new(),
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| os("make directory", path, e))
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| os("sync directory", path, e))
}

/// The error of a system call on a path.
pub(super) fn os(operation: &str, path: &Path, error: std::io::Error) -> Error {
    let full = error.kind() == ErrorKind::StorageFull || error.kind() == ErrorKind::QuotaExceeded;
    let error = Error::os(format_args!("{operation} {}", path.display()), error);
    if full {
        error.reclass(types::Code::ResourceExhausted)
    } else {
        error
    }
}

/// As [`os`], with another error where the path does not exist.
pub(super) fn absent(
    error: std::io::Error,
    operation: &str,
    path: &Path,
    missing: impl FnOnce() -> Error,
) -> Error {
    if error.kind() == ErrorKind::NotFound {
        missing()
    } else {
        os(operation, path, error)
    }
}
