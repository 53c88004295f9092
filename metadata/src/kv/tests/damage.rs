//! Stores whose file, or journal, is not what was written.

use types::Code;

use super::{dump, journal_end, open, place, put};
use crate::kv::{INCOMPLETE, Journal, Kv, LOST, Opened, Read as _, Records, Source, TORN, beside};

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
    std::fs::remove_file(Journal::beside(&path)).unwrap();
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
        assert!(!restored.torn && restored.from == Source::Journal);
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

/// As a crash leaves it, and as the engine does when its last commit cannot be read.
#[tokio::test]
async fn a_file_that_is_behind_gets_the_rest_from_its_journal() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    put(&kv, b"b", b"1").await;
    drop(kv);
    let old = std::fs::read(&path).unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"2").await;
    kv.write(|tx| {
        tx.remove(b"b".to_vec());
        Ok(())
    })
    .await
    .unwrap();
    drop(kv);
    std::fs::write(&path, old).unwrap();
    let (kv, opened) = Kv::open(&path).unwrap();
    assert!(matches!(opened, Opened::Whole), "{opened:?}");
    let all = dump(&kv.read().unwrap(), b"");
    assert_eq!(all, [(b"a".to_vec(), b"2".to_vec())]);
}

#[tokio::test]
async fn a_file_from_before_its_journal_began_is_restored() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let old = std::fs::read(&path).unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"2").await;
    drop(kv);
    std::fs::remove_file(Journal::beside(&path)).unwrap();
    drop(Kv::open(&path).unwrap());
    std::fs::write(&path, old).unwrap();
    let (kv, opened) = Kv::open(&path).unwrap();
    assert!(
        matches!(&opened, Opened::Restored(restored) if restored.cause.to_string().contains("1 commits behind")),
        "{opened:?}"
    );
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"2");
}

/// A frame that was being written when the power went: nobody was told of it.
#[tokio::test]
async fn half_a_frame_is_no_commit() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    let old = std::fs::read(&path).unwrap();
    put(&kv, b"b", b"2").await;
    let end = usize::try_from(Journal::survey(&path).unwrap().unwrap().end()).unwrap();
    put(&kv, b"c", b"3").await;
    let journal = std::fs::read(Journal::beside(&path)).unwrap();
    drop(kv);
    // Its head, its head and some of the rest, and all but one bit.
    for damage in [end + 5, end + 12, journal.len()] {
        let mut half = journal.clone();
        half[damage..].fill(0);
        half[end + 4] ^= 1;
        std::fs::write(&path, &old).unwrap();
        std::fs::write(Journal::beside(&path), half).unwrap();
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(matches!(opened, Opened::Whole), "{opened:?}");
        assert_eq!(kv.read().unwrap().get(b"b").unwrap().unwrap(), b"2");
        assert_eq!(kv.read().unwrap().get(b"c").unwrap(), None);
        // Nobody was told of it, or the disk has changed it since.
        assert!(kv.read().unwrap().has(INCOMPLETE).unwrap());
        put(&kv, b"d", b"4").await;
        drop(kv);
        let kv = open(&path).unwrap();
        assert_eq!(kv.read().unwrap().get(b"d").unwrap().unwrap(), b"4");
    }
}

/// A hole of zeros looks like the end, and is not.
#[tokio::test]
async fn a_hole_in_a_journal_is_noticed() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    let from = usize::try_from(Journal::survey(&path).unwrap().unwrap().end()).unwrap();
    put(&kv, b"b", b"2").await;
    let to = usize::try_from(Journal::survey(&path).unwrap().unwrap().end()).unwrap();
    put(&kv, b"c", b"3").await;
    let mut journal = std::fs::read(Journal::beside(&path)).unwrap();
    journal[from..to].fill(0);
    std::fs::write(Journal::beside(&path), journal).unwrap();
    let found = Journal::survey(&path).unwrap().unwrap();
    assert!(found.torn && found.damaged, "{found:?}");
}

/// File and journal do not lead to the last commit any more: it must not go on without it.
#[tokio::test]
async fn a_store_that_lost_commits_under_way_stays_closed() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    kv.0.engine.reopen(1).unwrap();
    assert_eq!(kv.read().unwrap().get(b"a").unwrap().unwrap(), b"1");
    let error = kv.0.engine.reopen(2).unwrap_err();
    assert!(error.is(Code::DataLoss), "{error}");
    assert!(kv.read().err().unwrap().is(Code::Unavailable));
}

