//! Snapshotters: layered root file systems.
//!
//! Invariant: mounts are returned, never performed. What joins this crate to the differ and the
//! runtime is `types::Mount` and nothing else. Called by `metadata`, which scopes keys to a namespace.

mod beside;
mod blockfile;
mod btrfs;
mod copy;
mod directories;
mod erofs;
mod flushes;
mod gate;
mod idmap;
mod layout;
mod local;
mod native;
mod note;
mod overlay;
mod print;
mod storage;
mod store;
#[cfg(test)]
mod testing;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;
mod tree;

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use types::{Error, Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, Usage};

pub use blockfile::{Blockfile, BlockfileConfig};
pub use btrfs::Btrfs;
pub use erofs::{Erofs, ErofsConfig};
pub use local::Local;
pub use native::Native;
pub use overlay::{Overlay, OverlayConfig};
pub use store::index_files;

/// Capability of a snapshotter for which our unpacker, and no other, may unpack layers without their
/// parents: it knows what that leaves in them ([`Snapshotter::settles`]).
pub const SETTLES: &str = "settle";

/// A snapshot that is not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its key or name.
    pub key: SnapshotKey,
    /// What is wrong.
    pub why: String,
    /// Nothing can be made of what is left of it: not only some files are not what they were.
    pub is_gone: bool,
}

/// What makes a commit again that a power cut has taken from its snapshotter ([`Snapshotter::commit_noted`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redo {
    /// Its place in the order of all: parents come before children.
    pub sequence: u64,
    /// For nobody but the snapshotter that made it.
    pub text: Vec<u8>,
}

/// What became of commits that were to be made again.
#[derive(Debug, Default)]
pub struct Redone {
    /// How many were gone and are there again.
    pub made: usize,
    /// Those that nobody can make, by their places among those given, and why.
    pub lost: Vec<(usize, Error)>,
}

/// A store of layered file systems.
///
/// Keys name active snapshots and views, names name committed ones; both live in one key space.
/// A committed snapshot never changes, whatever stays mounted of it from when it was active. A
/// snapshot shows its parent's files until it changes them, and no other snapshot sees the change; its
/// root directory belongs to whom the parent's does. What is mounted hinders no call: who still uses a
/// snapshot that is removed keeps what the kernel keeps for him, no more. When a call has answered, its effect survives a killed process;
/// a commit, with all that was written to the snapshot, a label update and the removal of a committed
/// snapshot survive a power cut as well. What a power cut takes is whole: an
/// active snapshot or a view with its directory, or none of it. Methods may be called
/// concurrently; a cancelled call leaves nothing half-made that a later call could trip over.
#[async_trait]
pub trait Snapshotter: Send + Sync + fmt::Debug {
    /// Facts of one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo>;

    /// Replaces the labels that `fields` names (`labels`, `labels.<key>`; empty: all) with `info`'s.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo>;

    /// What the snapshot takes, parents not counted: stored for a committed one, measured for others.
    ///
    /// # Errors
    /// `NotFound`.
    async fn usage(&self, key: &SnapshotKey) -> Result<Usage>;

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed snapshot.
    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>>;

    /// Makes an active (writable) snapshot on top of committed `parent`. A key is free again as soon as
    /// its snapshot is committed or removed.
    ///
    /// The labels `containerd.io/snapshot/uidmapping` and `gidmapping` (`container:host:length,…`) ask
    /// for files that belong to the host's ids for the owners that the layers name; the root directory
    /// belongs to the host's id for root.
    ///
    /// A snapshotter that can have a layer without being given its files may answer `AlreadyExists`
    /// when the label `containerd.io/snapshot.ref` names it: it has a committed snapshot then that bears
    /// the same label.
    ///
    /// # Errors
    /// `AlreadyExists` for the key; `NotFound` for the parent; `InvalidArgument` for a parent that is
    /// not committed and for labels that are no mappings; `NotImplemented` where ids cannot be mapped.
    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>>;

    /// Makes a read-only view of committed `parent`.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>>;

    /// Turns active `key` into committed `name`, with `labels` (not the key's) and its usage.
    ///
    /// # Errors
    /// `NotFound` for the key; `FailedPrecondition` when it is not active; `AlreadyExists` for the name.
    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()>;

    /// Tells that all that was written to active `key` is on the disk, and that nothing more is written to
    /// it: its commit need not flush it.
    fn flushed(&self, _key: &SnapshotKey) {}

    /// Tells that who made active `key` is in this process and will commit or remove it, however long that
    /// takes and whatever comes: others who want the same may wait for it.
    fn attended(&self, _key: &SnapshotKey) {}

    /// True when [`Snapshotter::rebase`] works, and a snapshot without a parent is a directory that an
    /// overlay mount of it alone (`upperdir` and nothing below) can describe.
    fn rebases(&self) -> bool {
        false
    }

