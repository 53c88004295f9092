//! A new daemon takes the place of a running one: clients see no refused connection, no failed call and
//! no lost event, and containers see nothing at all.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Heard};
use integration::{Host, Program, need, until};
use types::{Any, Code, Error, Filter, Labels, NamespaceInfo, Topic};

/// Time between two calls of a caller, and how many callers there are.
const CALL: Duration = Duration::from_millis(20);
const CALLERS: usize = 10;
/// The same of those that read.
const READ: Duration = Duration::from_millis(10);
const READERS: usize = 10;
/// Time between two events.
const EVENT: Duration = Duration::from_millis(10);
/// Longest that a call may take when it falls into a hand-over.
const LIMIT: Duration = Duration::from_secs(10);
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
    retried: AtomicUsize,
    connections: AtomicUsize,
    /// In milliseconds.
    slowest: AtomicUsize,
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

/// A call that never got to a daemon is made again, as every gRPC client does by itself; once. That it
/// got to none, the call itself must show: a second one of the same name fails.
async fn once_more<T, F>(seen: &Seen, what: &str, call: impl Fn() -> F + Send) -> T
where
    F: Future<Output = types::Result<T>> + Send,
    T: Send,
{
    let begun = Instant::now();
    let (done, first) = match call().await {
        Err(error) if is_lost(&error) => {
            seen.retried.fetch_add(1, Ordering::SeqCst);
            (call().await, Some(error))
        }
        done => (done, None),
    };
    seen.took(begun);
    let took = begun.elapsed();
    done.unwrap_or_else(|error| panic!("{what} after {took:?} and {first:?}: {error}"))
}

fn is_lost(error: &Error) -> bool {
    // On its way when the daemon said which call is its last: Go's clients make such a one again by
    // themselves, tonic calls it an internal error.
    let is_refused = error.is(Code::Internal) && error.to_string().contains("http2 error");
    is_refused
        || matches!(
            error.code(),
            Code::Unavailable | Code::Cancelled | Code::Unknown
        )
}

/// Makes and removes namespaces of its own names.
async fn caller(client: Client, number: usize, seen: Arc<Seen>) {
    let mut made = 0;
    let mut tick = tokio::time::interval(CALL);
    while seen.goes_on() {
        tick.tick().await;
        made += 1;
        let name: types::Namespace = format!("n{number}-{made}").parse().expect("a name");
        let info = NamespaceInfo {
            name: name.clone(),
            labels: Labels::new(),
        };
        let create = || {
            let (client, info) = (client.clone(), info.clone());
            async move { client.namespaces().create(&info).await }
        };
        once_more(&seen, "create", create).await;
        let delete = || {
            let (client, name) = (client.clone(), name.clone());
            async move { client.namespaces().delete(&name).await }
        };
        once_more(&seen, "delete", delete).await;
    }
}

/// Asks what changes nothing, as fast as it is answered, with a short rest.
async fn reader(client: Client, seen: Arc<Seen>) {
    let mut tick = tokio::time::interval(READ);
    while seen.goes_on() {
        tick.tick().await;
        let list = || {
            let client = client.clone();
            async move { client.tasks().list().await }
        };
        let tasks = once_more(&seen, "list", list).await;
        assert!(tasks.iter().any(|task| task.id == "stays"), "{tasks:?}");
    }
}

/// Publishes numbers; how many.
async fn publisher(client: Client, seen: Arc<Seen>) -> usize {
    let topic = Topic::try_from("/story".to_owned()).expect("a topic");
    let mut tick = tokio::time::interval(EVENT);
    let mut number = 0;
    while seen.goes_on() {
        tick.tick().await;
        let event = Any {
            type_url: number.to_string(),
            value: Vec::new(),
        };
        let publish = || {
            let (client, topic, event) = (client.clone(), topic.clone(), event.clone());
            async move { client.events().publish(&topic, event).await }
        };
        once_more(&seen, "publish", publish).await;
        number += 1;
    }
    number
}

/// Connects, asks nothing, and goes: refused it must never be.
fn connector(address: &Path, seen: &Seen) {
    while seen.goes_on() {
        UnixStream::connect(address).expect("connect");
        seen.connections.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
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
    }
    calls
}

/// Hears every number once and in order, up to what was published.
async fn follower(client: Client, seen: Arc<Seen>) -> usize {
    let ours = Filter::parse(&["topic==\"/story\""]).expect("a filter");
    let mut follow = client.events().follow(ours, LIMIT);
    let mut next: Option<usize> = None;
    loop {
        let heard = tokio::time::timeout(Duration::from_millis(500), follow.next()).await;
        let Ok(heard) = heard else {
            if seen.goes_on() {
                continue;
            }
            return next.expect("events");
        };
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
    let client = runtime.block_on(connect(&host));
    let waiting = runtime.spawn({
        let tasks = client.tasks();
        async move { tasks.wait(&"stays".parse().expect("an id"), None).await }
    });
    let follower = runtime.spawn(follower(
        runtime.block_on(connect(&host)),
        Arc::clone(&seen),
    ));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let client = runtime.block_on(connect(&host));
            runtime.spawn(caller(client, number, Arc::clone(&seen)))
        })
        .collect();
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let client = runtime.block_on(connect(&host));
            runtime.spawn(reader(client, Arc::clone(&seen)))
        })
        .collect();
    let publisher = runtime.spawn(publisher(client.clone(), Arc::clone(&seen)));
    let address = host.address();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connector(&address, &seen));
        let going = scope.spawn(|| go_client(&address, &seen));
        for _ in 0..3 {
            let before = seen.calls.load(Ordering::SeqCst);
            until("calls are made", || {
                seen.calls.load(Ordering::SeqCst) > before + 500
            });
            host.hand_over();
        }
        let before = seen.calls.load(Ordering::SeqCst);
        until("calls are made", || {
            seen.calls.load(Ordering::SeqCst) > before + 500
        });
        seen.stop.store(true, Ordering::SeqCst);
        connecting.join().expect("no connection is refused");
        assert!(going.join().expect("no Go client fails") > 0);
    });
    for caller in callers.into_iter().chain(readers) {
        runtime.block_on(caller).expect("no call fails");
    }
    let published = runtime.block_on(publisher).expect("no call fails");
    let heard = runtime.block_on(follower).expect("no event is missing");
    assert_eq!(heard, published);
    // Who waits is told to ask again, and not that something has ended.
    let told = runtime
        .block_on(waiting)
        .expect("a wait")
        .expect_err("the daemon went");
    assert!(told.is(Code::Unavailable), "{told}");
    let retried = seen.retried.load(Ordering::SeqCst);
    assert!(
        retried <= 3 * (CALLERS + READERS + 1),
        "{retried} calls were made again"
    );
    let slowest = seen.slowest.load(Ordering::SeqCst);
    assert!(slowest < 5_000, "a call took {slowest} ms");
    assert_eq!(host.task("stays", "RUNNING"), Some(pid));
    new_shims_know_nothing_of_it(&host);
    host.remove("stays");
    drop((client, runtime));
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
    for (config, why) in [
        (
            "version = 2\nroot = 5\n",
            "config.toml: line 2: root: invalid type",
        ),
        (
            "version = 2\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            "is not there",
        ),
    ] {
        fs::write(host.path("config.toml"), config).expect("write");
        let before = host.log().len();
        host.signal(SIGUSR2);
        // A call begun now waits, and is answered by the old one; one on a connection that was told to go
        // is to be made again, which our client does not do by itself.
        until("a call is answered", || host.ctr(["version"]).code == 0);
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
    host.remove("stays");
    host.finish();
}
