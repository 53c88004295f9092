//! The overlayfs snapshotter: one directory per layer, stacked by the kernel.
//!
//! ```text
//!   <root>/metadata.redb, metadata.log
//!   <root>/snapshots/<id>/fs      the layer (upperdir while active, lowerdir once committed)
//!   <root>/snapshots/<id>/work    workdir of an active one
//! ```
//! Invariant: mounts come in the three forms that clients parse: bind rw, bind ro, overlay with
//! workdir, upperdir, lowerdir in this order.

mod probe;
mod settle;

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use types::{
    Error, Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, SnapshotKind, Usage,
};

use crate::Snapshotter;
use crate::storage::Chain;
use crate::store::{Notes, Store, Wanted, blocking, make_dir};

/// Output label: where the layer of a snapshot is.
const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// Settings of the overlay snapshotter.
#[derive(Clone, Debug, Default)]
pub struct OverlayConfig {
    /// Tell the layer's directory in the label `containerd.io/snapshot/overlay.upperdir`.
    pub upperdir_label: bool,
    /// Delete directories within `remove` instead of in `cleanup`.
    pub sync_remove: bool,
    /// Further options for overlay mounts.
    pub mount_options: Vec<String>,
}

/// The overlayfs snapshotter.
#[derive(Clone, Debug)]
pub struct Overlay(Arc<Settled>);

#[derive(Debug)]
struct Settled {
    store: Store,
    upperdir_label: bool,
    /// Options before `workdir=`.
    leading: Vec<String>,
    /// Options after `lowerdir=`.
    trailing: Vec<String>,
    /// Layers can be unpacked without their parents.
    rebases: bool,
}

impl Overlay {
    /// Opens or makes the snapshotter in `root`, after trying whether overlayfs works there.
    ///
    /// # Errors
    /// `NotImplemented` where overlayfs does not work (old kernel, file system without `d_type`);
    /// `Unavailable` while another process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path, config: OverlayConfig) -> Result<Self> {
        make_dir(root, 0o700)?;
        // Layer paths stand in colon separated mount options.
        let root = std::path::absolute(root)
            .map_err(|e| Error::os(format_args!("resolve {}", root.display()), e))?;
        match root.to_str() {
            Some(text) if !text.contains([':', ',', '\\']) => {}
            _ => {
                return Err(Error::invalid_argument(format_args!(
                    "overlay root {root:?} must not contain ':', ',' or '\\'"
                )));
            }
        }
        probe::d_type(&root)?;
        let userxattr = probe::works(&root)?;
        let has = |name: &str| {
            config
                .mount_options
                .iter()
                .any(|o| o.split('=').next() == Some(name))
        };
        let mut leading = Vec::new();
        if !has("index") && probe::has_index() {
            leading.push("index=off".to_owned());
        }
        if !has("userxattr") && userxattr {
            leading.push("userxattr".to_owned());
        }
        Ok(Self(Arc::new(Settled {
            store: Store::open(&root, config.sync_remove, Notes::Kept)?,
            upperdir_label: config.upperdir_label,
            leading,
            // Whiteouts and marks need the machine's root.
            rebases: !userxattr && !config.mount_options.iter().any(|o| o == "userxattr"),
            trailing: config.mount_options,
        })))
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`], [`Snapshotter::verify`] and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Overlay::open`], but it is not tried whether overlayfs works.
    pub fn examine(root: &Path, scratch: &Path) -> Result<Self> {
        Ok(Self(Arc::new(Settled {
            store: Store::examine(root, scratch, Notes::Kept)?,
            upperdir_label: false,
            leading: Vec::new(),
            rebases: false,
            trailing: Vec::new(),
        })))
    }

    async fn create(
        &self,
        kind: SnapshotKind,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let wanted = Wanted {
            kind,
            key: key.clone(),
            parent: parent.cloned(),
            labels,
        };
        let this = Arc::clone(&self.0);
        blocking(move || {
            let upper_of = |id| this.upper(id);
            let chain = this.store.create(wanted, |directory, parents| {
                fill(
                    directory,
                    kind,
                    parents.first().map(|id| upper_of(*id)).as_deref(),
                )
            })?;
            Ok(this.mounts(&chain))
        })
        .await
    }
}

impl Settled {
    fn upper(&self, id: u64) -> PathBuf {
        self.store.directory(id).join("fs")
    }

    fn shown(&self, id: u64, mut info: SnapshotInfo) -> SnapshotInfo {
        if self.upperdir_label {
            info.labels.set(UPPERDIR, &self.upper(id).to_string_lossy());
        }
        info
    }

