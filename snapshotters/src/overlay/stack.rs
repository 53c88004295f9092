//! Layers as an overlay mount: what all snapshotters share whose layers the kernel stacks.
//!
//! ```text
//!   <directory>/fs        the layer (upperdir while active, lowerdir once committed)
//!   <directory>/work      workdir of an active one
//!   <directory>/remapped  its files were copied to other owners
//! ```
//! Invariant: mounts come in the three forms that clients parse: bind rw, bind ro, overlay with
//! workdir, upperdir, lowerdir in this order.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sys::mount::TempMount;
use types::{Context as _, Error, Labels, Mount, Result, SnapshotKind};

use super::probe;
use super::ready::Ready;
use crate::idmap::IdMaps;
use crate::local::New;
use crate::storage::{Chain, Owner};
use crate::store::{bind, text};

/// The layer, in the directory of a snapshot.
pub(crate) const LAYER: &str = "fs";
/// The work directory of an active one.
pub(crate) const WORK: &str = "work";
/// File in the directory of a snapshot whose files were given to other owners when it was made.
const REMAPPED: &str = "remapped";

/// How layers get other owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remaps {
    /// The kernel maps ids, layer by layer.
    Kernel,
    /// All files are copied and given to their owners.
    Copies,
    /// Not at all.
    Never,
}

/// How overlay mounts are written.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) remaps: Remaps,
    /// Marks are in `user.` attributes.
    pub(crate) userxattr: bool,
    /// Options before `workdir=`.
    pub(crate) leading: Vec<String>,
    /// Options after `lowerdir=`.
    pub(crate) trailing: Vec<String>,
    /// Directories of active snapshots, made beforehand.
    pub(crate) ready: Ready,
}

impl Stack {
    /// What works in `root`, with further options for each mount.
    ///
    /// # Errors
    /// `NotImplemented` where overlayfs does not work (old kernel, file system without `d_type`); I/O.
    pub(crate) fn tried(root: &Path, trailing: Vec<String>, slow_chown: bool) -> Result<Self> {
        probe::d_type(root)?;
        let needs_userxattr = probe::works(root)?;
        let has = |name: &str| trailing.iter().any(|o| o.split('=').next() == Some(name));
        let mut leading = Vec::new();
        if !has("index") && probe::has_index() {
            leading.push("index=off".to_owned());
        }
        if !has("userxattr") && needs_userxattr {
            leading.push("userxattr".to_owned());
        }
        Ok(Self {
            remaps: match probe::maps_ids(root) {
                true => Remaps::Kernel,
                false if slow_chown => Remaps::Copies,
                false => Remaps::Never,
            },
            userxattr: needs_userxattr || has("userxattr"),
            leading,
            trailing,
            ready: Ready::default(),
        })
    }

    /// The same, with directories in `snapshots` that are made beforehand. The index is open: nobody else
    /// has them.
    pub(crate) fn with_ready(self, snapshots: &Path) -> Self {
        Self {
            ready: Ready::open(snapshots, make_active),
            ..self
        }
    }

    /// For looking at records: nothing is mounted.
    pub(crate) fn unused() -> Self {
        Self {
            remaps: Remaps::Never,
            userxattr: true,
            leading: Vec::new(),
            trailing: Vec::new(),
            ready: Ready::default(),
        }
    }

    /// Makes the directory of a snapshot on `lowers`, nearest first. The layer's root belongs to whom
    /// the parent's belongs, or to the root of the ids that its labels map.
    ///
    /// # Errors
    /// `InvalidArgument` for labels that map nothing; `NotImplemented` where ids cannot be mapped; I/O.
    pub(crate) fn fill(&self, directory: &Path, new: &New<'_>, lowers: &[PathBuf]) -> Result<()> {
        let upper = directory.join(LAYER);
        if new.kind == SnapshotKind::Active {
            self.ready
                .take(directory)
                .map_or_else(|| make_active(directory), Ok)?;
        } else {
            make(directory, 0o700)?;
            make(&upper, 0o755)?;
        }
        if let Some(parent) = lowers.first() {
            give(&upper, owner(parent).ctx("parent")?)?;
        }
        match IdMaps::of(new.labels)? {
            Some(maps) => self.remap(directory, new.kind, lowers, &maps),
            None => Ok(()),
        }
    }

