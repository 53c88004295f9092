//! The native snapshotter: every snapshot is a full copy. Slow and large, works on any file system.
//!
//! Layout: `<root>/snapshots/<id>` is the tree. Invariant: a committed tree is never written to; an
//! active one begins as an exact copy of its parent (names, contents, holes, owners, modes, extended
//! attributes, hard links, devices, times).

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use types::{
    Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, SnapshotKind, Usage,
};

use crate::storage::Chain;
use crate::store::{Notes, Store, Wanted, blocking, make_dir};
use crate::{Snapshotter, copy};

/// The native snapshotter.
#[derive(Clone, Debug)]
pub struct Native(Arc<Store>);

impl Native {
    /// Opens or makes the snapshotter in `root`.
    ///
    /// # Errors
    /// `Unavailable` while another process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path) -> Result<Self> {
        make_dir(root, 0o700)?;
        let root = std::path::absolute(root)
            .map_err(|e| types::Error::os(format_args!("resolve {}", root.display()), e))?;
        Ok(Self(Arc::new(Store::open(&root, false, Notes::None)?)))
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`], [`Snapshotter::verify`] and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Native::open`].
    pub fn examine(root: &Path, scratch: &Path) -> Result<Self> {
        Ok(Self(Arc::new(Store::examine(root, scratch, Notes::None)?)))
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
        let store = Arc::clone(&self.0);
        blocking(move || {
            let chain = store.create(wanted, |directory, parents| {
                // A view of a committed tree is that tree: only its place is made.
                let source = match (kind, parents.first()) {
                    (SnapshotKind::Active, Some(id)) => Some(store.directory(*id)),
                    _ => None,
                };
                copy::tree(source.as_deref(), directory)
            })?;
            Ok(mounts(&store, &chain))
        })
        .await
    }
}

fn mounts(store: &Store, chain: &Chain) -> Vec<Mount> {
    let (id, mode) = match (chain.kind, chain.parents.first()) {
        (SnapshotKind::View, Some(parent)) => (*parent, "ro"),
        (SnapshotKind::View, None) => (chain.id, "ro"),
        _ => (chain.id, "rw"),
    };
    vec![Mount {
        kind: "bind".into(),
        source: store.directory(id).to_string_lossy().into_owned(),
        target: String::new(),
        options: vec!["rbind".into(), mode.into()],
    }]
}

#[async_trait]
impl Snapshotter for Native {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        Ok(self.0.row(key)?.info(key))
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let (store, fields) = (Arc::clone(&self.0), fields.clone());
        blocking(move || {
            let key = info.name.clone();
            Ok(store.update(info, &fields)?.info(&key))
        })
        .await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        let (store, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || store.usage(&key, |id| store.directory(id))).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        Ok(mounts(&self.0, &self.0.chain(key)?))
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
        let (store, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        blocking(move || store.commit((&name, &key), None, labels, |id| store.directory(id))).await
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        let (store, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || store.remove(&key)).await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        Ok(self
            .0
            .list(filter)
            .into_iter()
            .map(|(_, info)| info)
            .collect())
    }

    async fn verify(&self) -> Result<Vec<(SnapshotKey, String)>> {
        let store = Arc::clone(&self.0);
        blocking(move || Ok(store.broken(|_| &[""]))).await
    }

    fn damages(&self) -> Vec<String> {
        self.0.damages().to_vec()
    }

    async fn cleanup(&self) -> Result<()> {
        let store = Arc::clone(&self.0);
        blocking(move || store.cleanup()).await
    }
}

#[cfg(test)]
mod tests;
