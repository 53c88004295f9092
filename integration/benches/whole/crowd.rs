//! A thousand containers under one daemon, in hundreds: what each costs, and what is left of them.
//!
//! ```text
//! start 100 -> every start was told? -> settle -> list, exec, memory, idle -> next hundred
//! after some: a new daemon; at the end: remove 100 at a time, and look for leftovers
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use protos::services::events as wire;
use protos::services::tasks;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::calls::NAMESPACE;
use crate::group::Group;
use crate::lean::Lean;
use crate::life::at_a_time;
use crate::peer::Peer;
use crate::{median, usage};

/// Containers that are started between two looks, how often, and how many at a time.
const STEP: usize = 100;
const STEPS: usize = 10;
const WIDTH: usize = 8;
/// After which steps the daemon is restarted, and how often.
const RESTART_AFTER: [usize; 3] = [2, 5, 10];
const RESTARTS: usize = 3;
/// Until the last start is a while ago: shims give memory back then.
const SETTLE: Duration = Duration::from_secs(4);
/// Over which idle CPU is measured.
const IDLE: Duration = Duration::from_secs(5);
const LISTS: usize = 50;
const EXECS: usize = 10;
/// For events, restarts and leftovers.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a daemon and its shims need with so many containers.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) containers: usize,
    /// Time to start the last hundred, and to remove it, in s.
    pub(crate) started: f64,
    pub(crate) removed: f64,
    /// A list of all tasks, and a process more in a container, in ms.
    pub(crate) list: f64,
    pub(crate) exec: f64,
    /// Of the daemon, in KiB.
    pub(crate) daemon_rss: f64,
    pub(crate) daemon_pss: f64,
    /// Of the middle shim, in KiB.
    pub(crate) pss: f64,
    pub(crate) unique: f64,
    pub(crate) rss: f64,
    /// PSS of all shims and the daemon by containers, in KiB.
    pub(crate) each: f64,
    /// The most threads of a shim; the daemon's descriptors and threads.
    pub(crate) shim_threads: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
    /// CPU of all shims, and of the daemon, while nothing happens, in ms per s.
    pub(crate) idle: f64,
    pub(crate) daemon_idle: f64,
    /// From the start of a new daemon until it lists all as running, in ms.
    pub(crate) restart: Option<f64>,
}

