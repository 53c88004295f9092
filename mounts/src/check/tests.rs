//! Tests of module `check`.

use types::{Fault, Mount, Repair};

use super::*;
use crate::ActivateOpts;
use types::Scope;

const LOOK: CheckOpts = CheckOpts {
    repair: false,
    quick: false,
    since: None,
};
const REPAIR: CheckOpts = CheckOpts {
    repair: true,
    ..LOOK
};

/// A directory with activations; nothing stays mounted after it.
struct Bench(tempfile::TempDir);

impl Drop for Bench {
    fn drop(&mut self) {
        drop(sys::mount::unmount_recursive(self.0.path()));
    }
}

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn open(&self) -> Mounts {
        let opts = OpenOpts {
            directory: self.state(),
            roots: Vec::new(),
        };
        Mounts::open(opts).unwrap()
    }

    /// Somebody mounts there what has no record.
    fn mount(&self, number: u64) -> PathBuf {
        let point = self.state().join(format!("t/{number}/000"));
        std::fs::create_dir_all(&point).unwrap();
        sys::mount::mount(&tmpfs("tmpfs"), &point).unwrap();
        point
    }

    fn told(&self, report: &Report) -> Vec<String> {
        let directory = format!("{}/", self.0.path().display());
        let told = report.findings.iter();
        told.map(|finding| finding.to_string().replace(&directory, ""))
            .collect()
    }
}

fn tmpfs(kind: &str) -> Mount {
    Mount {
        kind: kind.into(),
        source: "tmpfs".into(),
        options: vec!["size=1m".into()],
        ..Mount::default()
    }
}

fn scope() -> Scope {
    Scope::new("n".parse().unwrap())
}

/// Two mounts under `name`.
async fn activate(mounts: &Mounts, name: &str) -> types::Activation {
    let list = vec![tmpfs("format/tmpfs"), tmpfs("format/tmpfs")];
    let opts = ActivateOpts {
        temporary: true,
        ..ActivateOpts::default()
    };
    mounts.activate(&scope(), name, list, opts).await.unwrap()
}

fn unmount(activation: &types::Activation) {
    let point = Path::new(&activation.active[0].mount_point);
    sys::mount::unmount(point).unwrap();
}

#[tokio::test]
async fn an_activation_whose_mount_is_gone_is_named_and_goes() {
    let bench = Bench::new();
    let mounts = bench.open();
    unmount(&activate(&mounts, "torn").await);
    activate(&mounts, "whole").await;
    let text = "missing activation n/torn: 1 of its mounts are gone; what uses it has to be \
                started again";
    for (opts, end) in [
        (LOOK, "to repair"),
        (LOOK, "to repair"),
        (REPAIR, "repaired"),
    ] {
        let report = mounts.check(opts).await.unwrap();
        assert_eq!(bench.told(&report), [format!("{text} [{end}]")]);
    }
    assert!(mounts.check(LOOK).await.unwrap().is_clean());
    let n = &scope().namespace;
    assert!(mounts.info(n, "torn").unwrap_err().is_not_found());
    mounts.deactivate(n, "whole").await.unwrap();
}

#[tokio::test]
async fn a_record_that_is_lost_beside_its_daemon_is_written_again() {
    let bench = Bench::new();
    let mounts = bench.open();
    let made = activate(&mounts, "a").await;
    let record = bench.state().join("records/1");
    for damage in ["", "{"] {
        match damage {
            "" => std::fs::remove_file(&record).unwrap(),
            text => std::fs::write(&record, text).unwrap(),
        }
        for (opts, repair) in [(LOOK, Repair::Possible), (REPAIR, Repair::Done)] {
            let report = mounts.check(opts).await.unwrap();
            let found = &report.findings[0];
            assert_eq!(report.findings.len(), 1, "{report}");
            assert_eq!((found.fault, found.repair), (Fault::Damaged, repair));
            assert_eq!(found.object, "activation n/a");
        }
        assert!(mounts.check(LOOK).await.unwrap().is_clean());
    }
    drop(mounts);
    let next = bench.open();
    assert_eq!(next.info(&scope().namespace, "a").unwrap(), made);
    next.deactivate(&scope().namespace, "a").await.unwrap();
}

