//! A look at everything that the machine holds for the daemon, while nobody works.
//!
//! ```text
//! records (asked of the daemon) -> fsck -> resources (asked of the kernel)
//! ```
//! Each is looked at until it is what it was the first time; what is not so after a while has drifted. The
//! first time it is looked at until it stays the same.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use integration::{Host, snapshots_in};

use crate::figures::{Figures, Rule, entries, memory, parent, size, zombies};
use crate::operations::{Ctr, Shared};
use crate::warm;

/// What is on its way when the last operation ends has this long to come.
const SETTLE: Duration = Duration::from_secs(40);
/// Longer than a thread of the daemon waits for work before it ends.
const STEADY: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(100);
/// How the traces that [`Host::leftovers`] names begin.
const TRACES: [&str; 8] = [
    "mount",
    "process",
    "cgroup",
    "bundle",
    "runtime state",
    "ingest",
    "snapshot",
    "socket",
];

/// Room for what an allocator keeps for itself, in KiB: the daemon gives back what is more.
fn room(memory: u64) -> Rule {
    Rule::More(memory / 10 + 12 * 1024)
}

/// What the heap in use may be more than it was, with pages of records and with what is on its way, in KiB.
const HEAP: u64 = 4096;
/// So many looks at the same daemon tell a slope, over which it may grow by so much, in KiB.
const LOOKS: usize = 5;
const RISE: f64 = 1536.0;
/// Figures of the daemon's process, which begin anew with a new one.
const OF_DAEMON: [&str; 3] = ["daemon Rss", "daemon Anonymous", "daemon heap"];

/// What was found the first time.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    first: Option<(Figures, Figures)>,
    /// The heap of this daemon at each look.
    heap: Vec<f64>,
    /// How much of the log was read.
    read: u64,
}

impl Watcher {
    /// Looks; the figures in a line, or what has drifted.
    pub(crate) fn look(
        &mut self,
        host: &Host,
        shared: &Shared,
        is_new: bool,
    ) -> Result<String, String> {
        if is_new {
            self.heap.clear();
            if let Some((_, first)) = &mut self.first {
                first.forget(&OF_DAEMON);
            }
        }
        let mut wrong = self.panics(host);
        let ctr = &shared.ctr;
        let first = self.first.as_ref();
        let records = settled(first.map(|f| &f.0), || records(host, ctr))?;
        let told = ctr.run(["fsck"]);
        if told.code != 0 || !told.stdout.ends_with("nothing is wrong\n") {
            wrong.push(format!("fsck: {}{}", told.stdout, told.stderr));
        }
        let resources = settled(first.map(|f| &f.1), || resources(host, shared))?;
        #[expect(clippy::cast_precision_loss, reason = "KiB")]
        self.heap.push(resources.value("daemon heap") as f64);
        let rise = rise(&self.heap);
        if self.heap.len() >= LOOKS && rise > RISE {
            wrong.push(format!("the heap rises by {rise:.0} KiB: {:?}", self.heap));
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        let line = format!("{}, {}", records.line(), resources.line());
        let (_, first) = self.first.get_or_insert((records, resources.clone()));
        first.take_over(&resources, &OF_DAEMON);
        Ok(line)
    }

    /// Lines of the log that no daemon should write, since the last look.
    fn panics(&mut self, host: &Host) -> Vec<String> {
        let mut log = fs::File::open(host.path("daemon.log")).expect("the log");
        log.seek(SeekFrom::Start(self.read)).expect("seek");
        let mut text = Vec::new();
        let read = log.read_to_end(&mut text).expect("read the log");
        self.read += read as u64;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| line.contains("panicked"));
        lines.map(str::to_owned).collect()
    }
}

/// By how much they rise from the first to the last, on the straight line that fits them best.
fn rise(all: &[f64]) -> f64 {
    let ordinals = || (0_u32..).map(f64::from);
    let count: f64 = all.iter().map(|_| 1.0).sum();
    let (at, of) = (
        ordinals().zip(all).map(|(x, _)| x).sum::<f64>() / count,
        all.iter().sum::<f64>() / count,
    );
    let both: f64 = ordinals().zip(all).map(|(x, y)| (x - at) * (y - of)).sum();
    let own: f64 = ordinals().zip(all).map(|(x, _)| (x - at).powi(2)).sum();
    if own > 0.0 {
        both / own * (count - 1.0)
    } else {
        0.0
    }
}

#[test]
fn a_rise_is_told_from_ups_and_downs() {
    assert!(rise(&[5.0]).abs() < 1e-9);
    assert!((rise(&[10.0, 20.0, 30.0, 40.0]) - 30.0).abs() < 1e-9);
    assert!(rise(&[10.0, 30.0, 20.0, 30.0, 10.0]).abs() < 1e-9);
}