    /// Gives the files of a new snapshot to the owners that they are mapped to.
    fn remap(
        &self,
        directory: &Path,
        kind: SnapshotKind,
        lowers: &[PathBuf],
        maps: &IdMaps,
    ) -> Result<()> {
        let (upper, work) = (directory.join(LAYER), directory.join(WORK));
        maps.give(&upper)?;
        if lowers.is_empty() || self.remaps == Remaps::Kernel {
            return Ok(());
        }
        if self.remaps == Remaps::Never {
            return Err(Error::not_implemented(
                "id-mapped snapshot: the kernel cannot map the ids of layers, and slow_chown is off",
            ));
        }
        if kind != SnapshotKind::Active {
            make(&work, 0o711)?;
        }
        let mount = self.overlay(None, Some((&upper, &work)), lowers);
        let mounted = TempMount::new(&[mount], directory)?;
        maps.chown(mounted.path())?;
        mounted.unmount()?;
        std::fs::write(directory.join(REMAPPED), "")
            .map_err(|e| Error::os(format_args!("write below {}", directory.display()), e))
    }

    /// The mounts of the snapshot in `directory` on `lowers`, nearest first.
    ///
    /// # Errors
    /// `InvalidArgument` for labels that map nothing.
    pub(crate) fn mounts(
        &self,
        directory: &Path,
        chain: &Chain,
        mut lowers: Vec<PathBuf>,
    ) -> Result<Vec<Mount>> {
        let active = chain.kind == SnapshotKind::Active;
        let (own, work) = (directory.join(LAYER), directory.join(WORK));
        let maps = IdMaps::of(&chain.labels)?;
        let copied = maps.is_some() && directory.join(REMAPPED).exists();
        let maps = maps.filter(|_| !copied);
        match lowers.as_slice() {
            // It belongs to the container's root already.
            [] => return Ok(bind(&own, [if active { "rw" } else { "ro" }, "rbind"])),
            [only] if !active && !copied => {
                let mut mounts = bind(only, ["ro", "rbind"]);
                if let Some(maps) = maps {
                    mounts[0].options.splice(0..0, maps.options());
                }
                return Ok(mounts);
            }
            _ => {}
        }
        let over = active.then_some((own.as_path(), work.as_path()));
        if copied && !active {
            lowers.insert(0, own.clone());
        }
        Ok(vec![self.overlay(maps.as_ref(), over, &lowers)])
    }

    /// An overlay mount; `over` are its upper and its work directory.
    fn overlay(
        &self,
        maps: Option<&IdMaps>,
        over: Option<(&Path, &Path)>,
        lowers: &[PathBuf],
    ) -> Mount {
        let mut options = self.leading.clone();
        options.extend(maps.into_iter().flat_map(IdMaps::options));
        if let Some((upper, work)) = over {
            options.push(format!("workdir={}", text(work)));
            options.push(format!("upperdir={}", text(upper)));
        }
        let lowers: Vec<_> = lowers.iter().map(|path| text(path)).collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        options.extend(self.trailing.iter().cloned());
        Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        }
    }

    /// In clients' words.
    pub(crate) fn capabilities(&self) -> Vec<&'static str> {
        match self.remaps {
            Remaps::Kernel | Remaps::Copies => vec!["remap-ids"],
            Remaps::Never => Vec::new(),
        }
    }
}

/// Makes the directory of a snapshot that somebody can write to.
fn make_active(directory: &Path) -> Result<()> {
    make(directory, 0o700)?;
    make(&directory.join(LAYER), 0o755)?;
    make(&directory.join(WORK), 0o711)
}

/// Makes the directory of an active snapshot as [`Stack::fill`] does, for this owner of its root.
///
/// # Errors
/// I/O.
pub(crate) fn remake(directory: &Path, owner: Owner) -> Result<()> {
    make_active(directory)?;
    give(&directory.join(LAYER), owner)
}

/// The owner of the root of an untouched snapshot; none where there is more to it.
pub(crate) fn bare(directory: &Path, labels: &Labels) -> Option<Owner> {
    // Its files may have been copied.
    if IdMaps::of(labels).ok()?.is_some() {
        return None;
    }
    owner(&directory.join(LAYER)).ok()
}

fn owner(path: &Path) -> Result<Owner> {
    let facts = std::fs::symlink_metadata(path)
        .map_err(|e| Error::os(format_args!("stat {}", path.display()), e))?;
    let (uid, gid) = (facts.uid(), facts.gid());
    Ok(Owner { uid, gid })
}

fn give(path: &Path, Owner { uid, gid }: Owner) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
        .map_err(|e| Error::os(format_args!("chown {}", path.display()), e))
}

fn make(path: &Path, mode: u32) -> Result<()> {
    let os = |e| Error::os(format_args!("mkdir {}", path.display()), e);
    std::fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(os)?;
    // The mode above is cut by the umask.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(os)
}
