//! A directory that nothing done through it can leave.
//!
//! Invariant: names from outside reach the kernel only below an open descriptor, resolved with
//! `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` or component by component without following
//! links. A last component is never followed.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use types::{Code, Error, Result};

/// How directories are opened.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Longest name below a root, in bytes (`PATH_MAX` without its NUL).
pub(crate) const MAX_NAME: usize = 4095;
/// `openat2` asks for another try when the tree moved below it.
const RETRIES: usize = 32;

/// The root of a tree.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// The errno of `open`.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::os(format_args!("open {}", path.display()), e.into()))?;
        Ok(Self { fd })
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens the directory `path` below the root; links are followed inside.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::fs::openat(&self.fd, c".", DIRECTORY, Mode::empty());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.open2(path, flags, ResolveFlags::IN_ROOT)
    }

    /// Opens the directory `path` below the root; a link anywhere is an error.
    pub(crate) fn plain_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::fs::openat(&self.fd, c".", DIRECTORY, Mode::empty());
        }
        self.open2(
            path,
            DIRECTORY,
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    }

    fn open2(&self, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        let how = how | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) if tries < RETRIES => tries += 1,
                other => return other,
            }
        }
    }
}

/// Splits a name into components, without `.` and empty ones; `..` takes the one before it away.
///
/// Parity: Go cleans names the same way before it resolves links.
pub(crate) fn components(name: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// Facts of an entry, a link not followed; `None` when it is not there.
pub(crate) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file type of an entry.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// True for what overlayfs takes for "deleted": a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Gives `each` the names in a directory, without `.` and `..`, in no order.
pub(crate) fn each_name(
    dir: impl AsFd,
    mut each: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name)?;
        }
    }
    Ok(())
}

/// A path for calls that take no descriptor: the directory is pinned by its descriptor and the last
/// component is for calls that do not follow.
pub(crate) fn through_fd(dir: impl AsFd, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    path
}

/// Opens for reading the regular file that `facts` were taken of, and nothing that took its place since:
/// a container may be at work in the tree, and the nodes of its devices are the host's devices.
pub(crate) fn open_regular(dir: impl AsFd, name: &[u8], facts: &Stat) -> Result<OwnedFd, Errno> {
    let by_name = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = rustix::fs::openat(dir, name, by_name, Mode::empty())?;
    let now = rustix::fs::fstat(&pinned)?;
    let same = (now.st_dev, now.st_ino) == (facts.st_dev, facts.st_ino);
    if !same || file_type(&now) != FileType::RegularFile {
        return Err(Errno::STALE);
    }
    let open = |more| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | more;
        rustix::fs::open(sys::fs::fd_path(&pinned), flags, Mode::empty())
    };
    // Reading must not change what is read, where we may say so.
    open(OFlags::NOATIME).or_else(|_| open(OFlags::empty()))
}

/// The error of a call on an entry of an archive or a tree. What only a name or a link of the
/// archive can have caused is `InvalidArgument`.
pub(crate) fn entry_error(call: &str, name: &[u8], errno: Errno) -> Error {
    let shown = &name[..name.len().min(200)];
    let made = Error::os(
        format_args!("{call} {:?}", String::from_utf8_lossy(shown)),
        errno.into(),
    );
    match errno {
        Errno::NOSPC | Errno::DQUOT => made.reclass(Code::ResourceExhausted),
        // The tree changed under our hands.
        Errno::STALE => made.reclass(Code::Aborted),
        Errno::NAMETOOLONG
        | Errno::NOTDIR
        | Errno::LOOP
        | Errno::ISDIR
        | Errno::XDEV
        | Errno::FBIG
        | Errno::MLINK
        | Errno::NOENT
        | Errno::INVAL => made.reclass(Code::InvalidArgument),
        _ => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_go_does() {
        for (name, want) in [
            ("a/b", vec!["a", "b"]),
            ("/a//./b/", vec!["a", "b"]),
            ("../../a", vec!["a"]),
            ("a/../../b", vec!["b"]),
            ("..", vec![]),
            ("./", vec![]),
            ("", vec![]),
        ] {
            let want: Vec<&[u8]> = want.into_iter().map(str::as_bytes).collect();
            assert_eq!(components(name.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn only_the_file_that_was_looked_at_is_opened() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Root::open(temp.path()).unwrap();
        let path = temp.path().join("f");
        std::fs::write(&path, "text").unwrap();
        let facts = stat(&dir.fd, b"f").unwrap().unwrap();
        open_regular(&dir.fd, b"f", &facts).unwrap();
        let aside = temp.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        let number = rustix::fs::makedev(1, 5);
        let swaps: [&dyn Fn(); 4] = [
            &|| std::fs::write(&path, "other").unwrap(),
            &|| std::os::unix::fs::symlink("aside", &path).unwrap(),
            &|| {
                let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR);
                rustix::fs::mknodat(&dir.fd, "f", kind, mode, number).unwrap();
            },
            &|| rustix::fs::mknodat(&dir.fd, "f", FileType::Fifo, Mode::RUSR, 0).unwrap(),
        ];
        for swap in swaps {
            swap();
            let error = open_regular(&dir.fd, b"f", &facts).unwrap_err();
            assert_eq!(error, Errno::STALE);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn links_stay_inside() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("abs")).unwrap();
        std::os::unix::fs::symlink("../../../..", root.join("up")).unwrap();
        std::fs::write(root.join("etc/inside"), "").unwrap();
        let root = Root::open(&root).unwrap();
        for path in ["abs", "up/etc", "up/up/abs"] {
            let dir = root.directory(path.as_bytes()).unwrap();
            let mut names = Vec::new();
            each_name(&dir, |name| {
                names.push(name.to_vec());
                Ok(())
            })
            .unwrap();
            assert_eq!(names, [b"inside"], "{path}");
        }
        root.plain_directory(b"abs").unwrap_err();
        root.plain_directory(b"up/etc").unwrap_err();
        assert_eq!(
            root.directory(b"../proc/self/root").unwrap_err(),
            Errno::NOENT
        );
    }
}
