//! The daemon is killed at every step on disk that its start takes over what is there, and at every one that
//! a new journal takes; each time the next start finds nothing wrong, and all that was answered.
//!
//! ```text
//! a change -> kill -> start, trap at the nth call -> start -> all changes, examine -.
//!    `-- n + 1 <--------------------------------------------------------------------'
//! ```

use std::path::PathBuf;

use client::Client;
use integration::{Disk, FileSystem, Host, IMAGE, Output, apart, figure};
use types::{Any, Container, ContainerId, Fields};

use crate::crash_sweep::{
    CONTAINERS, IMAGES, JOURNAL, LEASES, Point, STEPS_ON_DISK, STORE, Step, Sweep, examine, has,
    names,
};

/// The container that lives through all of it.
const ALIVE: &str = "alive";

/// A journal on its way to its name.
const DRAFT: &str = "io.containerd.metadata.v1.bolt/metadata.redb.journal.new";

/// Two of them are more than a journal takes beside the records that it began with.
const LARGE: usize = 2 << 20;

fn file(host: &Host, name: &str) -> PathBuf {
    host.root().join(name)
}

/// The start has come to its end: its container is known, and the store's file has what its journal had.
fn is_through(host: &Host, pid: u32) -> bool {
    let written = |name| {
        let found = std::fs::metadata(file(host, name)).expect("stat");
        found.modified().expect("a time")
    };
    // It may die while it is asked.
    let told = host.ctr(["tasks", "ls"]);
    let row = [ALIVE, &pid.to_string(), "RUNNING"];
    let mut rows = told.stdout.lines();
    told.code == 0
        && rows.any(|found| found.split_whitespace().eq(row))
        && written(STORE) > written(JOURNAL)
}

#[test]
fn a_start_over_records_survives_a_kill_at_any_call() {
    apart(|| {
        let disk = Disk::new(FileSystem::Memory);
        let mut host = Host::rooted("sweep-start", &disk.path().join("root"));
        host.image();
        host.sleeper(ALIVE);
        let pid = host.task(ALIVE, "RUNNING").expect("it runs");
        let mut answered = Vec::new();
        let mut nth = 1;
        loop {
            // What the store's file has not got when the daemon is killed.
            let lease = format!("l{nth}");
            drop(host.ctr(["leases", "create", "--id", &lease]).ok());
            host.kill();
            let died = host.start_into(&STEPS_ON_DISK, nth, |host| is_through(host, pid));
            let is_through = died.is_none();
            let point = Point(format!("start, call {nth}: {died:?}"));
            if !is_through {
                host.start();
            }
            let leases = names(&host, LEASES);
            answered.push(lease);
            for lease in &answered {
                assert!(leases.contains(lease), "{lease}: {leases:?}");
            }
            assert!(has(&host, IMAGES, IMAGE) && has(&host, CONTAINERS, ALIVE));
            examine(&host);
            assert_eq!(host.task(ALIVE, "RUNNING"), Some(pid));
            drop(point);
            if is_through {
                break;
            }
            // Every other one, unless told otherwise: there are more than a hundred.
            let every_call = std::env::var_os("EVERY_CALL").is_some();
            nth += if every_call { 1 } else { 2 };
        }
        assert!(nth > 2, "there was nothing to interrupt");
        figure(format_args!("a start makes less than {nth} calls"));
        for lease in names(&host, LEASES) {
            drop(host.ctr(["leases", "rm", "--sync", &lease]).ok());
        }
        host.remove(ALIVE);
        drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
        host.finish();
        disk.finish();
    });
}

/// What a client is told, as if it were a command.
pub(crate) fn asked(
    host: &Host,
    line: &str,
    ask: impl AsyncFnOnce(Client) -> types::Result<()>,
) -> Output {
    let work = async {
        let address = host.address();
        let namespace = host.namespace().parse().expect("a namespace");
        let limit = integration::PATIENCE;
        ask(Client::connect(&address.to_string_lossy(), namespace, limit).await?).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let told = runtime.block_on(work);
    Output {
        code: told.is_err().into(),
        stdout: String::new(),
        stderr: told.err().map_or_else(String::new, |e| e.to_string()),
        line: line.into(),
    }
}

/// A container record of this size, whatever was there before.
fn put_large(host: &Host) -> Output {
    asked(host, "put a large record", async |client: Client| {
        let id: ContainerId = "large".parse()?;
        let containers = client.containers();
        let large = large(id.clone());
        match containers.update(&large, &Fields::default()).await {
            Err(error) if error.is_not_found() => containers.create(&large).await.map(drop),
            updated => updated.map(drop),
        }
    })
}

fn large(id: ContainerId) -> Container {
    Container {
        id,
        labels: types::Labels::new(),
        image: String::new(),
        runtime: types::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: None,
        },
        spec: Some(Any {
            type_url: "spec".into(),
            value: vec![b'x'; LARGE],
        }),
        snapshotter: String::new(),
        snapshot_key: String::new(),
        extensions: std::collections::BTreeMap::new(),
        sandbox: String::new(),
        created_at: std::time::SystemTime::UNIX_EPOCH,
        updated_at: std::time::SystemTime::UNIX_EPOCH,
    }
}

/// Changes until there is a new journal: it is shorter than the one before.
fn renew(host: &Host) -> Output {
    let length = || std::fs::metadata(file(host, JOURNAL)).map_or(0, |found| found.len());
    let mut before = length();
    loop {
        let told = put_large(host);
        let now = length();
        if told.code != 0 || now < before {
            break told;
        }
        before = now;
    }
}

/// The whole record is there.
fn read_large(host: &Host) -> Output {
    asked(host, "read a large record", async |client: Client| {
        let found = client.containers().get(&"large".parse()?).await?;
        let value = found.spec.map(|spec| spec.value).unwrap_or_default();
        assert!(value.len() == LARGE && value.iter().all(|byte| *byte == b'x'));
        Ok(())
    })
}

fn renewal() -> Vec<Step> {
    vec![
        Step::ctr(&["leases", "create", "--id", "l"]).makes(LEASES, "l"),
        Step::of(put_large).makes(CONTAINERS, "large"),
        Step::of(renew),
        Step::ctr(&["leases", "create", "--id", "m"]).makes(LEASES, "m"),
        Step::of(read_large),
    ]
}

#[test]
fn records_survive_a_kill_at_any_call_while_their_journal_is_made_anew() {
    Sweep::new("sweep-renewal", renewal()).run();
}

#[test]
fn records_survive_a_kill_at_any_write_of_a_new_journal() {
    let sweep = Sweep {
        calls: &["write", "fdatasync", "fsync", "rename"],
        file: Some(DRAFT),
        ..Sweep::new("sweep-draft", renewal())
    };
    sweep.run();
}
