//! Tests of module `local`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use types::{Code, Filter, IngestRef, Labels};

use super::Local;
use crate::testsuite::{self, Caps, get, put, spec};
use crate::{ContentStore as _, Hasher, IngestSpec, Writer};

fn store() -> (tempfile::TempDir, Local) {
    let root = tempfile::tempdir().unwrap();
    let local = Local::open(root.path().join("content")).unwrap();
    (root, local)
}

#[tokio::test]
async fn conforms() {
    let (_root, local) = store();
    testsuite::run(&local, Caps::default()).await;
}

#[tokio::test]
async fn an_examined_store_is_as_it_is_and_what_it_has_not_is_empty() {
    let root = tempfile::tempdir().unwrap();
    let looked = Local::examine(root.path().join("content"));
    let all = Filter::default();
    assert!(looked.list(&all).await.unwrap().is_empty());
    assert!(looked.statuses(&all).await.unwrap().is_empty());
    let absent = looked.info(&Hasher::digest(b"x").unwrap()).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

    let local = Local::open(root.path().join("content")).unwrap();
    let digest = put(&local, "r", b"hello").await;
    fs::remove_dir(root.path().join("content/ingest")).unwrap();
    let found = looked.list(&all).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(get(&looked, &digest).await, b"hello");
    assert!(looked.statuses(&all).await.unwrap().is_empty());
    assert!(!root.path().join("content/ingest").exists());
    // One at work has lost it: that is no empty list.
    local.statuses(&all).await.unwrap_err();
}

#[tokio::test]
async fn the_layout_is_that_of_go() {
    let (root, local) = store();
    let root = root.path().join("content");
    assert_eq!(
        fs::metadata(&root).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let mut sized = spec("default/7/layer a");
    sized.total = Some(5);
    let mut ingest = local.ingest(sized).await.unwrap();
    ingest.write(Bytes::from_static(b"he")).await.unwrap();
    drop(ingest);
    let name = Hasher::digest(b"default/7/layer a").unwrap();
    let ticket = root.join("ingest").join(name.hex());
    let read = |name: &str| fs::read_to_string(ticket.join(name)).unwrap();
    assert_eq!(
        (read("ref"), read("total"), read("data")),
        ("default/7/layer a".into(), "5".into(), "he".into())
    );
    for file in ["startedat", "updatedat"] {
        let text = read(file);
        assert!(
            text.starts_with("20") && text.ends_with('Z') && text.contains('T'),
            "{text}"
        );
    }
    let mut ingest = local.ingest(spec("default/7/layer a")).await.unwrap();
    ingest.write(Bytes::from_static(b"llo")).await.unwrap();
    let digest = ingest.commit(Some(5), None, Labels::new()).await.unwrap();
    let path = root.join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o444
    );
    assert!(!ticket.exists());
}

#[tokio::test]
async fn another_store_on_the_same_root_resumes_and_reads() {
    let (root, local) = store();
    let digest = put(&local, "whole", b"whole").await;
    let mut ingest = local.ingest(spec("part")).await.unwrap();
    ingest.write(Bytes::from_static(b"12")).await.unwrap();
    drop(ingest);
    drop(local);
    let local = Local::open(root.path().join("content")).unwrap();
    assert_eq!(get(&local, &digest).await, b"whole");
    let mut ingest = local.ingest(spec("part")).await.unwrap();
    ingest.write(Bytes::from_static(b"3")).await.unwrap();
    let digest = ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(digest, Hasher::digest(b"123").unwrap());
}

#[tokio::test]
async fn a_damaged_ingest_begins_anew() {
    let (root, local) = store();
    for file in ["ref", "startedat", "data"] {
        let mut ingest = local.ingest(spec("damaged")).await.unwrap();
        ingest.write(Bytes::from_static(b"xyz")).await.unwrap();
        drop(ingest);
        let name = Hasher::digest(b"damaged").unwrap();
        let path = root
            .path()
            .join("content/ingest")
            .join(name.hex())
            .join(file);
        fs::remove_file(path).unwrap();
        let gone = local.status(&"damaged".parse().unwrap()).await.unwrap_err();
        assert!(gone.is_not_found());
        assert!(local.statuses(&Filter::default()).await.unwrap().is_empty());
        let ingest = local.ingest(spec("damaged")).await.unwrap();
        assert_eq!(ingest.status().offset, 0, "without {file}");
    }
}

