//! Tests of module `fsck`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use types::{BUNDLES_DIR, CheckOpts, Code, Error, Fault, Mount, Repair, Report};

use super::{Checker, MOST_WAITING, check_stopped, judge, left_mounted};
use crate::config::Config;
use crate::ground::{self, Ground};
use crate::store::{self, Store};

impl Checker {
    /// Takes the turn, as a check does.
    pub(crate) async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Somebody has the turn.
    pub(crate) fn is_at_work(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// Places for checks that are free.
    pub(crate) fn free_places(&self) -> usize {
        self.places.available_permits()
    }
}

/// A checker of a root that nobody has used; the directory is that root.
async fn setup() -> (TempDir, Checker) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        state: dir.path().join("state"),
        ..Config::default()
    };
    std::fs::create_dir_all(&config.root).unwrap();
    let store = Store::open(Ground::open(&config).unwrap(), &config).await;
    let checker = Checker::new(&store.unwrap().metadata, &config);
    (dir, checker)
}

async fn check(checker: &Checker) -> Report {
    checker.check(CheckOpts::default()).await.unwrap()
}

#[tokio::test]
async fn a_second_check_waits_for_its_turn() {
    let (_dir, checker) = setup().await;
    let second = checker.clone();
    let turn = checker.turn.lock().await;
    // Time moves on its own when nothing else can: no check takes this long.
    tokio::time::pause();
    let waiting = timeout(Duration::from_secs(3600), check(&second));
    waiting.await.unwrap_err();
    tokio::time::resume();
    drop(turn);
    assert!(check(&second).await.is_clean());
}

#[tokio::test]
async fn checks_that_wait_are_bounded_and_the_daemons_own_takes_its_turn() {
    let (_dir, checker) = setup().await;
    let turn = checker.turn.lock().await;
    let mut waiting: Vec<_> = (0..=MOST_WAITING)
        .map(|_| Box::pin(checker.check(CheckOpts::default())))
        .collect();
    for check in &mut waiting {
        assert!(futures::poll!(check).is_pending());
    }
    let one_more = checker.check(CheckOpts::default()).await.unwrap_err();
    assert_eq!(one_more.code(), Code::ResourceExhausted);
    let mut own = Box::pin(checker.check_records(CheckOpts::default()));
    assert!(futures::poll!(&mut own).is_pending());
    // Who goes away leaves its place.
    drop(waiting.pop());
    let mut next = Box::pin(checker.check(CheckOpts::default()));
    assert!(futures::poll!(&mut next).is_pending());
    drop(turn);
    for check in waiting {
        assert!(check.await.unwrap().is_clean());
    }
    assert!(own.await.is_clean() && next.await.unwrap().is_clean());
}

/// The files of a daemon that has ended.
async fn stopped() -> (TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        state: dir.path().join("state"),
        ..Config::default()
    };
    for path in [&config.root, &config.state] {
        std::fs::create_dir(path).unwrap();
    }
    drop(Store::open(Ground::open(&config).unwrap(), &config).await);
    (dir, config)
}

/// Everything under a directory, with what a change of it changes.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let facts = path.symlink_metadata().unwrap();
        if facts.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (facts.len(), facts.modified().unwrap()));
    }
    found
}

#[tokio::test]
async fn a_check_of_a_stopped_daemon_makes_nothing_under_its_root() {
    let (_dir, config) = stopped().await;
    let content = config.root.join("io.containerd.content.v1.content");
    std::fs::remove_dir(content.join("ingest")).unwrap();
    std::fs::remove_dir(content.join("blobs/sha512")).unwrap();
    for is_gone in [false, true] {
        if is_gone {
            std::fs::remove_dir_all(&content).unwrap();
        }
        let before = tree(&config.root);
        let report = check_stopped(&config, CheckOpts::default()).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(tree(&config.root), before);
    }
}