    /// True when [`Snapshotter::rebase`] knows what the unpacker of this process leaves in a layer that it
    /// unpacks without its parent ([`types::UNSETTLED_LAYER`]): only then may layers be unpacked so. One
    /// behind a socket may be somebody else's, to whom these marks are nothing.
    fn settles(&self) -> bool {
        self.rebases() && !self.is_remote()
    }

    /// As [`Snapshotter::commit`], onto committed `parent`: for an active snapshot that was made without
    /// one, so that layers can be unpacked at the same time. What the unpacker could not decide without
    /// the parent is settled first: the outcome is that of an unpacking on top of it.
    ///
    /// # Errors
    /// Those of a commit; `NotFound` and `InvalidArgument` for the parent as in
    /// [`Snapshotter::prepare`]; `FailedPrecondition` when the snapshot has another parent, or was to get
    /// another by a call that has failed;
    /// `NotImplemented`.
    async fn rebase(
        &self,
        _name: &SnapshotKey,
        _key: &SnapshotKey,
        _parent: &SnapshotKey,
        _labels: Labels,
    ) -> Result<()> {
        Err(Error::not_implemented("commit onto another parent"))
    }

    /// As [`Snapshotter::commit`], and with `parent` as [`Snapshotter::rebase`], for a caller with a journal
    /// of his own: he makes the answer durable before he tells anybody of the commit, and needs no other
    /// flush. It is of use until a later [`Snapshotter::flush`]; until then the commit alone survives a
    /// killed process and, by [`Snapshotter::redo`], a power cut. With no answer it is durable as it is.
    ///
    /// # Errors
    /// As there.
    async fn commit_noted(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Option<Redo>> {
        let done = match parent {
            Some(parent) => self.rebase(name, key, parent, labels).await,
            None => self.commit(name, key, labels).await,
        };
        done.map(|()| None)
    }

    /// Makes those of these commits again that are gone, and what a power cut has left of snapshots that
    /// stood on them: after the snapshotter was opened and before anything else is done with it. All of it
    /// is durable then. One that is lost for good leaves nothing, not even the active one that it was.
    ///
    /// # Errors
    /// I/O, `ResourceExhausted`: it is to be tried again before anything is cleaned up here.
    async fn redo(&self, _all: &[Redo]) -> Result<Redone> {
        Err(Error::not_implemented("make commits again"))
    }

    /// Makes all that was answered durable.
    ///
    /// # Errors
    /// I/O.
    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// True for one behind a socket: it may be away when nobody needs it, and keeps its records itself.
    fn is_remote(&self) -> bool {
        false
    }

    /// Removes a snapshot. Disk space may be freed later.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it has children.
    async fn remove(&self, key: &SnapshotKey) -> Result<()>;

    /// All snapshots that pass the filter, ordered by key.
    ///
    /// # Errors
    /// I/O.
    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>>;

    /// Looks whether every snapshot still has its files, and names those that have not, with what is
    /// wrong. Those that were made before `since` are not looked into; the data of files is not read.
    ///
    /// # Errors
    /// `NotImplemented` where this cannot be told; I/O.
    async fn verify(&self, _since: Option<SystemTime>) -> Result<Vec<Broken>> {
        Err(Error::not_implemented("verify"))
    }

    /// What is among the directories of its snapshots and belongs to none; true for what
    /// [`Snapshotter::cleanup`] removes, false for what somebody has to look at. What is being removed at
    /// this moment may be among it.
    ///
    /// # Errors
    /// `NotImplemented` where this cannot be told; I/O.
    async fn strangers(&self) -> Result<Vec<(PathBuf, bool)>> {
        Err(Error::not_implemented("strangers"))
    }

    /// True when [`Snapshotter::renew`] works.
    fn renews(&self) -> bool {
        false
    }

    /// Puts the files of active `key` in the place of those of committed `name`, which has the same
    /// parent; `key` is gone then. For a layer that was found damaged: what stands on it stands on the
    /// new files, and what is mounted of it keeps the old ones until they are collected.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when the two are not such a pair; `NotImplemented`.
    async fn renew(&self, _name: &SnapshotKey, _key: &SnapshotKey) -> Result<()> {
        Err(Error::not_implemented("renew a committed snapshot"))
    }

    /// What was wrong with the snapshotter's own records when it was opened, and was made good.
    fn damages(&self) -> Vec<String> {
        Vec::new()
    }

    /// Frees what no record names (directories of removed or half-made snapshots).
    ///
    /// # Errors
    /// `NotImplemented` where there is nothing to do.
    async fn cleanup(&self) -> Result<()> {
        Err(Error::not_implemented("cleanup"))
    }
}
