//! What the tests of this crate share: a store in a temporary directory over the real local content
//! store and a snapshotter in memory, and the events that come out of it.

mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ::content::{ContentStore, Local, testsuite};
use ::snapshotters::Snapshotter;
use events::{Codec, Exchange, Subscription};
use types::{
    Any, Code, Container, Descriptor, Digest, Fields, Filter, Image, Labels, Namespace, Result,
    Scope, SnapshotKey,
};

pub(crate) use self::memory::Memory;
use crate::{FoundTask, Metadata, OpenOpts, Policy};

pub(crate) const SNAPSHOTTER: &str = "memory";

/// A store and all that is under it.
pub(crate) struct House {
    pub(crate) metadata: Metadata,
    pub(crate) memory: Arc<Memory>,
    pub(crate) local: Local,
    pub(crate) root: tempfile::TempDir,
    events: tokio::sync::Mutex<Subscription>,
    exchange: Arc<Exchange>,
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::with(Policy::Shared).await
    }

    pub(crate) async fn with(policy: Policy) -> Self {
        let root = tempfile::tempdir().unwrap();
        let memory = Arc::<Memory>::default();
        Self::on(root, memory, policy, Vec::new()).await
    }

    /// Over files that are there; these tasks have a bundle.
    pub(crate) async fn on(
        root: tempfile::TempDir,
        memory: Arc<Memory>,
        policy: Policy,
        tasks: Vec<FoundTask>,
    ) -> Self {
        let exchange = Arc::new(exchange());
        let opts = OpenOpts {
            events: Arc::clone(&exchange),
            policy,
            tasks: Box::new(move || Ok(tasks.clone())),
            ..opts(root.path(), Some(&memory))
        };
        let path = store(root.path());
        let metadata = Metadata::open(&path, opts).await.unwrap();
        Self {
            metadata,
            memory,
            local: local(root.path()),
            root,
            events: tokio::sync::Mutex::new(exchange.subscribe(Filter::default())),
            exchange,
        }
    }

    /// The same files under a new daemon.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| {}, Vec::new()).await
    }

    /// The same after something has happened to the directory of the records; these tasks have a
    /// bundle.
    pub(crate) async fn restart_after(
        self,
        accident: impl FnOnce(&Path),
        tasks: Vec<FoundTask>,
    ) -> Self {
        let policy = self.metadata.0.policy;
        let (root, memory) = self.close();
        accident(&root.path().join("meta"));
        Self::on(root, memory, policy, tasks).await
    }

    /// What stays when the daemon stops.
    pub(crate) fn close(self) -> (tempfile::TempDir, Arc<Memory>) {
        (self.root, self.memory)
    }

    /// The events so far, as `namespace topic`.
    pub(crate) async fn events(&self) -> Vec<String> {
        let mut events = self.events.lock().await;
        // A mark behind which there is nothing: no waiting for what does not come.
        let end = types::Topic::try_from("/end".to_owned()).unwrap();
        self.exchange
            .publish_any(&namespace("end"), end, Any::default());
        let mut seen = Vec::new();
        loop {
            let envelope = events.recv().await.unwrap();
            if envelope.namespace.as_str() == "end" {
                return seen;
            }
            seen.push(format!("{} {}", envelope.namespace, envelope.topic));
        }
    }

    /// The scoped content store of a namespace.
    pub(crate) fn content(&self, scope: &Scope) -> Arc<dyn ContentStore> {
        self.metadata.scoped(scope).content()
    }

    /// The scoped snapshotter of a namespace.
    pub(crate) fn snapshots(&self, scope: &Scope) -> Arc<dyn Snapshotter> {
        self.metadata
            .scoped(scope)
            .snapshotter(SNAPSHOTTER)
            .unwrap()
    }

    /// A new lease and the scope that uses it.
    pub(crate) async fn leased(&self, name: &str, labels: Labels) -> Scope {
        let namespace = namespace(name);
        let lease = self
            .metadata
            .leases(&namespace)
            .create(None, labels)
            .await
            .unwrap();
        Scope {
            namespace,
            lease: Some(lease.id),
        }
    }

    /// What a scope's lease holds, as `kind id`.
    pub(crate) async fn held(&self, scope: &Scope) -> Vec<String> {
        let leases = self.metadata.leases(&scope.namespace);
        let held = leases
            .resources(scope.lease.as_ref().unwrap())
            .await
            .unwrap();
        held.iter()
            .map(|r| format!("{} {}", r.kind(), r.id()))
            .collect()
    }

    /// Blobs of the backend.
    pub(crate) async fn blobs(&self) -> Vec<Digest> {
        let all = self.local.list(&Filter::default()).await.unwrap();
        all.into_iter().map(|info| info.digest).collect()
    }
}

