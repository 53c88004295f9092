//! Network namespaces: made, kept by a mount on a file, entered for the length of a call.
//!
//! Invariant: a thread that has been in another namespace ends there. No thread of a caller's is ever
//! in one, so nothing can be left in the wrong one, whatever fails.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use types::{Error, Result};

use crate::error::{at, op};
use crate::fs::fd_path;
use crate::process::command_line;

/// The file system of namespaces.
const NSFS: i64 = 0x6e73_6673;
/// Asks which kind of namespace a file stands for.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// Namespaces of a thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that is kept while this lives.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    inode: u64,
}

/// A process in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its pid.
    pub pid: u32,
    /// The name of its program.
    pub command: String,
}

impl NetNs {
    /// The one that this thread is in.
    ///
    /// # Errors
    /// The errno.
    pub fn own() -> Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// The one that the file at `path` stands for.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when it stands for none; else the errno.
    pub fn open(path: &Path) -> Result<Self> {
        // Looked at before it is opened: to open a pipe or a device has effects.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
                Error::not_found(format_args!("network namespace {}", path.display()))
            }
            e => at("open", path, e),
        })?;
        let none =
            || Error::invalid_argument(format_args!("{} is no network namespace", path.display()));
        let kind = rustix::fs::fstatfs(&found).map_err(|e| at("statfs", path, e))?;
        if kind.f_type != NSFS {
            return Err(none());
        }
        let file = File::open(fd_path(&found)).map_err(|e| at("open", path, e))?;
        // SAFETY: this request takes no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(none());
        }
        let inode = file.metadata().map_err(|e| at("stat", path, e))?.ino();
        Ok(Self { file, inode })
    }

    /// The number by which the kernel tells it from others that are there now.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on a thread in this namespace. Blocks.
    ///
    /// # Errors
    /// The errno of entering it; those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(self.file.as_fd(), kind)
                .map_err(|e| op("enter network namespace", e))?;
            work()
        })
    }

    /// Keeps it beyond this process: a mount on `path`, a new file.
    ///
    /// # Errors
    /// `AlreadyExists` when there is something at `path`, else the errno; then there is nothing.
    pub fn pin(&self, path: &Path) -> Result<()> {
        pin(&fd_path(&self.file), path)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes a network namespace that is kept by a mount on `path`, a new file. `fill` runs inside before that, so
/// that nobody finds a namespace that is not ready.
///
/// # Errors
/// `AlreadyExists` when there is something at `path`, else the errno; those of `fill`. Then there is nothing.
pub fn create(path: &Path, fill: impl FnOnce() -> Result<()> + Send) -> Result<NetNs> {
    on_thread(|| {
        #[expect(
            deprecated,
            reason = "the thread is ours and ends here; its successor is the same call, marked for the file table"
        )]
        rustix::thread::unshare(UnshareFlags::NEWNET)
            .map_err(|e| op("make network namespace", e))?;
        fill()?;
        let made = NetNs::own()?;
        pin(Path::new(OWN), path)?;
        Ok(made)
    })
}

fn pin(namespace: &Path, path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o444).open(path);
    made.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::already_exists(format_args!("{}", path.display()))
        }
        _ => at("create", path, e),
    })?;
    rustix::mount::mount_bind(namespace, path).map_err(|e| {
        // Whatever becomes of the empty file, the first failure is what the caller must hear of.
        drop(std::fs::remove_file(path));
        at("keep network namespace at", path, e)
    })
}

/// Takes away the mount on `path` and the file. The namespace lives on while anybody uses it. What is
/// not there is no error.
///
/// # Errors
/// The errno, with the path.
pub fn unpin(path: &Path) -> Result<()> {
    crate::mount::detach_all(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at("remove", path, e)),
        _ => Ok(()),
    }
}

/// The processes in the namespace with this number, as far as this pid namespace has them.
///
/// # Errors
/// The errno of reading `/proc`.
pub fn users(inode: u64) -> Result<Vec<User>> {
    let proc = Path::new("/proc");
    let entries = std::fs::read_dir(proc).map_err(|e| at("read", proc, e))?;
    let wanted = PathBuf::from(format!("net:[{inode}]"));
    let mut all = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // What has ended meanwhile uses nothing.
        let found = std::fs::read_link(entry.path().join("ns/net"));
        if found.is_ok_and(|found| found == wanted) {
            let line = command_line(pid);
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            all.push(User {
                pid,
                command: String::from_utf8_lossy(program).into_owned(),
            });
        }
    }
    Ok(all)
}

/// Runs `work` on a thread of its own.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|e| op("start thread", e))?;
        spawned
            .join()
            .unwrap_or_else(|_| Err(Error::internal("a thread in a network namespace panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    fn own() -> u64 {
        NetNs::own().unwrap().inode()
    }

    #[test]
    fn one_is_kept_by_its_path_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let made = create(&path, || Ok(())).unwrap();
        assert_ne!(made.inode(), own());
        let inode = made.inode();
        drop(made);
        let found = NetNs::open(&path).unwrap();
        assert_eq!(found.inode(), inode);
        assert_eq!(found.within(NetNs::own).unwrap().inode(), inode);
        assert_eq!(users(inode).unwrap(), []);
        assert!(create(&path, || Ok(())).unwrap_err().is_already_exists());
        let again = dir.path().join("again");
        found.pin(&again).unwrap();
        assert_eq!(NetNs::open(&again).unwrap().inode(), inode);
        for path in [&path, &again] {
            unpin(path).unwrap();
            unpin(path).unwrap();
            assert!(NetNs::open(path).unwrap_err().is_not_found());
        }
    }

    #[test]
    fn one_that_cannot_be_filled_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let failed = create(&path, || Err(Error::internal("no"))).unwrap_err();
        assert!(failed.is(Code::Internal));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let pipe = dir.path().join("p");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RWXU).unwrap();
        let other = Path::new("/proc/self/ns/mnt");
        for path in [&file, &pipe, dir.path(), other, Path::new("/dev/null")] {
            let error = NetNs::open(path).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
        }
        assert!(NetNs::open(&file.join("x")).unwrap_err().is_not_found());
    }

    #[test]
    fn its_processes_are_known_by_name() {
        let me = users(own()).unwrap();
        assert!(
            me.iter().any(|user| user.pid == std::process::id()),
            "{me:?}"
        );
    }
}
