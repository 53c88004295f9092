//! The whole path beside Debian's containerd and the bare runtime.
//!
//! One interleaved run: each round does the same on our daemon, on Debian's and on the bare runtime, in
//! changing order, and what is compared are medians. Run through `make bench`, as root; it needs a
//! mount namespace without the v2 part of a hybrid cgroup mount, which the make target gives it.
//! Arguments name the parts to run; without any, all are.
//!
//! ```text
//! main ─┬─ cold     start of a daemon                      peer   a daemon, started and stopped
//!       ├─ life     one container after the other          calls  what is asked of it
//!       ├─ rate     sixteen at a time                      raw    the bare runtime
//!       ├─ exec     programs in a running container        group  CPU of all its processes
//!       ├─ stdio    bytes through a fifo                   usage  figures from /proc
//!       ├─ density  a thousand containers up (crowd)       spec   what runs in the containers
//!       ├─ count    execs and syncs, by strace             bars   the table
//!       ├─ records, content, events, snapshots, removal, memory   what a daemon keeps and tells
//!       ├─ unpack, pull, resume                                   layers onto disk, images off the net
//!       ├─ network  networks of containers                       wires  the same by the kernel's calls alone
//!       └─ docker                                                 what dockerd makes of it
//! ```

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench prints, panics on trouble, and is not under the shim's reaper"
)]

mod bars;
mod calls;
mod content;
mod count;
mod crowd;
#[path = "../../tests/stories/cut.rs"]
mod cut;
mod density;
mod docker;
mod events;
mod exec;
mod group;
#[allow(
    dead_code,
    reason = "the stories' own, of which the bench takes a part"
)]
#[path = "../../tests/stories/layout.rs"]
mod layout;
mod lean;
mod life;
mod memory;
mod network;
mod peer;
mod pull;
mod raw;
mod records;
mod removal;
mod resume;
mod snapshots;
mod spec;
mod stdio;
mod unpack;
mod usage;
mod wires;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use bars::Table;
use peer::{Kind, Peer};
use raw::Raw;
use tokio::runtime::Runtime;

/// What can be asked for.
const PARTS: [&str; 18] = [
    "cold",
    "life",
    "rate",
    "exec",
    "stdio",
    "density",
    "count",
    "records",
    "content",
    "events",
    "snapshots",
    "memory",
    "removal",
    "unpack",
    "pull",
    "resume",
    "network",
    "docker",
];
/// Cold starts of each daemon.
const STARTS: usize = 15;

/// The subjects.
struct Bench {
    runtime: Runtime,
    dir: PathBuf,
    ours: Peer,
    debian: Peer,
    raw: Arc<Raw>,
}

