//! What is done to a mount before it is performed, as its type asks: `format/`, `mkfs/`, `mkdir/`.
//!
//! Invariant: files and directories are made below the roots that the daemon was given, resolved there,
//! and nowhere else.

mod format;
mod mkdir;
mod mkfs;

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use types::{ActiveMount, Error, Mount, Result};

/// One kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Fills in places of earlier mounts.
    Format,
    /// Makes the source, a file with a file system in it.
    Mkfs,
    /// Makes directories.
    Mkdir,
}

impl Change {
    /// By the word in front of a type.
    pub(crate) fn of(prefix: &str) -> Option<Self> {
        Some(match prefix {
            "format" => Self::Format,
            "mkfs" => Self::Mkfs,
            "mkdir" => Self::Mkdir,
            _ => return None,
        })
    }

    /// Does it to `mount`, which comes after the mounts `active`.
    ///
    /// # Errors
    /// `InvalidArgument` for options that do not parse; `PermissionDenied` outside of the roots; I/O.
    pub(crate) fn apply(
        self,
        mount: Mount,
        active: &[ActiveMount],
        roots: &[PathBuf],
    ) -> Result<Mount> {
        match self {
            Self::Format => format::apply(mount, active),
            Self::Mkfs => mkfs::apply(mount, roots),
            Self::Mkdir => mkdir::apply(mount, roots),
        }
    }
}

/// The parent directory of `path`, opened below the root that `path` lies in, and the last name.
fn parent(path: &str, roots: &[PathBuf]) -> Result<(OwnedFd, PathBuf)> {
    let path = Path::new(path);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let below = |root: &PathBuf| Some((root.clone(), path.strip_prefix(root).ok()?.to_owned()));
    let found = roots.iter().find_map(below);
    let Some((root, rest)) = found.filter(|_| path.components().all(plain)) else {
        return Err(Error::permission_denied(format_args!(
            "{} is not below a directory where the mount manager makes files",
            path.display()
        )));
    };
    let (Some(parent), Some(name)) = (rest.parent(), rest.file_name()) else {
        return Err(Error::invalid_argument(format_args!(
            "{} is a root itself",
            path.display()
        )));
    };
    let root = sys::fs::open_dir(&root)?;
    let parent = sys::fs::open_in_root(&root, parent, OFlags::PATH | OFlags::DIRECTORY, 0)?;
    Ok((parent, name.into()))
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    #[test]
    fn only_what_lies_below_a_root_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::fs::create_dir(dir.path().join("root-of-another")).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let roots = [root.clone()];
        let of = |rest: &str| parent(&format!("{}{rest}", root.display()), &roots);
        assert_eq!(of("/in/x").unwrap().1, Path::new("x"));
        // The link leads to the root itself.
        of("/link/in/x").unwrap();
        assert!(of("/link/etc/x").unwrap_err().errno().is_some());
        for outside in ["-of-another/x", "/../x", "/in/../../x"] {
            assert!(
                of(outside).unwrap_err().is(Code::PermissionDenied),
                "{outside}"
            );
        }
        assert!(of("").unwrap_err().is(Code::InvalidArgument));
        assert!(
            parent("/etc/x", &roots)
                .unwrap_err()
                .is(Code::PermissionDenied)
        );
    }
}
