//! The log of groups beside the file: one line for each, appended without a flush.
//!
//! Invariant: it may hold groups that are in the file (skipped on replay) and holds every newer one that
//! was answered. It survives a killed process, and after a power cut it is shorter or gone, never wrong:
//! a line that is not what was written is not taken, nor what stands behind it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use types::{Error, Result};

use super::row::{Change, Group};

/// A longer line is no line of ours.
const MAX_LINE: u64 = 64 << 20;

/// The log of groups since the last copy of the index: some of them are not in the file yet.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

fn appending(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::os(format_args!("open {}", path.display()), e))
}

impl Log {
    /// Opens the log and gives `each` its groups. What begins with a bad line is cut off, and kept
    /// aside before, and told, when it is more than the torn last line of a power cut.
    ///
    /// # Errors
    /// I/O.
    pub(super) fn open(path: &Path, mut each: impl FnMut(Group)) -> Result<(Self, Option<String>)> {
        let os = |e| Error::os(format_args!("read {}", path.display()), e);
        let file = appending(path)?;
        let size = file.metadata().map_err(os)?.len();
        // Line by line: how long it may become is for the disk to say, not for the memory.
        let mut reader = BufReader::new(&file);
        let (mut len, mut line) = (0_u64, Vec::new());
        while len < size {
            line.clear();
            let mut limited = (&mut reader).take(MAX_LINE);
            limited.read_until(b'\n', &mut line).map_err(os)?;
            let Some(group) = whole(&line) else { break };
            each(group);
            len += line.len() as u64;
        }
        let mut damage = None;
        if len < size {
            if len + (line.len() as u64) < size {
                let aside = sys::damage::keep_copy(path)?;
                let lost = size - len;
                damage = Some(format!(
                    "its log has a bad line, and {lost} bytes from there"
                ));
                tracing::warn!(
                    path = %path.display(), at = len, kept = %aside.display(),
                    "snapshot log is damaged: the rest of it is not taken, all of it is kept"
                );
            } else {
                tracing::warn!(path = %path.display(), "cutting an incomplete tail off the snapshot log");
            }
            file.set_len(len).map_err(os)?;
        }
        let log = Self {
            path: path.to_owned(),
            file,
            len,
        };
        Ok((log, damage))
    }

    /// Appends one group, and tells its line.
    ///
    /// # Errors
    /// I/O; nothing of the group is in the log then.
    pub(super) fn append(&mut self, seq: u64, next: u64, changes: &[Change]) -> Result<Vec<u8>> {
        let line = Group::encode(seq, next, changes)?;
        if let Err(error) = self.file.write_all(&line) {
            // Half a line would hide the good ones after it.
            self.file
                .set_len(self.len)
                .map_err(|e| Error::os("truncate snapshot log", e))?;
            let full = error.kind() == ErrorKind::StorageFull;
            let made = Error::os("write snapshot log", error);
            return Err(if full {
                made.reclass(types::Code::ResourceExhausted)
            } else {
                made
            });
        }
        self.len += line.len() as u64;
        Ok(line)
    }

    /// Lets it write to `file` from now on.
    #[cfg(test)]
    pub(super) fn divert(&mut self, file: File) {
        self.file = file;
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Takes away what stands before `from`: it is in file and copy.
    ///
    /// # Errors
    /// I/O; the log is as it was then.
    pub(super) fn keep_from(&mut self, from: u64) -> Result<()> {
        let os = |e| Error::os("shorten snapshot log", e);
        if from == 0 {
            return Ok(());
        }
        if from >= self.len {
            self.file.set_len(0).map_err(os)?;
            self.len = 0;
            return Ok(());
        }
        let mut tail = Vec::new();
        let mut reader = &self.file;
        reader.seek(SeekFrom::Start(from)).map_err(os)?;
        reader.read_to_end(&mut tail).map_err(os)?;
        let draft = self.path.with_extension("log-new");
        let replaced = replace(&self.path, &draft, &tail);
        if replaced.is_err() {
            drop(std::fs::remove_file(&draft));
        }
        self.file = replaced?;
        self.len = tail.len() as u64;
        Ok(())
    }
}

/// Puts a log with this text in place of the one at `path`: a killed process has the old or the new
/// one, for these groups are nowhere else. Not flushed: a power cut costs them as before.
fn replace(path: &Path, draft: &Path, text: &[u8]) -> Result<File> {
    let os = |e| Error::os(format_args!("write {}", draft.display()), e);
    let mut file = appending(draft)?;
    file.set_len(0).map_err(os)?;
    file.write_all(text).map_err(os)?;
    std::fs::rename(draft, path).map_err(os)?;
    Ok(file)
}

/// The group of a line that is complete.
fn whole(line: &[u8]) -> Option<Group> {
    // A power cut may leave zeroes or half a line: what was appended after is gone as well.
    let is_ended = line.ends_with(b"\n");
    is_ended.then(|| Group::decode(line).ok()).flatten()
}
