//! Stand-ins for tests: snapshots that hold digests, an applier that hashes, records in a map.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use content::ContentStore;
use diff::{Applier, ApplyOpts};
use images::ImageStore;
use images::testsuite::{Store, fields_of};
use registry::testsuite::Content;
use snapshotters::Snapshotter;
use types::{
    Descriptor, Error, Fields, Filter, Image, Labels, Mount, Platform, Result, SnapshotInfo,
    SnapshotKey, SnapshotKind, Usage, media_type as mt,
};

use crate::Deps;

/// Adds to what a registry has an image of this one layer, for this host, with a tag; its layer.
pub(crate) fn image_of(content: &mut Content, layer: Vec<u8>, tag: &str) -> Descriptor {
    let id = images::digest_of(&layer).unwrap();
    let layer = content.add(mt::OCI_LAYER, layer, &[]);
    let arch = Platform::host().architecture;
    let config =
        format!(r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"diff_ids":["{id}"]}}}}"#);
    let config = content.add(mt::OCI_CONFIG, config, &[]);
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{{{}}}]}}"#,
        fields_of(&config),
        fields_of(&layer)
    );
    content.add(mt::OCI_MANIFEST, text, &[tag]);
    layer
}

/// All of it, with the handles by which tests look inside.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) content: Store,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) records: Arc<Records>,
    pub(crate) applier: Arc<Hasher>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            content: Store::default(),
            snapshots: Arc::default(),
            records: Arc::default(),
            applier: Arc::default(),
        }
    }

    pub(crate) fn deps(&self) -> Deps {
        Deps {
            content: Arc::new(self.content.clone()),
            images: Arc::clone(&self.records) as _,
            snapshotter: Arc::clone(&self.snapshots) as _,
            snapshotter_name: "overlayfs".into(),
            applier: Arc::clone(&self.applier) as _,
        }
    }

    /// Committed snapshots; panics when an extraction was left behind.
    pub(crate) fn chains(&self) -> Vec<String> {
        let all = self.snapshots.0.lock().unwrap();
        assert!(
            all.values().all(|s| s.kind == SnapshotKind::Committed),
            "{all:?}"
        );
        all.keys().cloned().collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.records.0.lock().unwrap().keys().cloned().collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Snapshots(
    pub(crate) Mutex<BTreeMap<String, SnapshotInfo>>,
    /// What the next prepares do.
    pub(crate) Mutex<Vec<Trick>>,
    /// Keys of which it was told that somebody will end them.
    Mutex<BTreeSet<String>>,
    pub(crate) OutOfOrder,
    /// How often it was told that all of a snapshot is on the disk.
    pub(crate) AtomicUsize,
);

/// Layers that are prepared before what is below them.
#[derive(Debug, Default)]
pub(crate) struct OutOfOrder {
    /// Says that it takes them; each layer takes a second.
    pub(crate) is_on: AtomicBool,
    now: AtomicUsize,
    /// How many at most were there at a time.
    pub(crate) most: AtomicUsize,
}

impl OutOfOrder {
    async fn one(&self, is_early: bool) {
        let one = usize::from(is_early);
        let now = self.now.fetch_add(one, Ordering::Relaxed) + one;
        self.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.now.fetch_sub(one, Ordering::Relaxed);
    }
}

/// An odd thing that a snapshotter does once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trick {
    /// Says that the key is taken.
    Clash,
    /// Has the layer already, as a remote snapshotter may.
    Remote,
}

