//! A snapshotter that does what another does, save for what a test varies.
//!
//! Only what every snapshotter must do is passed on: that the other is remote does not show, and that it
//! can rebase only where a variation wants it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use types::{Error, Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, Usage};

use crate::Snapshotter;

/// What a test varies.
#[async_trait]
pub trait Variation: Send + Sync + fmt::Debug {
    /// Whether it says that it rebases, and stands behind a socket; nothing is passed on then.
    fn is_foreign(&self) -> bool {
        false
    }

    /// Whether layers are unpacked at the same time as in the other one, if that can.
    fn is_ours(&self) -> bool {
        false
    }

    /// As [`Snapshotter::prepare`], over `inner`.
    ///
    /// # Errors
    /// Those of the variation.
    async fn prepare(
        &self,
        inner: &dyn Snapshotter,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        inner.prepare(key, parent, labels).await
    }

    /// As [`Snapshotter::view`], over `inner`.
    ///
    /// # Errors
    /// Those of the variation.
    async fn view(
        &self,
        inner: &dyn Snapshotter,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        inner.view(key, parent, labels).await
    }
}

/// Nothing is varied.
#[derive(Clone, Copy, Debug)]
pub struct AsItIs;

impl Variation for AsItIs {}

/// The other snapshotter, and what is varied.
#[derive(Debug)]
pub struct Varied<V>(pub Arc<dyn Snapshotter>, pub V);

#[async_trait]
impl<V: Variation> Snapshotter for Varied<V> {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        self.0.stat(key).await
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        self.0.update(info, fields).await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        self.0.usage(key).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        self.0.mounts(key).await
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.1.prepare(self.0.as_ref(), key, parent, labels).await
    }

    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.1.view(self.0.as_ref(), key, parent, labels).await
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        self.0.commit(name, key, labels).await
    }

    fn rebases(&self) -> bool {
        self.1.is_foreign() || (self.1.is_ours() && self.0.rebases())
    }

    async fn rebase(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: &SnapshotKey,
        labels: Labels,
    ) -> Result<()> {
        match self.1.is_ours() {
            true => self.0.rebase(name, key, parent, labels).await,
            false => Err(Error::not_implemented("commit onto another parent")),
        }
    }

    fn is_remote(&self) -> bool {
        self.1.is_foreign()
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        self.0.remove(key).await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        self.0.list(filter).await
    }
}
