//! Failures under a running store.

use super::super::INCOMPLETE;
use super::super::queue::{Length, Queue};
use super::*;
use crate::fixture::{fill, small_disk};

#[tokio::test]
async fn a_file_that_is_damaged_under_the_store_is_told_and_the_store_comes_back_with_it() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    let whole = std::fs::read(&path).unwrap();
    for damaged in [vec![0; whole.len()], vec![0xff; whole.len()], Vec::new()] {
        std::fs::write(&path, &damaged).unwrap();
        let Err(error) = kv.0.engine.reopen(1) else {
            // The engine had all of it yet, and wrote it.
            let found = kv.write(|tx| tx.get(b"a")).await.unwrap();
            assert_eq!(found.unwrap(), b"1");
            continue;
        };
        assert!(error.is(Code::DataLoss), "{error}");
        let all = (0..3_u8).map(|n| kv.write(move |tx| tx.get(&[n])));
        for answer in futures::future::join_all(all).await {
            let error = answer.unwrap_err();
            assert!(error.is(Code::DataLoss), "{error}");
        }
        kv.read().map(drop).unwrap_err();
        std::fs::write(&path, &whole).unwrap();
        let found = kv.write(|tx| tx.get(b"a")).await.unwrap();
        assert_eq!(found.unwrap(), b"1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_handle_may_go_inside_of_a_change() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    kv.0.writer.set_pace(Duration::ZERO);
    let last = kv.clone();
    let (begun, is_begun) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let (ended, is_ended) = std::sync::mpsc::channel();
    let caller = tokio::spawn(async move {
        kv.write(move |_| {
            begun.send(()).unwrap();
            goes.recv().unwrap();
            drop(last);
            ended.send(()).unwrap();
            Ok(())
        })
        .await
    });
    is_begun.recv().unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    go.send(()).unwrap();
    is_ended
        .recv_timeout(Duration::from_secs(20))
        .expect("it waits for itself");
}

#[tokio::test]
async fn a_caller_who_went_away_keeps_no_store_open() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    kv.0.writer.set_pace(Duration::ZERO);
    {
        let mut change = Box::pin(kv.write(|tx| {
            tx.put(b"a".to_vec(), b"2".to_vec());
            Ok(())
        }));
        // Its turn is a task that this thread has not come to yet.
        assert!(futures::poll!(change.as_mut()).is_pending());
    }
    drop(kv);
    let kv = open(&path).unwrap();
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"2");
}

#[test]
fn what_may_take_long_holds_back_what_came_behind_it() {
    let queue = Queue::default();
    for length in [Length::Short, Length::Long, Length::Short] {
        queue.push(Box::new(|_| (None, Box::new(|_| ()))), length);
    }
    assert_eq!(queue.take_short(8).len(), 1);
    assert_eq!(queue.take_short(8).len(), 0);
    assert_eq!(queue.take(8).len(), 2);
}

/// Puts keys that begin with `b`, and tells how many until there was no room, and what was said then.
async fn put_until_full(kv: &Kv) -> (u32, Error) {
    let mut answered = 0_u32;
    loop {
        let key = [b"b", &answered.to_be_bytes()[..]].concat();
        let result = kv.write(move |tx| {
            tx.put(key, vec![7; 64 << 10]);
            Ok(())
        });
        match result.await {
            Ok(()) => answered += 1,
            Err(error) => return (answered, error),
        }
    }
}

/// What a daemon that was killed has left starts without a page of room, and can be read.
#[tokio::test]
async fn a_store_that_was_killed_opens_on_a_full_disk() {
    let (root, _) = place();
    let disk = small_disk(root.path());
    let path = disk.path().join("killed/meta.redb");
    let kv = open(&disk.path().join("meta.redb")).unwrap();
    for n in 0..30_u8 {
        put(&kv, &[n], &vec![n; 1000 * usize::from(n)]).await;
    }
    // With half a frame of the change that was on its way.
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    for (from, to) in files(&disk.path().join("meta.redb"))
        .iter()
        .zip(files(&path))
    {
        std::fs::copy(from, to).unwrap();
    }
    let journal = OpenOptions::new().write(true).open(Journal::beside(&path));
    let journal = journal.unwrap();
    journal
        .write_all_at(&[7, 0, 0, 0, 1, 2, 3, 4, 9], journal_end(&path))
        .unwrap();
    reserve::keep(&path);
    drop((kv, journal));
    assert!(Journal::survey(&path).unwrap().unwrap().torn);
    let filler = fill(disk.path());
    let kv = open(&path).unwrap();
    let mut all = dump(&kv.read().unwrap(), b"");
    all.retain(|(key, _)| key != INCOMPLETE);
    assert!(all.iter().map(|(key, _)| key[0]).eq(0..30));
    let (_, error) = put_until_full(&kv).await;
    assert!(error.is(Code::ResourceExhausted), "{error}");
    drop(kv);
    std::fs::remove_file(filler).unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"c", b"3").await;
    drop(kv);
    let kv = open(&path).unwrap();
    let all = dump(&kv.read().unwrap(), b"");
    assert!(
        all.iter()
            .filter(|(key, _)| key.len() == 1)
            .map(|(key, _)| key[0])
            .eq((0..30).chain([b'c']))
    );
    drop(kv);
    disk.unmount().unwrap();
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_store_works_again_when_there_is_room() {
    let (root, _) = place();
    let disk = small_disk(root.path());
    let kv = open(&disk.path().join("meta.redb")).unwrap();
    put(&kv, b"a", b"1").await;
    let filler = fill(disk.path());
    let (answered, error) = put_until_full(&kv).await;
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