#[async_trait]
impl Snapshotter for Snapshots {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let all = self.0.lock().unwrap();
        all.get(key.as_str())
            .cloned()
            .ok_or_else(|| Error::not_found(key))
    }

    async fn update(&self, _: SnapshotInfo, _: &Fields) -> Result<SnapshotInfo> {
        Err(Error::not_implemented("update"))
    }

    async fn usage(&self, _: &SnapshotKey) -> Result<Usage> {
        Err(Error::not_implemented("usage"))
    }

    async fn mounts(&self, _: &SnapshotKey) -> Result<Vec<Mount>> {
        Ok(Vec::new())
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        assert!(labels.contains_key(types::label::SNAPSHOT_REF));
        assert!(labels.contains_key(types::label::SNAPSHOT_DIFF_ID));
        if let Some(parent) = parent {
            assert_eq!(labels[types::label::SNAPSHOT_PARENT_CHAIN], parent.as_str());
        }
        if self.rebases() {
            let has_parent = labels.contains_key(types::label::SNAPSHOT_PARENT_CHAIN);
            self.3.one(has_parent && parent.is_none()).await;
        }
        let mut all = self.0.lock().unwrap();
        if let Some(parent) = parent {
            assert_eq!(all[parent.as_str()].kind, SnapshotKind::Committed);
        }
        let info = SnapshotInfo {
            kind: SnapshotKind::Active,
            name: key.clone(),
            parent: parent.cloned(),
            labels,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        match self.1.lock().unwrap().pop() {
            Some(Trick::Clash) => return Err(Error::already_exists(key)),
            Some(Trick::Remote) => {
                let chain = info.labels[types::label::SNAPSHOT_REF].clone();
                let kind = SnapshotKind::Committed;
                all.insert(chain, SnapshotInfo { kind, ..info });
                return Err(Error::already_exists(key));
            }
            None => {}
        }
        match all.insert(key.to_string(), info) {
            None => Ok(Vec::new()),
            Some(_) => Err(Error::already_exists(key)),
        }
    }

    async fn view(
        &self,
        _: &SnapshotKey,
        _: Option<&SnapshotKey>,
        _: Labels,
    ) -> Result<Vec<Mount>> {
        Err(Error::not_implemented("view"))
    }

    fn rebases(&self) -> bool {
        self.3.is_on.load(Ordering::Relaxed)
    }

    fn flushed(&self, _: &SnapshotKey) {
        self.4.fetch_add(1, Ordering::Relaxed);
    }

    fn attended(&self, key: &SnapshotKey) {
        assert!(self.2.lock().unwrap().insert(key.to_string()));
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        assert!(
            self.2.lock().unwrap().remove(key.as_str()),
            "who waits for {key}?"
        );
        let mut all = self.0.lock().unwrap();
        if all.contains_key(name.as_str()) {
            return Err(Error::already_exists(name));
        }
        let mut info = all
            .remove(key.as_str())
            .ok_or_else(|| Error::not_found(key))?;
        (info.kind, info.labels, info.name) = (SnapshotKind::Committed, labels, name.clone());
        all.insert(name.to_string(), info);
        Ok(())
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        let gone = self.0.lock().unwrap().remove(key.as_str());
        gone.map(drop).ok_or_else(|| Error::not_found(key))
    }

    async fn list(&self, _: &Filter) -> Result<Vec<SnapshotInfo>> {
        Err(Error::not_implemented("list"))
    }
}

/// Hashes what it would unpack; refuses a layer that says `damaged`, never ends on one that says `stuck`.
#[derive(Debug, Default)]
pub(crate) struct Hasher {
    pub(crate) applied: Mutex<Vec<u64>>,
    /// It is another program's, of which nothing is known.
    pub(crate) is_foreign: AtomicBool,
}

#[async_trait]
impl Applier for Hasher {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        _: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        assert!(opts.sync, "a snapshot that is committed must be on disk");
        let blob = store.open(&layer.digest).await?;
        let mut data = blob.read_at(0, usize::MAX / 2).await?.to_vec();
        self.applied.lock().unwrap().push(layer.size);
        if data.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(data.as_slice());
            decoder
                .read_to_end(&mut plain)
                .map_err(Error::invalid_argument)?;
            data = plain;
        }
        if data.starts_with(b"damaged") {
            return Err(Error::invalid_argument("archive/tar: invalid tar header"));
        }
        if data.starts_with(b"stuck") {
            std::future::pending::<()>().await;
        }
        Ok(Descriptor {
            digest: images::digest_of(&data)?,
            ..layer.clone()
        })
    }

    fn settles(&self) -> bool {
        !self.is_foreign.load(Ordering::Relaxed)
    }

    fn flushes(&self) -> bool {
        !self.is_foreign.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Records(pub(crate) Mutex<BTreeMap<String, Image>>);

#[async_trait]
impl ImageStore for Records {
    async fn put(&self, name: &str, target: Descriptor, labels: Labels) -> Result<Image> {
        let image = Image {
            name: name.to_owned(),
            labels,
            target,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        self.0
            .lock()
            .unwrap()
            .insert(name.to_owned(), image.clone());
        Ok(image)
    }
}
