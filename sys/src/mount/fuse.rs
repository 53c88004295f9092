//! File systems of FUSE, mounted and unmounted by its own helpers.
//!
//! ```text
//! type fuse3.fuse-overlayfs -> mount.fuse3 SOURCE TARGET -o OPTION.. -t fuse-overlayfs
//!                              fusermount3 -u TARGET
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use types::{Error, Mount, Result};

use super::info;
use crate::process::Spawn;

/// A file system that does not come up in this time is not waited for.
const DEADLINE: Duration = Duration::from_secs(30);
/// The same when it goes: the kernel is asked then.
const FAREWELL: Duration = Duration::from_secs(10);
/// Most of them that are taken from one place.
const STACKED: usize = 16;
/// What is kept of the helper's words.
const WORDS: usize = 4096;
/// What unmounts them, the newer one first.
pub(super) const UNMOUNTERS: [&str; 2] = ["fusermount3", "fusermount"];

/// One of the two helpers, and the program that it is to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Helper<'a> {
    program: &'static str,
    kind: &'a str,
}

impl<'a> Helper<'a> {
    /// The helper for a type of mount that needs one.
    pub(super) fn of(kind: &'a str) -> Option<Self> {
        let of = |prefix, program| {
            let kind = kind.strip_prefix(prefix)?;
            Some(Self { program, kind })
        };
        of("fuse3.", "mount.fuse3").or_else(|| of("fuse.", "mount.fuse"))
    }

    /// Mounts, and waits until the file system is there.
    ///
    /// # Errors
    /// `NotFound` without the helper; `InvalidArgument` for a source or an option that would be read as
    /// something else; `DeadlineExceeded`; `Unknown` with the helper's words.
    pub(super) fn mount(self, mount: &Mount, target: &Path) -> Result<()> {
        let target = seen_from_outside(target)?;
        if mount.source.starts_with('-') || self.kind.is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "mount type {} with source {:?}",
                mount.kind, mount.source
            )));
        }
        let mut spawn = Spawn::new(self.program).arg(&mount.source).arg(target);
        for option in &mount.options {
            spawn = spawn.arg("-o").arg(option);
        }
        let output = spawn.args(["-t", self.kind]).output(&[], WORDS, DEADLINE)?;
        if output.status.is_success() {
            return Ok(());
        }
        Err(Error::unknown(format_args!(
            "{} failed with code {}: {}",
            self.program,
            output.status.code(),
            String::from_utf8_lossy(&output.text).trim()
        )))
    }
}

/// Unmounts the file system at `target` by the first of these programs that can, when it is one of FUSE;
/// false leaves it to the kernel.
pub(super) fn unmount(target: &Path, helpers: &[&str]) -> bool {
    unmount_within(target, helpers, FAREWELL)
}

/// As [`unmount`], as long as one of FUSE is on top.
pub(super) fn unmount_all(target: &Path, helpers: &[&str]) {
    // A helper that says that it did and did not is not asked for ever.
    let _taken = (0..STACKED)
        .take_while(|_| unmount(target, helpers))
        .count();
}

fn unmount_within(target: &Path, helpers: &[&str], deadline: Duration) -> bool {
    if !is_one(target) {
        return false;
    }
    let Ok(target) = seen_from_outside(target) else {
        return false;
    };
    // Parity: mount_linux.go: what it says is nobody's concern, the kernel says more.
    helpers.iter().any(|helper| {
        let spawn = Spawn::new(*helper).arg("-u").arg(&target);
        let done = spawn.answer(&[], WORDS, deadline);
        done.is_ok_and(|answer| answer.status.is_success())
    })
}

/// True when what is mounted at `target` is a file system of FUSE without a disk. Its server is not asked,
/// as statfs(2) would: one that does not answer any more is what is to be unmounted.
fn is_one(target: &Path) -> bool {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    // The kernel tells these of every file, wanted or not; what it has to be asked for, so has the server.
    let facts = rustix::fs::statx(CWD, target, flags, StatxFlags::empty());
    let Ok(facts) = facts else {
        return false;
    };
    let is_mounted = facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let has_id = StatxFlags::from_bits_retain(facts.stx_mask).contains(StatxFlags::MNT_ID);
    if !is_mounted || !has_id || facts.stx_dev_major != 0 {
        return false;
    }
    let found = info::of(facts.stx_mnt_id).ok().flatten();
    found.is_some_and(|mount| mount.kind == "fuse" || mount.kind.starts_with("fuse."))
}

