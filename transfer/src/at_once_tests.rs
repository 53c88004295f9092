//! Layers unpacked at the same time against the same layers in series: real overlay, real applier.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use content::{ContentStore as _, IngestSpec, Local};
use images::testsuite::{Store, image};
use snapshotters::testsuite::{AsItIs, Variation, Varied};
use snapshotters::{Overlay, OverlayConfig, Snapshotter};
use tar::{Builder, EntryType, Header};
use types::{Filter, IMPLIED_DIRECTORY, UNSETTLED_LAYER};

use super::*;
use crate::rooms::{MOST, width};

/// An entry in one line: kind, name, what it holds or names, mode and owner.
type Line<'a> = (char, &'a str, &'a str, u32, u64);

fn layer(lines: &[Line<'_>]) -> Vec<u8> {
    let mut made = Builder::new(Vec::new());
    for (kind, name, text, mode, owner) in lines {
        let mut header = Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(1_500_000_000 + u64::from(*mode));
        let kind = match kind {
            'd' => EntryType::Directory,
            'l' => EntryType::Symlink,
            'h' => EntryType::Link,
            _ => EntryType::Regular,
        };
        header.set_entry_type(kind);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_size(0);
            made.append_link(&mut header, name, text).unwrap();
        } else {
            header.set_size(text.len() as u64);
            made.append_data(&mut header, name, text.as_bytes())
                .unwrap();
        }
    }
    made.into_inner().unwrap()
}

/// One entry of a layer's directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) mode: u32,
    owner: (u32, u32),
    rdev: u64,
    text: Vec<u8>,
    /// Absent where it is the moment of unpacking.
    mtime: Option<i64>,
    pub(super) opaque: bool,
}

/// All entries of a layer's directory.
pub(super) type Shown = BTreeMap<PathBuf, Seen>;

fn seen(root: &Path) -> Shown {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let facts = std::fs::symlink_metadata(&path).unwrap();
        let has = |name: &str| rustix::fs::lgetxattr(&path, name, &mut [0_u8; 8][..]).is_ok();
        assert!(!has(UNSETTLED_LAYER) && !has(IMPLIED_DIRECTORY), "{path:?}");
        let text = if facts.is_symlink() {
            std::fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec()
        } else if facts.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if facts.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let old = facts.mtime() < 1_600_000_000;
        let entry = Seen {
            mode: facts.mode(),
            owner: (facts.uid(), facts.gid()),
            rdev: facts.rdev(),
            text,
            mtime: old.then(|| facts.mtime()),
            opaque: has("trusted.overlay.opaque"),
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), entry);
    }
    found
}

/// It says that it rebases, and is not ours.
#[derive(Debug)]
struct Foreign;

impl Variation for Foreign {
    fn is_foreign(&self) -> bool {
        true
    }
}

/// How layers are unpacked.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum How {
    AtOnce,
    InSeries,
    /// By a snapshotter that knows nothing of our marks, though it rebases.
    Foreign,
}

/// What the layers' directories hold, top first.
async fn unpacked(layers: &[Vec<u8>], how: How) -> Vec<Shown> {
    made(layers, how).await.unwrap()
}

