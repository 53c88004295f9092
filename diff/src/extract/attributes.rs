//! Owners, modes, times and extended attributes of what was made.
//!
//! Invariant: owner first, then attributes, then mode (a change of owner clears set-id bits and file
//! capabilities), times last; never through a link.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::root::{file_type, through_fd};
use crate::tar::{Entry, Time};

/// Longest attribute value and list of names (kernel limits).
const XATTR: usize = 64 * 1024;

/// What a new file gets by itself, so that it need not be set.
#[derive(Debug)]
pub(super) struct Attributes {
    uid: u32,
    gid: u32,
    umask: u32,
}

/// Extended attributes, names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is being attributed: an open file, or an entry of a directory.
#[derive(Clone, Copy)]
pub(super) enum What<'a> {
    Open(&'a OwnedFd),
    Entry(&'a OwnedFd, &'a [u8], FileType),
}

/// Permission bits of a mode.
pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits as RawMode & 0o7777)
}

/// Parity: times before 1970 become 1970.
fn timespec(time: Time) -> Timespec {
    if time.seconds < 0 {
        return Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
    }
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanos),
    }
}

/// Parity: the access time is at least the modification time.
fn timestamps(mtime: Time, atime: Option<Time>) -> Timestamps {
    let atime = atime.map_or(mtime, |atime| atime.max(mtime));
    Timestamps {
        last_access: timespec(atime),
        last_modification: timespec(mtime),
    }
}

