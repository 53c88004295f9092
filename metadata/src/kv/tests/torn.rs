//! What a power cut leaves of the frame that was being written, and what it cannot have left.

use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;

use super::place;
use crate::kv::tx::Overlay;
use crate::kv::{Journal, Records};

fn append(journal: &mut Journal, commit: u64, value: &[u8]) {
    let change = Overlay::from([(commit.to_be_bytes().to_vec(), Some(value.to_vec()))]);
    journal.append(commit, [&change].into_iter()).unwrap();
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(Journal::beside(path)).unwrap()
}

fn write(path: &Path, journal: &[u8]) {
    std::fs::write(Journal::beside(path), journal).unwrap();
}

/// Makes a journal of one change for each value; where their frames are.
fn journal(path: &Path, values: &[Vec<u8>]) -> (Journal, Vec<Range<usize>>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut journal = Journal::make(path, &Records::new(), 0).unwrap();
    let mut frames = Vec::new();
    for (commit, value) in (1..).zip(values) {
        let [from, to] = [false, true].map(|is_there| {
            if is_there {
                append(&mut journal, commit, value);
            }
            let found = Journal::survey(path).unwrap().unwrap();
            usize::try_from(found.end()).unwrap()
        });
        frames.push(from..to);
    }
    (journal, frames)
}

/// Values of any bytes, of those that heads of frames are made of, and of holes.
fn value(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..most),
        prop::collection::vec(0_u8..4, 0..most),
        (0..most).prop_map(|len| vec![0; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Each of its blocks has come to the disk, or has not; in no order.
    #[test]
    fn a_frame_that_was_being_written_is_an_unfinished_end(
        before in value(1500),
        torn in value(9000),
        blocks in prop::collection::vec(any::<bool>(), 24),
        block in prop_oneof![Just(512), Just(4096)],
    ) {
        let (_root, path) = place();
        let (mut writer, frames) = journal(&path, std::slice::from_ref(&before));
        let old = read(&path);
        append(&mut writer, 2, &torn);
        let new = read(&path);
        drop(writer);
        prop_assert_eq!(old.len(), new.len());
        let mut found = old.clone();
        let first = frames[0].end / block;
        // Head, version, kind, commit, the key and its length, and the value with its own.
        let most = (frames[0].end + torn.len() + 64).min(found.len());
        for at in frames[0].end..most {
            if blocks.get(at / block - first) == Some(&true) {
                found[at] = new[at];
            }
        }
        write(&path, &found);
        let survey = Journal::survey(&path).unwrap().unwrap();
        prop_assert!(!survey.damaged, "{:?}", survey);
        let is_whole = found == new;
        prop_assert_eq!(survey.last, 1 + u64::from(is_whole));
        prop_assert_eq!(survey.torn, !is_whole && found != old);
        // Whatever was left of it, what is written in its place is read back, and it is not.
        let mut writer = Journal::resume(&path, &survey).unwrap();
        append(&mut writer, survey.last + 1, b"next");
        let again = Journal::survey(&path).unwrap().unwrap();
        prop_assert!(!again.torn && again.last == survey.last + 1, "{:?}", again);
        let records = Journal::replay(&path).unwrap().unwrap().records;
        let mut expected = vec![before];
        expected.extend(is_whole.then_some(torn));
        expected.push(b"next".to_vec());
        prop_assert!(records.into_values().eq(expected));
    }

    /// What was damaged later: a byte, or some blocks that read as zeros.
    #[test]
    fn a_damaged_frame_before_a_whole_one_is_damage(
        values in prop::collection::vec(value(3000), 2..4),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bits in 1..=u8::MAX,
        is_hole in any::<bool>(),
    ) {
        let (_root, path) = place();
        let (_, frames) = journal(&path, &values);
        let frame = frames[which.index(frames.len() - 1)].clone();
        let mut found = read(&path);
        let hit = frame.start + at.index(frame.len());
        if is_hole {
            let end = frame.end.min((hit / 512 + 1) * 512);
            prop_assume!(found[hit..end].iter().any(|byte| *byte != 0));
            found[hit..end].fill(0);
        } else {
            found[hit] ^= bits;
        }
        write(&path, &found);
        let survey = Journal::survey(&path).unwrap().unwrap();
        prop_assert!(survey.torn && survey.damaged, "{:?}", survey);
    }
}

/// Room for it is there first: a journal that ends within a frame has lost something.
#[test]
fn a_frame_that_is_longer_than_the_room_finds_room_first() {
    let (_root, path) = place();
    let (_, frames) = journal(&path, &[vec![7; 3 << 20]]);
    let whole = read(&path);
    assert!(whole[frames[0].end..].len() >= 8);
    assert!(whole[frames[0].end..].iter().all(|byte| *byte == 0));
    write(&path, &whole[..frames[0].end - 1]);
    let survey = Journal::survey(&path).unwrap().unwrap();
    assert!(survey.torn && survey.damaged, "{survey:?}");
    // Room alone, however much there was time for.
    for len in [frames[0].start + 8, 2 << 20, whole.len()] {
        let mut room = whole[..frames[0].start].to_vec();
        room.resize(len, 0);
        write(&path, &room);
        let survey = Journal::survey(&path).unwrap().unwrap();
        assert!(!survey.torn && survey.last == 0, "{survey:?}");
    }
}

/// Heads of frames that would be as long as all the rest: each of them could be the one.
#[test]
fn what_looks_like_thousands_of_frames_is_read_a_few_times() {
    let (_root, path) = place();
    let (_, frames) = journal(&path, &[Vec::new()]);
    let mut found = read(&path);
    let mut at = frames[0].end;
    // The last commit and the ones after it are plausible.
    let head = |left: usize| {
        let len = u32::try_from(left).unwrap().to_le_bytes();
        [&len[..], b"sums", &[1, 2, 3]].concat()
    };
    found[at] = 1;
    at += 1;
    while at + 11 < found.len() {
        let head = head(found.len() - at - 8);
        found[at..at + 11].copy_from_slice(&head);
        at += 11;
    }
    write(&path, &found);
    let survey = Journal::survey(&path).unwrap().unwrap();
    assert!(survey.torn && survey.damaged, "{survey:?}");
}

/// Its frames are whole, but nobody writes them there.
#[test]
fn a_second_base_is_damage() {
    let (_root, path) = place();
    let (_, frames) = journal(&path, &[vec![7]]);
    let mut found = read(&path);
    let base = found[8..frames[0].start].to_vec();
    found[frames[0].end..][..base.len()].copy_from_slice(&base);
    write(&path, &found);
    let survey = Journal::survey(&path).unwrap().unwrap();
    assert!(survey.torn && survey.damaged, "{survey:?}");
    assert_eq!(survey.last, 1);
}
