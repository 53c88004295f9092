//! The directory of one ingest: what is written beside its data, and how it is resumed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Error, IngestRef, IngestStatus, Result};

use super::kept;
use super::layout::os;
use crate::{Hasher, IngestSpec};

/// Buffer for hashing what is already on disk.
const REHASH_BUFFER: usize = 1 << 20;

/// The directory of one ingest.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    path: PathBuf,
}

impl Ticket {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// What the files say; `NotFound` when one of them is missing.
    pub(super) fn status(&self) -> Result<IngestStatus> {
        let data = self.data();
        let found = fs::metadata(&data).map_err(|e| not_found(&data, e))?;
        // A power cut can leave the name empty or zeroed: that is none.
        let reference = IngestRef::try_from(self.read("ref")?)
            .map_err(|e| Error::not_found(format_args!("{}: {e}", self.path.display())))?;
        let started_at = parse_time(&self.read("startedat")?)?;
        let mut updated_at = parse_time(&self.read("updatedat")?)?;
        // Not written with every write: the file's time may be later.
        if let Ok(modified) = found.modified() {
            updated_at = updated_at.max(modified);
        }
        let total = self.read("total").ok().and_then(|t| t.parse().ok());
        Ok(IngestStatus {
            reference,
            offset: found.len(),
            total: total.unwrap_or(0),
            expected: None,
            started_at,
            updated_at,
        })
    }

    /// Opens the data for writing at its end; begins anew what cannot be resumed.
    pub(super) fn open(
        &self,
        spec: &IngestSpec,
        hasher: &mut Hasher,
    ) -> Result<(File, IngestStatus)> {
        match DirBuilder::new().mode(0o755).create(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => match self.resume(spec, hasher) {
                Ok(resumed) => return Ok(resumed),
                Err(error) => {
                    tracing::info!(path = %self.path.display(), %error, "ingest begins anew");
                    *hasher = Hasher::new(hasher.algorithm());
                }
            },
            Err(e) => return Err(os("make directory", &self.path, e)),
        }
        self.begin(spec)
    }

    fn begin(&self, spec: &IngestSpec) -> Result<(File, IngestStatus)> {
        let now = SystemTime::now();
        let path = self.data();
        // First: it says nothing of what is written from here on.
        self.forget()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| os("open", &path, e))?;
        self.write("startedat", &format_time(now)?)?;
        self.write("updatedat", &format_time(now)?)?;
        match spec.total {
            Some(total) if total > 0 => self.write("total", &total.to_string())?,
            _ => drop(fs::remove_file(self.path.join("total"))),
        }
        // Last: the other files are complete when a name is there.
        self.write("ref", spec.reference.as_str())?;
        let status = IngestStatus {
            reference: spec.reference.clone(),
            offset: 0,
            total: spec.total.unwrap_or(0),
            expected: spec.expected.clone(),
            started_at: now,
            updated_at: now,
        };
        Ok((file, status))
    }

    fn resume(&self, spec: &IngestSpec, hasher: &mut Hasher) -> Result<(File, IngestStatus)> {
        let mut status = self.status()?;
        if status.reference != spec.reference {
            return Err(Error::data_loss("ref key does not match"));
        }
        let total = spec.total.unwrap_or(0);
        if total > 0 && status.total > 0 && total != status.total {
            return Err(Error::failed_precondition(format_args!(
                "provided total differs from status: {total} != {}",
                status.total
            )));
        }
        let path = self.data();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| os("open", &path, e))?;
        let kept = kept::recall(self, &file, hasher.algorithm());
        let (from, resumed) = kept.unwrap_or((0, Hasher::new(hasher.algorithm())));
        *hasher = resumed;
        status.offset =
            hash_on(&mut file, from, u64::MAX, hasher).map_err(|e| os("read", &path, e))?;
        status.total = status.total.max(total);
        status.expected.clone_from(&spec.expected);
        Ok((file, status))
    }

    /// Removes what is of no more use; a leftover is begun anew or cleaned up.
    pub(super) fn remove(&self) {
        let path = &self.path;
        if let Err(error) = fs::remove_dir_all(path) {
            tracing::warn!(path = %path.display(), %error, "ingest directory stays");
        }
    }

    /// Notes when the ingest was last written.
    pub(super) fn touch(&self, at: SystemTime) -> Result<()> {
        self.write("updatedat", &format_time(at)?)
    }

    /// Removes what [`kept`] has noted: the data will be other data.
    pub(super) fn forget(&self) -> Result<()> {
        let path = self.path.join(kept::NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(os("remove", &path, e)),
            _ => Ok(()),
        }
    }

    pub(super) fn read(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|e| not_found(&path, e))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.tmp"));
        fs::write(&temporary, text).map_err(|e| os("write", &temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| os("rename", &temporary, e))
    }
}

/// Hashes what the file has from `from` to `limit` and says where it ends; the position is there then.
pub(super) fn hash_on(
    file: &mut File,
    from: u64,
    limit: u64,
    hasher: &mut Hasher,
) -> std::io::Result<u64> {
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; REHASH_BUFFER];
    let mut done = from;
    let mut source = file.take(limit.saturating_sub(from));
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return Ok(done);
        }
        hasher.update(&buffer[..n]);
        done += n as u64;
    }
}

fn not_found(path: &Path, error: std::io::Error) -> Error {
    super::layout::absent(error, "read", path, || {
        Error::not_found(format_args!("{}", path.display()))
    })
}

fn parse_time(text: &str) -> Result<SystemTime> {
    OffsetDateTime::parse(text.trim(), &Rfc3339)
        .map(SystemTime::from)
        .map_err(|e| Error::not_found(format_args!("could not parse time {text:?}: {e}")))
}

fn format_time(at: SystemTime) -> Result<String> {
    OffsetDateTime::from(at)
        .format(&Rfc3339)
        .map_err(|e| Error::internal(format_args!("format time: {e}")))
}