/// Sets the times of a directory, if it is still one.
pub(super) fn directory_times(
    parent: &OwnedFd,
    name: &[u8],
    mtime: Time,
    atime: Option<Time>,
) -> Result<(), Errno> {
    match crate::root::stat(parent, name)? {
        Some(facts) if file_type(&facts) == FileType::Directory => {}
        _ => return Ok(()),
    }
    let times = timestamps(mtime, atime);
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

impl Attributes {
    /// The ids and the umask of this process.
    pub(super) fn of_process() -> Self {
        let umask = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Umask:"))?;
                u32::from_str_radix(line.trim(), 8).ok()
            });
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            // Unknown: every mode is set.
            umask: umask.unwrap_or(0o777),
        }
    }

    /// Gives a new file what its entry says. `inherits`: its directory hands down ids or modes.
    pub(super) fn set(&self, what: What<'_>, entry: &Entry, inherits: bool) -> Result<(), Errno> {
        if inherits || entry.uid != self.uid || entry.gid != self.gid {
            own(what, entry.uid, entry.gid)?;
        }
        for (name, value) in &entry.xattrs {
            attribute(what, name, value)?;
        }
        let as_made = entry.mode & 0o777 & !self.umask;
        if inherits || as_made != entry.mode || !entry.xattrs.is_empty() {
            permit(what, entry.mode)?;
        }
        Ok(())
    }

    /// Gives what was there before what the entry says.
    pub(super) fn reset(&self, what: What<'_>, entry: &Entry, old: &Stat) -> Result<(), Errno> {
        if (old.st_uid, old.st_gid) != (entry.uid, entry.gid) {
            own(what, entry.uid, entry.gid)?;
        }
        for (name, value) in &entry.xattrs {
            attribute(what, name, value)?;
        }
        permit(what, entry.mode)
    }

    /// Sets the times of a new file.
    pub(super) fn times(&self, what: What<'_>, entry: &Entry) -> Result<(), Errno> {
        let times = timestamps(entry.mtime, entry.atime);
        match what {
            What::Open(fd) => rustix::fs::futimens(fd, &times),
            What::Entry(dir, name, _) => {
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }
}

fn own(what: What<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match what {
        What::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        What::Entry(dir, name, _) => {
            rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

fn permit(what: What<'_>, bits: u32) -> Result<(), Errno> {
    match what {
        What::Open(fd) => rustix::fs::fchmod(fd, mode(bits)),
        What::Entry(_, _, FileType::Symlink) => Ok(()),
        What::Entry(dir, name, kind) => {
            // A descriptor that only names the inode, so that a device is not opened.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            if file_type(&rustix::fs::fstat(&fd)?) != kind {
                return Err(Errno::INVAL);
            }
            rustix::fs::chmod(sys::fs::fd_path(&fd), mode(bits))
        }
    }
}

/// True for attributes that an archive must not set: they steer overlayfs or need the machine's root.
pub(crate) fn is_forbidden(name: &[u8]) -> bool {
    // Parity: containerd leaves trusted attributes out.
    name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.")
}

/// Bytes of names and values.
pub(super) fn size(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let sizes = xattrs.iter().map(|(name, value)| name.len() + value.len());
    sizes.sum::<usize>() as u64
}

fn attribute(what: What<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if is_forbidden(name) {
        return Ok(());
    }
    let flags = XattrFlags::empty();
    let (done, special) = match what {
        What::Open(fd) => (rustix::fs::fsetxattr(fd, name, value, flags), false),
        What::Entry(dir, file, kind) => {
            let path = through_fd(dir, file);
            let special = !matches!(kind, FileType::RegularFile | FileType::Directory);
            (rustix::fs::lsetxattr(path, name, value, flags), special)
        }
    };
    match done {
        // Only files and directories can have user attributes.
        Err(Errno::PERM) if special && name.starts_with(b"user.") => Ok(()),
        Err(Errno::NOTSUP) => {
            tracing::debug!(name = %String::from_utf8_lossy(name), "attribute left out");
            Ok(())
        }
        Err(Errno::RANGE | Errno::TOOBIG) => Err(Errno::INVAL),
        other => other,
    }
}

/// Copies owner, attributes and mode of a directory to a new one. Returns the bytes of the attributes.
pub(super) fn copy_directory(source: &OwnedFd, facts: &Stat, to: &OwnedFd) -> Result<u64, Errno> {
    copy(
        &list(&sys::fs::fd_path(source), true)?,
        facts,
        What::Open(to),
    )
}

/// Copies owner, attributes and mode of an entry to a new one. Returns the bytes of the attributes.
pub(super) fn copy_entry(
    source: (&OwnedFd, &[u8]),
    facts: &Stat,
    to: What<'_>,
) -> Result<u64, Errno> {
    copy(&list(&through_fd(source.0, source.1), false)?, facts, to)
}

fn copy(xattrs: &Xattrs, facts: &Stat, to: What<'_>) -> Result<u64, Errno> {
    own(to, facts.st_uid, facts.st_gid)?;
    for (name, value) in xattrs {
        attribute(to, name, value)?;
    }
    permit(to, facts.st_mode)?;
    Ok(size(xattrs))
}

/// The extended attributes at `path`; a link at its end is followed only with `follow`.
pub(crate) fn list(path: &std::path::Path, follow: bool) -> Result<Xattrs, Errno> {
    let names = |buffer: &mut [u8]| {
        if follow {
            rustix::fs::listxattr(path, buffer)
        } else {
            rustix::fs::llistxattr(path, buffer)
        }
    };
    let mut buffer = vec![0_u8; 256];
    let len = loop {
        match names(&mut buffer[..]) {
            Ok(len) => break len,
            Err(Errno::RANGE) if buffer.len() < XATTR => buffer.resize(XATTR, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    };
    let mut found = Vec::new();
    let mut value = Vec::new();
    for name in buffer[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
    {
        value.resize(XATTR, 0);
        let got = if follow {
            rustix::fs::getxattr(path, name, &mut value[..])
        } else {
            rustix::fs::lgetxattr(path, name, &mut value[..])
        };
        match got {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Opens an entry's inode by name only.
pub(super) fn same_inode(a: impl AsFd, a_name: &[u8], facts: &Stat) -> Result<bool, Errno> {
    let other = crate::root::stat(a, a_name)?;
    Ok(other.is_some_and(|o| (o.st_dev, o.st_ino) == (facts.st_dev, facts.st_ino)))
}
