//! A mixed load for a chosen time on a real daemon with real shims and runc. Once a minute everybody stands
//! still, and what the machine holds must be what it held the first time.
//!
//! ```text
//! workers: run, exec, attach, kill, delete, pull, collect ──┐
//! listener: every event                                     ├─> stand still ─> look ─> drift? ─> go on
//! restarts, in some minutes: kill -9, SIGTERM, hand-over ───┘
//! ```
//! Restarts are in the first half: the daemon of the second one grows old, and what it holds must not grow.
//! `MINUTES=20` makes it that long, `SEED` another one. Otherwise it is four short periods, which shows
//! that the soak itself works, and what is left by everything that is done.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a soak fails by panicking, and is not under the shim's reaper"
)]

mod dice;
mod figures;
mod gate;
mod images;
mod killed;
mod kinds;
#[path = "../stories/layout.rs"]
#[allow(dead_code, reason = "stories make other images, too")]
mod layout;
mod listener;
mod look;
mod operations;
mod talker;
mod tally;
mod warm;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration::{Host, Registry, Whose, bin_dir, figure, until};

use dice::Dice;
use gate::Gate;
use listener::Listener;
use look::Watcher;
use operations::{Ctr, Shared, Worker};
use talker::{ECHO, ECHO_CODE, Talker};
use tally::Tally;

/// Operations at a time.
const WORKERS: usize = 4;
/// Containers that live all the time, beside the one that is talked to.
const ALIVE: usize = 8;
const TALKED_TO: &str = "talked-to";
/// Of so many periods of the first half one has restarts.
const RESTARTS_EACH: u64 = 2;
/// And that is the second one.
const RESTARTS_AT: u64 = 1;
/// Longest life of a daemon in those, as a part of the period.
const LIVES: u32 = 6;
/// Periods and their length when nobody says how many minutes.
const SHORT: (u64, Duration) = (4, Duration::from_secs(6));

fn number(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().expect("a number"))
}

fn ctr(host: &Host) -> Ctr {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let fifos = host.path("fifos");
    fs::create_dir(&fifos).expect("make a directory");
    let program = text(bin_dir().join("ctr"));
    let base = [
        &program,
        "--address",
        &text(host.address()),
        "-n",
        host.namespace(),
    ];
    Ctr {
        base: base.map(str::to_owned).into(),
        fifos: text(fifos),
    }
}

/// The daemon, and the containers that live all the time.
fn shared(host: &Host, registry: &Registry, debug: PathBuf) -> Shared {
    let ctr = ctr(host);
    host.image();
    for n in 0..ALIVE {
        let id = format!("alive-{n}");
        let args = ["run", "-d", "--null-io", integration::IMAGE, &id];
        drop(ctr.run(args.into_iter().chain(["sleep", "100000"])).ok());
    }
    let talked_to = ["run", "-d", "--log-uri", "attach://", integration::IMAGE];
    let talked_to = ctr.program(talked_to);
    drop(talked_to.args([TALKED_TO, "sh", "-c", ECHO]).run().ok());
    let alive = |id: String| {
        let pid = host.task(&id, "RUNNING").expect("it runs");
        (id, pid)
    };
    let ids = (0..ALIVE).map(|n| format!("alive-{n}"));
    let alive = ids.chain([TALKED_TO.to_owned()]).map(alive).collect();
    let work = host.path("images");
    fs::create_dir(&work).expect("make a directory");
    let images = images::push(registry, &work, WORKERS, &ctr);
    fs::remove_dir_all(&work).expect("remove the images");
    Shared {
        ctr,
        gate: Gate::default(),
        tally: Tally::default(),
        listener: Listener::default(),
        images,
        debug,
        is_bereft: AtomicBool::new(false),
        alive,
        talker: Mutex::new(Talker::attach(host, TALKED_TO)),
        interrupted: AtomicU64::new(0),
        failure: Mutex::new(None),
    }
}

/// Waits until the listener hears.
fn hears(host: &Host, shared: &Shared) {
    let mut made = 0;
    until("the listener hears", || {
        made += 1;
        let create = ["namespaces", "create", &format!("probe{made}")];
        drop(host.ctr(create).ok());
        shared.listener.count.load(Ordering::Relaxed) > 0
    });
    for n in 1..=made {
        drop(host.ctr(["namespaces", "rm", &format!("probe{n}")]).ok());
    }
}

/// Closes the gate whatever happens: workers must not go on behind a panic.
struct Closing<'a>(&'a Gate);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Ends the daemon in one of the ways in which daemons end, and has another one.
fn restart(host: &mut Host, dice: &mut Dice) {
    match dice.roll(6) {
        0 => {
            host.stop();
            host.start();
        }
        1 => host.hand_over(),
        _ => {
            host.kill();
            host.start();
        }
    }
}

