//! A new daemon takes the place of a running one: clients see no refused connection, no failed call and
//! no lost event, and containers see nothing at all.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use client::{Client, Heard};
use integration::{Host, Program, figure, need, until};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use types::{Any, Code, Filter, Labels, NamespaceInfo, Topic};

/// Calls a second that the clients make together, where the machine lets them.
const RATE: usize = 300;
/// How many calls a second there must be, and all events in time: by hand, `UPGRADE_RATE=1000`. A machine
/// that does other things at the same time has no rates to promise.
const RATE_VARIABLE: &str = "UPGRADE_RATE";
/// Clients that change something, each two calls a turn, and clients that only ask.
const CALLERS: usize = 10;
const READERS: usize = 10;
/// Pauses of those that only connect, and of those that start a client: beside the calls that count.
const CONNECT: Duration = Duration::from_millis(5);
const PROCESS: Duration = Duration::from_millis(50);
/// Events a second.
const EVENTS: u32 = 100;
/// Hand-overs, and the time that is served before, between and after them.
const HAND_OVERS: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(3);
/// Longest that a call may take when it falls into a hand-over; how long it takes on a machine that does
/// nothing else is looked at where its rates are.
const LIMIT: Duration = integration::PATIENCE;
const QUICK: usize = 5_000;
const SIGUSR2: i32 = 12;

async fn connect(host: &Host) -> Client {
    let address = host.address().to_string_lossy().into_owned();
    let namespace = host.namespace().parse().expect("a namespace");
    let client = Client::connect(&address, namespace, LIMIT);
    client.await.expect("connect").with_deadline(LIMIT)
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    calls: AtomicUsize,
    connections: AtomicUsize,
    /// In milliseconds.
    slowest: AtomicUsize,
    /// Events, when there will be no more.
    published: OnceLock<usize>,
}

