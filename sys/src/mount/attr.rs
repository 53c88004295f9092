//! Mounts by descriptor: copies of trees, and their attributes.
//!
//! Invariant: a tree gets its attributes before it is attached, so nobody sees it without them.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};
use types::Result;

use crate::error::{at, op};

/// What of a mount is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    set: u64,
    clear: u64,
}

/// Attribute of one mount flag; those of a file system are not among them.
const FLAGS: [(MountFlags, u64); 4] = [
    (MountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY),
    (MountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
    (MountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
    (MountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
];
/// What a file system calls the flags that are its own.
const SUPER_FLAGS: [(MountFlags, &str); 4] = [
    (MountFlags::RDONLY, "ro"),
    (MountFlags::SYNCHRONOUS, "sync"),
    (MountFlags::DIRSYNC, "dirsync"),
    (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
];
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;

impl Attributes {
    /// The attributes that flags ask for.
    pub(super) fn of(flags: MountFlags) -> Self {
        let mut made = Self::default();
        for (flag, attribute) in FLAGS {
            made.set |= if flags.contains(flag) { attribute } else { 0 };
        }
        if flags.contains(MountFlags::NODIRATIME) {
            made.set |= NODIRATIME;
        }
        for (flag, attribute) in [
            (MountFlags::RELATIME, 0),
            (MountFlags::STRICTATIME, STRICTATIME),
            (MountFlags::NOATIME, NOATIME),
        ] {
            if flags.contains(flag) {
                made.access_times(attribute);
            }
        }
        made
    }

    /// The kinds of access times are one value: all of it is cleared for one to be set.
    fn access_times(&mut self, kind: u64) {
        self.set = (self.set & !libc::MOUNT_ATTR__ATIME) | kind;
        self.clear |= libc::MOUNT_ATTR__ATIME;
    }

    /// Adds what an option for a whole tree says: `rro`, `rnosuid`, `rexec`. False for others.
    pub(super) fn take(&mut self, option: &str) -> bool {
        let (attribute, on) = match option {
            "rro" => (libc::MOUNT_ATTR_RDONLY, true),
            "rrw" => (libc::MOUNT_ATTR_RDONLY, false),
            "rnosuid" => (libc::MOUNT_ATTR_NOSUID, true),
            "rsuid" => (libc::MOUNT_ATTR_NOSUID, false),
            "rnodev" => (libc::MOUNT_ATTR_NODEV, true),
            "rdev" => (libc::MOUNT_ATTR_NODEV, false),
            "rnoexec" => (libc::MOUNT_ATTR_NOEXEC, true),
            "rexec" => (libc::MOUNT_ATTR_NOEXEC, false),
            "rnodiratime" => (NODIRATIME, true),
            "rdiratime" => (NODIRATIME, false),
            "rnoatime" => {
                self.access_times(NOATIME);
                return true;
            }
            "rrelatime" => {
                self.access_times(0);
                return true;
            }
            "rstrictatime" => {
                self.access_times(STRICTATIME);
                return true;
            }
            _ => return false,
        };
        if on {
            self.set |= attribute;
            self.clear &= !attribute;
        } else {
            self.clear |= attribute;
            self.set &= !attribute;
        }
        true
    }

    /// True when nothing is to change.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A copy of the mount that `path` lies in, from `path` on; with `recursive` of those below, too.
///
/// # Errors
/// The errno of `open_tree`, with the path.
pub(super) fn copy_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags).map_err(|e| at("open_tree", path, e))
}

/// A file system that is mounted nowhere yet.
///
/// # Errors
/// The errno of the call.
pub(super) fn file_system(
    source: &Path,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<OwnedFd> {
    let opened = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC);
    let fs = opened.map_err(|e| op("fsopen", e))?;
    let set = || {
        rustix::mount::fsconfig_set_string(&fs, "source", source)?;
        for (flag, name) in SUPER_FLAGS {
            if flags.contains(flag) {
                rustix::mount::fsconfig_set_flag(&fs, name)?;
            }
        }
        for option in data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => rustix::mount::fsconfig_set_string(&fs, key, value)?,
                None => rustix::mount::fsconfig_set_flag(&fs, option)?,
            }
        }
        rustix::mount::fsconfig_create(&fs)
    };
    set().map_err(|e| op("fsconfig", e))?;
    let cloexec = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&fs, cloexec, MountAttrFlags::empty()).map_err(|e| op("fsmount", e))
}

/// Attaches a tree at `target`.
///
/// # Errors
/// The errno of `move_mount`, with the path.
pub(super) fn attach(tree: BorrowedFd<'_>, target: &Path) -> Result<()> {
    // What the target's last component links to, as `mount` does.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(tree, "", CWD, target, flags).map_err(|e| at("move_mount", target, e))
}

/// Changes the mount `tree`, with `recursive` all below it.
///
/// # Errors
/// The errno of `mount_setattr`.
pub(super) fn change(tree: impl AsFd, attributes: Attributes, recursive: bool) -> Result<()> {
    set(tree.as_fd(), attributes, 0, None, recursive)
}

/// Gives a mount, with `REC` a tree, another propagation.
///
/// # Errors
/// The errno of `mount_setattr`.
pub(super) fn propagate(tree: impl AsFd, how: MountPropagationFlags) -> Result<()> {
    let recursive = how.contains(MountPropagationFlags::REC);
    let kind = u64::from((how - MountPropagationFlags::REC).bits());
    set(tree.as_fd(), Attributes::default(), kind, None, recursive)
}

/// Shows the ids of a tree that is not attached as `namespace` has them.
///
/// # Errors
/// The errno of `mount_setattr`: `EINVAL` for a file system that cannot do it.
pub(super) fn map_ids(tree: impl AsFd, namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_IDMAP,
        clear: 0,
    };
    set(tree.as_fd(), attributes, 0, Some(namespace), recursive)
}

fn set(
    tree: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: u64,
    namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> Result<()> {
    let user = namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned()));
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation,
        userns_fd: user,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty C string and one whole `mount_attr`, which the call reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done != 0 {
        let errno = std::io::Error::last_os_error();
        return Err(op("mount_setattr", errno));
    }
    Ok(())
}

/// True for the error of a kernel that does not have these calls.
pub(super) fn is_missing(error: &types::Error) -> bool {
    error.errno() == Some(Errno::NOSYS.raw_os_error())
}
