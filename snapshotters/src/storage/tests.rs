//! The index against a naive model, under random calls with reopening in between.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use types::Code;

use super::*;
use crate::directories::Directories;

#[derive(Clone, Debug)]
enum Call {
    Make {
        key: u8,
        parent: Option<u8>,
        active: bool,
    },
    Abandon {
        key: u8,
    },
    Commit {
        key: u8,
        name: u8,
    },
    Remove {
        key: u8,
    },
    Label {
        key: u8,
    },
    Flush,
    Reopen,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let key = 0..6_u8;
    let call = prop_oneof![
        4 => (key.clone(), proptest::option::of(key.clone()), any::<bool>())
            .prop_map(|(key, parent, active)| Call::Make { key, parent, active }),
        1 => key.clone().prop_map(|key| Call::Abandon { key }),
        3 => (key.clone(), key.clone()).prop_map(|(key, name)| Call::Commit { key, name }),
        2 => key.clone().prop_map(|key| Call::Remove { key }),
        1 => key.prop_map(|key| Call::Label { key }),
        1 => Just(Call::Flush),
        1 => Just(Call::Reopen),
    ];
    proptest::collection::vec(call, 1..40)
}

fn key(n: u8) -> SnapshotKey {
    format!("k{n}").parse().unwrap()
}

fn open(root: &Path, ids: &[u64]) -> Result<Index> {
    Index::open(root, &Directories::of(root, ids))
}

/// Kind, parent, id, label.
type Model = BTreeMap<u8, (SnapshotKind, Option<u8>, u64, bool)>;

fn check(index: &Index, model: &Model) {
    let listed = index.list(&Filter::default());
    let seen: Vec<_> = listed
        .iter()
        .map(|(id, info)| {
            let labelled = !info.labels.is_empty();
            (
                info.name.clone(),
                info.kind,
                info.parent.clone(),
                *id,
                labelled,
            )
        })
        .collect();
    let want: Vec<_> = model
        .iter()
        .map(|(k, (kind, parent, id, label))| (key(*k), *kind, parent.map(key), *id, *label))
        .collect();
    assert_eq!(seen, want);
    for (k, (kind, parent, ..)) in model {
        let chain = index.chain(&key(*k));
        if *kind == SnapshotKind::Committed {
            assert_eq!(chain.unwrap_err().code(), Code::FailedPrecondition);
            continue;
        }
        let mut ids = Vec::new();
        let mut at = *parent;
        while let Some(p) = at {
            ids.push(model[&p].2);
            at = model[&p].1;
        }
        assert_eq!(chain.unwrap().parents, ids);
    }
}

fn ids(model: &Model) -> Vec<u64> {
    model.values().map(|(_, _, id, _)| *id).collect()
}

fn run(calls: Vec<Call>) {
    let temp = tempfile::tempdir().unwrap();
    let mut index = Arc::new(open(temp.path(), &[]).unwrap());
    let mut model = Model::new();
    let mut highest = 0;
    for call in calls {
        match call {
            Call::Make {
                key: k,
                parent,
                active,
            } => {
                let kind = if active {
                    SnapshotKind::Active
                } else {
                    SnapshotKind::View
                };
                let parent_ok = parent.is_none_or(|p| {
                    model
                        .get(&p)
                        .is_some_and(|m| m.0 == SnapshotKind::Committed)
                });
                let made = index.reserve(kind, &key(k), parent.map(key).as_ref(), Labels::new());
                assert_eq!(made.is_ok(), parent_ok && !model.contains_key(&k));
                if let Ok(reservation) = made {
                    assert!(reservation.id() > highest, "an id was given twice");
                    highest = reservation.id();
                    // The parent is held while the directory is being made.
                    if let Some(p) = parent {
                        index.remove(&key(p)).unwrap_err();
                    }
                    let chain = reservation.keep().unwrap();
                    model.insert(k, (kind, parent, chain.id, false));
                }
            }
            Call::Abandon { key: k } => {
                let made = index.reserve(SnapshotKind::Active, &key(k), None, Labels::new());
                // An id that was never on disk may come again.
                if let Ok(_reservation) = made {
                    let again = index.reserve(SnapshotKind::Active, &key(k), None, Labels::new());
                    assert!(again.unwrap_err().is_already_exists());
                }
            }
            Call::Commit { key: k, name } => {
                let ok = !model.contains_key(&name)
                    && model.get(&k).is_some_and(|m| m.0 == SnapshotKind::Active);
                let done = index.commit(
                    (&key(name), &key(k)),
                    None,
                    Labels::new(),
                    Sealed::default(),
                );
                assert_eq!(done.is_ok(), ok);
                if let Some((_, parent, id, _)) = ok.then(|| model.remove(&k)).flatten() {
                    model.insert(name, (SnapshotKind::Committed, parent, id, false));
                }
            }
            Call::Remove { key: k } => {
                let ok = model.contains_key(&k) && !model.values().any(|m| m.1 == Some(k));
                assert_eq!(index.remove(&key(k)).is_ok(), ok);
                if ok {
                    model.remove(&k);
                }
            }
            Call::Label { key: k } => {
                if let Ok(row) = index.get(&key(k)) {
                    let mut info = row.info(&key(k));
                    info.labels = Labels::new().with("a", "b");
                    index.update(&info, &Fields::default()).unwrap();
                    model.entry(k).and_modify(|m| m.3 = true);
                }
            }
            Call::Flush => index.flush_all().unwrap(),
            Call::Reopen => {
                drop(index);
                index = Arc::new(open(temp.path(), &ids(&model)).unwrap());
            }
        }
        check(&index, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_is_what_a_naive_model_says(calls in calls()) {
        run(calls);
    }
}

#[test]
fn waiting_callers_share_one_durable_write() {
    let temp = tempfile::tempdir().unwrap();
    let index = Arc::new(open(temp.path(), &[]).unwrap());
    std::thread::scope(|scope| {
        for n in 0..8_u8 {
            let index = &index;
            scope.spawn(move || {
                let made = index.reserve(SnapshotKind::Active, &key(n), None, Labels::new());
                made.unwrap().keep().unwrap();
                index
                    .commit(
                        (&key(n + 100), &key(n)),
                        None,
                        Labels::new(),
                        Sealed::default(),
                    )
                    .unwrap();
            });
        }
    });
    let state = index.state();
    assert_eq!((state.flushed, state.dirty.len()), (16, 0));
    assert_eq!(state.unflushed, 0);
}

#[test]
fn who_asks_does_not_wait_for_the_disk() {
    let temp = tempfile::tempdir().unwrap();
    let index = Arc::new(open(temp.path(), &[]).unwrap());
    let make = |n| {
        // So long a line that a pipe takes a part of it.
        let labels = Labels::new()
            .with("a", "x".repeat(4000))
            .with("b", "y".repeat(4000));
        index.reserve(SnapshotKind::Active, &key(n), None, labels)
    };
    make(0).unwrap().keep().unwrap();
    // A disk that takes the first 4096 bytes of a line and then no more.
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    index.log().divert(write.into());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| make(1).unwrap().keep());
        while rustix::io::ioctl_fionread(&read).unwrap() < 4096 {
            std::thread::yield_now();
        }
        let (told, answers) = std::sync::mpsc::channel();
        let asking = &index;
        scope.spawn(move || {
            let rows = asking.list(&Filter::default()).len();
            told.send((rows, asking.get(&key(0)).is_ok(), asking.chain(&key(0))))
                .unwrap();
        });
        let answer = answers.recv_timeout(std::time::Duration::from_secs(60));
        // The disk is there again.
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        while !waiting.is_finished() {
            let _none_yet = rustix::io::read(&read, &mut [0; 8192]);
            std::thread::yield_now();
        }
        let (rows, is_there, chain) = answer.unwrap();
        assert!(is_there && chain.is_ok());
        assert_eq!(rows, 1, "not before it is in the log");
        waiting.join().unwrap().unwrap();
    });
    index.get(&key(1)).unwrap();
}