#[tokio::test]
async fn another_total_begins_anew() {
    let (_root, local) = store();
    let sized = |total| {
        let mut spec = spec("sized");
        spec.total = Some(total);
        spec
    };
    let mut ingest = local.ingest(sized(10)).await.unwrap();
    ingest.write(Bytes::from_static(b"xyz")).await.unwrap();
    drop(ingest);
    let ingest = local.ingest(sized(10)).await.unwrap();
    assert_eq!((ingest.status().offset, ingest.status().total), (3, 10));
    drop(ingest);
    let ingest = local.ingest(sized(11)).await.unwrap();
    assert_eq!((ingest.status().offset, ingest.status().total), (0, 11));
}

#[tokio::test]
async fn a_blob_of_wrong_length_is_replaced() {
    let (root, local) = store();
    let digest = put(&local, "a", b"content").await;
    let path = root.path().join("content/blobs/sha256").join(digest.hex());
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"con").unwrap();
    assert_eq!(put(&local, "b", b"content").await, digest);
    assert_eq!(get(&local, &digest).await, b"content");
}

#[tokio::test]
async fn strangers_in_the_blob_directory_are_ignored() {
    let (root, local) = store();
    fs::write(root.path().join("content/blobs/sha256/not-a-digest"), b"x").unwrap();
    let digest = put(&local, "a", b"content").await;
    let all = local.list(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].digest, digest);
}

#[tokio::test]
async fn a_blob_that_shrinks_while_it_is_read_is_data_loss() {
    let (root, local) = store();
    let digest = put(&local, "a", b"content").await;
    let blob = local.open(&digest).await.unwrap();
    let path = root.path().join("content/blobs/sha256").join(digest.hex());
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(2)
        .unwrap();
    assert!(blob.read_at(0, 7).await.unwrap_err().is(Code::DataLoss));
}