    fn mounts(&self, chain: &Chain) -> Vec<Mount> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let bind = |source: PathBuf, mode: &str| {
            vec![Mount {
                kind: "bind".into(),
                source: text(source),
                target: String::new(),
                options: vec![mode.into(), "rbind".into()],
            }]
        };
        let active = chain.kind == SnapshotKind::Active;
        match chain.parents.as_slice() {
            [] => return bind(self.upper(chain.id), if active { "rw" } else { "ro" }),
            [only] if !active => return bind(self.upper(*only), "ro"),
            _ => {}
        }
        let mut options = self.leading.clone();
        if active {
            let work = self.store.directory(chain.id).join("work");
            options.push(format!("workdir={}", text(work)));
            options.push(format!("upperdir={}", text(self.upper(chain.id))));
        }
        let lowers: Vec<_> = chain
            .parents
            .iter()
            .map(|id| text(self.upper(*id)))
            .collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        options.extend(self.trailing.iter().cloned());
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        }]
    }
}

/// Makes the directories of one snapshot; the layer's root belongs to whom the parent's belongs.
fn fill(directory: &Path, kind: SnapshotKind, parent: Option<&Path>) -> Result<()> {
    let make = |path: &Path, mode: u32| {
        let os = |e| Error::os(format_args!("mkdir {}", path.display()), e);
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(os)?;
        // The mode above is cut by the umask.
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(os)
    };
    make(directory, 0o700)?;
    let upper = directory.join("fs");
    make(&upper, 0o755)?;
    if kind == SnapshotKind::Active {
        make(&directory.join("work"), 0o711)?;
    }
    if let Some(parent) = parent {
        let facts = std::fs::symlink_metadata(parent).map_err(|e| {
            Error::os(
                format_args!("failed to stat parent {}", parent.display()),
                e,
            )
        })?;
        std::os::unix::fs::lchown(&upper, Some(facts.uid()), Some(facts.gid()))
            .map_err(|e| Error::os(format_args!("chown {}", upper.display()), e))?;
    }
    Ok(())
}

#[async_trait]
impl Snapshotter for Overlay {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let row = self.0.store.row(key)?;
        Ok(self.0.shown(row.id, row.info(key)))
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let this = Arc::clone(&self.0);
        let fields = fields.clone();
        blocking(move || {
            let key = info.name.clone();
            let row = this.store.update(info, &fields)?;
            Ok(this.shown(row.id, row.info(&key)))
        })
        .await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        let (this, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || this.store.usage(&key, |id| this.upper(id))).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        Ok(self.0.mounts(&self.0.store.chain(key)?))
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::Active, key, parent, labels).await
    }

    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        blocking(move || {
            let upper = |id| this.upper(id);
            this.store.commit((&name, &key), None, labels, upper)
        })
        .await
    }

    /// Without a parent the mount is a directory, and the layers of an overlay are independent ones.
    fn rebases(&self) -> bool {
        self.0.rebases
    }

    async fn rebase(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: &SnapshotKey,
        labels: Labels,
    ) -> Result<()> {
        if !self.0.rebases {
            return Err(Error::not_implemented("commit onto another parent"));
        }
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        let parent = parent.clone();
        blocking(move || {
            let row = this.store.row(&key)?;
            let parents = this.store.ancestors_for(&key, &parent)?;
            let parents: Vec<_> = parents.into_iter().map(|id| this.upper(id)).collect();
            if row.parent.is_none() {
                settle::settle(&this.upper(row.id), &parents)?;
            }
            let upper = |id| this.upper(id);
            this.store
                .commit((&name, &key), Some(&parent), labels, upper)
        })
        .await
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        let (this, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || this.store.remove(&key)).await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        let found = self.0.store.list(filter);
        Ok(found
            .into_iter()
            .map(|(id, info)| self.0.shown(id, info))
            .collect())
    }

    async fn verify(&self) -> Result<Vec<(SnapshotKey, String)>> {
        let this = Arc::clone(&self.0);
        blocking(move || {
            Ok(this.store.broken(|kind| match kind {
                SnapshotKind::Active => &["fs", "work"],
                SnapshotKind::View | SnapshotKind::Committed => &["fs"],
            }))
        })
        .await
    }

    fn damages(&self) -> Vec<String> {
        self.0.store.damages().to_vec()
    }

    async fn cleanup(&self) -> Result<()> {
        let this = Arc::clone(&self.0);
        blocking(move || this.store.cleanup()).await
    }
}

#[cfg(test)]
mod tests;
