//! Loop devices: files that can be mounted like disks.
//!
//! Invariant: a device that clears itself is held by the [`LoopDevice`] until something else, a mount,
//! holds it; dropping the value then leaves it to that.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use types::{Error, Result};

use crate::error::{at, last};

const CONTROL: &str = "/dev/loop-control";
// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
/// Block devices of this kind.
const MAJOR: u32 = 7;
/// Somebody else may take the free device first, and theirs is as good a try as ours.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// How a device is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopOpts {
    /// Nothing can be written through it.
    pub read_only: bool,
    /// The kernel takes it away with its last user.
    pub autoclear: bool,
    /// The page cache of the file is passed by.
    pub direct_io: bool,
}

/// A device with a file behind it.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Sets a free device up for `backing`. Blocks while others take the free ones away.
    ///
    /// # Errors
    /// The errno of the step that failed, with the path; `Unavailable` when all tries failed.
    pub fn attach(backing: &Path, opts: LoopOpts) -> Result<Self> {
        let open = |path: &Path| {
            let mut how = OpenOptions::new();
            how.read(true).write(!opts.read_only);
            how.open(path).map_err(|e| at("open", path, e))
        };
        let back = open(backing)?;
        for _ in 0..TRIES {
            let number = free()?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            ensure_node(&path, number)?;
            let file = match open(&path) {
                // It went away again, or somebody has it for himself.
                Err(e) if matches!(e.errno(), Some(libc::ENXIO | libc::EBUSY)) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                opened => opened?,
            };
            match configure(&file, &back, backing, opts) {
                Ok(()) => return Ok(Self { file, path }),
                Err(e) if e.errno() == Some(libc::EBUSY) => std::thread::sleep(PAUSE),
                Err(e) => return Err(e.ctx(format!("loop device for {}", backing.display()))),
            }
        }
        Err(Error::unavailable(format_args!(
            "no loop device for {} in {TRIES} tries",
            backing.display()
        )))
    }

    /// Opens a device that was set up before.
    ///
    /// # Errors
    /// The errno of `open`, with the path.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| at("open", path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the device and the inode of the file behind it.
    ///
    /// # Errors
    /// `ENXIO` when there is no file behind it.
    pub fn backing(&self) -> Result<(u64, u64)> {
        let info = self.info()?;
        Ok((info.device, info.inode))
    }

    /// Whether the kernel takes the device away with its last user.
    ///
    /// # Errors
    /// The errno of the call, with the path.
    pub fn set_autoclear(&self, on: bool) -> Result<()> {
        let mut info = self.info()?;
        let flags = if on {
            info.flags | FLAG_AUTOCLEAR
        } else {
            info.flags & !FLAG_AUTOCLEAR
        };
        if flags == info.flags {
            return Ok(());
        }
        info.flags = flags;
        // SAFETY: the call reads one `loop_info64`.
        let done =
            unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) };
        self.check(done, "LOOP_SET_STATUS64")
    }

    /// Takes the file away from the device; with users left, when the last of them has gone.
    ///
    /// # Errors
    /// The errno of the call, with the path.
    pub fn detach(&self) -> Result<()> {
        // SAFETY: the call takes no memory.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD) };
        self.check(done, "LOOP_CLR_FD")
    }

    fn info(&self) -> Result<Info> {
        let mut info = NO_INFO;
        // SAFETY: the call writes one `loop_info64`.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        self.check(done, "LOOP_GET_STATUS64")?;
        Ok(info)
    }

    fn check(&self, done: libc::c_int, call: &str) -> Result<()> {
        if done < 0 {
            return Err(at(call, &self.path, std::io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// The device that has the file at `backing` behind it, mounted or not, in whatever mount namespace.
///
/// # Errors
/// The errno of `stat`, or of reading `/sys/block`, with the path. Devices that cannot be looked at, and
/// those that go away meanwhile, are passed over.
pub fn device_of(backing: &Path) -> Result<Option<PathBuf>> {
    let facts = std::fs::metadata(backing).map_err(|e| at("stat", backing, e))?;
    let file = (facts.dev(), facts.ino());
    let all = Path::new("/sys/block");
    for entry in std::fs::read_dir(all).map_err(|e| at("read", all, e))? {
        let entry = entry.map_err(|e| at("read", all, e))?;
        // Only those that have a file.
        if !entry.path().join("loop").exists() {
            continue;
        }
        let device = Path::new("/dev").join(entry.file_name());
        let behind = LoopDevice::open(&device).and_then(|device| device.backing());
        if behind.is_ok_and(|behind| behind == file) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// The number of a device that is free now.
fn free() -> Result<u32> {
    let path = Path::new(CONTROL);
    let mut how = OpenOptions::new();
    let control = how.read(true).write(true).open(path);
    let control = control.map_err(|e| at("open", path, e))?;
    // SAFETY: the call takes no memory and returns the number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| last("LOOP_CTL_GET_FREE"))
}

/// Where nobody makes nodes for new devices, inside a container, we do.
fn ensure_node(path: &Path, number: u32) -> Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    if path.exists() {
        return Ok(());
    }
    let mode = Mode::RUSR | Mode::WUSR;
    match mknodat(
        CWD,
        path,
        FileType::BlockDevice,
        mode,
        makedev(MAJOR, number),
    ) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(at("mknod", path, e)),
    }
}

fn configure(device: &File, back: &File, name: &Path, opts: LoopOpts) -> Result<()> {
    let mut info = NO_INFO;
    for (on, flag) in [
        (opts.read_only, FLAG_READ_ONLY),
        (opts.autoclear, FLAG_AUTOCLEAR),
        (opts.direct_io, FLAG_DIRECT_IO),
    ] {
        info.flags |= if on { flag } else { 0 };
    }
    // For people who list the devices; the last byte stays NUL.
    let name = name.as_os_str().as_bytes();
    let len = name.len().min(info.file_name.len() - 1);
    info.file_name[..len].copy_from_slice(&name[..len]);
    let config = Config {
        fd: back.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the call reads one `loop_config`.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if done < 0 {
        return Err(last("LOOP_CONFIGURE"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn image(dir: &Path) -> PathBuf {
        let path = dir.join("image");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        path
    }

    /// Waits until the device is free, or somebody else's: a child of another test may hold its
    /// descriptor until it executes its program.
    fn until_given_up(name: &Path, inode: u64) {
        let has_file =
            || LoopDevice::open(name).is_ok_and(|d| d.backing().is_ok_and(|b| b.1 == inode));
        crate::testing::until("it gives its file up", || !has_file());
    }

    #[test]
    fn a_device_has_its_file_and_gives_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let inode = std::fs::metadata(&path).unwrap().ino();
        let device = LoopDevice::attach(&path, LoopOpts::default()).unwrap();
        assert_eq!(device.backing().unwrap().1, inode);
        assert_eq!(device_of(&path).unwrap().as_deref(), Some(device.path()));
        let mut disk = OpenOptions::new().write(true).open(device.path()).unwrap();
        disk.write_all(b"data").unwrap();
        disk.sync_all().unwrap();
        drop(disk);
        device.detach().unwrap();
        let name = device.path().to_owned();
        drop(device);
        until_given_up(&name, inode);
        assert_eq!(device_of(&path).unwrap(), None);
        assert_eq!(&std::fs::read(&path).unwrap()[..4], b"data");
    }

    #[test]
    fn a_read_only_device_refuses_writes_and_clears_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let inode = std::fs::metadata(&path).unwrap().ino();
        let opts = LoopOpts {
            read_only: true,
            autoclear: true,
            ..LoopOpts::default()
        };
        let device = LoopDevice::attach(&path, opts).unwrap();
        let name = device.path().to_owned();
        let mut disk = OpenOptions::new().write(true).open(&name).unwrap();
        disk.write_all(b"data").unwrap_err();
        drop(disk);
        // Kept on purpose, then left to itself again.
        device.set_autoclear(false).unwrap();
        drop(device);
        let device = LoopDevice::open(&name).unwrap();
        assert_eq!(device.backing().unwrap().1, inode);
        device.set_autoclear(true).unwrap();
        drop(device);
        until_given_up(&name, inode);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = LoopDevice::attach(Path::new("/nowhere/x"), LoopOpts::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x"), "{error}");
    }
}
