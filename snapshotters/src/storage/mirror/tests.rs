//! The second copy: whole under load, never in the way of the first, and never half believed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use types::{Filter, Labels, SnapshotInfo, SnapshotKind};

use super::*;
use crate::directories::Directories;
use crate::storage::{Index, Sealed, db, flush};

fn open(root: &Path, ids: &[u64]) -> Arc<Index> {
    Arc::new(Index::open(root, &Directories::of(root, ids)).unwrap())
}

/// One committed snapshot more.
fn layer(index: &Arc<Index>, name: &str) {
    let active: SnapshotKey = format!("{name}-active").parse().unwrap();
    let made = index.reserve(SnapshotKind::Active, &active, None, Labels::new());
    made.unwrap().keep().unwrap();
    let name = name.parse().unwrap();
    let done = index.commit((&name, &active), None, Labels::new(), Sealed::default());
    done.unwrap();
}

fn listed(index: &Index) -> Vec<(u64, SnapshotInfo)> {
    index.list(&Filter::default())
}

/// What a damaged file is made anew as.
fn restored(root: &Path, ids: &[u64]) -> Vec<(u64, SnapshotInfo)> {
    std::fs::write(root.join(db::FILE), "").unwrap();
    listed(&open(root, ids))
}

/// Files of the root whose names begin so.
fn named(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(prefix)
    };
    paths.filter(is_named).collect()
}

#[test]
fn a_copy_takes_its_groups_from_the_log_and_leaves_those_that_came_meanwhile() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    layer(&index, "a");
    let image = index.state().image();
    let before = index.log().len();
    layer(&index, "b");
    let after = index.log().len();
    index.mirror(&image);
    assert_eq!(index.log().len(), after - before);
    layer(&index, "c");
    let all = listed(&index);
    drop(index);
    assert_eq!(restored(temp.path(), &[1, 2, 3]), all);
}

#[test]
fn the_log_stays_short_however_many_commit_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    let label = "x".repeat(4000);
    let busy = |thread: u32| {
        let key: SnapshotKey = format!("k{thread}").parse().unwrap();
        let made = index.reserve(SnapshotKind::Active, &key, None, Labels::new());
        made.unwrap().keep().unwrap();
        for round in 0..60 {
            let mut info = index.get(&key).unwrap().info(&key);
            info.labels = Labels::new().with(format!("l{round}"), &label);
            index.update(&info, &types::Fields::default()).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || busy(thread));
        }
    });
    let len = index.log().len();
    // One flush beyond the limit, and what eight callers add until the next one.
    assert!(len < 2 * flush::LOG_FOLD, "{len}");
    let all = listed(&index);
    drop(index);
    let ids: Vec<u64> = all.iter().map(|(id, _)| *id).collect();
    assert_eq!(restored(temp.path(), &ids), all);
}

#[test]
fn a_copy_that_fails_is_nobodys_error_and_is_tried_again_after_a_pause() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    let obstacle = temp.path().join("metadata.copy-new");
    std::fs::create_dir(&obstacle).unwrap();
    index.state().has_gap = true;
    let begun = Instant::now();
    layer(&index, "a");
    let after = begun + flush::PAUSE;
    assert!(index.state().retry.is_some_and(|retry| retry >= after));
    std::fs::remove_dir(&obstacle).unwrap();
    // However slow the machine is.
    index.state().retry = Some(after + Duration::from_secs(3600));
    layer(&index, "b");
    let copy = temp.path().join("metadata.copy");
    assert!(!copy.exists(), "the pause is over at once");
    index.state().retry = Some(Instant::now());
    layer(&index, "c");
    assert!(copy.exists());
    assert!(index.state().retry.is_none());
    let all = listed(&index);
    drop(index);
    assert_eq!(restored(temp.path(), &[1, 2, 3]), all);
}

#[test]
fn an_index_opens_though_its_copy_can_be_neither_read_nor_written() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    layer(&index, "a");
    let all = listed(&index);
    drop(index);
    for name in ["metadata.copy", "metadata.copy-new"] {
        std::fs::create_dir(temp.path().join(name)).unwrap();
    }
    let index = open(temp.path(), &[1]);
    assert_eq!(listed(&index), all);
    assert!(index.state().retry.is_some());
    layer(&index, "b");
}

#[test]
fn a_long_log_is_read_and_shortened() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    layer(&index, "a");
    let all = listed(&index);
    drop(index);
    // Groups that the file has, each a megabyte long.
    let line = b"{\"seq\":1,\"next\":2,\"changes\":[]}";
    let mut line = line.to_vec();
    line.resize(1 << 20, b' ');
    line.push(b'\n');
    let log = temp.path().join("metadata.log");
    std::fs::write(&log, line.repeat(65)).unwrap();
    assert_eq!(listed(&open(temp.path(), &[1])), all);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    assert_eq!(restored(temp.path(), &[1]), all);
}

#[test]
fn a_log_with_a_bad_line_in_it_is_kept_before_it_is_cut() {
    let temp = tempfile::tempdir().unwrap();
    let index = open(temp.path(), &[]);
    for name in ["a", "b", "c"] {
        layer(&index, name);
    }
    let all = listed(&index);
    drop(index);
    let log = temp.path().join("metadata.log");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text.push_str("half a li");
    std::fs::write(&log, &text).unwrap();
    drop(open(temp.path(), &[1, 2, 3]));
    let aside = || named(temp.path(), "metadata.log.damaged-");
    assert_eq!(aside().len(), 0, "a torn last line is nothing to look at");
    // Of the second snapshot, which becomes the first one's.
    let damaged = text.replacen("\"id\":2", "\"id\":1", 1);
    assert_ne!(damaged, text);
    std::fs::write(&log, &damaged).unwrap();
    assert_eq!(listed(&open(temp.path(), &[1, 2, 3])), all);
    assert_eq!(aside().len(), 1);
    assert_eq!(std::fs::read_to_string(&aside()[0]).unwrap(), damaged);
    assert_eq!(restored(temp.path(), &[1, 2, 3]), all);
}