/// The path as another process finds it: `self` is somebody else there.
fn seen_from_outside(path: &Path) -> Result<PathBuf> {
    if let Ok(rest) = path.strip_prefix("/proc/self") {
        return Ok(Path::new("/proc")
            .join(std::process::id().to_string())
            .join(rest));
    }
    std::path::absolute(path).map_err(|e| crate::error::at("resolve", path, e))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use rustix::process::{Pid, Signal, kill_process};

    use super::super::{is_mount_point, mount, unmount};
    use super::*;

    #[test]
    fn types_name_helper_and_program() {
        let helper = |program, kind| Some(Helper { program, kind });
        assert_eq!(Helper::of("fuse3.x"), helper("mount.fuse3", "x"));
        assert_eq!(Helper::of("fuse.x.y"), helper("mount.fuse", "x.y"));
        assert_eq!(Helper::of("overlay"), None);
        assert_eq!(Helper::of("fuseblk"), None);
    }

    /// Where an overlay of FUSE's is mounted in `dir`, with a file `f`.
    fn overlay(dir: &Path) -> PathBuf {
        let path = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        std::fs::write(Path::new(&path("lower")).join("f"), "text").unwrap();
        let to = PathBuf::from(path("to/sub"));
        let overlay = Mount {
            kind: "fuse3.fuse-overlayfs".into(),
            source: "overlay".into(),
            target: "sub".into(),
            options: vec![
                format!("lowerdir={}", path("lower")),
                format!("upperdir={}", path("upper")),
                format!("workdir={}", path("work")),
            ],
        };
        mount(&overlay, &dir.join("to")).unwrap();
        to
    }

    #[test]
    fn an_overlay_of_fuse_is_mounted_by_its_helper() {
        let dir = tempfile::tempdir().unwrap();
        let to = overlay(dir.path());
        assert!(is_mount_point(&to).unwrap());
        assert_eq!(std::fs::read(to.join("f")).unwrap(), b"text");
        let real = to.canonicalize().unwrap();
        let there = info::load().unwrap();
        let kind = there.iter().find(|m| m.mount_point == real).unwrap();
        assert!(kind.kind.starts_with("fuse"), "{kind:?}");
        unmount(&to).unwrap();
        assert!(!is_mount_point(&to).unwrap());
    }

    /// A program that leaves a mark with its arguments, and ends as `text` says.
    fn helper(dir: &Path, name: &str, text: &str) -> String {
        let path = dir.join(name);
        let text = format!("#!/bin/sh\necho \"$*\" >\"$0.told\"\n{text}\n");
        // Not written here: what is forked meanwhile would hold it open, and it could not be run.
        let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
        let write = Spawn::new("/bin/sh").args(write).arg(&path);
        let written = write.output(text.as_bytes(), WORDS, Duration::from_secs(60));
        assert!(written.unwrap().status.is_success());
        path.display().to_string()
    }

    fn told(helper: &str) -> Option<String> {
        std::fs::read_to_string(format!("{helper}.told")).ok()
    }

    #[test]
    fn the_first_helper_that_can_unmounts_and_none_is_asked_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let cannot = helper(dir.path(), "cannot", "exit 1");
        let hangs = helper(dir.path(), "hangs", "exec sleep 1000");
        let can = helper(dir.path(), "can", "exit 0");
        let none = dir.path().join("none").display().to_string();
        let all = [&*none, &*cannot, &*can];
        assert!(!super::unmount(dir.path(), &all));
        assert_eq!(told(&cannot), None);

        let mounted = overlay(dir.path());
        assert!(super::unmount(&mounted, &all));
        let want = format!("-u {}\n", mounted.display());
        for helper in [&cannot, &can] {
            assert_eq!(told(helper).as_ref(), Some(&want));
        }
        assert!(is_mount_point(&mounted).unwrap(), "it only said so");
        // Without any, or with none that can, the kernel does it.
        assert!(!super::unmount(&mounted, &[&none, &cannot]));
        let moment = Duration::from_millis(100);
        assert!(!unmount_within(&mounted, &[&hangs], moment));
        unmount_all(&mounted, &all);
        super::super::detach(&mounted).unwrap();
        assert!(!is_mount_point(&mounted).unwrap());
    }

    /// A server that does not answer until this is dropped.
    struct Stopped(Pid);

    impl Stopped {
        /// The server of [`overlay`] in `dir`.
        fn of(dir: &Path) -> Self {
            let lower = format!("lowerdir={}/lower,", dir.display());
            let is_one = |pid: &u32| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut words = line.split('\0');
                let program = words.next().unwrap_or_default();
                program.ends_with("fuse-overlayfs") && words.any(|word| word.contains(&lower))
            };
            let all = std::fs::read_dir("/proc").unwrap();
            let pids = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
            let pid = pids.into_iter().find(is_one).unwrap();
            let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
            kill_process(pid, Signal::STOP).unwrap();
            let until = Instant::now() + Duration::from_secs(60);
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            while !stat().contains(") T ") {
                assert!(Instant::now() < until, "{}", stat());
                std::thread::yield_now();
            }
            Self(pid)
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            // It may be gone.
            let _gone = kill_process(self.0, Signal::CONT);
        }
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let can = helper(dir.path(), "can", "exit 0");
        let mounted = overlay(dir.path());
        let stopped = Stopped::of(dir.path());
        let (done, ended) = mpsc::channel();
        let place = mounted.clone();
        std::thread::spawn(move || {
            let answers = [&[&*can][..], &UNMOUNTERS].map(|all| super::unmount(&place, all));
            // The test may have given up.
            let _gone = done.send((answers, is_mount_point(&place).unwrap()));
        });
        let ended = ended.recv_timeout(Duration::from_secs(60));
        drop(stopped);
        assert_eq!(ended, Ok(([true; 2], false)));
    }

    #[test]
    fn the_helper_of_this_machine_unmounts() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = overlay(dir.path());
        assert!(super::unmount(&mounted, &UNMOUNTERS));
        assert!(!is_mount_point(&mounted).unwrap());
        // Two at one place.
        let mounted = overlay(dir.path());
        overlay(dir.path());
        super::super::unmount_all(&mounted).unwrap();
        assert!(!is_mount_point(&mounted).unwrap());
    }

    #[test]
    fn what_the_helper_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let bad = |source: &str| Mount {
            kind: "fuse3.no-such-file-system".into(),
            source: source.into(),
            ..Mount::default()
        };
        let error = mount(&bad("x"), dir.path()).unwrap_err().to_string();
        assert!(error.contains("mount.fuse3 failed"), "{error}");
        let error = mount(&bad("-o"), dir.path()).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
        assert!(!is_mount_point(dir.path()).unwrap());
    }
}