impl Seen {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn took(&self, begun: Instant) {
        let took = usize::try_from(begun.elapsed().as_millis()).expect("a time");
        self.slowest.fetch_max(took, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
    }
}

/// A call that must not fail: what the daemon did not take, the client makes again by itself. That it was
/// not taken, the call itself must show: a second one of the same name fails.
async fn call<T>(
    seen: &Seen,
    what: &str,
    call: impl Future<Output = types::Result<T>> + Send,
) -> T {
    let begun = Instant::now();
    let done = call.await;
    let took = begun.elapsed();
    seen.took(begun);
    done.unwrap_or_else(|error| panic!("{what} after {took:?}: {error:?}"))
}

/// Time between two turns of one of `clients`, which make `calls` a second together.
fn pace(clients: usize, calls: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(clients).expect("a number")
        / u32::try_from(calls).expect("a number")
}

fn rate() -> usize {
    let given = std::env::var(RATE_VARIABLE).ok();
    given.map_or(RATE, |rate| rate.parse().expect("a number of calls"))
}

/// Makes and removes namespaces of its own names: four tenths of all calls.
async fn caller(client: Client, number: usize, seen: Arc<Seen>) {
    let mut made = 0;
    let mut tick = tokio::time::interval(pace(CALLERS, rate() / 5));
    while seen.goes_on() {
        tick.tick().await;
        made += 1;
        let name: types::Namespace = format!("n{number}-{made}").parse().expect("a name");
        let info = NamespaceInfo {
            name: name.clone(),
            labels: Labels::new(),
        };
        let namespaces = client.namespaces();
        call(&seen, "create", namespaces.create(&info)).await;
        call(&seen, "delete", namespaces.delete(&name)).await;
    }
}

/// Asks what changes nothing: seven tenths, so that there is more than enough.
async fn reader(client: Client, seen: Arc<Seen>) {
    let mut tick = tokio::time::interval(pace(READERS, rate() * 7 / 10));
    while seen.goes_on() {
        tick.tick().await;
        let tasks = call(&seen, "list", client.tasks().list()).await;
        assert!(tasks.iter().any(|task| task.id == "stays"), "{tasks:?}");
    }
}

/// Publishes numbers, and says how many.
async fn publisher(client: Client, seen: Arc<Seen>) {
    let topic = Topic::try_from("/story".to_owned()).expect("a topic");
    let mut tick = tokio::time::interval(Duration::from_secs(1) / EVENTS);
    let mut number = 0;
    while seen.goes_on() {
        tick.tick().await;
        let event = Any {
            type_url: number.to_string(),
            value: Vec::new(),
        };
        call(&seen, "publish", client.events().publish(&topic, event)).await;
        number += 1;
    }
    seen.published.set(number).expect("one publisher");
}

/// Connects, asks nothing, and goes: refused it must never be.
fn connector(address: &Path, seen: &Seen) {
    while seen.goes_on() {
        UnixStream::connect(address).expect("connect");
        seen.connections.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(CONNECT);
    }
}

/// Debian's client, one process a call.
fn go_client(address: &Path, seen: &Seen) -> usize {
    let mut calls = 0;
    while seen.goes_on() {
        let ctr = Program::new(need("ctr")).args(["--address".as_ref(), address.as_os_str()]);
        let told = ctr.args(["version"]).run();
        assert_eq!(told.code, 0, "{}", told.stderr);
        calls += 1;
        std::thread::sleep(PROCESS);
    }
    calls
}

/// Hears every number once and in order, up to what was published, and nothing more; how many.
async fn follower(client: Client, seen: Arc<Seen>) -> usize {
    let ours = Filter::parse(&["topic==\"/story\""]).expect("a filter");
    let mut follow = client.events().follow(ours, LIMIT);
    let mut next: Option<usize> = None;
    let mut last = Instant::now();
    loop {
        let heard = tokio::time::timeout(Duration::from_millis(500), follow.next()).await;
        let Ok(heard) = heard else {
            let published = seen.published.get().copied();
            if published.is_some() && published == next {
                return next.expect("events");
            }
            let waited = last.elapsed();
            assert!(
                waited < LIMIT,
                "{published:?} published, heard up to {next:?}"
            );
            continue;
        };
        last = Instant::now();
        match heard.expect("events") {
            Heard::Event(envelope) => {
                let number = envelope.event.expect("an event").type_url;
                let number: usize = number.parse().expect("a number");
                let wanted = next.unwrap_or(number);
                assert_eq!(number, wanted, "an event is missing, or came twice");
                next = Some(number + 1);
            }
            Heard::Gap(gap) => panic!("events were missed: {gap}"),
        }
    }
}

/// The clients at their work; what they saw is in `seen`.
struct Load {
    callers: Vec<JoinHandle<()>>,
    publisher: JoinHandle<()>,
    follower: JoinHandle<usize>,
}

impl Load {
    fn start(runtime: &Runtime, host: &Host, seen: &Arc<Seen>) -> Self {
        let client = || runtime.block_on(connect(host));
        let follower = runtime.spawn(follower(client(), Arc::clone(seen)));
        let mut callers: Vec<_> = (0..CALLERS)
            .map(|number| runtime.spawn(caller(client(), number, Arc::clone(seen))))
            .collect();
        let readers = (0..READERS).map(|_| runtime.spawn(reader(client(), Arc::clone(seen))));
        callers.extend(readers);
        Self {
            callers,
            publisher: runtime.spawn(publisher(client(), Arc::clone(seen))),
            follower,
        }
    }

    /// Waits for all; how many events there were.
    fn end(self, runtime: &Runtime) -> usize {
        for caller in self.callers {
            runtime.block_on(caller).expect("no call fails");
        }
        runtime.block_on(self.publisher).expect("no call fails");
        runtime
            .block_on(self.follower)
            .expect("no event is missing")
    }
}

/// Hands over again and again; for how long calls were made.
fn hand_overs(host: &mut Host, seen: &Seen) -> Duration {
    let begun = Instant::now();
    for number in 1..=HAND_OVERS + 1 {
        until("it was served for a while", || {
            begun.elapsed() > BETWEEN * number
        });
        if number <= HAND_OVERS {
            host.hand_over();
        }
    }
    seen.stop.store(true, Ordering::SeqCst);
    begun.elapsed()
}

#[test]
fn calls_events_and_containers_go_through_a_hand_over() {
    let mut host = Host::new("upgrade");
    host.image();
    host.sleeper("stays");
    let pid = host.task("stays", "RUNNING").expect("runs");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start a runtime");
    let seen = Arc::<Seen>::default();
    let waiting = runtime.spawn({
        let tasks = runtime.block_on(connect(&host)).tasks();
        async move { tasks.wait(&"stays".parse().expect("an id"), None).await }
    });
    let load = Load::start(&runtime, &host, &seen);
    let address = host.address();
    let took = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connector(&address, &seen));
        let going = scope.spawn(|| go_client(&address, &seen));
        let took = hand_overs(&mut host, &seen);
        connecting.join().expect("no connection is refused");
        assert!(going.join().expect("no Go client fails") > 0);
        took
    });
    let calls = seen.calls.load(Ordering::SeqCst);
    let slowest = seen.slowest.load(Ordering::SeqCst);
    let heard = load.end(&runtime);
    let per_second = |count: usize| count as f64 / took.as_secs_f64();
    let (rate_of_calls, rate_of_events) = (per_second(calls), per_second(heard));
    figure(format_args!(
        "{rate_of_calls:.0} calls and {rate_of_events:.0} events a second, {HAND_OVERS} hand-overs: \
         none failed, none missing, the slowest took {slowest} ms"
    ));
    assert!(calls > 0 && heard > 0, "{calls} calls, {heard} events");
    if std::env::var_os(RATE_VARIABLE).is_some() {
        assert!(
            rate_of_calls >= rate() as f64,
            "only {rate_of_calls:.0} calls a second"
        );
        // The last moment counts as one.
        assert!(
            rate_of_events >= 0.95 * f64::from(EVENTS),
            "only {rate_of_events:.0} events a second"
        );
        assert!(slowest < QUICK, "a call took {slowest} ms");
    }
    // Who waits is told to ask again, and not that something has ended.
    let told = runtime
        .block_on(waiting)
        .expect("a wait")
        .expect_err("the daemon went");
    assert!(told.is(Code::Unavailable), "{told}");
    assert_eq!(host.task("stays", "RUNNING"), Some(pid));
    new_shims_know_nothing_of_it(&host);
    host.remove("stays");
    drop(runtime);
    host.finish();
}