/// A name and where it is.
type Column = (&'static str, fn(&Row) -> f64);

const COLUMNS: [Column; 16] = [
    ("start_s", |r| r.started),
    ("remove_s", |r| r.removed),
    ("list_ms", |r| r.list),
    ("exec_ms", |r| r.exec),
    ("daemon_rss_kib", |r| r.daemon_rss),
    ("daemon_pss_kib", |r| r.daemon_pss),
    ("shim_pss_kib", |r| r.pss),
    ("shim_unique_kib", |r| r.unique),
    ("shim_rss_kib", |r| r.rss),
    ("pss_each_kib", |r| r.each),
    ("shim_threads", |r| r.shim_threads),
    ("daemon_fds", |r| r.descriptors),
    ("daemon_threads", |r| r.threads),
    ("idle_shims_ms_per_s", |r| r.idle),
    ("idle_daemon_ms_per_s", |r| r.daemon_idle),
    ("restart_ms", |r| r.restart.unwrap_or(f64::NAN)),
];

/// Lines for a table of commas, the first with the names; nothing where nothing was measured.
pub(crate) fn csv(subjects: &[(&str, &[Row])]) -> String {
    let names = COLUMNS.map(|(name, _)| name).join(",");
    let mut text = format!("daemon,containers,{names}\n");
    for (subject, row) in subjects
        .iter()
        .flat_map(|(subject, rows)| rows.iter().map(move |row| (subject, row)))
    {
        write!(text, "{subject},{}", row.containers).expect("a string takes it");
        for (_, pick) in COLUMNS {
            let value = pick(row);
            match value.is_nan() {
                true => text.push(','),
                false => write!(text, ",{value:.3}").expect("a string takes it"),
            }
        }
        text.push('\n');
    }
    text
}

/// A daemon's crowd.
pub(crate) fn of(runtime: &Runtime, peer: &mut Peer) -> (f64, Vec<Row>) {
    let before = usage::memory(peer.pid()).rss as f64;
    let descriptors = usage::descriptors(peer.pid());
    let mut watch = Watch::start(runtime, peer);
    let mut pids = Vec::new();
    let mut rows = Vec::new();
    for step in 1..=STEPS {
        let begin = Instant::now();
        pids.extend(start(runtime, peer, (step - 1) * STEP));
        let started = begin.elapsed().as_secs_f64();
        watch.expect(runtime, STEP);
        let mut row = look(runtime, peer, &pids);
        row.started = started;
        if RESTART_AFTER.contains(&step) {
            watch.end();
            let took = (0..RESTARTS).map(|_| restart(runtime, peer, pids.len()));
            row.restart = Some(median(took.collect()));
            watch = Watch::start(runtime, peer);
        }
        println!(
            "  {} {} up, {:.0} KiB each",
            peer.name(),
            row.containers,
            row.each
        );
        rows.push(row);
    }
    watch.end();
    for (step, row) in rows.iter_mut().enumerate().rev() {
        let begin = Instant::now();
        runtime.block_on(at_a_time(WIDTH, STEP, |n| {
            let (calls, id) = (peer.calls.clone(), name(step * STEP + n));
            async move { calls.remove(&id).await }
        }));
        row.removed = begin.elapsed().as_secs_f64();
    }
    leaves_nothing(peer, descriptors);
    (before, rows)
}

fn name(number: usize) -> String {
    format!("up-{number}")
}

/// Starts a hundred; their pids.
fn start(runtime: &Runtime, peer: &Peer, from: usize) -> Vec<u32> {
    let binary: Arc<Path> = integration::need("crun").into();
    let pids = Arc::new(std::sync::Mutex::new(Vec::new()));
    runtime.block_on(at_a_time(WIDTH, STEP, |n| {
        let (calls, binary, pids) = (peer.calls.clone(), Arc::clone(&binary), Arc::clone(&pids));
        async move {
            let pid = calls.sleeper(&binary, &name(from + n)).await;
            pids.lock().expect("no panic").push(pid);
        }
    }));
    std::mem::take(&mut *pids.lock().expect("no panic"))
}

fn look(runtime: &Runtime, peer: &Peer, pids: &[u32]) -> Row {
    std::thread::sleep(SETTLE);
    let shims: Vec<u32> = pids.iter().map(|pid| usage::parent(*pid)).collect();
    let memory: Vec<usage::Memory> = shims.iter().map(|pid| usage::memory(*pid)).collect();
    let middle = |pick: fn(&usage::Memory) -> u64| median(memory.iter().map(pick).collect());
    let daemon = usage::memory(peer.pid());
    let all = memory.iter().map(|m| m.pss).sum::<u64>() + daemon.pss;
    let most = shims.iter().map(|pid| usage::threads(*pid)).max();
    // Before anything else is asked: that wakes it.
    let (idle, daemon_idle) = idle_cpu(&shims, &peer.group);
    let execs = (0..EXECS).map(|n| {
        let of = name(n * 7919 % pids.len());
        let exec = format!("e{}-{n}", pids.len());
        let laps = runtime.block_on(peer.calls.exec(&of, &exec, &["/bin/true"]));
        laps.iter().map(|(_, ms)| ms).sum::<f64>()
    });
    Row {
        containers: pids.len(),
        started: f64::NAN,
        removed: f64::NAN,
        list: runtime.block_on(list(peer, pids.len())),
        exec: median(execs.collect()),
        daemon_rss: daemon.rss as f64,
        daemon_pss: daemon.pss as f64,
        pss: middle(|m| m.pss) as f64,
        unique: middle(|m| m.unique) as f64,
        rss: middle(|m| m.rss) as f64,
        each: all as f64 / pids.len() as f64,
        shim_threads: most.unwrap_or(0) as f64,
        descriptors: usage::descriptors(peer.pid()) as f64,
        threads: usage::threads(peer.pid()) as f64,
        idle,
        daemon_idle,
        restart: None,
    }
}

/// What a list of all tasks takes, in ms; all of them run.
async fn list(peer: &Peer, want: usize) -> f64 {
    assert_eq!(peer.calls.running().await, want, "all run");
    let mut client = Lean::connect(&peer.socket()).await;
    let mut took = Vec::new();
    for _ in 0..LISTS {
        let message = tasks::ListTasksRequest::default();
        let begin = Instant::now();
        let method = "containerd.services.tasks.v1.Tasks/List";
        let length = client.call(method, NAMESPACE, &message).await;
        took.push(begin.elapsed().as_secs_f64() * 1e3);
        assert!(length > want, "a list without tasks");
    }
    median(took)
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
fn restart(runtime: &Runtime, peer: &mut Peer, want: usize) -> f64 {
    let begin = peer.restart(runtime);
    runtime.block_on(async {
        while peer.calls.running().await < want {
            assert!(begin.elapsed() < PATIENCE, "not all are back");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    begin.elapsed().as_secs_f64() * 1e3
}

/// A subscriber that counts starts.
struct Watch {
    heard: Arc<AtomicUsize>,
    wanted: usize,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(runtime: &Runtime, peer: &Peer) -> Self {
        runtime.block_on(Self::begin(&peer.socket()))
    }

    async fn begin(socket: &Path) -> Self {
        let heard = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&heard);
        let mut client = Lean::connect(socket).await;
        let mut subscriber = client.clone();
        let task = tokio::spawn(async move {
            let filter = format!("topic==\"/tasks/start\",namespace==\"{NAMESPACE}\"");
            let request = wire::SubscribeRequest {
                filters: vec![filter],
                ..Default::default()
            };
            let method = "containerd.services.events.v1.Events/Subscribe";
            // Go answers when there is something to tell.
            let mut events = subscriber.stream(method, NAMESPACE, &request).await;
            loop {
                events.next().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The request is on its way before anything else is asked on the connection.
        tokio::task::yield_now().await;
        let message = protos::well_known::Empty::new();
        let method = "containerd.services.version.v1.Version/Version";
        client.call(method, NAMESPACE, &message).await;
        Self {
            heard,
            wanted: 0,
            task,
        }
    }

    /// Waits until it has heard of so many more, and not of one too many.
    fn expect(&mut self, runtime: &Runtime, more: usize) {
        self.wanted += more;
        let begin = Instant::now();
        let heard = || self.heard.load(Ordering::Relaxed);
        runtime.block_on(async {
            while heard() < self.wanted {
                let wanted = self.wanted;
                assert!(begin.elapsed() < PATIENCE, "heard {} of {wanted}", heard());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert_eq!(heard(), self.wanted, "starts that were told");
    }

    fn end(&self) {
        self.task.abort();
    }
}

/// Mounts, shims, control groups and bundles are gone, and descriptors closed.
fn leaves_nothing(peer: &Peer, descriptors: usize) {
    let begin = Instant::now();
    loop {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", peer.pid()));
        let home = peer.home().to_string_lossy().into_owned();
        let mounts = mounts.expect("mounts");
        let mounts = mounts.lines().filter(|line| line.contains(&home)).count();
        let bundles = peer.home().join("state/io.containerd.runtime.v2.task");
        let bundles = std::fs::read_dir(bundles.join(NAMESPACE)).map_or(0, Iterator::count);
        let left = [
            ("mounts", mounts),
            ("bundles", bundles),
            ("control groups", peer.group.below("daemon")),
            ("shims", peer.group.processes("daemon") - 1),
        ];
        let open = usage::descriptors(peer.pid());
        // Debian's daemon keeps what it opened for the next time.
        let is_closed = open <= descriptors || peer.name() != "ours";
        if is_closed && left.iter().all(|(_, number)| *number == 0) {
            return;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{} has left {left:?}, {open} descriptors of {descriptors}",
            peer.name()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