/// Looks until it is as it was first, or, the first time, until it stays as it is.
fn settled(first: Option<&Figures>, look: impl Fn() -> Figures) -> Result<Figures, String> {
    let begin = Instant::now();
    let (mut held, mut since) = (look(), Instant::now());
    let mut changed = Vec::new();
    loop {
        let drift = match first {
            Some(first) => held.drift(first),
            None if since.elapsed() > STEADY => Vec::new(),
            None => {
                let mut what = vec!["it does not come to rest".to_owned()];
                what.extend_from_slice(&changed);
                what
            }
        };
        if drift.is_empty() {
            return Ok(held);
        }
        if begin.elapsed() > SETTLE {
            return Err(drift.join("\n"));
        }
        std::thread::sleep(PAUSE);
        let now = look();
        let mut differs = now.drift(&held);
        differs.extend(held.drift(&now));
        let is_same = differs.is_empty();
        if !is_same {
            changed = differs;
        }
        if first.is_some() || !is_same {
            (held, since) = (now, Instant::now());
        }
    }
}

/// What the daemon knows.
fn records(host: &Host, ctr: &Ctr) -> Figures {
    let mut figures = Figures::default();
    for (name, list) in [
        ("namespace", &["namespaces", "ls", "-q"][..]),
        ("container", &["containers", "ls", "-q"]),
        ("task", &["tasks", "ls"]),
        ("image", &["images", "ls", "-q"]),
        ("lease", &["leases", "ls", "-q"]),
        ("snapshot record", &["snapshots", "ls"]),
        ("blob", &["content", "ls", "-q"]),
    ] {
        let lines = ctr.list(list).expect("a list");
        figures.count(name, lines.iter().map(String::as_str), Rule::Same);
    }
    let store = host.root().join("io.containerd.snapshotter.v1.overlayfs");
    let snapshots = snapshots_in(&store.join("snapshots"));
    let snapshots: Vec<_> = snapshots.iter().map(|p| p.to_string_lossy()).collect();
    let snapshots = snapshots.iter().map(|path| &**path);
    figures.count("snapshot directory", snapshots, Rule::Same);
    figures
}

/// What the kernel holds.
fn resources(host: &Host, shared: &Shared) -> Figures {
    let mut figures = Figures::default();
    let pid = host.daemon_pid();
    let fds = |pid: u32| entries(format!("/proc/{pid}/fd")).len() as u64;
    let threads = |pid: u32| entries(format!("/proc/{pid}/task")).len() as u64;
    // Not PSS: that changes with what others on the machine have of the same files.
    for name in ["Rss", "Anonymous"] {
        let value = memory(pid, &format!("{name}:"));
        figures.add(format!("daemon {name}"), value, room(value));
    }
    figures.add("daemon fds", fds(pid), Rule::More(0));
    // One or two of those that wait for work may be there or not.
    figures.add("daemon threads", threads(pid), Rule::More(2));
    let processes = shared.alive.iter().map(|(_, pid)| *pid);
    let shims: Vec<u32> = processes
        .map(|pid| parent(pid).expect("it lives").0)
        .collect();
    let sum = |of: &dyn Fn(u32) -> u64| shims.iter().map(|pid| of(*pid)).sum::<u64>();
    let value = sum(&|pid| memory(pid, "Anonymous:"));
    figures.add(
        "shims Anonymous",
        value,
        Rule::More(shims.len() as u64 * 48),
    );
    figures.add("shims fds", sum(&fds), Rule::Same);
    figures.add("shims threads", sum(&threads), Rule::Same);
    let parents: Vec<u32> = shims.iter().copied().chain([pid]).collect();
    let dead = zombies(&parents);
    figures.count("zombie", dead.iter().map(String::as_str), Rule::Same);
    let traces = host.leftovers();
    for kind in TRACES {
        let of = |line: &&str| line.starts_with(kind);
        let lines = traces.iter().map(String::as_str).filter(of);
        figures.count(kind, lines, Rule::Same);
    }
    for (name, dir) in [
        ("file", host.dir().to_owned()),
        ("file of the state", host.state()),
        ("pipe", shared.ctr.fifos.clone().into()),
    ] {
        let names = entries(dir);
        figures.count(name, names.iter().map(String::as_str), Rule::Same);
    }
    figures.add("disk", size(&host.root()), Rule::More(8 << 10));
    // Last: who asks is one of the descriptors.
    let heap = warm::heap(&shared.debug).expect("it tells about itself") / 1024;
    figures.add("daemon heap", heap, Rule::More(HEAP));
    figures
}