#[tokio::test]
async fn truncating_to_the_middle_keeps_the_first_part() {
    let (_root, local) = store();
    let mut ingest = local.ingest(spec("middle")).await.unwrap();
    ingest
        .write(Bytes::from_static(b"hello world"))
        .await
        .unwrap();
    ingest.truncate(6).await.unwrap();
    ingest.write(Bytes::from_static(b"moon")).await.unwrap();
    let digest = ingest.commit(Some(10), None, Labels::new()).await.unwrap();
    assert_eq!(digest, Hasher::digest(b"hello moon").unwrap());
    assert_eq!(get(&local, &digest).await, b"hello moon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_on_one_ref_one_wins() {
    let (_root, local) = store();
    let local = Arc::new(local);
    let barrier = Arc::new(tokio::sync::Barrier::new(16));
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let (local, barrier) = (Arc::clone(&local), Arc::clone(&barrier));
            tokio::spawn(async move {
                let opened = local.ingest(spec("contended")).await;
                // All have tried before the winner lets go.
                barrier.wait().await;
                opened.map(drop).map_err(|e| e.code())
            })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        match writer.await.unwrap() {
            Ok(()) => won += 1,
            Err(code) => assert_eq!(code, Code::Unavailable),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn an_unwritable_root_is_a_clear_error() {
    let error = Local::open("/proc/none/content").unwrap_err().to_string();
    assert!(
        error.starts_with("make directory /proc/none/content: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_no_blob() {
    let root = tempfile::tempdir().unwrap();
    let tmpfs = types::Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=1m".into()],
        ..types::Mount::default()
    };
    let disk = sys::mount::TempMount::new(&[tmpfs], root.path()).unwrap();
    let local = Local::open(disk.path().join("content")).unwrap();
    let mut ingest = local.ingest(spec("big")).await.unwrap();
    let piece = Bytes::from(vec![7; 300 << 10]);
    let mut refused = None;
    for _ in 0..8 {
        if let Err(error) = ingest.write(piece.clone()).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("2.4 MB do not fit into 1 MB");
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let error = ingest.commit(None, None, Labels::new()).await.unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert!(local.list(&Filter::default()).await.unwrap().is_empty());
    local.abort(&"big".parse().unwrap()).await.unwrap();
    let digest = put(&local, "small", b"fits").await;
    assert_eq!(get(&local, &digest).await, b"fits");
    drop(local);
    disk.unmount().unwrap();
}

#[tokio::test]
async fn cleanup_takes_what_a_crash_has_left_and_nothing_else() {
    let (root, local) = store();
    let ingests = root.path().join("content/ingest");
    for reference in ["whole", "no data", "no name"] {
        let mut ingest = local.ingest(spec(reference)).await.unwrap();
        ingest.write(Bytes::from_static(b"12")).await.unwrap();
    }
    let ticket =
        |reference: &str| ingests.join(Hasher::digest(reference.as_bytes()).unwrap().hex());
    // Killed between the rename of the data and the removal; a power cut that emptied a file; killed
    // in between the first steps; and a live writer whose directory looks the same.
    fs::remove_file(ticket("no data").join("data")).unwrap();
    fs::write(ticket("no name").join("ref"), "").unwrap();
    fs::create_dir(ticket("begun")).unwrap();
    let live = local.ingest(spec("live")).await.unwrap();
    fs::remove_file(ticket("live").join("ref")).unwrap();
    let listed = local.statuses(&Filter::default()).await.unwrap();
    assert_eq!(listed.len(), 1);
    local.cleanup().await.unwrap();
    let mut left: Vec<_> = fs::read_dir(&ingests)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    left.sort();
    let mut want = [ticket("whole"), ticket("live")];
    want.sort();
    assert_eq!(left, want);
    drop(live);
    local.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(&ingests).unwrap().count(), 1);
    assert_eq!(
        local
            .status(&"whole".parse().unwrap())
            .await
            .unwrap()
            .offset,
        2
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_writer_is_told_of_its_end() {
    let temp = tempfile::tempdir().unwrap();
    let store = Local::open(temp.path()).unwrap();
    let reference: IngestRef = "r".parse().unwrap();
    let limit = Duration::from_secs(3600);
    let begin = tokio::time::Instant::now();
    // Nobody writes: no reason to wait.
    assert_eq!(store.released(&reference, limit).await, Writer::Gone);
    let spec = IngestSpec {
        reference: reference.clone(),
        total: None,
        expected: None,
    };
    let writer = store.ingest(spec).await.unwrap();
    let waiting = store.released(&reference, limit);
    tokio::pin!(waiting);
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("there is a writer"),
        () = tokio::task::yield_now() => {}
    }
    let soon = store.released(&reference, Duration::ZERO).await;
    assert_eq!(soon, Writer::There);
    drop(writer);
    assert_eq!(waiting.await, Writer::Gone);
    assert!(begin.elapsed() < limit / 2);
}

#[tokio::test]
async fn who_reads_along_gets_what_was_written_and_waits_for_the_rest() {
    let (_root, local) = store();
    let mut writer = local.ingest(spec("r")).await.unwrap();
    writer.write(Bytes::from_static(b"some ")).await.unwrap();
    let blob = writer.follow(9).unwrap().unwrap();
    assert_eq!(blob.size(), 9);
    let reading = blob.read_at(0, 100);
    tokio::pin!(reading);
    tokio::select! {
        biased;
        early = &mut reading => panic!("{early:?}"),
        () = tokio::task::yield_now() => {}
    }
    writer.write(Bytes::from_static(b"data")).await.unwrap();
    writer.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(reading.await.unwrap(), "some data");
    assert_eq!(blob.read_at(5, 4).await.unwrap(), "data");
    assert!(blob.read_at(9, 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn who_reads_along_learns_that_the_writer_gave_up_or_began_anew() {
    let (_root, local) = store();
    let mut writer = local.ingest(spec("r")).await.unwrap();
    writer.write(Bytes::from_static(b"some")).await.unwrap();
    let first = writer.follow(9).unwrap().unwrap();
    writer.truncate(0).await.unwrap();
    let error = first.read_at(0, 9).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    let second = writer.follow(9).unwrap().unwrap();
    drop(writer);
    let error = second.read_at(0, 9).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
}
