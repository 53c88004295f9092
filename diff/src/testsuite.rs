//! Conformance: what every differ must do, in this process or behind a socket.
//!
//! Each check works in a directory and on blobs of its own and panics with what is wrong. [`run`] runs
//! all. They write owners and devices, so they need the rights of root.

#![expect(
    clippy::unwrap_used,
    reason = "a failed check is a panic: this is test code that other crates call"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use content::{ContentStore, Hasher, IngestSpec};
use types::{Code, Descriptor, Labels, Mount, Result, Scope, media_type as mt};

use crate::compression::{Compression, Encoder};
use crate::tar::{Entry, Kind, Time, Writer};
use crate::{Applier, ApplyOpts, CompareOpts, Comparer};

/// A differ, and what it works on.
#[derive(Debug)]
pub struct Bench<'a, D> {
    /// Who is checked.
    pub differ: &'a D,
    /// Where layers are.
    pub store: Arc<dyn ContentStore>,
    /// A directory for the checks.
    pub root: &'a Path,
    /// Who asks.
    pub scope: Option<Scope>,
}

/// Runs every check.
pub async fn run<D: Applier + Comparer>(bench: &Bench<'_, D>) {
    every_compression_gives_the_same_tree_and_diff_id(bench).await;
    what_follows_an_archive_counts_for_its_digest(bench).await;
    whiteouts_take_away_what_was_there(bench).await;
    nothing_leaves_the_tree(bench).await;
    what_is_damaged_unknown_or_missing_is_refused(bench).await;
    a_comparison_is_what_makes_one_tree_of_the_other(bench).await;
    a_comparison_is_of_the_type_that_was_wanted(bench).await;
    the_same_trees_and_epoch_give_the_same_layer(bench).await;
}

fn entry(kind: Kind, name: &str) -> Entry {
    Entry {
        kind,
        name: name.into(),
        link: Vec::new(),
        mode: if kind == Kind::Directory {
            0o755
        } else {
            0o640
        },
        uid: 12,
        gid: 34,
        size: 0,
        mtime: Time {
            seconds: 1_500_000_000,
            nanos: 123_000_000,
        },
        atime: None,
        major: 0,
        minor: 0,
        xattrs: Vec::new(),
        sparse: None,
    }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        let mut entry = entry.clone();
        entry.size = data.len() as u64;
        writer.entry(&entry).unwrap();
        if entry.kind == Kind::File {
            writer.data(data).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn sample() -> Vec<u8> {
    let link = Entry {
        link: "d/f".into(),
        ..entry(Kind::Link, "d/g")
    };
    let symlink = Entry {
        link: "/etc/x".into(),
        ..entry(Kind::Symlink, "s")
    };
    archive(&[
        (entry(Kind::Directory, "d/"), b""),
        (entry(Kind::File, "d/f"), &[b'x'; 300_000]),
        (link, b""),
        (symlink, b""),
    ])
}

/// Everything below `root` by path: kind and mode, owner, names, time of other than directories, data.
type Tree = BTreeMap<PathBuf, (u32, (u32, u32), u64, Option<i64>, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let facts = path.symlink_metadata().unwrap();
            let is_dir = facts.is_dir();
            let data = if facts.is_file() {
                std::fs::read(&path).unwrap()
            } else if facts.is_symlink() {
                let to = std::fs::read_link(&path).unwrap();
                to.into_os_string().into_encoded_bytes()
            } else {
                Vec::new()
            };
            let names = if is_dir { 0 } else { facts.nlink() };
            let time = (!is_dir).then(|| facts.mtime());
            let owner = (facts.uid(), facts.gid());
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (facts.mode(), owner, names, time, data));
            if is_dir {
                left.push(path);
            }
        }
    }
    found
}

fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".into(),
        source: path.display().to_string(),
        target: String::new(),
        options: vec!["rw".into(), "rbind".into()],
    }]
}

impl<D: Applier + Comparer> Bench<'_, D> {
    fn dir(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    async fn stored(&self, media_type: &str, data: &[u8]) -> Descriptor {
        let digest = Hasher::digest(data).unwrap();
        let spec = IngestSpec {
            reference: format!("suite-{}", digest.hex()).parse().unwrap(),
            total: None,
            expected: None,
        };
        // Another check may have stored the same.
        if self.store.info(&digest).await.is_err() {
            let mut ingest = self.store.ingest(spec).await.unwrap();
            ingest.write(data.to_vec().into()).await.unwrap();
            ingest.commit(None, None, Labels::new()).await.unwrap();
        }
        Descriptor {
            media_type: media_type.into(),
            digest,
            size: data.len() as u64,
            annotations: Labels::new(),
        }
    }

    async fn apply(&self, layer: &Descriptor, to: &[Mount]) -> Result<Descriptor> {
        let opts = ApplyOpts {
            scope: self.scope.clone(),
            ..ApplyOpts::default()
        };
        self.differ.apply(&self.store, layer, to, opts).await
    }

    async fn compare(&self, lower: &[Mount], upper: &[Mount], kind: &str) -> Result<Descriptor> {
        let opts = CompareOpts {
            media_type: kind.into(),
            scope: self.scope.clone(),
            source_date_epoch: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            ..CompareOpts::default()
        };
        self.differ.compare(&self.store, lower, upper, opts).await
    }
}

