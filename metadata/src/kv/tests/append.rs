//! Frames that could not be written: nothing of what was answered with an error comes up later.

use std::path::Path;
use std::time::{Duration, Instant};

use types::{Code, Error};

use super::{Records, dump, open, place, put};
use crate::fixture::{fill, small_disk};
use crate::kv::journal::Faults;
use crate::kv::upkeep::MEND;
use crate::kv::{INCOMPLETE, Journal, Kv, Opened, Source, files};

/// More than a full disk has for the store's file, and less than there is room in the journal.
const LARGE: usize = 900 << 10;

/// The frame is written, but the disk says that it is not, and takes nothing that would clear it away.
const KEPT: Faults = Faults {
    short: None,
    sync: true,
    clear: true,
};

async fn put_large(kv: &Kv) -> Result<(), Error> {
    kv.write(|tx| {
        tx.put(b"failed".to_vec(), vec![7; LARGE]);
        Ok(())
    })
    .await
}

fn keys(kv: &Kv) -> Vec<Vec<u8>> {
    let all = dump(&kv.read().unwrap(), b"");
    let all = all.into_iter().map(|(key, _)| key);
    all.filter(|key| key != INCOMPLETE).collect()
}

/// What a crash now would leave, opened: its keys, as the store has them and as its journal has.
fn after_a_crash(kv: &Kv, path: &Path) -> [Vec<Vec<u8>>; 2] {
    let root = tempfile::tempdir().unwrap();
    let copy = root.path().join("copy.redb");
    kv.0.writer.meanwhile(|| {
        for (from, to) in files(path).iter().zip(files(&copy)) {
            std::fs::copy(from, to).unwrap();
        }
    });
    let (kv, opened) = Kv::open(&copy).unwrap();
    assert!(matches!(opened, Opened::Whole), "{opened:?}");
    let found = keys(&kv);
    drop(kv);
    // Were its file damaged later.
    std::fs::write(&copy, b"something else").unwrap();
    let (kv, opened) = Kv::open(&copy).unwrap();
    assert!(
        matches!(&opened, Opened::Restored(restored) if restored.from == Source::Journal),
        "{opened:?}"
    );
    [found, keys(&kv)]
}

/// A disk that is full, a store on it, and a change of it that failed; its frame stands in the journal.
macro_rules! failed {
    ($disk:ident, $path:ident, $kv:ident, $filler:ident) => {
        let (root, _) = place();
        let $disk = small_disk(root.path());
        let $path = $disk.path().join("meta.redb");
        let $kv = open(&$path).unwrap();
        put(&$kv, b"before", b"1").await;
        let $filler = fill($disk.path());
        $kv.0.writer.fail(KEPT);
        let error = put_large(&$kv).await.unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
        let in_journal = Journal::replay(&$path).unwrap().unwrap().records;
        assert!(in_journal.contains_key(&b"failed"[..]));
    };
}

#[tokio::test]
async fn nothing_is_changed_while_a_frame_that_failed_stands_in_the_journal() {
    failed!(disk, path, kv, filler);
    for _ in 0..2 {
        let refused = kv.write(|tx| {
            tx.put(b"next".to_vec(), b"2".to_vec());
            Ok(())
        });
        let error = refused.await.unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        assert!(error.to_string().contains("journal"), "{error}");
        assert_eq!(keys(&kv), [b"before"], "reads go on");
    }
    // The disk comes to its senses.
    kv.0.writer.fail(Faults::default());
    std::fs::remove_file(filler).unwrap();
    put(&kv, b"next", b"2").await;
    let expected = [b"before".to_vec(), b"next".to_vec()];
    assert_eq!(keys(&kv), expected);
    for found in after_a_crash(&kv, &path) {
        assert_eq!(found, expected);
    }
    drop(kv);
    disk.unmount().unwrap();
}

#[tokio::test]
async fn another_journal_takes_the_place_of_one_that_keeps_what_failed() {
    failed!(disk, path, kv, filler);
    std::fs::remove_file(filler).unwrap();
    put(&kv, b"next", b"2").await;
    put(&kv, b"one more", b"3").await;
    let expected = [b"before".to_vec(), b"next".to_vec(), b"one more".to_vec()];
    for found in after_a_crash(&kv, &path) {
        assert_eq!(found, expected);
    }
    drop(kv);
    disk.unmount().unwrap();
}

#[tokio::test]
async fn a_journal_that_could_not_be_replaced_is_not_tried_with_each_request() {
    failed!(disk, path, kv, filler);
    let put_next = async || {
        let next = kv.write(|tx| {
            tx.put(b"next".to_vec(), b"2".to_vec());
            Ok(())
        });
        next.await
    };
    let began = Instant::now();
    let error = put_next().await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    // What is refused now is so without a look at the disk.
    std::fs::remove_file(filler).unwrap();
    let result = put_next().await;
    assert!(result.is_err() || began.elapsed() >= MEND);
    while let Err(error) = put_next().await {
        assert!(error.is(Code::Unavailable), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
    }
    for found in after_a_crash(&kv, &path) {
        assert_eq!(found, [b"before".to_vec(), b"next".to_vec()]);
    }
    drop(kv);
    disk.unmount().unwrap();
}

/// The store's file gets a number of its own when it is closed: the frame is of another.
#[tokio::test]
async fn a_frame_that_failed_is_gone_when_the_store_was_closed_after_it() {
    failed!(disk, path, kv, filler);
    std::fs::remove_file(filler).unwrap();
    drop(kv);
    let kv = open(&path).unwrap();
    assert_eq!(keys(&kv), [b"before"]);
    put(&kv, b"next", b"2").await;
    let expected = [b"before".to_vec(), b"next".to_vec()];
    for found in after_a_crash(&kv, &path) {
        assert_eq!(found, expected);
    }
    drop(kv);
    disk.unmount().unwrap();
}

/// What cannot be in the journal is in the store's file: the change is made, and its caller hears so.
#[tokio::test]
async fn a_frame_that_was_cut_short_leaves_a_journal_that_can_be_read() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"before", b"1").await;
    for (n, short) in [0, 5, 12, 700, 5000].into_iter().enumerate() {
        for clear in [false, true] {
            let faults = Faults {
                short: Some(short),
                sync: false,
                clear,
            };
            kv.0.writer.fail(faults);
            let value = vec![7; 9000];
            put(&kv, &[u8::try_from(n).unwrap(), clear.into()], &value).await;
            let now: Records = dump(&kv.read().unwrap(), b"").into_iter().collect();
            let [file, journal] = after_a_crash(&kv, &path);
            assert!(now.keys().eq(&file), "{short} bytes");
            assert_eq!(file, journal);
            kv.0.writer.fail(Faults::default());
            // By the thread, which makes the journal anew.
            put(&kv, b"after", b"2").await;
        }
    }
}
