//! Who this daemon is: a UUID for the life of its root, its pid, its pid namespace.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use types::{Error, Result};

use crate::lock;

/// Directory under the root that holds the UUID. Clients compare it: it must outlive upgrades.
const DIRECTORY: &str = "io.containerd.grpc.v1.introspection";
const FILE: &str = "uuid";
const DIRECTORY_MODE: u32 = 0o711;

/// What tells this daemon from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Made once per root.
    pub(crate) uuid: String,
    /// Pid of the daemon.
    pub(crate) pid: u32,
    /// Inode of its pid namespace.
    pub(crate) pid_namespace: u64,
}

impl Identity {
    /// Reads the UUID of `root`, or makes it.
    ///
    /// # Errors
    /// The errno of reading or writing.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let namespace = fs::metadata("/proc/self/ns/pid")
            .map_err(|e| Error::os("stat /proc/self/ns/pid", e))?;
        Ok(Self {
            uuid: uuid(&root.join(DIRECTORY))?,
            pid: std::process::id(),
            pid_namespace: namespace.ino(),
        })
    }

    /// The UUID of `root`; nothing when it has none yet.
    ///
    /// # Errors
    /// The errno of reading.
    pub(crate) fn find(root: &Path) -> Result<String> {
        read(&root.join(DIRECTORY).join(FILE))
    }
}

fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::os(format_args!("read {}", path.display()), error)),
    }
}

fn uuid(directory: &Path) -> Result<String> {
    let path = directory.join(FILE);
    let found = read(&path)?;
    if !found.is_empty() {
        return Ok(found);
    }
    let at = |what, e| Error::os(format_args!("{what} {}", path.display()), e);
    lock::create(directory, DIRECTORY_MODE)?;
    let made = version_4(rand::random());
    let temporary = directory.join(".uuid");
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(made.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|e| at("write", e))?;
    Ok(made)
}

/// The text of a random UUID (RFC 9562, version 4).
fn version_4(random: u128) -> String {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let bits = (random & !VERSION & !VARIANT) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_outlives_the_daemon() {
        let root = tempfile::tempdir().unwrap();
        let first = Identity::load(root.path()).unwrap();
        assert_eq!(Identity::load(root.path()).unwrap(), first);
        let file = root.path().join("io.containerd.grpc.v1.introspection/uuid");
        assert_eq!(fs::read_to_string(&file).unwrap(), first.uuid);
        fs::write(&file, "from-go\n").unwrap();
        assert_eq!(Identity::load(root.path()).unwrap().uuid, "from-go");
    }

    #[test]
    fn a_uuid_says_its_version_and_variant() {
        assert_eq!(version_4(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(version_4(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
