//! Damage at random, of file, journal or both.

use std::fs;

use super::*;
use crate::Metadata;
use crate::fixture::{Memory, container};
use crate::kv::{Kv, Read as _};

/// As many as take some ten seconds of a processor.
const ROUNDS: u64 = 200;

/// Any sequence will do that is the same in every run: Knuth's multiplier.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005) + 1;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    /// Harms some of the first `len` bytes.
    fn harm(&mut self, bytes: &mut Vec<u8>, len: usize) {
        let len = len.min(bytes.len());
        match self.below(4) {
            0 => bytes.truncate(self.below(len)),
            1 => bytes[self.below(len)] ^= 1 << self.below(8),
            2 => {
                let at = self.below(len.min(512));
                bytes[at] = u8::try_from(self.below(256)).unwrap();
            }
            _ => {
                let at = self.below(len);
                let most = [4096, len][self.below(2)];
                let end = len.min(at + 1 + self.below(most));
                bytes[at..end].fill(u8::try_from(1 + self.below(255)).unwrap());
            }
        }
    }
}

fn records(kv: &Kv) -> Records {
    let mut all = Records::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        all.insert(key.to_vec(), value.to_vec());
        Ok(crate::kv::Flow::Continue(()))
    };
    kv.read().unwrap().scan(b"", visit).unwrap();
    all
}

async fn blobs(local: &::content::Local) -> BTreeSet<String> {
    let all = ::content::ContentStore::list(local, &Filter::default()).await;
    all.unwrap()
        .into_iter()
        .map(|info| info.digest.to_string())
        .collect()
}

/// What there is, and what was written of it.
struct Base {
    root: tempfile::TempDir,
    memory: std::sync::Arc<Memory>,
    blobs: BTreeSet<String>,
    records: Records,
    /// The store's file as a crash leaves it, as one that was caught up with by half, and as a daemon that
    /// ends does.
    files: [Vec<u8>; 3],
    journal: Vec<u8>,
    /// Where the journal's room begins.
    end: usize,
}

/// Nothing of it is garbage, and of all changes the last one has made a blob's record.
async fn base() -> Base {
    let (house, _) = furnished(Policy::Shared).await;
    let path = store(house.root.path());
    for namespace in ["a", "b"] {
        let containers = house.metadata.containers(&scope(namespace));
        let mut container = container("c1");
        container.snapshotter = SNAPSHOTTER.into();
        container.snapshot_key = "c1".into();
        containers.create(container).await.unwrap();
    }
    let first = fs::read(&path).unwrap();
    let house = house.restart().await;
    house.metadata.gc().await.unwrap();
    let half = fs::read(&path).unwrap();
    let content = house.content(&scope("a"));
    for data in [b"one", b"two"] {
        let labels = Labels::new().with("containerd.io/gc.root", "1");
        put(content.as_ref(), data, labels).await;
    }
    let (blobs, end) = (blobs(&house.local).await, journal_end(&path));
    let records = records(&house.metadata.0.db.kv);
    drop(content);
    let (root, memory) = house.close();
    Base {
        files: [first, half, fs::read(&path).unwrap()],
        journal: fs::read(path.with_extension("redb.journal")).unwrap(),
        end: usize::try_from(end).unwrap(),
        root,
        memory,
        blobs,
        records,
    }
}

impl Base {
    /// One start over harmed files, and one collection.
    async fn round(self, round: u64, random: &mut Random) -> Self {
        let mut file = self.files[random.below(3)].clone();
        let mut journal = self.journal.clone();
        let all = file.len();
        let which = random.below(4);
        if which != 0 {
            random.harm(&mut file, all);
        }
        if which != 1 {
            // And some of the room behind it.
            random.harm(&mut journal, self.end + 64);
        }
        let path = store(self.root.path());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, file).unwrap();
        fs::write(path.with_extension("redb.journal"), journal).unwrap();
        let keys = self.memory.keys();
        let opts = OpenOpts {
            tasks: Box::new(|| Ok(vec![task("a", "c1"), task("b", "c1")])),
            ..opts(self.root.path(), Some(&self.memory))
        };
        let metadata = match Metadata::open(&path, opts).await {
            Ok(metadata) => metadata,
            // The byte that tells the format of the file tells another: nothing begins over it.
            Err(error) => {
                assert!(error.is(Code::FailedPrecondition), "round {round}: {error}");
                return self;
            }
        };
        let found = records(&metadata.0.db.kv);
        let is_there = |(key, value): (&Vec<u8>, &Vec<u8>)| found.get(key) == Some(value);
        if !self.records.iter().all(is_there) {
            assert!(!metadata.damages().is_empty(), "round {round}: it is said");
        }
        metadata.gc().await.unwrap();
        for namespace in ["a", "b"] {
            let scoped = metadata.scoped(&scope(namespace));
            let snapshots = scoped.snapshotter(SNAPSHOTTER).unwrap();
            let mounts = snapshots.mounts(&name("c1")).await;
            mounts.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        drop(metadata);
        assert_eq!(self.memory.keys(), keys, "round {round}");
        self
    }
}

#[tokio::test]
async fn whatever_is_damaged_nothing_is_collected_and_what_was_lost_is_told() {
    let mut base = base().await;
    let mut random = Random(1);
    for round in 0..ROUNDS {
        base = base.round(round, &mut random).await;
        let local = ::content::Local::open(base.root.path().join("content")).unwrap();
        assert_eq!(blobs(&local).await, base.blobs, "round {round}");
    }
}
