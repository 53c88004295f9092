//! What the targets share: a store of a few records as its two files, and a start over any two files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use content::{IngestSpec, Local};
use events::{Codec, Exchange};
use metadata::{Metadata, OpenOpts, Policy, store_files};
use tokio::runtime::Runtime;
use types::{
    Any, Code, Container, Descriptor, Error, Filter, Image, Labels, Namespace, NamespaceInfo,
    Result, Scope,
};

/// The bytes of a store that was closed: its file and its journal.
pub struct Base {
    pub file: Vec<u8>,
    pub journal: Vec<u8>,
    /// Where the journal's frames end, and its zeros begin.
    pub end: usize,
    content: Local,
    runtime: Runtime,
    _root: tempfile::TempDir,
}

static BASE: OnceLock<Base> = OnceLock::new();

/// Makes the store once.
pub fn base() -> &'static Base {
    BASE.get_or_init(make)
}

/// Leaves a panic alone that its reader makes an answer of; any other ends the process, as before.
pub fn let_readers_panic() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(sys::damage::CHECK_THREAD) {
            abort(info);
        }
    }));
}

fn opts(content: &Local) -> OpenOpts {
    let codec = Codec {
        encode: |event| Any {
            type_url: event.topic().to_owned(),
            value: Vec::new(),
        },
        open: |_| None,
    };
    OpenOpts {
        content: Arc::new(content.clone()),
        snapshotters: BTreeMap::new(),
        events: Arc::new(Exchange::new(codec)),
        policy: Policy::Shared,
        tasks: Box::new(|| Ok(Vec::new())),
        absent: Vec::new(),
    }
}

fn make() -> Base {
    let root = tempfile::tempdir().expect("tempdir");
    let content = Local::open(root.path().join("content")).expect("a content store");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let path = root.path().join("store/meta.redb");
    runtime.block_on(fill(&path, &content)).expect("fill");
    let [file, journal, _] = store_files(&path).map(|path| std::fs::read(path).unwrap_or_default());
    let end = end(&journal);
    Base {
        file,
        journal,
        end,
        content,
        runtime,
        _root: root,
    }
}

/// Each frame is as long as its first four bytes say, beside its head; the magic is before them.
fn end(journal: &[u8]) -> usize {
    let mut at = 8;
    while let Some([l0, l1, l2, l3]) = journal.get(at..at + 4)
        && let len @ 1.. = u32::from_le_bytes([*l0, *l1, *l2, *l3])
    {
        at += 8 + len as usize;
    }
    at
}

async fn fill(path: &Path, content: &Local) -> Result<()> {
    let metadata = Metadata::open(path, opts(content)).await?;
    let namespace: Namespace = "n".parse()?;
    let scope = Scope::new(namespace.clone());
    let now = SystemTime::UNIX_EPOCH;
    let labels = Labels::new().with("containerd.io/gc.ref.content", "sha256:00");
    let spec = IngestSpec {
        reference: "r".parse()?,
        total: None,
        expected: None,
    };
    let mut ingest = metadata.scoped(&scope).content().ingest(spec).await?;
    ingest.write(bytes::Bytes::from_static(b"blob")).await?;
    let digest = ingest.commit(None, None, labels.clone()).await?;
    for name in ["a", "b"] {
        let lease = metadata
            .leases(&namespace)
            .create(Some(name.parse()?), labels.clone())
            .await?;
        drop(lease);
        let target = Descriptor {
            media_type: "m".into(),
            digest: digest.clone(),
            size: 4,
            annotations: Labels::new(),
        };
        let image = Image {
            name: name.into(),
            labels: labels.clone(),
            target,
            created_at: now,
            updated_at: now,
        };
        metadata.images(&scope).create(image, None).await?;
        let container = Container {
            id: name.parse()?,
            labels: labels.clone(),
            image: name.into(),
            runtime: types::Runtime {
                name: "io.containerd.runc.v2".into(),
                options: None,
            },
            spec: Some(Any {
                type_url: "spec".into(),
                value: vec![7; 300],
            }),
            snapshotter: String::new(),
            snapshot_key: String::new(),
            extensions: BTreeMap::new(),
            sandbox: String::new(),
            created_at: now,
            updated_at: now,
        };
        metadata.containers(&scope).create(container).await?;
    }
    Ok(())
}

/// A daemon starts on these files, reads all there is, makes a namespace, and starts again.
pub fn start(file: Option<&[u8]>, journal: Option<&[u8]>) {
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("meta.redb");
    for (path, bytes) in store_files(&path).iter().zip([file, journal]) {
        if let Some(bytes) = bytes {
            std::fs::write(path, bytes).expect("write");
        }
    }
    let base = base();
    base.runtime.block_on(async {
        let opened = Metadata::open(&path, opts(&base.content)).await;
        let Some(metadata) = answered(opened) else {
            return;
        };
        answered(read(&metadata).await);
        let made = NamespaceInfo {
            name: "made".parse().expect("a name"),
            labels: Labels::new(),
        };
        let made = metadata.namespaces().create(made).await;
        let is_made = match made {
            Err(error) if error.is(Code::AlreadyExists) => true,
            made => answered(made).is_some(),
        };
        drop(metadata);
        let metadata = Metadata::open(&path, opts(&base.content))
            .await
            .expect("opens again");
        assert!(metadata.damages().is_empty(), "{:?}", metadata.damages());
        answered(read(&metadata).await);
        let found = metadata
            .namespaces()
            .get(&"made".parse().expect("a name"))
            .await;
        assert!(!is_made || found.is_ok(), "{found:?}");
    });
}

/// What is wrong with records is told so.
fn answered<T>(result: Result<T>) -> Option<T> {
    // The last is of a name that no daemon can have written.
    let fine = [
        Code::DataLoss,
        Code::FailedPrecondition,
        Code::InvalidArgument,
    ];
    match result {
        Ok(value) => Some(value),
        Err(error) if fine.contains(&error.code()) => None,
        Err(error) => panic!("{:?}: {error}", error.code()),
    }
}

/// Reads what lists read; the first failure is that of the whole.
async fn read(metadata: &Metadata) -> Result<()> {
    let mut failed = None::<Error>;
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
    };
    let all = Filter::default;
    let namespaces = match metadata.namespaces().list().await {
        Ok(found) => found,
        Err(error) => {
            note(Err(error));
            vec![NamespaceInfo {
                name: "n".parse()?,
                labels: Labels::new(),
            }]
        }
    };
    for namespace in namespaces {
        let scope = Scope::new(namespace.name.clone());
        note(metadata.images(&scope).visit(&all(), &mut |_| true));
        note(metadata.containers(&scope).visit(&all(), &mut |_| true));
        let mut pages = metadata.containers(&scope).pages(all());
        loop {
            match pages.page() {
                Ok(page) if page.is_empty() => break,
                Ok(_) => {}
                Err(error) => {
                    note(Err(error));
                    break;
                }
            }
        }
        let leases = metadata.leases(&namespace.name);
        match leases.list(&all()).await {
            Ok(found) => {
                for lease in found {
                    note(leases.resources(&lease.id).await.map(drop));
                }
            }
            Err(error) => note(Err(error)),
        }
        let content = metadata.scoped(&scope).content();
        note(content.list(&all()).await.map(drop));
        note(content.statuses(&all()).await.map(drop));
    }
    failed.map_or(Ok(()), Err)
}