fn packed(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The descriptor that is told is that of the archive, without its compression.
pub async fn every_compression_gives_the_same_tree_and_diff_id<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let tar = sample();
    let mut trees = Vec::new();
    for (compression, kind) in [
        (Compression::Plain, mt::OCI_LAYER),
        (Compression::Gzip, mt::OCI_LAYER_GZIP),
        (Compression::Zstd, mt::OCI_LAYER_ZSTD),
        (Compression::Gzip, mt::DOCKER_LAYER_GZIP),
    ] {
        let layer = bench.stored(kind, &packed(compression, &tar)).await;
        let to = bench.dir(&format!("packed-{}", trees.len()));
        let done = bench.apply(&layer, &bind(&to)).await.unwrap();
        assert_eq!(done.media_type, mt::OCI_LAYER);
        assert_eq!(done.digest, Hasher::digest(&tar).unwrap());
        assert_eq!(done.size, tar.len() as u64);
        trees.push(tree(&to));
    }
    let (mode, owner, names, time, data) = &trees[0][Path::new("d/g")];
    assert_eq!((*mode & 0o7777, *owner, *names), (0o640, (12, 34), 2));
    assert_eq!((*time, data.len()), (Some(1_500_000_000), 300_000));
    assert_eq!(trees[0][Path::new("s")].4, b"/etc/x");
    assert!(trees.iter().all(|tree| *tree == trees[0]));
}

/// Whatever comes after the end of an archive is part of the blob.
pub async fn what_follows_an_archive_counts_for_its_digest<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let tar = [sample(), vec![0; 10_000]].concat();
    let layer = packed(Compression::Gzip, &tar);
    let layer = bench.stored(mt::OCI_LAYER_GZIP, &layer).await;
    let to = bench.dir("followed");
    let done = bench.apply(&layer, &bind(&to)).await.unwrap();
    assert_eq!(done.digest, Hasher::digest(&tar).unwrap());
}

/// A whiteout takes one name away, an opaque one all that a directory had; neither is left behind.
pub async fn whiteouts_take_away_what_was_there<D: Applier + Comparer>(bench: &Bench<'_, D>) {
    let to = bench.dir("whiteouts");
    for directory in ["kept", "opaque"] {
        std::fs::create_dir(to.join(directory)).unwrap();
        for file in ["a", "b"] {
            std::fs::write(to.join(directory).join(file), file).unwrap();
        }
    }
    let tar = archive(&[
        (entry(Kind::File, "kept/.wh.a"), b""),
        (entry(Kind::File, "opaque/.wh..wh..opq"), b""),
        (entry(Kind::File, "opaque/c"), b"c"),
    ]);
    let layer = bench.stored(mt::OCI_LAYER, &tar).await;
    bench.apply(&layer, &bind(&to)).await.unwrap();
    let names: Vec<_> = tree(&to).into_keys().collect();
    assert_eq!(
        names,
        ["kept", "kept/b", "opaque", "opaque/c"].map(PathBuf::from)
    );
}

/// Names with `..` and links out of the tree lead nowhere else.
pub async fn nothing_leaves_the_tree<D: Applier + Comparer>(bench: &Bench<'_, D>) {
    let (outside, to) = (bench.dir("outside"), bench.dir("inside"));
    std::fs::write(outside.join("f"), "theirs").unwrap();
    let before = tree(&outside);
    let link = |kind, name: &str, target: &str| Entry {
        link: target.into(),
        ..entry(kind, name)
    };
    let out = outside.display().to_string();
    let hostile = [
        vec![(entry(Kind::File, "../outside/f"), &b"ours"[..])],
        vec![(entry(Kind::File, &format!("{out}/g")), b"ours")],
        vec![
            (link(Kind::Symlink, "l", "../outside"), &b""[..]),
            (entry(Kind::File, "l/f"), b"ours"),
        ],
        vec![
            (link(Kind::Symlink, "m", &out), &b""[..]),
            (entry(Kind::File, "m/.wh.f"), b""),
        ],
        vec![
            (link(Kind::Link, "n", "../outside/f"), &b""[..]),
            (entry(Kind::File, "n"), b"ours"),
        ],
    ];
    for entries in hostile {
        let layer = bench.stored(mt::OCI_LAYER, &archive(&entries)).await;
        // Refused, or unpacked into the tree.
        drop(bench.apply(&layer, &bind(&to)).await);
        assert_eq!(tree(&outside), before);
    }
}

