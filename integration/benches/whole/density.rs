//! Two hundred containers up: memory of a shim, idle CPU, the daemon's growth, and its restart.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::bars::Table;
use crate::group::Group;
use crate::life::at_a_time;
use crate::peer::Peer;
use crate::{Bench, median, usage};

/// Containers that are up, and how many are started at a time.
const CONTAINERS: usize = 200;
const WIDTH: usize = 8;
/// Until the last start is a while ago: shims give memory back then.
const SETTLE: Duration = Duration::from_secs(4);
/// Over which idle CPU is measured.
const IDLE: Duration = Duration::from_secs(12);
const RESTARTS: usize = 3;

/// What one subject needs.
struct Found {
    pss: f64,
    unique: f64,
    rss: f64,
    threads: f64,
    /// CPU of all shims, and of the daemon, per second.
    idle: f64,
    daemon_idle: f64,
    daemon: f64,
    growth: f64,
    started: f64,
    restart: f64,
}

/// Measures both, one after the other: together they would not fit into the limits of processes.
pub(crate) fn measure(bench: &mut Bench, table: &mut Table) {
    let ours = of(&bench.runtime, &mut bench.ours);
    let debian = of(&bench.runtime, &mut bench.debian);
    let mut add = |what: &str, pick: fn(&Found) -> f64, limit: f64| {
        let line = table.add(format!("{CONTAINERS} up: {what}"), pick(&ours));
        let line = line.debian(pick(&debian));
        if limit > 0.0 {
            line.at_most(limit);
        }
    };
    add("shim PSS, KiB", |f| f.pss, 350.0);
    add("shim unique memory, KiB", |f| f.unique, 250.0);
    add("shim RSS, KiB", |f| f.rss, 2560.0);
    add("shim threads (the most)", |f| f.threads, 1.0);
    add("idle CPU of all shims, ms per s", |f| f.idle, 0.2);
    add("idle CPU of the daemon, ms per s", |f| f.daemon_idle, 0.0);
    add("daemon RSS, KiB", |f| f.daemon, 0.0);
    add("daemon RSS growth per container, KiB", |f| f.growth, 0.0);
    add("time to start all, s", |f| f.started, 0.0);
    add("daemon's restart to complete list, ms", |f| f.restart, 0.0);
}

fn of(runtime: &Runtime, peer: &mut Peer) -> Found {
    let binary: Arc<Path> = integration::need("crun").into();
    let before = usage::memory(peer.pid()).rss;
    let begin = Instant::now();
    let pids = Arc::new(std::sync::Mutex::new(Vec::new()));
    runtime.block_on(at_a_time(WIDTH, CONTAINERS, |n| {
        let (calls, binary, pids) = (peer.calls.clone(), Arc::clone(&binary), Arc::clone(&pids));
        async move {
            let pid = calls.sleeper(&binary, &format!("up-{n}")).await;
            pids.lock().expect("no panic").push(pid);
        }
    }));
    let started = begin.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let shims: Vec<u32> = pids
        .lock()
        .expect("no panic")
        .iter()
        .map(|pid| usage::parent(*pid))
        .collect();
    let memory: Vec<usage::Memory> = shims.iter().map(|pid| usage::memory(*pid)).collect();
    let middle = |pick: fn(&usage::Memory) -> u64| median(memory.iter().map(pick).collect());
    let daemon = usage::memory(peer.pid()).rss;
    let most = shims.iter().map(|pid| usage::threads(*pid)).max();
    let (idle, daemon_idle) = idle_cpu(&shims, &peer.group);
    let restart = median((0..RESTARTS).map(|_| restart(runtime, peer)).collect());
    runtime.block_on(at_a_time(WIDTH, CONTAINERS, |n| {
        let calls = peer.calls.clone();
        async move { calls.remove(&format!("up-{n}")).await }
    }));
    Found {
        pss: middle(|m| m.pss) as f64,
        unique: middle(|m| m.unique) as f64,
        rss: middle(|m| m.rss) as f64,
        threads: most.unwrap_or(0) as f64,
        idle,
        daemon_idle,
        daemon: daemon as f64,
        growth: (daemon.saturating_sub(before)) as f64 / CONTAINERS as f64,
        started,
        restart,
    }
}

/// CPU of the shims together, and of the daemon, in ms per second. The daemon's leaf holds both; its
/// own threads come and go too fast to be asked one by one.
fn idle_cpu(shims: &[u32], group: &Group) -> (f64, f64) {
    let now = || {
        let shims = shims.iter().map(|pid| usage::cpu_ms(*pid)).sum::<f64>();
        (shims, group.leaf_cpu_ms("daemon") - shims)
    };
    let (begin, before) = (Instant::now(), now());
    std::thread::sleep(IDLE);
    let (after, passed) = (now(), begin.elapsed().as_secs_f64());
    ((after.0 - before.0) / passed, (after.1 - before.1) / passed)
}

/// From the start of the new daemon until it lists every task as running, in ms.
fn restart(runtime: &Runtime, peer: &mut Peer) -> f64 {
    let begin = peer.restart(runtime);
    runtime.block_on(async {
        while peer.calls.running().await < CONTAINERS {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "not all are back"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    begin.elapsed().as_secs_f64() * 1e3
}