/// The same of layers that may be refused.
pub(super) async fn made(layers: &[Vec<u8>], how: How) -> Result<Vec<Shown>> {
    let temp = tempfile::tempdir().unwrap();
    let overlay = Overlay::open(&temp.path().join("o"), OverlayConfig::default()).unwrap();
    let store = Store::default();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let root = image(&store, "linux/amd64", &layers).await;
    let inner = Arc::new(overlay.clone());
    let snapshotter: Arc<dyn Snapshotter> = match how {
        How::AtOnce => inner,
        // It does not tell that it can rebase.
        How::InSeries => Arc::new(Varied(inner, AsItIs)),
        How::Foreign => Arc::new(Varied(inner, Foreign)),
    };
    let deps = Deps {
        snapshotter,
        content: Arc::new(store),
        applier: Arc::new(diff::Walking::new(temp.path().join("m"))),
        ..crate::fake::World::new().deps()
    };
    let on = OnProgress::default();
    let top = unpack_image(&deps, &root, &PlatformSet::All, &on).await?;
    let top = key_of(&top.unwrap())?;
    let all = overlay.list(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), layers.len(), "no extraction stays: {all:?}");
    let view = "view".parse().unwrap();
    let mounts = overlay
        .view(&view, Some(&top), Labels::new())
        .await
        .unwrap();
    let lowers = mounts[0].option("lowerdir").unwrap().split(':');
    Ok(lowers.map(|path| seen(Path::new(path))).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn layers_at_once_are_the_layers_in_series() {
    let base: &[Line<'_>] = &[
        ('d', "etc", "", 0o750, 3),
        ('f', "etc/passwd", "root", 0o644, 0),
        ('f', "etc/gone", "x", 0o600, 0),
        ('d', "tmp", "", 0o1777, 0),
        ('d', "usr", "", 0o755, 0),
        ('d', "usr/lib", "", 0o711, 7),
        ('f', "usr/lib/so", "elf", 0o755, 7),
        ('l', "lib", "usr/lib", 0o777, 0),
        ('d', "opt", "", 0o700, 9),
        ('f', "opt/a", "a", 0o644, 0),
        ('d', "srv", "", 0o755, 0),
        ('f', "srv/x", "x", 0o644, 0),
        ('d', "run", "", 0o750, 9),
        ('d', "run/sub", "", 0o711, 8),
        ('f', "run/sub/old", "o", 0o644, 0),
        ('d', "mnt", "", 0o711, 6),
        ('d', "mnt/sub", "", 0o750, 6),
    ];
    // Parents that only names imply, deletions of what is there, of what is not, and in new places.
    let second: &[Line<'_>] = &[
        ('f', "etc/.wh.gone", "", 0o600, 0),
        ('f', "etc/.wh.never", "", 0o600, 0),
        ('f', "tmp/deep/new", "n", 0o644, 4),
        ('f', "usr/lib/two", "2", 0o640, 7),
        ('d', "var", "", 0o755, 0),
        ('f', "var/.wh.nothing", "", 0o600, 0),
        ('f', ".wh.srv", "", 0o600, 0),
        // Implied, and nothing below is to be seen in them.
        ('f', "run/.wh..wh..opq", "", 0o600, 0),
        ('f', "run/sub/new", "n", 0o644, 0),
        ('f', ".wh.mnt", "", 0o600, 0),
        ('f', "mnt/sub/new", "n", 0o644, 0),
    ];
    // A directory anew, an opaque one, one that is described after its contents.
    let third: &[Line<'_>] = &[
        ('d', "srv", "", 0o711, 1),
        ('f', "srv/y", "y", 0o644, 0),
        ('d', "opt", "", 0o755, 0),
        ('f', "opt/.wh..wh..opq", "", 0o600, 0),
        ('f', "opt/.wh.a", "", 0o600, 0),
        ('f', "opt/b", "b", 0o644, 0),
        ('f', "etc/late", "l", 0o644, 0),
        ('d', "etc", "", 0o701, 5),
    ];
    // A link into the layer below needs its parent.
    let fourth: &[Line<'_>] = &[
        ('h', "etc/copy", "etc/passwd", 0o644, 0),
        ('f', "tmp/.wh.deep", "", 0o600, 0),
    ];
    let fifth: &[Line<'_>] = &[
        ('f', "tmp/.wh.deep", "", 0o600, 0),
        ('f', "end", "e", 0o644, 0),
    ];
    let layers = [base, second, third, fourth, fifth].map(layer);
    let (series, at_once) = (
        unpacked(&layers, How::InSeries).await,
        unpacked(&layers, How::AtOnce).await,
    );
    for (n, (series, at_once)) in series.iter().zip(&at_once).enumerate() {
        assert_eq!(at_once, series, "layer {n} from the top");
    }
    assert_eq!(unpacked(&layers, How::Foreign).await, series);
    // What the comparison rests on: deletions of nothing left nothing, and parents were imitated.
    let second = &at_once[3];
    assert!(second.contains_key(Path::new("etc/gone")));
    assert!(!second.contains_key(Path::new("etc/never")));
    assert_eq!(second[Path::new("tmp")].mode & 0o7777, 0o1777);
    assert_eq!(second[Path::new("usr/lib")].owner, (7, 7));
    assert!(second[Path::new("run")].opaque && second[Path::new("run/sub")].owner == (8, 8));
}

/// A world in which one layer's bytes are on their way.
struct OnItsWay {
    temp: tempfile::TempDir,
    overlay: snapshotters::Local,
    store: Store,
    manifest: Manifest,
    config: Config,
}

impl OnItsWay {
    async fn new(data: &[u8]) -> Self {
        Self::of(&[data.to_vec()]).await
    }

    /// The first of these is on its way.
    async fn of(layers: &[Vec<u8>]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let overlay = Overlay::open(&temp.path().join("o"), OverlayConfig::default()).unwrap();
        let store = Store::default();
        let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        let root = image(&store, "linux/amd64", &layers).await;
        let manifest = images::read_manifest(&store, &root).await.unwrap();
        let config = images::read_config(&store, &manifest.config).await.unwrap();
        store.delete(&manifest.layers[0].digest).await.unwrap();
        Self {
            temp,
            overlay,
            store,
            manifest,
            config,
        }
    }

    fn deps(&self) -> Deps {
        Deps {
            snapshotter: Arc::new(self.overlay.clone()),
            content: Arc::new(self.store.clone()),
            applier: Arc::new(diff::Walking::new(self.temp.path().join("m"))),
            ..crate::fake::World::new().deps()
        }
    }

    /// The writer that the layer comes in by.
    async fn writer(&self) -> Box<dyn content::Ingest> {
        let local = Local::open(self.temp.path().join("c")).unwrap();
        let spec = IngestSpec {
            reference: "layer".parse().unwrap(),
            total: None,
            expected: None,
        };
        local.ingest(spec).await.unwrap()
    }

    /// True when a file of that name was unpacked.
    fn has(&self, name: &str) -> bool {
        let snapshots = std::fs::read_dir(self.temp.path().join("o/snapshots")).unwrap();
        let mut paths = snapshots.map(|entry| entry.unwrap().path());
        paths.any(|path| path.join("fs").join(name).exists())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_is_unpacked_while_it_comes_in() {
    let large = "x".repeat(1 << 20);
    let data = layer(&[
        ('f', "first", "1", 0o644, 0),
        ('f', "large", &large, 0o644, 0),
        ('f', "last", "2", 0o644, 0),
    ]);
    let world = OnItsWay::new(&data).await;
    let (deps, on) = (world.deps(), OnProgress::default());
    let mut writer = world.writer().await;
    let (arriving, arrival) = Arrival::expected();
    let blob = writer.follow(data.len() as u64).unwrap().unwrap();
    arriving.started.send(blob).unwrap();
    let (begin, rest) = data.split_at(data.len() / 2);
    let feed = async {
        writer.write(begin.to_vec().into()).await.unwrap();
        while !world.has("first") {
            tokio::task::yield_now().await;
        }
        assert!(!world.has("last"));
        writer.write(rest.to_vec().into()).await.unwrap();
        writer.commit(None, None, Labels::new()).await.unwrap();
        world.store.put("layer", &data).await;
        arriving.done.send(true).unwrap();
    };
    let arrivals = vec![arrival];
    let rooms = Rooms::new(&deps);
    let unpack = unpack_arriving(&deps, &world.manifest, &world.config, &on, arrivals, &rooms);
    let (made, ()) = tokio::join!(unpack, feed);
    let chain = key_of(&made.unwrap().unwrap()).unwrap();
    assert_eq!(
        world.overlay.stat(&chain).await.unwrap().kind,
        SnapshotKind::Committed
    );
    assert!(world.has("last"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_that_comes_in_wrong_or_not_at_all_leaves_nothing() {
    let data = layer(&[('f', "first", "1", 0o644, 0), ('f', "last", "2", 0o644, 0)]);
    for cut in [true, false] {
        let world = OnItsWay::new(&data).await;
        let (deps, on) = (world.deps(), OnProgress::default());
        let mut writer = world.writer().await;
        let (arriving, arrival) = Arrival::expected();
        let blob = writer.follow(data.len() as u64).unwrap().unwrap();
        arriving.started.send(blob).unwrap();
        let mut wrong = data.clone();
        // Where it changes nothing but the digest: in the last padding.
        *wrong.last_mut().unwrap() ^= 1;
        if cut {
            wrong.truncate(data.len() / 2);
        }
        let feed = async {
            writer.write(wrong.into()).await.unwrap();
            drop(writer);
            // The fetch has failed.
            drop(arriving.done);
        };
        let arrivals = vec![arrival];
        let rooms = Rooms::new(&deps);
        let unpack = unpack_arriving(&deps, &world.manifest, &world.config, &on, arrivals, &rooms);
        let (made, ()) = tokio::join!(unpack, feed);
        assert!(made.unwrap_err().is(Code::Cancelled));
        let left = world.overlay.list(&Filter::default()).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Other transfers are at all layers but the first, and wait for that.
#[derive(Debug)]
struct Others {
    first: String,
    waiting: AtomicUsize,
}

#[async_trait]
impl Variation for Others {
    fn is_ours(&self) -> bool {
        true
    }

    async fn prepare(
        &self,
        inner: &dyn Snapshotter,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        if labels.get(types::label::SNAPSHOT_REF) != Some(&self.first) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let first = self.first.parse()?;
            while inner.stat(&first).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        inner.prepare(key, parent, labels).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn layers_that_wait_for_other_transfers_leave_room_for_the_one_that_those_wait_for() {
    let data = |n: u64| layer(&[('f', &format!("file{n}"), "1", 0o644, 0)]);
    let layers: Vec<_> = (0..=MOST as u64).map(data).collect();
    let world = OnItsWay::of(&layers).await;
    let chains = chain_ids(&world.config.diff_ids).unwrap();
    let others = Others {
        first: chains[0].to_string(),
        waiting: AtomicUsize::new(0),
    };
    let varied = Arc::new(Varied(Arc::new(world.overlay.clone()), others));
    let deps = Deps {
        snapshotter: Arc::clone(&varied) as _,
        ..world.deps()
    };
    let (arriving, arrival) = Arrival::expected();
    drop(arriving.started);
    let feed = async {
        while varied.1.waiting.load(Ordering::Relaxed) < width(&deps) {
            tokio::task::yield_now().await;
        }
        // It comes in as the last one.
        world.store.put("layer", &layers[0]).await;
        arriving.done.send(true).unwrap();
    };
    let on = OnProgress::default();
    let arrivals = vec![arrival];
    let rooms = Rooms::new(&deps);
    let unpack = unpack_arriving(&deps, &world.manifest, &world.config, &on, arrivals, &rooms);
    let both = async { tokio::join!(unpack, feed) };
    let made = tokio::time::timeout(Duration::from_secs(30), both).await;
    let (made, ()) = made.expect("they wait for each other");
    made.unwrap();
    let all = world.overlay.list(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), layers.len(), "{all:?}");
}
