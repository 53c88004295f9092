//! Devices that a program reads and writes instead of a wire.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use types::{Error, Result};

use crate::error::at;

/// Where they come from.
const DEVICE: &str = "/dev/net/tun";
/// Makes a device: `struct ifreq`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// Lets it outlive who made it.
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
/// Only a new one: `IFF_TUN_EXCL`.
const EXCLUSIVE: i32 = 0x8000;

/// Makes a device that stays, of frames or of packets, in the network namespace of this thread.
///
/// # Errors
/// `AlreadyExists`; `NotFound` where the kernel has no such devices; `InvalidArgument` for a name that is too
/// long; else the errno.
pub fn create(name: &str, frames: bool) -> Result<()> {
    let path = Path::new(DEVICE);
    let device = OpenOptions::new().read(true).write(true).open(path);
    let device = device.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format_args!("device {DEVICE}")),
        _ => at("open", path, e),
    })?;
    let mut request = [0; 40];
    if name.len() >= libc::IFNAMSIZ {
        return Err(Error::invalid_argument(format_args!(
            "name {name:?} is too long"
        )));
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    let kind = if frames { libc::IFF_TAP } else { libc::IFF_TUN };
    let flags = kind | libc::IFF_NO_PI | EXCLUSIVE;
    let flags = u16::try_from(flags).unwrap_or_default().to_ne_bytes();
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags);
    // SAFETY: `request` is as long as a `struct ifreq`, readable and writable.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    let failed = |what: &str| Error::os(what, std::io::Error::last_os_error());
    if made != 0 {
        let error = failed(&format!("make device {name}"));
        return Err(match error.errno() {
            Some(libc::EBUSY | libc::EEXIST) => error.reclass(types::Code::AlreadyExists),
            _ => error,
        });
    }
    // SAFETY: this request takes a number.
    if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST, 1) } != 0 {
        return Err(failed(&format!("keep device {name}")));
    }
    Ok(())
}
