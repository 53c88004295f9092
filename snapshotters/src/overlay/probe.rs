//! Whether and how overlayfs works in a directory: tried, not guessed.
//!
//! Invariant: whatever the answer, nothing is left behind; and what a process has left that was killed in the
//! middle of a trial, the next one takes away.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use sys::mount::TempMount;
use types::{Error, Mount, Result};

use crate::idmap::IdMaps;
use crate::tree;

/// Whom the trial of an id-mapped layer gives its files to.
const MAPPED: u32 = 1_000_000;

/// What the names of trials begin with; the process follows.
const PREFIX: &str = ".probe-";

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        sweep(root);
        let path = root.join(format!("{PREFIX}{}-{serial}", std::process::id()));
        tree::remove(&path)?;
        let made = Self(path);
        made.dir("")?;
        Ok(made)
    }

    fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = if name.is_empty() {
            self.0.clone()
        } else {
            self.0.join(name)
        };
        std::fs::create_dir(&path)
            .map_err(|e| Error::os(format_args!("mkdir {}", path.display()), e))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.0) {
            tracing::warn!(%error, "probe directory left behind");
        }
    }
}

/// Takes away the trials of processes that are no more.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| {
            let process = name.strip_prefix(PREFIX)?.split('-').next()?;
            process.parse().ok()
        });
        let is_left = |pid| pid != std::process::id() && sys::process::start_time(pid).is_none();
        if process.is_some_and(is_left)
            && let Err(error) = take_away(&entry.path())
        {
            tracing::warn!(%error, "what is left of a trial stays");
        }
    }
}

/// Removes a trial with what is mounted in it.
fn take_away(trial: &Path) -> Result<()> {
    let fail = |e| Error::os(format_args!("read {}", trial.display()), e);
    for entry in std::fs::read_dir(trial).map_err(fail)? {
        sys::mount::detach(&entry.map_err(fail)?.path())?;
    }
    tree::remove(trial)
}

/// Checks that directory entries carry their type: overlayfs finds whiteouts by it.
///
/// # Errors
/// `NotImplemented` with the remedy; I/O.
pub(super) fn d_type(root: &Path) -> Result<()> {
    let scratch = Scratch::new(root)?;
    scratch.dir("entry")?;
    let fail = |e| tree::at("read", root, e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&scratch.0, flags, Mode::empty()).map_err(fail)?;
    for entry in Dir::read_from(&dir).map_err(fail)? {
        if entry.map_err(fail)?.file_type() == FileType::Unknown {
            return Err(Error::not_implemented(format_args!(
                "{} does not support d_type. If the backing filesystem is xfs, please reformat \
                 with ftype=1 to enable d_type support",
                root.display()
            )));
        }
    }
    Ok(())
}

/// Tries an overlay mount in `root`; true when it works with the option `userxattr` only.
///
/// # Errors
/// `NotImplemented` with the kernel's answer; I/O.
pub(super) fn works(root: &Path) -> Result<bool> {
    let scratch = Scratch::new(root)?;
    let [lower, upper, work] = [
        scratch.dir("lower")?,
        scratch.dir("upper")?,
        scratch.dir("work")?,
    ];
    let mut options = vec![
        format!("lowerdir={}", lower.display()),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    let user_namespace = in_user_namespace();
    if user_namespace {
        options.push("userxattr".into());
    }
    let mount = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    };
    let mounted = TempMount::new(&[mount], &scratch.0).map_err(|e| {
        e.ctx(format!("overlayfs does not work in {}", root.display()))
            .reclass(types::Code::NotImplemented)
    })?;
    drop(mounted);
    Ok(user_namespace)
}

/// True when layers can be mapped to other owners in `root` by the kernel: a file of such an overlay
/// has the owner that it shall have.
pub(super) fn maps_ids(root: &Path) -> bool {
    let tried = || -> Result<bool> {
        let scratch = Scratch::new(root)?;
        let (lower, other) = (scratch.dir("lower")?, scratch.dir("other")?);
        let mut options = vec![format!("lowerdir={}:{}", lower.display(), other.display())];
        options.extend(IdMaps::shifted(MAPPED).options());
        let mount = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        };
        let mounted = TempMount::new(&[mount], &scratch.0)?;
        let facts = std::fs::metadata(mounted.path());
        Ok(facts.is_ok_and(|facts| (facts.uid(), facts.gid()) == (MAPPED, MAPPED)))
    };
    match tried() {
        Ok(works) => works,
        Err(error) => {
            tracing::debug!(%error, "overlay layers cannot be id-mapped");
            false
        }
    }
}

/// True when the kernel module knows the option `index`.
pub(super) fn has_index() -> bool {
    Path::new("/sys/module/overlay/parameters/index").exists()
}

/// True when uids here are not the machine's: `trusted.` attributes are out of reach then.
fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !whole_range(&map))
}

fn whole_range(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_has_left_of_a_trial_goes_and_what_lives_stays() {
        let root = tempfile::tempdir().unwrap();
        let child = sys::process::Spawn::new("true").spawn().unwrap();
        let ended = child.pid();
        child.wait().unwrap();
        let [left, living] = [ended, 1].map(|pid| {
            let trial = root.path().join(format!("{PREFIX}{pid}-0"));
            std::fs::create_dir_all(trial.join("mounted")).unwrap();
            trial
        });
        let tmpfs = Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..Mount::default()
        };
        sys::mount::mount(&tmpfs, &left.join("mounted")).unwrap();
        std::fs::write(left.join("mounted/file"), "").unwrap();
        d_type(root.path()).unwrap();
        assert!(!left.exists());
        assert!(living.exists());
    }

    #[test]
    fn only_the_whole_range_is_the_initial_namespace() {
        assert!(whole_range("         0          0 4294967295\n"));
        assert!(!whole_range("         0     100000      65536\n"));
        assert!(!whole_range(""));
    }

    #[test]
    fn a_file_system_that_does_not_tell_types_is_refused() {
        // As xfs with `ftype=0`, which kernels do not mount any more.
        let disk = crate::testing::Disk::new("ext4", 16, &["-q", "-O", "^filetype"]);
        let error = d_type(disk.path()).unwrap_err();
        assert!(error.is(types::Code::NotImplemented), "{error}");
        assert!(error.to_string().contains("ftype=1"), "{error}");
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 1);
    }

    #[test]
    fn probing_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        d_type(temp.path()).unwrap();
        let root = temp.path().join("x");
        std::fs::create_dir(&root).unwrap();
        drop(works(&root));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    }
}