#[tokio::test]
async fn copies_for_which_there_is_no_room_are_not_begun() {
    let (_dir, config) = stopped().await;
    for file in store::copied(&config).chain(ground::copied(&config).unwrap()) {
        let there = file.metadata().map(|found| found.len()).ok();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let mut options = std::fs::File::options();
        let open = options.create(true).append(true).open(&file).unwrap();
        // It takes nothing, and its copy would take more than any disk has.
        open.set_len(1 << 43).unwrap();
        let error = check_stopped(&config, CheckOpts::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{}", file.display());
        let said = error.to_string();
        assert!(
            said.contains(" bytes under ") && said.contains(" are free: "),
            "{said}"
        );
        assert_eq!(std::fs::read_dir(&config.state).unwrap().count(), 0);
        match there {
            Some(length) => open.set_len(length).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
    }
    let report = check_stopped(&config, CheckOpts::default()).await.unwrap();
    assert!(report.is_clean(), "{report}");
}

/// The findings as lines, without the directory of the test.
fn lines(report: &Report, dir: &TempDir) -> Vec<String> {
    let dir = format!("{}/", dir.path().display());
    let findings = report.findings.iter();
    let mut lines: Vec<_> = findings
        .map(|finding| finding.to_string().replace(&dir, ""))
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_bundle_that_tells_nothing_is_told_of() {
    let (dir, online) = setup().await;
    let checker = Checker {
        is_stopped: true,
        ..online
    };
    let bundle = dir.path().join("state").join(BUNDLES_DIR).join("n/c");
    std::fs::create_dir_all(&bundle).unwrap();
    let report = check(&checker).await;
    let faults: Vec<_> = report.findings.iter().map(|f| f.fault).collect();
    assert_eq!(faults, [Fault::Orphan, Fault::Damaged]);
    let lines = lines(&report, &dir);
    assert!(
        lines[0].starts_with("damaged task n/c: its bundle does not tell"),
        "{lines:?}"
    );
    std::fs::write(bundle.join("config.json"), "{}").unwrap();
    assert_eq!(check(&checker).await.findings.len(), 1);
}

#[tokio::test]
async fn what_tasks_have_left_is_removed_only_from_a_stopped_daemon() {
    let (dir, online) = setup().await;
    let stopped = Checker {
        is_stopped: true,
        ..online.clone()
    };
    let half = dir.path().join("state").join(BUNDLES_DIR).join("n/.half");
    let alone = dir.path().join("root").join(BUNDLES_DIR).join("n/alone");
    for path in [&half, &alone] {
        std::fs::create_dir_all(path.join("rest")).unwrap();
    }
    let repair = CheckOpts {
        repair: true,
        ..CheckOpts::default()
    };
    for (checker, opts, repair) in [
        (&stopped, CheckOpts::default(), Repair::Possible),
        (&stopped, repair, Repair::Done),
    ] {
        let report = checker.check(opts).await.unwrap();
        let lines = lines(&report, &dir);
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (line, place) in lines.iter().zip(["root", "state"]) {
            let start = format!("orphan directory {place}/{BUNDLES_DIR}/n/");
            let end = format!("[{repair}]");
            assert!(line.starts_with(&start) && line.ends_with(&end), "{line}");
        }
        assert_eq!(half.exists() && alone.exists(), repair != Repair::Done);
    }
    std::fs::create_dir_all(&half).unwrap();
    assert!(online.check(repair).await.unwrap().is_clean());
    assert!(half.exists(), "one at work sweeps by itself");
    std::fs::remove_dir(&half).unwrap();
    assert!(check(&stopped).await.is_clean());
}

#[test]
fn a_record_that_cannot_be_read_is_a_finding_and_no_end() {
    assert_eq!(judge(Ok(())), None);
    let (fault, _) = judge(Err(Error::not_found("container"))).unwrap();
    assert_eq!(fault, Fault::Orphan);
    let (fault, text) = judge(Err(Error::data_loss("a torn row"))).unwrap();
    assert_eq!(fault, Fault::Dangling);
    assert!(text.contains("a torn row"), "{text}");
}

#[tokio::test]
async fn what_a_task_that_is_gone_has_mounted_is_named_and_unmounted() {
    let (dir, config) = stopped().await;
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("kept"), "").unwrap();
    let bind = Mount {
        kind: "bind".into(),
        source: source.display().to_string(),
        options: vec!["bind".into()],
        ..Mount::default()
    };
    let bundles = config.state.join(BUNDLES_DIR);
    let (gone, lives) = (
        bundles.join("n/.gone/rootfs"),
        bundles.join("n/lives/rootfs"),
    );
    let temporary = config.root.join("tmpmounts/m");
    for point in [&gone, &lives, &temporary] {
        std::fs::create_dir_all(point).unwrap();
        sys::mount::mount(&bind, point).unwrap();
    }
    let found = |opts| {
        let mut report = Report::default();
        left_mounted(&config, opts, &mut report).unwrap();
        lines(&report, &dir)
    };
    let named = |end: &str| {
        let place = format!("state/{BUNDLES_DIR}/n/.gone/rootfs");
        vec![
            format!("orphan mount {place}: a task that is gone has left it [{end}]"),
            format!("orphan mount root/tmpmounts/m: a daemon that is gone has left it [{end}]"),
        ]
    };
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(found(CheckOpts::default()), sorted(named("to repair")));
    let repair = CheckOpts {
        repair: true,
        ..CheckOpts::default()
    };
    assert_eq!(found(repair), sorted(named("repaired")));
    assert_eq!(found(repair), [""; 0]);
    assert!(!gone.join("kept").exists() && !temporary.join("kept").exists());
    assert!(lives.join("kept").exists(), "that of a task stays");
    sys::mount::unmount_recursive(&lives).unwrap();
    assert!(source.join("kept").exists());
}

#[tokio::test]
async fn mounts_of_the_manager_are_checked_at_work_and_stopped() {
    let (dir, config) = stopped().await;
    let left = crate::activations::directory(&config).join("t/3/000");
    std::fs::create_dir_all(&left).unwrap();
    let report = check_stopped(&config, CheckOpts::default()).await.unwrap();
    let told = format!(
        "orphan mounts state/{}/t/3: no activation has it [to repair]",
        "io.containerd.mount-manager.v1.bolt"
    );
    assert_eq!(lines(&report, &dir), [told]);
    let repair = CheckOpts {
        repair: true,
        ..CheckOpts::default()
    };
    let report = check_stopped(&config, repair).await.unwrap();
    assert_eq!(report.findings[0].repair, Repair::Done);
    assert!(!left.exists());

    let store = Store::open(Ground::open(&config).unwrap(), &config).await;
    let metadata = store.unwrap().metadata;
    let (manager, _) = crate::activations::open(&metadata, &config).unwrap();
    let checker = Checker::new(&metadata, &config).with_mounts(&manager);
    let scope = types::Scope::new("n".parse().unwrap());
    let tmpfs = Mount {
        kind: "format/tmpfs".into(),
        source: "tmpfs".into(),
        ..Mount::default()
    };
    let opts = ::mounts::ActivateOpts {
        temporary: true,
        ..Default::default()
    };
    let made = manager.activate(&scope, "a", vec![tmpfs], opts).await;
    let made = made.unwrap();
    assert!(check(&checker).await.is_clean());
    sys::mount::unmount(Path::new(&made.active[0].mount_point)).unwrap();
    let report = check(&checker).await;
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].object, "activation n/a");
    assert!(!checker.check(repair).await.unwrap().is_faulty());
    assert!(manager.held().is_empty());
}