#[test]
fn the_file_is_complete_or_not_there() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join(db::FILE);
    // What a process leaves that is killed while it makes the file.
    std::fs::write(file.with_extension("new"), "half").unwrap();
    drop(open(temp.path(), &[]).unwrap());
    assert!(!file.with_extension("new").exists());
    // What nobody of ours leaves: cut to nothing, it is damage and no new beginning.
    std::fs::write(&file, "").unwrap();
    let refused = open(temp.path(), &[1]).unwrap_err();
    assert!(refused.to_string().contains("snapshot index"), "{refused}");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0);
    // But there is nothing to lose where no snapshot is.
    drop(open(temp.path(), &[]).unwrap());
}

/// An index with ten committed snapshots, the last of them only in the log.
fn ten(root: &Path) -> Vec<(u64, SnapshotInfo)> {
    let index = Arc::new(open(root, &[]).unwrap());
    for n in 0..9 {
        let made = index.reserve(SnapshotKind::Active, &key(n), None, Labels::new());
        made.unwrap().keep().unwrap();
        let name = key(n + 100);
        index
            .commit((&name, &key(n)), None, Labels::new(), Sealed::default())
            .unwrap();
    }
    let made = index.reserve(
        SnapshotKind::Active,
        &key(50),
        Some(&key(100)),
        Labels::new(),
    );
    made.unwrap().keep().unwrap();
    index.list(&Filter::default())
}

#[test]
fn a_damaged_index_is_made_anew_from_its_log_or_copy() {
    let ids: Vec<u64> = (1..=10).collect();
    for is_copied in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        let all = ten(temp.path());
        if is_copied {
            let index = open(temp.path(), &ids).unwrap();
            index.flush_all().unwrap();
            let image = index.state().image();
            index.mirror(&image);
            assert_eq!(index.log().len(), 0);
            index.remove(&key(50)).unwrap();
        }
        let left = if is_copied { 9 } else { 10 };
        let file = temp.path().join(db::FILE);
        let whole = std::fs::read(&file).unwrap();
        let cut = whole[..whole.len() / 2].to_vec();
        for damaged in [Some(Vec::new()), Some(vec![7; 5000]), Some(cut), None] {
            match damaged {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let index = open(temp.path(), &ids).unwrap();
            let found = index.list(&Filter::default());
            assert_eq!(found.len(), left);
            assert!(found.iter().all(|snapshot| all.contains(snapshot)));
        }
    }
}

#[test]
fn a_mirror_with_a_gap_is_not_taken_and_made_anew_while_the_index_is_whole() {
    let ids: Vec<u64> = (1..=10).collect();
    let temp = tempfile::tempdir().unwrap();
    let all = ten(temp.path());
    let file = temp.path().join(db::FILE);
    let log = temp.path().join("metadata.log");
    let text = std::fs::read_to_string(&log).unwrap();
    let without_first = text.split_once('\n').unwrap().1;
    std::fs::write(&log, without_first).unwrap();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "").unwrap();
    let refused = open(temp.path(), &ids).unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    std::fs::write(&file, whole).unwrap();
    assert_eq!(
        open(temp.path(), &ids).unwrap().list(&Filter::default()),
        all
    );
    std::fs::write(&file, "").unwrap();
    assert_eq!(
        open(temp.path(), &ids).unwrap().list(&Filter::default()),
        all
    );
}
