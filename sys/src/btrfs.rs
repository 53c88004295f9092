//! Subvolumes of btrfs.
//!
//! Invariant: a name given to a call is one component, in the directory whose descriptor goes with it.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::ioctl::{Opcode, Updater, opcode};
use types::{Error, Result};

use crate::error::at;

/// `BTRFS_IOCTL_MAGIC`.
const MAGIC: u8 = 0x94;
/// `BTRFS_SUPER_MAGIC`, what `statfs` says.
const SUPER: u64 = 0x9123_683e;
/// `BTRFS_SUBVOL_RDONLY`.
const READ_ONLY: u64 = 1 << 1;
/// Inode of the root of each subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT_INODE: u64 = 256;
/// Room for a name (`BTRFS_PATH_NAME_MAX`, `BTRFS_SUBVOL_NAME_MAX`, each with its NUL).
const PATH_NAME: usize = 4088;
const SUBVOLUME_NAME: usize = 4040;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; PATH_NAME],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgs2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; SUBVOLUME_NAME],
}

const SUBVOLUME_CREATE: Opcode = opcode::write::<VolumeArgs>(MAGIC, 14);
const SNAPSHOT_DESTROY: Opcode = opcode::write::<VolumeArgs>(MAGIC, 15);
const SNAPSHOT_CREATE: Opcode = opcode::write::<VolumeArgs2>(MAGIC, 23);
const GET_FLAGS: Opcode = opcode::read::<u64>(MAGIC, 25);
const SET_FLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);

/// Calls with a structure of the caller's, whose size is in the opcode.
fn call<const CODE: Opcode, T>(fd: impl AsFd, argument: &mut T) -> rustix::io::Result<()> {
    // SAFETY: each opcode above is made of the type that it is used with, so the kernel reads and
    // writes no more than `argument`, which is borrowed for as long as the call.
    let call = unsafe { Updater::<CODE, T>::new(argument) };
    // SAFETY: as above; the calls work on files and touch no other memory of this process.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

fn name<const N: usize>(name: &CStr) -> Result<[u8; N]> {
    let bytes = name.to_bytes();
    if bytes.len() >= N || bytes.is_empty() || bytes.contains(&b'/') {
        return Err(Error::invalid_argument(format_args!(
            "{name:?} cannot be the name of a subvolume"
        )));
    }
    let mut made = [0; N];
    made[..bytes.len()].copy_from_slice(bytes);
    Ok(made)
}

/// True when `path` lies on btrfs.
///
/// # Errors
/// The errno of `statfs`, with the path.
pub fn is_btrfs(path: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(path).map_err(|e| at("statfs", path, e))?;
    Ok(u64::try_from(found.f_type) == Ok(SUPER))
}

/// True when an entry with this inode number is the root of a subvolume, on btrfs.
#[must_use]
pub fn is_subvolume(inode: u64) -> bool {
    inode == ROOT_INODE
}

/// Makes an empty subvolume in a directory.
///
/// # Errors
/// The errno; `InvalidArgument` for a name of several components.
pub fn create(directory: &Path, subvolume: &CStr) -> Result<()> {
    let dir = open(directory)?;
    let mut args = VolumeArgs {
        fd: 0,
        name: name(subvolume)?,
    };
    call::<SUBVOLUME_CREATE, _>(&dir, &mut args)
        .map_err(|e| at("create subvolume in", directory, e))
}

/// Makes a snapshot of the subvolume at `source` in a directory.
///
/// # Errors
/// As [`create`].
pub fn snapshot(source: &Path, directory: &Path, subvolume: &CStr, read_only: bool) -> Result<()> {
    let (from, dir) = (open(source)?, open(directory)?);
    let mut args = VolumeArgs2 {
        fd: i64::from(from.as_raw_fd()),
        transaction: 0,
        flags: if read_only { READ_ONLY } else { 0 },
        unused: [0; 4],
        name: name(subvolume)?,
    };
    call::<SNAPSHOT_CREATE, _>(&dir, &mut args).map_err(|e| at("snapshot", source, e))
}

/// Deletes a subvolume with all that is in it, but not one that has others in it.
///
/// # Errors
/// The errno: `ENOTEMPTY` while there are subvolumes in it, `EBUSY` while one is mounted there.
pub fn delete(directory: impl AsFd, subvolume: &CStr) -> Result<()> {
    let mut args = VolumeArgs {
        fd: 0,
        name: name(subvolume)?,
    };
    let path = Path::new(OsStr::from_bytes(subvolume.to_bytes()));
    call::<SNAPSHOT_DESTROY, _>(directory, &mut args).map_err(|e| at("delete subvolume", path, e))
}

/// Makes the subvolume at `path` read-only, or writable.
///
/// # Errors
/// The errno, with the path.
pub fn set_read_only(path: &Path, read_only: bool) -> Result<()> {
    let dir = open(path)?;
    let mut flags = 0_u64;
    call::<GET_FLAGS, _>(&dir, &mut flags).map_err(|e| at("get flags of subvolume", path, e))?;
    let wanted = if read_only {
        flags | READ_ONLY
    } else {
        flags & !READ_ONLY
    };
    if wanted == flags {
        return Ok(());
    }
    flags = wanted;
    call::<SET_FLAGS, _>(&dir, &mut flags).map_err(|e| at("set flags of subvolume", path, e))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| at("open", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component_that_fits() {
        let made = name::<8>(c"layer").unwrap();
        assert_eq!(&made, b"layer\0\0\0");
        for bad in [c"", c"a/b", c"12345678"] {
            assert!(name::<8>(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_btrfs_is_told_so_and_refuses() {
        let dir = tempfile::tempdir().unwrap();
        if is_btrfs(dir.path()).unwrap() {
            return;
        }
        let error = create(dir.path(), c"sub").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY), "{error}");
    }
}
