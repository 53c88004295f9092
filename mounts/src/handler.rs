//! Who performs a mount of which kind.
//!
//! ```text
//! loop    the source, a file, gets a device; the mount point is a link to it, for mounts that follow
//! erofs   straight from a file where the kernel can, else through loop devices that go with the mount
//! other   the kernel
//! ```

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sys::loopdev::{LoopDevice, LoopOpts};
use types::{Error, Mount, Result};

/// A kind of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    /// Anybody can do it.
    Kernel,
    /// A device for a file.
    Loop,
    /// Images of EROFS.
    Erofs,
}

/// Images whose blocks are verified against a tree of digests.
const VERITY: &str = "X-containerd.dmverity=";
/// More images that one consists of.
const DEVICE: &str = "device=";

impl Handler {
    /// By type.
    pub(crate) fn of(kind: &str) -> Self {
        match kind {
            "loop" => Self::Loop,
            "erofs" => Self::Erofs,
            _ => Self::Kernel,
        }
    }

    /// Performs `mount` at `point`, which it makes.
    ///
    /// # Errors
    /// Those of mounting; nothing is mounted then.
    pub(crate) fn mount(self, mount: &Mount, point: &Path) -> Result<()> {
        match self {
            Self::Loop => attach(mount, point),
            Self::Erofs => erofs(mount, point),
            Self::Kernel => {
                make_point(point)?;
                sys::mount::mount(mount, point)
            }
        }
    }
}

fn make_point(point: &Path) -> Result<()> {
    std::fs::create_dir(point).map_err(|e| Error::os(format_args!("mkdir {}", point.display()), e))
}

/// Beside the link to a device: which file the device must have to be ours.
fn note_of(link: &Path) -> PathBuf {
    link.with_extension("file")
}

fn attach(mount: &Mount, link: &Path) -> Result<()> {
    let mut opts = LoopOpts {
        // Until there is a link, a crash must leave nothing.
        autoclear: true,
        ..LoopOpts::default()
    };
    for option in &mount.options {
        match option.as_str() {
            "ro" => opts.read_only = true,
            "rw" | "loop" | "" => {}
            "direct-io" | "direct_io" => opts.direct_io = true,
            other => {
                return Err(Error::invalid_argument(format_args!(
                    "option {other:?} of a mount of type loop"
                )));
            }
        }
    }
    let device = LoopDevice::attach(Path::new(&mount.source), opts)?;
    let (number, inode) = device.backing()?;
    let note = note_of(link);
    let os = |call: &str, path: &Path, e| Error::os(format_args!("{call} {}", path.display()), e);
    std::fs::write(&note, format!("{number} {inode}\n")).map_err(|e| os("write", &note, e))?;
    std::os::unix::fs::symlink(device.path(), link).map_err(|e| os("symlink", link, e))?;
    device.set_autoclear(false).inspect_err(|_| {
        drop(std::fs::remove_file(link));
        drop(std::fs::remove_file(&note));
    })
}

/// The device behind `link`, if it still is what it was when the link was made.
pub(crate) fn device(link: &Path) -> Result<Option<LoopDevice>> {
    let os = |path: &Path, e| Error::os(format_args!("read {}", path.display()), e);
    let name = std::fs::read_link(link).map_err(|e| os(link, e))?;
    let note = match std::fs::read_to_string(note_of(link)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        note => note.map_err(|e| os(link, e))?,
    };
    let gone = |error: &Error| {
        let errno = error.errno().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::NOENT | Errno::NXIO))
    };
    let device = match LoopDevice::open(&name) {
        Err(error) if gone(&error) => return Ok(None),
        device => device?,
    };
    match device.backing() {
        Err(error) if gone(&error) => Ok(None),
        backing => {
            let (number, inode) = backing?;
            Ok((note.trim() == format!("{number} {inode}")).then_some(device))
        }
    }
}

/// Lets the device behind `link` go with its last user, and removes the link.
pub(crate) fn release(link: &Path) -> Result<()> {
    let device = device(link)?;
    if let Some(device) = &device {
        device.set_autoclear(true)?;
    }
    for path in [link, &note_of(link)] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::os(format_args!("remove {}", path.display()), e));
            }
            _ => {}
        }
    }
    // Not before: a device without users would have passed to somebody else.
    drop(device);
    Ok(())
}

fn erofs(mount: &Mount, point: &Path) -> Result<()> {
    if let Some(option) = mount.options.iter().find(|o| o.starts_with(VERITY)) {
        return Err(Error::not_implemented(format_args!(
            "mount option {option}"
        )));
    }
    let mut mount = mount.clone();
    mount.options.retain(|option| option != "loop");
    make_point(point)?;
    match sys::mount::mount(&mount, point) {
        // A file, and a kernel that wants a device.
        Err(error) if error.errno() == Some(Errno::NOTBLK.raw_os_error()) => {}
        done => return done,
    }
    let devices = on_devices(&mut mount)?;
    sys::mount::mount(&mount, point)?;
    drop(devices);
    Ok(())
}

/// Gives each file that `mount` names a device. They are to be held until it is mounted.
fn on_devices(mount: &mut Mount) -> Result<Vec<LoopDevice>> {
    let opts = LoopOpts {
        read_only: true,
        autoclear: true,
        ..LoopOpts::default()
    };
    let mut devices = Vec::new();
    let mut on_device = |file: &str| -> Result<String> {
        let is_file = std::fs::metadata(file).is_ok_and(|f| f.mode() & 0o170_000 == 0o100_000);
        if !is_file {
            return Ok(file.to_owned());
        }
        let device = LoopDevice::attach(Path::new(file), opts)?;
        let path = device.path().display().to_string();
        devices.push(device);
        Ok(path)
    };
    mount.source = on_device(&mount.source)?;
    for option in &mut mount.options {
        if let Some(file) = option.strip_prefix(DEVICE) {
            *option = format!("{DEVICE}{}", on_device(file)?);
        }
    }
    Ok(devices)
}
