//! The whole path beside Debian's containerd: life cycle of `/bin/true`, memory per shim, cold start.
//!
//! One interleaved run: each round does the same on our daemon, on Debian's and on the bare runtime, in
//! changing order, and ratios are those of medians. Run through `make bench`, as root; it needs a
//! mount namespace without the v2 part of a hybrid cgroup mount, which the make target gives it.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench prints, panics on trouble, and is not under the shim's reaper"
)]

mod peer;
mod raw;

use std::path::Path;
use std::time::{Duration, Instant};

use integration::need;
use peer::{Kind, Peer};

/// Rounds of the life cycle for each runtime.
const ROUNDS: usize = 25;
/// Containers that are up while memory is measured.
const CONTAINERS: usize = 50;
/// Cold starts of each daemon.
const STARTS: usize = 15;

fn main() {
    // cargo passes `--bench`; there are no filters.
    assert!(rustix::process::geteuid().is_root(), "the bench needs root");
    let shared = tempfile::Builder::new()
        .prefix("ctd-bench-")
        .tempdir_in("/dev/shm");
    let dir = shared.expect("a directory on tmpfs");
    println!("tmpfs, {ROUNDS} rounds, medians\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    cold_start(&runtime, dir.path());
    let mut ours = Peer::start(&runtime, Kind::Ours, &dir.path().join("ours"));
    let mut debian = Peer::start(&runtime, Kind::Debian, &dir.path().join("debian"));
    let rootfs = raw::rootfs(dir.path());
    for binary in ["crun", "runc"] {
        let binary = need(binary);
        let mut all: [Vec<Times>; 3] = Default::default();
        for n in 0..ROUNDS + 2 {
            for step in 0..3 {
                let which = (n + step) % 3;
                let times = match which {
                    0 => runtime.block_on(ours.life(&binary, &format!("o{n}"))),
                    1 => runtime.block_on(debian.life(&binary, &format!("d{n}"))),
                    _ => raw::life(&binary, &rootfs, dir.path(), &format!("r{n}")),
                };
                // The first two rounds warm caches.
                if n >= 2 {
                    all[which].push(times);
                }
            }
        }
        report(&binary, &all);
        println!("  call, ms            ours  debian");
        for ((name, o), (_, d)) in ours.calls().into_iter().zip(debian.calls()) {
            println!("  {name:17} {o:6.2}  {d:6.2}");
        }
        println!();
    }
    memory(&runtime, &mut ours, &mut debian);
    ours.stop();
    debian.stop();
}

/// When a life cycle's stages were over, from its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) running: Duration,
    pub(crate) whole: Duration,
}

type Stage = (&'static str, fn(&Times) -> Duration);

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("ordered"));
    values[values.len() / 2]
}

fn ms(times: &[Times], pick: fn(&Times) -> Duration) -> f64 {
    median(times.iter().map(|t| pick(t).as_secs_f64() * 1e3).collect())
}

fn report(binary: &Path, [ours, debian, raw]: &[Vec<Times>; 3]) {
    println!("life cycle of /bin/true with {}, ms", binary.display());
    println!(
        "  stage              ours  debian     raw   ours/debian   overhead ours  debian  ratio"
    );
    let stages: [Stage; 2] = [
        ("prepare..running", |t| t.running),
        ("prepare..deleted", |t| t.whole),
    ];
    for (name, pick) in stages {
        let (o, d, r) = (ms(ours, pick), ms(debian, pick), ms(raw, pick));
        println!(
            "  {name:17} {o:5.1}   {d:5.1}   {r:5.1}   {:11.2}   {:13.1}  {:6.1}  {:5.2}",
            o / d,
            o - r,
            d - r,
            (o - r) / (d - r)
        );
    }
    println!();
}

fn cold_start(runtime: &tokio::runtime::Runtime, dir: &Path) {
    let mut all: [Vec<f64>; 2] = Default::default();
    for n in 0..STARTS {
        for step in 0..2 {
            let which = (n + step) % 2;
            let kind = if which == 0 { Kind::Ours } else { Kind::Debian };
            let home = dir.join(format!("cold{n}-{which}"));
            let begin = Instant::now();
            let peer = Peer::start_bare(runtime, kind, &home);
            all[which].push(begin.elapsed().as_secs_f64() * 1e3);
            peer.stop();
            std::fs::remove_dir_all(&home).expect("remove the root");
        }
    }
    let [ours, debian] = all.map(median);
    println!("exec to first answer, ms");
    println!(
        "  ours {ours:.1}   debian {debian:.1}   ratio {:.2}\n",
        ours / debian
    );
}

fn memory(runtime: &tokio::runtime::Runtime, ours: &mut Peer, debian: &mut Peer) {
    println!("{CONTAINERS} containers up (runc): median per shim, and the daemon");
    let binary = need("runc");
    for peer in [ours, debian] {
        let pids: Vec<u32> = (0..CONTAINERS)
            .map(|n| runtime.block_on(peer.sleeper(&binary, &format!("m{n}"))))
            .collect();
        let shims: Vec<u32> = pids.iter().map(|pid| raw::parent(*pid)).collect();
        let pss = median(shims.iter().map(|pid| raw::rollup(*pid, "Pss:")).collect());
        let rss = median(shims.iter().map(|pid| raw::rollup(*pid, "Rss:")).collect());
        let threads: Vec<usize> = shims.iter().map(|pid| raw::threads(*pid)).collect();
        let (least, most) = (threads.iter().min(), threads.iter().max());
        println!(
            "  {:7} shim PSS {pss} KiB, RSS {rss} KiB, threads {}..{}; daemon RSS {} KiB",
            peer.name(),
            least.copied().unwrap_or(0),
            most.copied().unwrap_or(0),
            raw::rollup(peer.pid(), "Rss:"),
        );
        for n in 0..CONTAINERS {
            runtime.block_on(peer.remove(&format!("m{n}")));
        }
    }
}
