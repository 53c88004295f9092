//! What the tests of this crate share: archives, trees on disk, trees as values.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{ContentStore, Hasher, IngestSpec, Local};
use types::{Descriptor, Labels, Mount, Result};

use crate::extract::{Xattrs, list_xattrs};
use crate::tar::{Entry, Kind, Time, Writer};
use crate::{Applier as _, ApplyOpts, Root, Target, TreeOpts, Walking, apply_tar};

/// An entry with plain attributes.
pub(crate) fn entry(kind: Kind, name: &str) -> Entry {
    Entry {
        mode: if kind == Kind::Directory {
            0o755
        } else {
            0o644
        },
        mtime: Time {
            seconds: 1_500_000_000,
            nanos: 0,
        },
        ..Entry::bare(kind, name.into())
    }
}

/// A file entry.
pub(crate) fn file(name: &str) -> Entry {
    entry(Kind::File, name)
}

/// A directory entry.
pub(crate) fn dir(name: &str) -> Entry {
    entry(Kind::Directory, name)
}

/// A symbolic link.
pub(crate) fn symlink(name: &str, to: &str) -> Entry {
    Entry {
        link: to.into(),
        ..entry(Kind::Symlink, name)
    }
}

/// A hard link.
pub(crate) fn link(name: &str, to: &str) -> Entry {
    Entry {
        link: to.into(),
        ..entry(Kind::Link, name)
    }
}

/// An archive of entries; files hold their own name as data.
pub(crate) fn named(entries: &[Entry]) -> Vec<u8> {
    let with_data: Vec<_> = entries
        .iter()
        .map(|e| (e.clone(), e.name.clone()))
        .collect();
    let all: Vec<_> = with_data
        .iter()
        .map(|(e, data)| (e.clone(), data.as_slice()))
        .collect();
    archive(&all)
}

/// An archive of entries with their data.
pub(crate) fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        let sized = Entry {
            size: data.len() as u64,
            ..entry.clone()
        };
        writer.entry(&sized).unwrap();
        if entry.kind == Kind::File {
            writer.data(data).unwrap();
        }
    }
    writer.finish().unwrap()
}

/// Extracts into a plain tree.
pub(crate) fn merge(tar: &[u8], to: &Path) -> Result<()> {
    apply_tar(tar, &Root::open(to)?, &TreeOpts::default())
}

/// Extracts into an overlay's upper directory.
pub(crate) fn onto(tar: &[u8], upper: &Path, lowers: &[&Path]) -> Result<()> {
    let lowers = lowers.iter().map(|path| path.to_path_buf()).collect();
    let target = Target::Upper {
        lowers,
        userxattr: false,
    };
    into(tar, upper, target)
}

/// Extracts into an upper directory of which nobody knows yet what is below.
pub(crate) fn alone(tar: &[u8], upper: &Path) -> Result<()> {
    into(tar, upper, Target::Detached)
}

fn into(tar: &[u8], to: &Path, target: Target) -> Result<()> {
    let opts = TreeOpts {
        target,
        ..TreeOpts::default()
    };
    apply_tar(tar, &Root::open(to)?, &opts)
}

/// One node of a tree as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) rdev: u64,
    /// Contents or link text.
    pub(crate) data: Vec<u8>,
    /// `None` for directories when times were not asked for.
    pub(crate) mtime: Option<(i64, i64)>,
    /// First path of the same inode.
    pub(crate) first: PathBuf,
    pub(crate) xattrs: Xattrs,
}

/// Everything below `root`, by path. `times`: of directories as well.
pub(crate) fn tree(root: &Path, times: bool) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    let mut all = Vec::new();
    while let Some(relative) = left.pop() {
        for entry in std::fs::read_dir(root.join(&relative)).unwrap() {
            let path = relative.join(entry.unwrap().file_name());
            if std::fs::symlink_metadata(root.join(&path))
                .unwrap()
                .is_dir()
            {
                left.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let full = root.join(&path);
        let facts = std::fs::symlink_metadata(&full).unwrap();
        let data = if facts.is_file() {
            std::fs::read(&full).unwrap()
        } else if facts.is_symlink() {
            use std::os::unix::ffi::OsStringExt as _;
            std::fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_vec()
        } else {
            Vec::new()
        };
        let first = if facts.is_dir() {
            path.clone()
        } else {
            first
                .entry(facts.ino())
                .or_insert_with(|| path.clone())
                .clone()
        };
        let mut xattrs = list_xattrs(&full, false).unwrap();
        xattrs.retain(|(name, _)| !name.starts_with(b"trusted.overlay."));
        xattrs.sort();
        let seen = Seen {
            mode: facts.mode(),
            owner: (facts.uid(), facts.gid()),
            rdev: facts.rdev(),
            data,
            mtime: (times || !facts.is_dir()).then(|| (facts.mtime(), facts.mtime_nsec())),
            first,
            xattrs,
        };
        found.insert(path, seen);
    }
    found
}

/// A bind mount of a directory.
pub(crate) fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".into(),
        source: path.display().to_string(),
        target: String::new(),
        options: vec!["rw".into(), "rbind".into()],
    }]
}

/// A store, an applier and a place for directories.
pub(crate) struct Bench {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) store: Arc<dyn ContentStore>,
    pub(crate) walking: Walking,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store: Arc<dyn ContentStore> =
            Arc::new(Local::open(temp.path().join("content")).unwrap());
        let walking = Walking::new(temp.path().join("mounts"));
        Self {
            temp,
            store,
            walking,
        }
    }

    /// Makes a directory.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.temp.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Applies with `sync`.
    pub(crate) async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
        let opts = ApplyOpts {
            sync: true,
            ..ApplyOpts::default()
        };
        self.walking.apply(&self.store, layer, mounts, opts).await
    }

    /// Stores a blob.
    pub(crate) async fn stored(&self, media_type: &str, data: Vec<u8>) -> Descriptor {
        let digest = Hasher::digest(&data).unwrap();
        let size = data.len() as u64;
        let reference = format!("r-{digest}").parse().unwrap();
        let spec = IngestSpec {
            reference,
            total: None,
            expected: None,
        };
        let mut ingest = self.store.ingest(spec).await.unwrap();
        ingest.write(data.into()).await.unwrap();
        if let Err(error) = ingest.commit(None, None, Labels::new()).await {
            assert!(error.is_already_exists(), "{error}");
        }
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            annotations: Labels::new(),
        }
    }

    /// An overlay of directories of this bench; they are made.
    pub(crate) fn overlay(&self, upper: &str, lowers: &[&Path]) -> Vec<Mount> {
        let work = self.dir(&format!("{upper}-work"));
        let lowers: Vec<_> = lowers
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                "index=off".into(),
                "redirect_dir=off".into(),
                "metacopy=off".into(),
                format!("workdir={}", work.display()),
                format!("upperdir={}", self.dir(upper).display()),
                format!("lowerdir={}", lowers.join(":")),
            ],
        }]
    }

    /// True when the bench has no mount.
    pub(crate) fn has_no_mounts(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        !mounts.contains(self.temp.path().to_str().unwrap())
    }
}

/// Makes a program of this text.
pub(crate) fn script(path: &Path, text: &str) {
    // By another process: whatever is forked here meanwhile would hold our descriptor for a moment, and
    // what is open for writing cannot be run.
    let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
    let write = sys::process::Spawn::new("/bin/sh").args(write).arg(path);
    let written = write.output(text.as_bytes(), 1 << 10, std::time::Duration::from_secs(20));
    assert!(written.unwrap().status.is_success());
}
