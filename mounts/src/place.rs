//! The directory of one activation: a mount point for each of its mounts, named by position.
//!
//! ```text
//! t/<number>/000  001  002       directories that are mounted on, or links to devices
//!            000.file            which file the device of 000 has
//! ```

use std::collections::HashSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use types::{Error, Errors, Result};

use crate::handler;

/// Whether an unmount waits for who uses the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// Some seconds, and fails.
    Wait,
    /// The mount goes at once, its files when nobody uses them any more. For what nobody was told of,
    /// and what nobody can be told of.
    Detach,
}

/// One of these directories.
#[derive(Clone, Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// That of the activation `number` below `targets`.
    pub(crate) fn new(targets: &Path, number: u64) -> Self {
        Self(targets.join(number.to_string()))
    }

    /// Makes it.
    pub(crate) fn make(&self) -> Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let made = builder.create(&self.0);
        made.map_err(|e| Error::os(format_args!("mkdir {}", self.0.display()), e))
    }

    /// The mount point of the mount at `position`.
    pub(crate) fn point(&self, position: usize) -> PathBuf {
        self.0.join(format!("{position:03}"))
    }

    /// Unmounts all, the last one first, and removes the directory. What a failure leaves is for the
    /// next call; that there is nothing is none.
    pub(crate) fn clear(&self, busy: Busy) -> Result<()> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| self.error("read", e))?,
        };
        let mut points: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        points.sort();
        for point in points.iter().rev() {
            let kind = std::fs::symlink_metadata(point).map(|facts| facts.file_type());
            match kind {
                Ok(kind) if kind.is_symlink() => handler::release(point)?,
                Ok(kind) if kind.is_dir() => unmount(point, busy)?,
                // The note beside a link, which may be gone with it.
                _ => {}
            }
        }
        let mut errors = Errors::default();
        for note in points.iter().filter(|path| path.extension().is_some()) {
            match std::fs::remove_file(note) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    errors.note::<()>(Err(self.error("clear", e)));
                }
                _ => {}
            }
        }
        errors.into_result()?;
        // Never more than the empty directory: what is still mounted must survive.
        std::fs::remove_dir(&self.0).map_err(|e| self.error("remove", e))
    }

    /// How many of `count` mounts are not there; `mounted` are the mount points of this process, as the kernel
    /// calls them: the place has to be named without links.
    pub(crate) fn missing(&self, count: usize, mounted: &HashSet<PathBuf>) -> usize {
        let is_missing = |point: &PathBuf| {
            let is_device = || point.is_symlink() && matches!(handler::device(point), Ok(Some(_)));
            !mounted.contains(point) && !is_device()
        };
        let points = (0..count).map(|position| self.point(position));
        points.filter(is_missing).count()
    }

    fn error(&self, call: &str, error: std::io::Error) -> Error {
        Error::os(format_args!("{call} {}", self.0.display()), error)
    }
}

fn unmount(point: &Path, busy: Busy) -> Result<()> {
    match busy {
        Busy::Wait => sys::mount::unmount_all(point)?,
        Busy::Detach => sys::mount::detach_all(point)?,
    }
    std::fs::remove_dir(point).map_err(|e| Error::os(format_args!("remove {}", point.display()), e))
}
