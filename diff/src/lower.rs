//! The layers below an overlay upper directory, looked into without mounting them.
//!
//! Invariant: read only; what overlayfs would hide (below a whiteout, an opaque directory or a
//! non-directory) is not found.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;
use types::Result;

use crate::root::{DIRECTORY, Root, each_name, file_type, is_whiteout, stat};

/// Lower layers, top first.
#[derive(Debug)]
pub(crate) struct Lowers {
    layers: Vec<Root>,
    opaque: &'static str,
}

/// A file in one of the layers.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its directory.
    pub(crate) dir: OwnedFd,
    /// Its facts.
    pub(crate) stat: Stat,
}

/// True when overlayfs shows nothing below this directory's own entries.
pub(crate) fn is_opaque(dir: &OwnedFd, attribute: &str) -> bool {
    let mut value = [0_u8; 4];
    rustix::fs::fgetxattr(dir, attribute, &mut value[..]).is_ok_and(|len| value[..len] == *b"y")
}

impl Lowers {
    /// Opens the layers.
    ///
    /// # Errors
    /// The errno of `open`.
    pub(crate) fn open(paths: &[PathBuf], opaque: &'static str) -> Result<Self> {
        let layers = paths
            .iter()
            .map(|path| Root::open(path))
            .collect::<Result<_>>()?;
        Ok(Self { layers, opaque })
    }

    /// The entry at `path` as the layers together show it; no link on the way is followed.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Result<Option<Found>, Errno> {
        for layer in &self.layers {
            let mut dir = layer.plain_directory(b"")?;
            let mut hides = false;
            for (at, part) in path.iter().enumerate() {
                let Some(stat) = stat(&dir, part)? else { break };
                if is_whiteout(&stat) {
                    return Ok(None);
                }
                if at + 1 == path.len() {
                    return Ok(Some(Found { dir, stat }));
                }
                if file_type(&stat) != FileType::Directory {
                    return Ok(None);
                }
                dir = rustix::fs::openat(dir.as_fd(), *part, DIRECTORY, Mode::empty())?;
                hides |= is_opaque(&dir, self.opaque);
            }
            if hides {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Gives `each` the names in the root directories of all layers, visible ones only; one may come
    /// several times.
    pub(crate) fn root_names(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        for layer in &self.layers {
            each_name(layer.fd(), |name| match self.find(&[name])? {
                Some(_) => each(name),
                None => Ok(()),
            })?;
        }
        Ok(())
    }
}