/// Each with its class.
pub async fn what_is_damaged_unknown_or_missing_is_refused<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let to = bind(&bench.dir("refused"));
    let good = packed(Compression::Gzip, &sample());
    let damaged = bench.stored(mt::OCI_LAYER_GZIP, &good[..good.len() / 2]);
    let error = bench.apply(&damaged.await, &to).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    let unknown = bench.stored("application/x-unknown", &good).await;
    let error = bench.apply(&unknown, &to).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    let missing = Descriptor {
        digest: Hasher::digest(b"nobody has this").unwrap(),
        ..bench.stored(mt::OCI_LAYER_GZIP, &good).await
    };
    let error = bench.apply(&missing, &to).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let nothing = vec![Mount::default()];
    let layer = bench.stored(mt::OCI_LAYER_GZIP, &good).await;
    let error = bench.apply(&layer, &nothing).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    let error = bench.compare(&[], &to, "application/x-unknown").await;
    let error = error.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
}

/// What was added, changed and taken away is in the layer, and nothing else.
pub async fn a_comparison_is_what_makes_one_tree_of_the_other<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let layer = bench.stored(mt::OCI_LAYER, &sample()).await;
    let [old, new, copy] = ["old", "new", "copy"].map(|name| bench.dir(name));
    for root in [&old, &new, &copy] {
        bench.apply(&layer, &bind(root)).await.unwrap();
        std::fs::create_dir(root.join("gone")).unwrap();
        std::fs::write(root.join("gone/f"), "f").unwrap();
    }
    std::fs::remove_dir_all(new.join("gone")).unwrap();
    std::fs::remove_file(new.join("s")).unwrap();
    std::fs::create_dir(new.join("s")).unwrap();
    std::fs::write(new.join("s/added"), "added").unwrap();
    std::fs::write(new.join("d/f"), "shorter").unwrap();
    for kind in [mt::OCI_LAYER, mt::OCI_LAYER_GZIP, mt::OCI_LAYER_ZSTD] {
        let change = bench.compare(&bind(&old), &bind(&new), kind).await.unwrap();
        assert_eq!(change.media_type, kind);
        let again = bench.dir(&format!("again-{}", kind.len()));
        bench.apply(&layer, &bind(&again)).await.unwrap();
        std::fs::create_dir(again.join("gone")).unwrap();
        bench.apply(&change, &bind(&again)).await.unwrap();
        let times = |mut tree: Tree| {
            // What is younger than the epoch has its time.
            tree.values_mut()
                .for_each(|node| node.3 = node.3.map(|at| at.min(1_700_000_000)));
            tree
        };
        assert_eq!(tree(&again), times(tree(&new)));
    }
    let nothing = bench.compare(&bind(&old), &bind(&old), mt::OCI_LAYER).await;
    let before = tree(&copy);
    bench.apply(&nothing.unwrap(), &bind(&copy)).await.unwrap();
    assert_eq!(tree(&copy), before);
}

/// Gzip when nobody says otherwise.
pub async fn a_comparison_is_of_the_type_that_was_wanted<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let one = bench.dir("typed");
    std::fs::write(one.join("f"), "f").unwrap();
    for (wanted, kind, magic) in [
        ("", mt::OCI_LAYER_GZIP, &[0x1f, 0x8b][..]),
        (mt::OCI_LAYER_GZIP, mt::OCI_LAYER_GZIP, &[0x1f, 0x8b]),
        (mt::OCI_LAYER_ZSTD, mt::OCI_LAYER_ZSTD, &[0x28, 0xb5]),
    ] {
        let layer = bench.compare(&[], &bind(&one), wanted).await.unwrap();
        assert_eq!(layer.media_type, kind);
        let blob = bench.store.open(&layer.digest).await.unwrap();
        assert_eq!(blob.size(), layer.size);
        assert_eq!(&blob.read_at(0, magic.len()).await.unwrap()[..], magic);
    }
}

/// The second time it is the blob that is there already.
pub async fn the_same_trees_and_epoch_give_the_same_layer<D: Applier + Comparer>(
    bench: &Bench<'_, D>,
) {
    let one = bench.dir("same");
    std::fs::write(one.join("f"), "f").unwrap();
    let first = bench.compare(&[], &bind(&one), "").await.unwrap();
    std::fs::write(one.join("f"), "f").unwrap();
    let second = bench.compare(&[], &bind(&one), "").await.unwrap();
    assert_eq!(first, second);
}
