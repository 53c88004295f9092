//! Temporary mounts: a directory of their own, gone when the guard is dropped.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use types::{Mount, Result};

use super::{detach_all, detach_mount, mount_all};
use crate::error::at;

/// Mode of a directory that others cannot enter.
const PRIVATE: u32 = 0o700;
/// Options of a mount that is only looked at.
const HARMLESS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];

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
        let path = new_directory(parent)?;
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

/// Makes a directory of its own below `parent`, which nobody else may enter.
fn new_directory(parent: &Path) -> Result<PathBuf> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(PRIVATE);
    loop {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("containerd-mount{}-{serial}", std::process::id()));
        match builder.create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at("mkdir", &path, e)),
        }
    }
}

/// A directory that is removed when it is empty.
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        // What is left in it was told already.
        drop(std::fs::remove_dir(&self.0));
    }
}

/// Runs `work` with the mounts below a temporary directory (of the system's) that is the caller's alone:
/// the mount's own root hides the mode of what it is mounted on, and what a container has made of its files
/// is for no user of the host.
///
/// # Errors
/// The error of mounting or of `work`.
pub fn with_temp_mount<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let private = Private(new_directory(&std::env::temp_dir())?);
    // Dropped before the directory that it is in.
    let mounted = TempMount::new(mounts, &private.0)?;
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
/// lower layer alone cannot be mounted) and its ids are those on the disk. Nothing in them can be run, is a
/// device, or gives anybody another's rights.
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
            }
            let opposite = ["rw", "suid", "dev", "exec"];
            mount.options.retain(|option| {
                !HARMLESS.contains(&option.as_str()) && !opposite.contains(&option.as_str())
            });
            mount.options.extend(HARMLESS.map(str::to_owned));
            mount
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use rustix::fs::StatVfsMountFlags as Flags;
    use types::Error;

    use super::*;
    use crate::process::Spawn;

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
        assert!(!seen.exists() && !seen.parent().unwrap().exists());
    }

    /// The root of a container is everybody's to enter; the way to it is not.
    #[test]
    fn no_other_user_of_the_host_reaches_what_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), everybody).unwrap();
        std::fs::write(dir.path().join("f"), "text").unwrap();
        let bind = Mount {
            kind: "bind".into(),
            source: dir.path().display().to_string(),
            options: ["rbind", "rw", "suid"].map(Into::into).into(),
            ..Mount::default()
        };
        let stat = |path: &Path, user: &str| {
            Spawn::new("setpriv")
                .args(["--reuid", user, "--regid", user, "--clear-groups", "stat"])
                .arg(path)
                .output(&[], 4096, Duration::from_secs(60))
                .unwrap()
        };
        with_temp_mount(&read_only(&[bind]), |path| {
            assert!(stat(&dir.path().join("f"), "65534").status.is_success());
            for there in [path.to_owned(), path.join("f")] {
                let told = stat(&there, "65534");
                let text = String::from_utf8_lossy(&told.text).into_owned();
                assert!(text.contains("Permission denied"), "{text}");
                assert!(stat(&there, "0").status.is_success());
            }
            let all = super::super::info::load()?;
            let real = path.canonicalize().unwrap();
            let mount = all.iter().find(|mount| mount.mount_point == real).unwrap();
            let options: Vec<_> = mount.options.split(',').collect();
            for harmless in HARMLESS {
                assert!(options.contains(&harmless), "{options:?}");
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn an_overlay_that_is_looked_at_is_as_harmless() {
        let parent = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path.display().to_string()
        };
        let [lower, upper, work] = ["lower", "upper", "work"].map(dir);
        std::fs::write(Path::new(&upper).join("f"), "text").unwrap();
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={lower}"),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
            ],
            ..Mount::default()
        };
        with_temp_mount(&read_only(&[overlay]), |path| {
            assert_eq!(std::fs::read(path.join("f")).unwrap(), b"text");
            let flags = rustix::fs::statvfs(path).unwrap().f_flag;
            let harmless = Flags::RDONLY | Flags::NOSUID | Flags::NODEV | Flags::NOEXEC;
            assert!(flags.contains(harmless), "{flags:?}");
            Ok(())
        })
        .unwrap();
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
            options: ["rbind", "rw", "exec"].map(Into::into).into(),
            ..Mount::default()
        };
        let got = read_only(&[overlay, bind]);
        let harmless = ["ro", "nosuid", "nodev", "noexec"];
        assert_eq!(got[0].options[0], "lowerdir=/u:/l");
        assert_eq!(got[0].options[1..], harmless);
        assert_eq!(got[1].options[0], "rbind");
        assert_eq!(got[1].options[1..], harmless);
    }
}