/// Lets everybody work for a period.
fn drive(host: &mut Host, shared: &Shared, dice: &mut Dice, with_restarts: bool, length: Duration) {
    let end = Instant::now() + length;
    if with_restarts {
        let longest = length / LIVES;
        let most = u64::try_from(longest.as_micros()).expect("short");
        // The last life is as long as the others.
        while end.saturating_duration_since(Instant::now()) > longest / 2 {
            let life = Duration::from_micros(dice.roll(most));
            shared.gate.until((Instant::now() + life).min(end));
            if shared.gate.is_closed() {
                return;
            }
            shared.gate.without_daemon(|| restart(host, dice));
        }
    }
    shared.gate.until(end);
}

/// Stands still and looks.
fn stand_still(host: &Host, shared: &Shared, watcher: &mut Watcher, was_away: bool) -> String {
    shared.gate.pause();
    if let Some(what) = shared.failure.lock().expect("no panic").take() {
        panic!("{what}");
    }
    assert!(!shared.gate.is_closed(), "a worker has failed");
    if shared.is_bereft.swap(false, Ordering::Relaxed) || was_away {
        // Clients that were interrupted or killed could not give them up.
        for lease in shared.ctr.list(&["leases", "ls", "-q"]).expect("leases") {
            drop(host.ctr(["leases", "rm", "--sync", &lease]).ok());
        }
    }
    if was_away {
        warm::up(host, &shared.debug);
    }
    watcher
        .look(host, shared, was_away)
        .unwrap_or_else(|drift| panic!("drift:\n{drift}"))
}

fn soak(host: &mut Host, shared: &Shared, seed: u64, (periods, length): (u64, Duration)) {
    let mut dice = Dice(seed);
    let mut watcher = Watcher::default();
    let address = host.address().to_string_lossy().into_owned();
    let namespace = host.namespace().to_owned();
    std::thread::scope(|scope| {
        let _closing = Closing(&shared.gate);
        scope.spawn(|| shared.listener.listen(&address, &namespace, &shared.gate));
        hears(host, shared);
        warm::up(host, &shared.debug);
        for n in 0..WORKERS {
            scope.spawn(move || Worker::new(shared, n, seed).work());
        }
        for period in 0..periods {
            let before = shared.gate.absences();
            let is_young = period < periods.div_ceil(2);
            let with_restarts = is_young && period % RESTARTS_EACH == RESTARTS_AT;
            drive(host, shared, &mut dice, with_restarts, length);
            let was_away = shared.gate.absences() > before;
            let point = Point(period + 1);
            let line = stand_still(host, shared, &mut watcher, was_away);
            drop(point);
            let absences = shared.gate.absences();
            let done = shared.tally.total();
            figure(format_args!(
                "{} of {periods}: {done} operations, {absences} restarts; {line}",
                period + 1
            ));
            if period + 1 < periods {
                shared.tally.next();
                shared.gate.resume();
            }
        }
    });
}

/// Says where it has failed.
struct Point(u64);

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            figure(format_args!("at the end of period {}", self.0));
        }
    }
}

#[test]
fn under_a_mixed_load_nothing_drifts() {
    let seed = number("SEED").unwrap_or(20_261_130);
    let plan = number("MINUTES").map_or(SHORT, |n| (n, Duration::from_secs(60)));
    figure(format_args!(
        "seed {seed}, {} periods of {:?}",
        plan.0, plan.1
    ));
    let registry = Registry::start();
    let dir = tempfile::tempdir().expect("make a directory");
    let debug = dir.path().join("debug.sock");
    let section = format!("[debug]\naddress = \"{}\"\n", debug.display());
    let mut host = Host::configured("soak", Whose::Ours, &section);
    let shared = shared(&host, &registry, debug);
    soak(&mut host, &shared, seed, plan);
    let events = shared.listener.count.load(Ordering::Relaxed);
    let interrupted = shared.interrupted.load(Ordering::Relaxed);
    figure(format_args!(
        "{}\n{} restarts, {interrupted} operations interrupted by them, {events} events heard with {} gaps",
        shared.tally.table(),
        shared.gate.absences(),
        shared.listener.gaps.load(Ordering::Relaxed)
    ));
    let talker = shared.talker.into_inner().expect("no panic");
    assert_eq!(talker.end(), Some(ECHO_CODE), "the one that was talked to");
    drop(host.ctr(["containers", "rm", TALKED_TO]).ok());
    for n in 0..ALIVE {
        host.remove(&format!("alive-{n}"));
    }
    host.finish();
}
