//! Tests of module `kv`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use types::{Code, Error};

use super::{Flow, Kv, Opened, Read, Records};

fn place() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("io.containerd.metadata.v1.redb/meta.redb");
    (root, path)
}

/// The store at `path`; an empty one where there is none.
fn open(path: &Path) -> types::Result<Kv> {
    match Kv::open(path) {
        Err(error) if error.is_not_found() => Kv::make(path, &Records::new()).map(|(kv, _)| kv),
        opened => opened.map(|(kv, _)| kv),
    }
}

async fn put(kv: &Kv, key: &[u8], value: &[u8]) {
    let (key, value) = (key.to_vec(), value.to_vec());
    kv.write(move |tx| {
        tx.put(key, value);
        Ok(())
    })
    .await
    .unwrap();
}

fn dump(read: &dyn Read, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    read.scan(prefix, &mut |rest, value| {
        all.push(([prefix, rest].concat(), value.to_vec()));
        Ok(Flow::Continue(()))
    })
    .unwrap();
    all
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let kv = open(&path).unwrap();
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn a_second_open_is_refused_at_once_and_names_the_path() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let error = open(&path).err().unwrap();
    assert!(error.is(Code::Unavailable), "{error}");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    put(&kv, b"a", b"1").await;
    drop(kv);
    open(&path).unwrap();
}