/// What the old daemon gave the new one is not given on.
fn new_shims_know_nothing_of_it(host: &Host) {
    host.sleeper("later");
    let pid = host.task("later", "RUNNING").expect("runs");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let parent = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(1));
    let shim = parent.expect("a parent");
    let environment = fs::read(format!("/proc/{shim}/environ")).expect("a shim");
    let environment = String::from_utf8_lossy(&environment);
    for variable in ["CONTAINERD_HANDOVER", "LISTEN_FDS"] {
        assert!(!environment.contains(variable), "{environment}");
    }
    let sockets = fs::read_to_string("/proc/net/unix").expect("sockets");
    let address = host.address().display().to_string();
    let ours: Vec<_> = sockets
        .lines()
        .filter(|line| line.ends_with(&address))
        .filter_map(|line| line.split_whitespace().nth(6))
        .collect();
    for fd in fs::read_dir(format!("/proc/{shim}/fd")).expect("a shim") {
        let target = fs::read_link(fd.expect("a descriptor").path()).unwrap_or_default();
        let target = target.display().to_string();
        assert!(
            !ours
                .iter()
                .any(|inode| target == format!("socket:[{inode}]")),
            "{target}"
        );
    }
    host.remove("later");
}

#[test]
fn a_new_daemon_that_cannot_come_to_be_leaves_the_old_one_with_all_it_had() {
    let host = Host::new("upgrade-fails");
    host.image();
    host.sleeper("stays");
    let pid = host.task("stays", "RUNNING").expect("runs");
    let daemon = host.daemon_pid();
    let good = fs::read_to_string(host.path("config.toml")).expect("a config");
    // The last one fails when it has opened all of its stores.
    let taken = host.path("taken.sock");
    let listener = UnixListener::bind(&taken).expect("listen");
    let taken = taken.display().to_string();
    let late = format!("{good}\n[debug]\naddress = {taken:?}\n");
    for (config, why) in [
        (
            "version = 2\nroot = 5\n",
            "config.toml: line 2: root: invalid type",
        ),
        (
            "version = 2\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            "is not there",
        ),
        (&*late, "another daemon is serving at"),
    ] {
        fs::write(host.path("config.toml"), config).expect("write");
        let before = host.log().len();
        host.signal(SIGUSR2);
        // A call begun now waits, or is made again by its client, and is answered by the old one.
        drop(host.ctr(["version"]).ok());
        until("the old daemon goes on", || {
            host.log()[before..].contains("going on")
        });
        let log = host.log();
        assert!(log[before..].contains(why), "{log}");
        assert_eq!(host.daemon_pid(), daemon);
        assert_eq!(host.task("stays", "RUNNING"), Some(pid));
        drop(
            host.ctr(["tasks", "exec", "--exec-id", "e", "stays", "true"])
                .ok(),
        );
    }
    fs::write(host.path("config.toml"), good).expect("write");
    // Whoever was started before is reaped by the daemon that went on.
    host.remove("stays");
    until("its shim is gone, and no zombie of it", || {
        sys::process::children(daemon)
            .expect("the daemon lives")
            .is_empty()
    });
    drop(listener);
    host.finish();
}