/// The store of a house.
pub(crate) fn store(root: &Path) -> PathBuf {
    root.join("meta/meta.redb")
}

pub(crate) fn local(root: &Path) -> Local {
    Local::open(root.join("content")).unwrap()
}

/// What a house opens its store with; without the snapshotter that is absent.
pub(crate) fn opts(root: &Path, memory: Option<&Arc<Memory>>) -> OpenOpts {
    let name = || SNAPSHOTTER.to_owned();
    let memory = memory.map(|memory| Arc::clone(memory) as Arc<dyn Snapshotter>);
    OpenOpts {
        content: Arc::new(local(root)),
        absent: memory.is_none().then(name).into_iter().collect(),
        snapshotters: memory.map(|memory| (name(), memory)).into_iter().collect(),
        events: Arc::new(exchange()),
        policy: Policy::Shared,
        tasks: Box::new(|| Ok(Vec::new())),
    }
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("House")
    }
}

/// An exchange whose events tell only their topic.
pub(crate) fn exchange() -> Exchange {
    Exchange::new(Codec {
        encode: |event| Any {
            type_url: event.topic().to_owned(),
            value: format!("{event:?}").into_bytes(),
        },
        open: |_| None,
    })
}

pub(crate) fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

pub(crate) fn scope(name: &str) -> Scope {
    Scope::new(namespace(name))
}

/// A scope whose lease does not exist.
pub(crate) fn lost(name: &str) -> Scope {
    Scope {
        namespace: namespace(name),
        lease: Some("lost".parse().unwrap()),
    }
}

pub(crate) fn name(key: &str) -> SnapshotKey {
    key.parse().unwrap()
}

pub(crate) fn fields(paths: &[&str]) -> Fields {
    Fields::new(paths.iter().map(|&path| path.to_owned()).collect())
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

pub(crate) fn sha(data: &[u8]) -> Digest {
    ::content::Hasher::digest(data).unwrap()
}

pub(crate) fn code<T>(result: Result<T>) -> Code {
    match result {
        Ok(_) => panic!("this must fail"),
        Err(error) => error.code(),
    }
}

/// Writes a blob with labels.
pub(crate) async fn put(store: &dyn ContentStore, data: &[u8], labels: Labels) -> Digest {
    let reference = format!("put-{}", sha(data).hex());
    let mut ingest = store.ingest(testsuite::spec(&reference)).await.unwrap();
    ingest
        .write(bytes::Bytes::copy_from_slice(data))
        .await
        .unwrap();
    ingest.commit(None, None, labels).await.unwrap()
}

pub(crate) fn image(name: &str, target: &Digest) -> Image {
    Image {
        name: name.to_owned(),
        labels: Labels::new(),
        target: Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: target.clone(),
            size: 10,
            annotations: Labels::new(),
        },
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

pub(crate) fn container(id: &str) -> Container {
    Container {
        id: id.parse().unwrap(),
        labels: Labels::new(),
        image: "image".into(),
        runtime: types::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: None,
        },
        spec: Some(Any {
            type_url: "spec".into(),
            value: vec![1, 2, 3],
        }),
        snapshotter: String::new(),
        snapshot_key: String::new(),
        extensions: BTreeMap::new(),
        sandbox: String::new(),
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

/// A file system of 16 MiB.
pub(crate) fn small_disk(root: &Path) -> sys::mount::TempMount {
    let tmpfs = types::Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=16m".into()],
        ..types::Mount::default()
    };
    sys::mount::TempMount::new(&[tmpfs], root).unwrap()
}

/// Fills it to the last page, and tells with which file.
pub(crate) fn fill(disk: &Path) -> PathBuf {
    let filler = disk.join("filler");
    let full = std::fs::write(&filler, vec![0; 32 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    filler
}