fn main() -> ExitCode {
    // cargo passes `--bench`; everything else is a part's name.
    let parts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    // A name that is none would measure nothing, after minutes.
    let unknown: Vec<_> = parts
        .iter()
        .filter(|part| !PARTS.contains(&part.as_str()))
        .collect();
    assert!(
        unknown.is_empty(),
        "no such part: {unknown:?}; there are {PARTS:?}"
    );
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    assert!(rustix::process::geteuid().is_root(), "the bench needs root");
    let shared = tempfile::Builder::new()
        .prefix("ctd-bench-")
        .tempdir_in("/dev/shm");
    let dir = shared.expect("a directory on tmpfs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut table = Table::default();
    if wanted("cold") {
        cold_start(&runtime, dir.path(), &mut table);
    }
    let mut bench = Bench {
        ours: Peer::start(&runtime, Kind::Ours, &dir.path().join("ours")),
        debian: Peer::start(&runtime, Kind::Debian, &dir.path().join("debian")),
        raw: Arc::new(Raw::new(dir.path())),
        dir: dir.path().to_owned(),
        runtime,
    };
    for name in ["crun", "runc"] {
        if wanted("life") {
            say(&format!("life cycles with {name}"));
            life::one_at_a_time(&bench, name, &mut table);
        }
        if wanted("rate") {
            say(&format!("many at a time with {name}"));
            life::many_at_a_time(&bench, name, &mut table);
        }
    }
    parts_of(&mut bench, &wanted, &mut table);
    bench.ours.stop();
    bench.debian.stop();
    println!();
    // Whoever asks for figures is told by the exit code as well that one is not what it should be.
    ExitCode::from(u8::from(table.print() > 0))
}

/// The parts that are not done once for each runtime.
fn parts_of(bench: &mut Bench, wanted: &dyn Fn(&str) -> bool, table: &mut Table) {
    if wanted("exec") {
        say("exec");
        exec::measure(bench, table);
    }
    if wanted("stdio") {
        say("standard output");
        stdio::measure(bench, table);
    }
    if wanted("density") {
        say("density");
        density::measure(bench, table);
    }
    if wanted("count") {
        say("counting");
        count::measure(bench, table);
    }
    kept(bench, wanted, table);
}

/// The parts about what a daemon keeps and tells, and how images come into it.
fn kept(bench: &Bench, wanted: &dyn Fn(&str) -> bool, table: &mut Table) {
    if wanted("records") {
        say("records");
        records::measure(bench, table);
    }
    if wanted("content") {
        say("content");
        content::measure(bench, table);
    }
    if wanted("events") {
        say("events");
        events::measure(bench, table);
    }
    if wanted("snapshots") {
        say("snapshots");
        snapshots::measure(bench, table);
    }
    if wanted("removal") {
        say("a large removal");
        removal::measure(bench, table);
    }
    if wanted("memory") {
        say("memory");
        memory::measure(bench, table);
    }
    if wanted("unpack") {
        say("unpack");
        unpack::measure(bench, table);
    }
    if wanted("pull") {
        say("pull");
        pull::measure(bench, table);
    }
    if wanted("resume") {
        say("a pull that is cut off");
        resume::measure(table);
    }
    if wanted("network") {
        say("networks");
        network::measure(bench, table);
    }
    if wanted("docker") {
        say("docker");
        docker::measure(bench, table);
    }
}

/// What is under way: the whole takes minutes.
fn say(part: &str) {
    println!("# {part}");
}

fn median<T: Copy + PartialOrd>(values: Vec<T>) -> T {
    part(values, 2)
}

/// A tenth of them is smaller: what it takes when nothing else wants the processor.
fn undisturbed<T: Copy + PartialOrd>(values: Vec<T>) -> T {
    part(values, 10)
}

fn part<T: Copy + PartialOrd>(mut values: Vec<T>, of: usize) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("ordered"));
    values[values.len() / of]
}

fn cold_start(runtime: &Runtime, dir: &Path, table: &mut Table) {
    say("cold start");
    let mut all: [Vec<f64>; 2] = Default::default();
    for n in 0..STARTS {
        for step in 0..2 {
            let which = (n + step) % 2;
            let kind = [Kind::Ours, Kind::Debian][which];
            let home = dir.join(format!("cold{n}-{which}"));
            let begin = Instant::now();
            let peer = Peer::start_bare(runtime, kind, &home);
            all[which].push(begin.elapsed().as_secs_f64() * 1e3);
            peer.stop();
            std::fs::remove_dir_all(&home).expect("remove the root");
        }
    }
    let [ours, debian] = all.map(median);
    let line = table.add("exec of the daemon to its first answer, ms", ours);
    line.debian(debian).of_debian_at_most(0.2);
    let home = dir.join("idle");
    let [ours, debian] = [Kind::Ours, Kind::Debian].map(|kind| {
        let peer = Peer::start_bare(runtime, kind, &home);
        // What the start has left behind is given back a while later.
        std::thread::sleep(memory::REST);
        let rss = usage::memory(peer.pid()).rss;
        peer.stop();
        std::fs::remove_dir_all(&home).expect("remove the root");
        rss as f64
    });
    let line = table.add("idle daemon RSS, KiB", ours);
    line.debian(debian).at_most(15.0 * 1024.0);
    let binary = integration::bin_dir().join("containerd");
    let size = std::fs::metadata(&binary).expect("the binary").len();
    let line = table.add("size of the daemon's binary, MiB", size as f64 / 1048576.0);
    line.at_most(20.0);
}
