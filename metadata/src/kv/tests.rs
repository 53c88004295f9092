//! Tests of module `kv`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use types::{Code, Error};

use super::{Flow, Journal, Kv, Read, Records, files, journal_end, lock, reserve};

mod append;
mod damage;
mod failures;
mod torn;

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

#[test]
fn a_lock_is_given_up_though_a_child_has_the_descriptor_yet() {
    let (_root, path) = place();
    let held = lock(&path).unwrap();
    let of_a_fork = held.0.try_clone().unwrap();
    let waits = std::thread::spawn(move || lock(&path).map(drop));
    drop(held);
    waits.join().unwrap().unwrap();
    drop(of_a_fork);
}

#[tokio::test]
async fn a_second_open_is_refused_and_names_the_path() {
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

/// How often a store is made ready: each time a disk may be so slow that its thread sets out meanwhile.
const TRIES: u8 = 20;

/// Makes a change, and takes the disk for a quick one. From then on, until its thread looks after the file
/// a second after the change began, others may make changes.
async fn ready(kv: &Kv, n: u8) {
    put(kv, b"ready", &[n]).await;
    kv.0.writer.set_pace(Duration::ZERO);
}

/// The thread that makes a change.
async fn maker(kv: &Kv) -> std::thread::ThreadId {
    kv.write(|tx| {
        tx.put(b"maker".to_vec(), Vec::new());
        Ok(std::thread::current().id())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn whom_nobody_is_before_needs_no_other_thread() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    let me = std::thread::current().id();
    // The thread that sleeps for good makes the first one, and looks after the file from then on.
    assert_ne!(maker(&kv).await, me);
    for n in 0.. {
        assert!(n < TRIES, "another thread made each of them");
        ready(&kv, n).await;
        if maker(&kv).await == me {
            break;
        }
    }
    // On a slow disk that thread waits for it; so it does for what may take long.
    kv.0.writer.set_pace(Duration::from_secs(1));
    assert_ne!(maker(&kv).await, me);
    kv.0.writer.set_pace(Duration::ZERO);
    let long = kv.write_long(|_| Ok(std::thread::current().id()));
    assert_ne!(long.await.unwrap(), me);
    drop(kv);
    let kv = open(&path).unwrap();
    assert!(kv.read().unwrap().has(b"maker").unwrap());
}

#[tokio::test]
async fn those_who_come_together_share_a_commit() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    for n in 0.. {
        assert!(n < TRIES, "each time there were several commits");
        ready(&kv, n).await;
        let before = kv.0.writer.commits();
        let all = (0..16_u8).map(|n| {
            let kv = kv.clone();
            async move { put(&kv, &[n], b"x").await }
        });
        futures::future::join_all(all).await;
        if kv.0.writer.commits() == before + 1 {
            break;
        }
    }
}

#[tokio::test]
async fn who_comes_while_another_makes_his_change_waits_without_a_thread() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    let (begun, is_begun) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let first = kv.clone();
    let first = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(first.write(move |tx| {
            begun.send(()).unwrap();
            goes.recv().unwrap();
            tx.put(b"a".to_vec(), b"2".to_vec());
            Ok(())
        }))
    });
    is_begun.recv().unwrap();
    let mut second = Box::pin(kv.write(|tx| tx.get(b"a")));
    assert!(futures::poll!(second.as_mut()).is_pending());
    // Who only reads does not wait at all.
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"1");
    go.send(()).unwrap();
    assert_eq!(second.await.unwrap().unwrap(), b"2");
    first.join().unwrap().unwrap();
}

#[tokio::test]
async fn without_its_thread_the_store_is_told_to_be_gone() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    kv.0.writer.stop();
    let error = kv.write(|_| Ok(())).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
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
        tokio::task::spawn_blocking(move || {
            std::fs::copy(&from, &to).unwrap();
            std::fs::copy(Journal::beside(&from), Journal::beside(&to)).unwrap();
        })
        .await
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