#[tokio::test]
async fn a_failed_change_leaves_nothing_and_the_next_one_works() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let hooks = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&hooks);
    let failed: types::Result<()> = kv
        .write(move |tx| {
            tx.put(b"a".into(), b"1".into());
            tx.on_commit(move || {
                seen.fetch_add(1, Ordering::SeqCst);
            });
            Err(Error::failed_precondition("no"))
        })
        .await;
    assert!(failed.unwrap_err().is(Code::FailedPrecondition));
    let panicked: types::Result<()> = kv.write(|_| panic!("a bug")).await;
    assert!(panicked.unwrap_err().is(Code::Internal));
    put(&kv, b"b", b"2").await;
    let all = dump(&kv.read().unwrap(), b"");
    assert_eq!(all, [(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(hooks.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn hooks_run_after_the_commit_and_before_the_answer() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let (other, found) = (
        kv.clone(),
        Arc::<std::sync::Mutex<Option<Vec<u8>>>>::default(),
    );
    let seen = Arc::clone(&found);
    kv.write(move |tx| {
        tx.put(b"a".into(), b"1".into());
        tx.on_commit(move || *seen.lock().unwrap() = other.read().unwrap().get(b"a").unwrap());
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(found.lock().unwrap().as_deref(), Some(&b"1"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_writers_lose_no_update_and_share_commits() {
    const EACH: u64 = 25;
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let kv = kv.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    kv.write(|tx| {
                        let old = tx.get(b"n")?.map_or(0, |v| v.len());
                        tx.put(b"n".into(), vec![0; old + 1]);
                        Ok(())
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let n = kv.read().unwrap().get(b"n").unwrap().unwrap().len() as u64;
    assert_eq!(n, 16 * EACH);
    let commits = kv.0.writer.commits();
    assert!(commits < 16 * EACH, "{commits} commits: nothing was shared");
}

#[tokio::test]
async fn a_change_of_nothing_writes_nothing() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let seen = kv.write(|tx| tx.has(b"a")).await.unwrap();
    assert!(!seen);
    assert_eq!(kv.0.writer.commits(), 0);
}

#[tokio::test]
async fn a_snapshot_does_not_move() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    let before = kv.read().unwrap();
    put(&kv, b"a", b"2").await;
    assert_eq!(before.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"2");
}

/// A crash is a copy of the file at a moment when writes are under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_moment_keeps_what_was_answered_and_nothing_half() {
    let (root, path) = place();
    let kv = open(&path).unwrap();
    let answered = Arc::<AtomicUsize>::default();
    let writer = {
        let (kv, answered) = (kv.clone(), Arc::clone(&answered));
        tokio::spawn(async move {
            for n in 1..=60_u8 {
                kv.write(move |tx| {
                    for key in 0..20_u8 {
                        tx.put(vec![key], vec![n; 200]);
                    }
                    Ok(())
                })
                .await
                .unwrap();
                answered.store(n.into(), Ordering::SeqCst);
            }
        })
    };
    let mut round = 0;
    while !writer.is_finished() {
        let least = answered.load(Ordering::SeqCst);
        let copy = root.path().join(format!("copy-{round}/meta.redb"));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        let (from, to) = (path.clone(), copy.clone());
        tokio::task::spawn_blocking(move || std::fs::copy(from, to))
            .await
            .unwrap()
            .unwrap();
        round += 1;
        // A copy is not atomic: commits during it may tear it, which must show as an error.
        let torn = answered.load(Ordering::SeqCst) != least;
        let Ok(copied) = open(&copy) else {
            assert!(torn, "an untorn copy must open");
            continue;
        };
        let all = dump(&copied.read().unwrap(), b"");
        if torn {
            continue;
        }
        let first = all.first().map_or(0, |(_, value)| value[0].into());
        assert!(first >= least, "{first} < {least}");
        assert!(
            all.iter()
                .all(|(_, v)| v.iter().all(|b| usize::from(*b) == first))
        );
    }
    writer.await.unwrap();
}

/// What may stand in a damaged file.
fn damages(whole: &[u8]) -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        b"something else".to_vec(),
        whole[..whole.len() / 3].to_vec(),
        vec![0; whole.len()],
    ]
}

#[tokio::test]
async fn a_damaged_file_without_a_journal_is_refused_and_left_alone() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    std::fs::remove_file(super::Journal::beside(&path)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for damaged in damages(&whole) {
        std::fs::write(&path, &damaged).unwrap();
        let error = Kv::open(&path).err().unwrap();
        assert!(error.is(Code::DataLoss), "{} bytes: {error}", damaged.len());
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }
    std::fs::write(&path, &whole).unwrap();
    Kv::open(&path).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_restored_from_its_journal_and_kept() {
    let (root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    put(&kv, b"b", b"2").await;
    kv.write(|tx| {
        tx.remove(b"a".to_vec());
        Ok(())
    })
    .await
    .unwrap();
    drop(kv);
    let whole = std::fs::read(&path).unwrap();
    for (round, damaged) in damages(&whole).into_iter().enumerate() {
        std::fs::write(&path, &damaged).unwrap();
        let (kv, opened) = Kv::open(&path).unwrap();
        let Opened::Restored(restored) = opened else {
            panic!("{opened:?}");
        };
        assert!(!restored.torn);
        assert_eq!(std::fs::read(restored.aside.unwrap()).unwrap(), damaged);
        assert_eq!(kv.read().unwrap().get(b"a").unwrap(), None);
        assert_eq!(kv.read().unwrap().get(b"b").unwrap().unwrap(), b"2");
        // What is written now is restored the next time.
        put(&kv, b"round", round.to_string().as_bytes()).await;
        drop(kv);
    }
    std::fs::remove_file(&path).unwrap();
    let (kv, opened) = Kv::open(&path).unwrap();
    assert!(matches!(opened, Opened::Restored(restored) if restored.aside.is_none()));
    assert_eq!(kv.read().unwrap().get(b"round").unwrap().unwrap(), b"3");
    drop(kv);
    let (_, opened) = Kv::open(&path).unwrap();
    assert!(matches!(opened, Opened::Whole));
    drop(root);
}

/// The engine goes back to the commit before when its last one cannot be read, and says nothing.
#[tokio::test]
async fn a_file_that_is_behind_its_journal_is_restored() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let old = std::fs::read(&path).unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"2").await;
    drop(kv);
    std::fs::write(&path, old).unwrap();
    let (kv, opened) = Kv::open(&path).unwrap();
    assert!(
        matches!(&opened, Opened::Restored(restored) if restored.cause.to_string().contains("1 commits behind")),
        "{opened:?}"
    );
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"2");
}

#[tokio::test]
async fn a_journal_that_is_damaged_is_made_anew_beside_a_store_that_is_whole() {
    let (_root, path) = place();
    let journal = super::Journal::beside(&path);
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let good = std::fs::read(&journal).unwrap();
    for damaged in [Vec::new(), good[..good.len() - 1].to_vec(), b"x".repeat(99)] {
        std::fs::write(&journal, damaged).unwrap();
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(matches!(opened, Opened::Whole));
        drop(kv);
        let replay = super::Journal::replay(&path).unwrap().unwrap();
        assert_eq!(
            replay.records,
            Records::from([(b"a".to_vec(), b"1".to_vec())])
        );
    }
}

/// Random damage of the file: whatever is hit, all that was answered is there, or the file is whole.
#[tokio::test]
async fn whatever_is_damaged_nothing_that_was_answered_is_lost() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    for n in 0..40_u8 {
        put(&kv, &[n], &vec![n; 100 * usize::from(n)]).await;
    }
    let crashed = std::fs::read(&path).unwrap();
    drop(kv);
    let clean = std::fs::read(&path).unwrap();
    let journal = std::fs::read(super::Journal::beside(&path)).unwrap();
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        // Knuth's multiplier: any sequence will do that is the same in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for round in 0..100 {
        let mut file = if round % 2 == 0 { &clean } else { &crashed }.clone();
        match round % 4 {
            0 | 1 => file.truncate(random(file.len())),
            2 => {
                let at = random(file.len());
                file[at] ^= 1 << random(8);
            }
            _ => {
                let at = random(512);
                file[at] = u8::try_from(random(256)).unwrap();
            }
        }
        std::fs::write(&path, &file).unwrap();
        std::fs::write(super::Journal::beside(&path), &journal).unwrap();
        let (kv, _) = Kv::open(&path).unwrap();
        let all = dump(&kv.read().unwrap(), b"");
        assert_eq!(all.len(), 40, "round {round}");
        assert!(
            all.iter()
                .all(|(key, value)| value.iter().all(|b| *b == key[0]))
        );
    }
}

#[tokio::test]
async fn a_half_made_store_is_made_anew() {
    let (_root, path) = place();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(super::beside(&path, "new"), b"half").unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, u8),
    Remove(Vec<u8>),
    RemoveAll(Vec<u8>),
    Scan(Vec<u8>),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..3, 0..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
        2 => key().prop_map(Op::Remove),
        1 => key().prop_map(Op::RemoveAll),
        2 => key().prop_map(Op::Scan),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn below(model: &Model, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let fits = model.iter().filter(|(key, _)| key.starts_with(prefix));
    fits.map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_as_an_ordered_map(
        changes in prop::collection::vec((prop::collection::vec(op(), 0..12), any::<bool>()), 1..8)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_root, path) = place();
        let kv = open(&path).unwrap();
        let mut model = Model::new();
        for (ops, fails) in changes {
            let mut draft = model.clone();
            let result = runtime.block_on(kv.write(move |tx| {
                for op in ops {
                    match op {
                        Op::Put(key, value) => {
                            draft.insert(key.clone(), vec![value]);
                            tx.put(key, vec![value]);
                        }
                        Op::Remove(key) => {
                            draft.remove(&key);
                            tx.remove(key);
                        }
                        Op::RemoveAll(prefix) => {
                            draft.retain(|key, _| !key.starts_with(&prefix));
                            tx.remove_all(&prefix)?;
                        }
                        Op::Scan(prefix) => {
                            assert_eq!(dump(tx, &prefix), below(&draft, &prefix));
                            assert_eq!(tx.any(&prefix)?, !below(&draft, &prefix).is_empty());
                            assert_eq!(tx.get(&prefix)?.as_ref(), draft.get(&prefix));
                        }
                    }
                }
                if fails { Err(Error::aborted("told to")) } else { Ok(draft) }
            }));
            match result {
                Ok(draft) => model = draft,
                Err(error) => prop_assert!(fails && error.is(Code::Aborted), "{error}"),
            }
            prop_assert_eq!(dump(&kv.read().unwrap(), b""), below(&model, b""));
        }
        drop(kv);
        let kv = open(&path).unwrap();
        prop_assert_eq!(dump(&kv.read().unwrap(), b""), below(&model, b""));
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_store_works_again_when_there_is_room() {
    let (root, _) = place();
    let tmpfs = types::Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=16m".into()],
        ..types::Mount::default()
    };
    let disk = sys::mount::TempMount::new(&[tmpfs], root.path()).unwrap();
    let kv = open(&disk.path().join("meta.redb")).unwrap();
    put(&kv, b"a", b"1").await;
    let filler = disk.path().join("filler");
    let full = std::fs::write(&filler, vec![0; 32 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut answered = 0_u32;
    let error = loop {
        let result = kv
            .write(move |tx| {
                tx.put(
                    [b"b", &answered.to_be_bytes()[..]].concat(),
                    vec![7; 64 << 10],
                );
                Ok(())
            })
            .await;
        match result {
            Ok(()) => answered += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert_eq!(
        kv.read().unwrap().get(b"a").unwrap().unwrap(),
        b"1",
        "reads go on"
    );
    std::fs::remove_file(&filler).unwrap();
    put(&kv, b"c", b"3").await;
    let all = dump(&kv.read().unwrap(), b"b");
    assert!(all.len() >= answered as usize, "what was answered is there");
    drop(kv);
    disk.unmount().unwrap();
}