#[tokio::test]
async fn what_could_not_be_taken_away_is_named_until_it_goes() {
    let bench = Bench::new();
    drop(bench.open());
    let point = bench.mount(7);
    // The directory stays, whatever is done to it.
    let extra = bench.state().join("t/7/extra");
    std::fs::create_dir(&extra).unwrap();
    std::fs::write(extra.join("f"), "").unwrap();
    let mounts = bench.open();
    let orphan = "orphan mounts state/t/7: no activation has it";
    let report = mounts.check(LOOK).await.unwrap();
    assert_eq!(bench.told(&report), [format!("{orphan} [to repair]")]);
    let report = mounts.check(REPAIR).await.unwrap();
    let told = bench.told(&report);
    assert!(
        told[0].starts_with(&format!("{orphan}, and it stays: remove ")),
        "{told:?}"
    );
    assert!(told[0].ends_with("[left]"), "{told:?}");
    std::fs::remove_file(extra.join("f")).unwrap();
    let report = mounts.check(REPAIR).await.unwrap();
    assert_eq!(bench.told(&report), [format!("{orphan} [repaired]")]);
    assert!(!point.exists() && mounts.check(LOOK).await.unwrap().is_clean());
}

#[tokio::test]
async fn an_activation_that_was_in_use_when_it_was_taken_away_is_named() {
    let bench = Bench::new();
    let mounts = bench.open();
    let made = activate(&mounts, "busy").await;
    let used = std::fs::File::create(Path::new(&made.active[1].mount_point).join("f")).unwrap();
    let n = &scope().namespace;
    mounts.deactivate(n, "busy").await.unwrap_err();
    let report = mounts.check(LOOK).await.unwrap();
    let told = ["orphan activation n/busy: it was left halfway [to repair]"];
    assert_eq!(bench.told(&report), told);
    drop(used);
    let report = mounts.check(REPAIR).await.unwrap();
    assert_eq!(report.findings[0].repair, Repair::Done);
    assert!(mounts.held().is_empty() && mounts.check(LOOK).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_stopped_daemons_activations_are_checked_without_a_change() {
    let bench = Bench::new();
    assert!(check_stopped(&bench.state(), REPAIR).unwrap().is_clean());
    assert!(!bench.state().exists(), "nothing is made");
    let mounts = bench.open();
    activate(&mounts, "whole").await;
    unmount(&activate(&mounts, "torn").await);
    drop(mounts);
    assert!(bench.state().join("records/2").exists());
    let records = bench.state().join("records");
    let whole = std::fs::read_to_string(records.join("1")).unwrap();
    let half = whole
        .replace("\"whole\"", "\"half\"")
        .replace("\"phase\":\"active\"", "\"phase\":\"coming\"");
    std::fs::write(records.join("3"), half).unwrap();
    std::fs::write(records.join("4"), "{").unwrap();
    let points = [3, 4, 5].map(|number| bench.mount(number));
    let starts = [
        "missing activation n/torn: 1 of its mounts are gone",
        "orphan activation n/half: it was left halfway",
        "damaged activation state/records/4: its record cannot be used: ",
        "orphan mounts state/t/5: no activation has it",
    ];
    for (opts, end) in [
        (LOOK, "[to repair]"),
        (LOOK, "[to repair]"),
        (REPAIR, "[repaired]"),
    ] {
        let told = bench.told(&check_stopped(&bench.state(), opts).unwrap());
        assert_eq!(told.len(), starts.len(), "{told:?}");
        for (told, start) in told.iter().zip(starts) {
            assert!(told.starts_with(start) && told.ends_with(end), "{told}");
        }
        let is_there = points.each_ref().map(|point| point.exists());
        assert_eq!(is_there, [opts.repair == LOOK.repair; 3]);
    }
    assert!(check_stopped(&bench.state(), LOOK).unwrap().is_clean());
    let next = bench.open();
    assert_eq!(next.held().len(), 1);
    next.deactivate(&scope().namespace, "whole").await.unwrap();
}
