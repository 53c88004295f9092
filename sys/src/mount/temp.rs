//! Temporary mounts: a directory of their own, gone when the guard is dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use types::{Mount, Result};

use super::{detach_all, detach_mount, mount_all};
use crate::error::at;

/// A list of mounts at a directory of its own. Dropping it detaches them and removes the directory.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
    /// Sub paths with mounts of their own.
    below: Vec<PathBuf>,
}

impl TempMount {
    /// Mounts at a new directory below `parent`, which must exist. An overlay is never `volatile` there.
    ///
    /// # Errors
    /// As [`mount_all`], or the errno of making the directory; nothing is left then.
    pub fn new(mounts: &[Mount], parent: &Path) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let path = loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("containerd-mount{}-{serial}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => break path,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(at("mkdir", &path, e)),
            }
        };
        // The guard exists from here on: it removes the directory also when a mount fails.
        let below = mounts.iter().filter(|mount| !mount.target.is_empty());
        let made = Self {
            path,
            below: below.map(|mount| mount.target.clone().into()).collect(),
        };
        mount_all(&without_volatile(mounts), &made.path)?;
        Ok(made)
    }

    /// Where the mounts are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts now, waiting for the file system to let go (its data is on the way to the disk then).
    ///
    /// # Errors
    /// The errno of unmounting; the mounts are detached in any case.
    pub fn unmount(self) -> Result<()> {
        for sub in self.below.iter().rev() {
            // They would keep the mount that they are in; what is no mount is left alone.
            let found = crate::fs::resolve_in_root(&self.path, sub);
            drop(found.and_then(detach_mount));
        }
        super::unmount_all(&self.path)
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        if let Err(error) = detach_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "temporary mount left behind");
            return;
        }
        // remove_dir, never remove_dir_all: should something still be mounted, it must survive.
        if let Err(error) = std::fs::remove_dir(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "temporary mount point left behind");
        }
    }
}

/// Runs `work` with the mounts at a temporary directory (below the system's).
///
/// # Errors
/// The error of mounting or of `work`.
pub fn with_temp_mount<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let mounted = TempMount::new(mounts, &std::env::temp_dir())?;
    work(mounted.path())
}

/// The same mounts, with overlays that flush. The kernel marks the work directory of one that does not, and
/// refuses the next mount of it, which is the container's.
fn without_volatile(mounts: &[Mount]) -> Vec<Mount> {
    let mut mounts = mounts.to_vec();
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "overlay") {
        mount.options.retain(|option| option != "volatile");
    }
    mounts
}

/// The same mounts for reading only: an overlay's upper layer becomes its topmost lower one (a single
/// lower layer alone cannot be mounted) and its ids are those on the disk, everything else becomes `ro`.
#[must_use]
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    mounts
        .iter()
        .map(|mount| {
            let mut mount = mount.clone();
            if mount.kind == "overlay" {
                let upper = mount.option("upperdir").map(str::to_owned);
                mount.options.retain(|option| {
                    let gone = ["upperdir=", "workdir=", "uidmap=", "gidmap="];
                    !gone.iter().any(|name| option.starts_with(name)) && option != "volatile"
                });
                for option in &mut mount.options {
                    if let (Some(upper), Some(lower)) = (&upper, option.strip_prefix("lowerdir=")) {
                        *option = format!("lowerdir={upper}:{lower}");
                    }
                }
            } else {
                mount
                    .options
                    .retain(|option| option != "rw" && option != "ro");
                mount.options.push("ro".into());
            }
            mount
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Error;

    fn tmpfs() -> Mount {
        Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..Mount::default()
        }
    }

    #[test]
    fn the_mount_is_there_during_the_work_and_gone_after() {
        let (seen, mounted) = with_temp_mount(&[tmpfs()], |path| {
            std::fs::write(path.join("x"), "").map_err(|e| at("write", path, e))?;
            Ok((path.to_owned(), super::super::is_mount_point(path)?))
        })
        .unwrap();
        assert!(mounted);
        assert!(!seen.exists());
    }

    #[test]
    fn a_failed_mount_or_failed_work_leaves_no_directory() {
        let parent = tempfile::tempdir().unwrap();
        let bad = Mount {
            kind: "nosuchfs".into(),
            source: "x".into(),
            ..Mount::default()
        };
        TempMount::new(&[tmpfs(), bad], parent.path()).unwrap_err();
        let mounted = TempMount::new(&[tmpfs()], parent.path()).unwrap();
        mounted.unmount().unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        let failed: Result<()> = with_temp_mount(&[tmpfs()], |_| Err(Error::internal("no")));
        failed.unwrap_err();
    }

    #[test]
    fn a_volatile_overlay_can_be_mounted_after_a_temporary_mount_of_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path.display().to_string()
        };
        let [lower, upper, work, own] = ["lower", "upper", "work", "own"].map(dir);
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={lower}"),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
                "volatile".into(),
            ],
            ..Mount::default()
        };
        let mounted = TempMount::new(std::slice::from_ref(&overlay), parent.path()).unwrap();
        std::fs::write(mounted.path().join("f"), "").unwrap();
        mounted.unmount().unwrap();
        let own = Path::new(&own);
        super::super::mount(&overlay, own).unwrap();
        let seen = own.join("f").exists();
        super::super::unmount(own).unwrap();
        assert!(seen);
    }

    #[test]
    fn mounts_at_sub_paths_do_not_keep_the_one_that_they_are_in() {
        let parent = tempfile::tempdir().unwrap();
        let source = parent.path().join("source");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        let outer = Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            options: vec!["bind".into()],
            ..Mount::default()
        };
        let inner = Mount {
            target: "sub".into(),
            ..tmpfs()
        };
        let mounted = TempMount::new(&[outer, inner], parent.path()).unwrap();
        let path = mounted.path().to_owned();
        assert!(super::super::is_mount_point(&path.join("sub")).unwrap());
        mounted.unmount().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn read_only_makes_the_upper_layer_a_lower_one() {
        let overlay = Mount {
            kind: "overlay".into(),
            options: [
                "uidmap=0:1:1",
                "gidmap=0:1:1",
                "lowerdir=/l",
                "upperdir=/u",
                "workdir=/w",
                "volatile",
            ]
            .map(Into::into)
            .into(),
            ..Mount::default()
        };
        let bind = Mount {
            kind: "bind".into(),
            options: ["rbind", "rw"].map(Into::into).into(),
            ..Mount::default()
        };
        let got = read_only(&[overlay, bind]);
        assert_eq!(got[0].options, ["lowerdir=/u:/l"]);
        assert_eq!(got[1].options, ["rbind", "ro"]);
    }
}