#[tokio::test]
async fn a_journal_that_is_damaged_is_made_anew_beside_a_store_that_is_whole() {
    let (_root, path) = place();
    let journal = Journal::beside(&path);
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let good = std::fs::read(&journal).unwrap();
    let hole = [&good[..9], &[7], &good[10..]].concat();
    let cut = usize::try_from(Journal::survey(&path).unwrap().unwrap().end()).unwrap() - 1;
    for damaged in [Vec::new(), good[..cut].to_vec(), b"x".repeat(99), hole] {
        std::fs::write(&journal, &damaged).unwrap();
        let (kv, opened) = Kv::open(&path).unwrap();
        // Nobody knows whether it had more than the file: what has no record must be looked for.
        let Opened::Restored(restored) = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(restored.from, Source::File);
        assert_eq!(std::fs::read(restored.aside.unwrap()).unwrap(), damaged);
        drop(kv);
        let replay = Journal::replay(&path).unwrap().unwrap();
        let mark = (INCOMPLETE.to_vec(), Vec::new());
        let record = (b"a".to_vec(), b"1".to_vec());
        assert_eq!(replay.records, Records::from([record, mark]));
    }
}

/// Whoever is killed before he has looked for what was lost does so at the next start.
#[tokio::test]
async fn a_store_says_that_it_may_lack_changes_until_somebody_takes_that_away() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let whole = [path.clone(), Journal::beside(&path)].map(|file| std::fs::read(file).unwrap());
    for gone in 0..2 {
        let files = [path.clone(), Journal::beside(&path)];
        for (file, bytes) in files.iter().zip(&whole) {
            std::fs::write(file, bytes).unwrap();
        }
        std::fs::remove_file(&files[gone]).unwrap();
        let is_marked = |kv: &Kv| kv.read().unwrap().has(INCOMPLETE).unwrap();
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(
            matches!(opened, Opened::Restored(_)) && is_marked(&kv),
            "{opened:?}"
        );
        drop(kv);
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(
            matches!(opened, Opened::Whole) && is_marked(&kv),
            "{opened:?}"
        );
        kv.write(|tx| {
            tx.remove(INCOMPLETE.to_vec());
            Ok(())
        })
        .await
        .unwrap();
        drop(kv);
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(
            matches!(opened, Opened::Whole) && !is_marked(&kv),
            "{opened:?}"
        );
    }
}

/// A torn end most likely has lost nothing, also where the file has that change; one further behind has.
#[tokio::test]
async fn a_store_says_what_kind_of_loss_it_may_have() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    let kv = open(&path).unwrap();
    let crashed = std::fs::read(&path).unwrap();
    let end = || usize::try_from(journal_end(&path)).unwrap();
    put(&kv, b"b", b"2").await;
    let last = end() - 1;
    drop(kv);
    let whole = std::fs::read(&path).unwrap();
    let mut journal = std::fs::read(Journal::beside(&path)).unwrap();
    journal[last] ^= 1;
    let kv = open(&path).unwrap();
    put(&kv, b"c", b"3").await;
    drop(kv);
    let later = std::fs::read(&path).unwrap();
    let mark = |file: &[u8]| {
        std::fs::write(&path, file).unwrap();
        std::fs::write(Journal::beside(&path), &journal).unwrap();
        let found = Journal::survey(&path).unwrap().unwrap();
        assert!(found.torn && !found.damaged, "{found:?}");
        let (kv, opened) = Kv::open(&path).unwrap();
        assert!(matches!(opened, Opened::Whole), "{opened:?}");
        let mark = kv.read().unwrap().get(INCOMPLETE).unwrap();
        drop(kv);
        (mark, std::fs::read(&path).unwrap())
    };
    for file in [&crashed, &whole] {
        assert_eq!(mark(file).0.as_deref(), Some(TORN));
    }
    let (marked, lost) = mark(&later);
    assert_eq!(marked.as_deref(), Some(LOST));
    assert_eq!(mark(&lost).0.as_deref(), Some(LOST), "it is not forgotten");
}

#[tokio::test]
async fn a_journal_that_is_gone_is_told() {
    let (_root, path) = place();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
    drop(kv);
    std::fs::remove_file(Journal::beside(&path)).unwrap();
    let (_, opened) = Kv::open(&path).unwrap();
    let Opened::Restored(restored) = opened else {
        panic!("{opened:?}");
    };
    assert_eq!((restored.from, restored.aside), (Source::File, None));
    assert!(restored.cause.to_string().contains("is gone"));
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
    let journal = std::fs::read(Journal::beside(&path)).unwrap();
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
        std::fs::write(Journal::beside(&path), &journal).unwrap();
        let (kv, _) = Kv::open(&path).unwrap();
        let mut all = dump(&kv.read().unwrap(), b"");
        all.retain(|(key, _)| key != INCOMPLETE);
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
    std::fs::write(beside(&path, "new"), b"half").unwrap();
    let kv = open(&path).unwrap();
    put(&kv, b"a", b"1").await;
}
