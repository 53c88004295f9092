//! Devices of the host, as the runtime spec has them.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::{Value, json};
use types::{Error, Result};

/// Directories of `/dev` that hold no devices of their own or the container gets anew.
const SKIPPED: [&str; 8] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
];
/// How deep a tree of devices may be.
const MAX_DEPTH: usize = 16;

/// The devices in the tree of the host's `/dev`.
///
/// # Errors
/// The errno of reading a directory.
pub(crate) fn all(dir: &Path) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    collect(dir, 0, &mut found)?;
    Ok(found)
}

/// The device at `path`, or all those below it.
///
/// # Errors
/// The errno; `InvalidArgument` when it is neither a device nor a directory.
pub(crate) fn at(path: &Path) -> Result<Vec<Value>> {
    let meta = path
        .metadata()
        .map_err(|e| Error::os(format_args!("stat {}", path.display()), e))?;
    if meta.is_dir() {
        return all(path);
    }
    match device(path, &meta) {
        Some(device) => Ok(vec![device]),
        None => Err(Error::invalid_argument(format_args!(
            "{} is not a device node",
            path.display()
        ))),
    }
}

fn collect(dir: &Path, depth: usize, found: &mut Vec<Value>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let failed = |e| Error::os(format_args!("read {}", dir.display()), e);
    let mut entries = std::fs::read_dir(dir)
        .map_err(failed)?
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // Devices come and go: one that is not there any more is none.
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        let skipped = entry
            .file_name()
            .to_str()
            .is_some_and(|name| SKIPPED.contains(&name));
        if skipped {
            continue;
        }
        if meta.is_dir() {
            collect(&entry.path(), depth + 1, found)?;
        } else if let Some(device) = device(&entry.path(), &meta) {
            found.push(device);
        }
    }
    Ok(())
}

fn device(path: &Path, meta: &Metadata) -> Option<Value> {
    let kind = if meta.file_type().is_char_device() {
        "c"
    } else if meta.file_type().is_block_device() {
        "b"
    } else {
        return None;
    };
    let (major, minor) = split(meta.rdev());
    Some(json!({
        "path": path.to_string_lossy(),
        "type": kind,
        "major": major,
        "minor": minor,
        "fileMode": meta.mode() & 0o7777,
        "uid": meta.uid(),
        "gid": meta.gid(),
    }))
}

/// Major and minor number of a device (makedev(3)).
fn split(device: u64) -> (u64, u64) {
    let major = (device >> 8) & 0xfff | (device >> 32) & 0xffff_f000;
    let minor = device & 0xff | (device >> 12) & 0xffff_ff00;
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_split_as_makedev_joins_them() {
        for (device, want) in [
            (0x0103, (1, 3)),
            (0x8800, (136, 0)),
            (0x0010_0801, (8, 0x101)),
            (0, (0, 0)),
        ] {
            assert_eq!(split(device), want, "{device:#x}");
        }
    }

    #[test]
    fn nodes_are_described_and_other_files_refused() {
        let null = &at(Path::new("/dev/null")).unwrap()[0];
        assert_eq!(
            (&null["type"], &null["major"], &null["minor"]),
            (&json!("c"), &json!(1), &json!(3))
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(at(dir.path()).unwrap().is_empty());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(
            at(&dir.path().join("file"))
                .unwrap_err()
                .is(types::Code::InvalidArgument)
        );
        at(&dir.path().join("absent")).unwrap_err();
    }
}
