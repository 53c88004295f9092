//! Where a mount goes, and what is there when it was made.
//!
//! Invariant: a sub path is resolved inside the target, before the mount and again after it: the
//! descriptor of the place shows what is below the new mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use types::Result;

use crate::fs::{fd_path, open_path, resolve_in_root};

/// A place for a mount.
#[derive(Debug)]
pub(super) struct Place<'a> {
    target: &'a Path,
    sub: &'a Path,
    path: PathBuf,
    /// Keeps what `path` leads to.
    _place: Option<OwnedFd>,
}

impl<'a> Place<'a> {
    /// Finds `sub` inside of `target`; when it is empty, that is `target` itself.
    ///
    /// # Errors
    /// The errno of `openat2`, with the path.
    pub(super) fn find(target: &'a Path, sub: &'a Path) -> Result<Self> {
        let inside = !sub.as_os_str().is_empty();
        let place = inside.then(|| resolve_in_root(target, sub)).transpose()?;
        Ok(Self {
            target,
            sub,
            path: place.as_ref().map_or_else(|| target.to_owned(), fd_path),
            _place: place,
        })
    }

    /// The path for the calls that mount.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is mounted there now. Calls that change or unmount it want this.
    ///
    /// # Errors
    /// The errno of `openat2`, with the path.
    pub(super) fn made(&self) -> Result<OwnedFd> {
        if self.sub.as_os_str().is_empty() {
            open_path(self.target)
        } else {
            resolve_in_root(self.target, self.sub)
        }
    }
}
