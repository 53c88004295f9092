//! Subscribers of events: one that never reads, and one that outlives the daemon.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use client::{Client, Subscription};
use integration::{Host, Watch, bin_dir, resident};
use types::{Any, Code, Filter, Topic};

/// What a subscriber that never reads may cost the daemon, in KiB.
const BOUND: u64 = 16 << 10;
/// Size of an event, and how many there are: several times what may wait, and what is held.
const SIZE: usize = 16 << 10;
const EVENTS: usize = 2_000;

async fn connect(host: &Host) -> Client {
    let address = host.address().to_string_lossy().into_owned();
    let namespace = host.namespace().parse().expect("a namespace");
    let limit = Duration::from_secs(10);
    let client = Client::connect(&address, namespace, limit);
    client.await.expect("connect")
}

fn ours() -> Filter {
    Filter::parse(&["topic==\"/story\""]).expect("a filter")
}

async fn publish(client: &Client, number: usize) {
    let topic = Topic::try_from("/story".to_owned()).expect("a topic");
    let event = Any {
        type_url: number.to_string(),
        value: vec![7; SIZE],
    };
    let done = client.events().publish(&topic, event).await;
    done.expect("publish");
}

/// Number of the next event.
async fn number(subscription: &mut Subscription) -> types::Result<usize> {
    let next = tokio::time::timeout(integration::PATIENCE, subscription.next());
    let envelope = next.await.expect("in time")?.expect("a stream without end");
    let event = envelope.event.expect("an event");
    Ok(event.type_url.parse().expect("a number"))
}

async fn story(host: &Host) {
    let pid = host.daemon_pid();
    let (reader, idler, publisher) = (
        connect(host).await,
        connect(host).await,
        connect(host).await,
    );
    let mut reading = reader.events().subscribe(&ours()).await.expect("subscribe");
    publish(&publisher, 0).await;
    assert_eq!(number(&mut reading).await.expect("an event"), 0);

    let mut idle = idler.events().subscribe(&ours()).await.expect("subscribe");
    let before = resident(pid);
    let mut most = before;
    for n in 1..=EVENTS {
        publish(&publisher, n).await;
        // Others get everything, and at once.
        assert_eq!(number(&mut reading).await.expect("an event"), n);
        if n % 20 == 0 {
            most = most.max(resident(pid));
        }
    }
    let grown = most - before;
    assert!(grown <= BOUND, "the daemon grew by {grown} KiB");

    let mut read = 0;
    let error = loop {
        match number(&mut idle).await {
            Ok(n) => {
                read += 1;
                assert_eq!(n, read, "what it gets is a beginning without holes");
            }
            Err(error) => break error,
        }
    };
    assert!(error.is(Code::ResourceExhausted), "{error}");
    // It is told who it is, so that whoever reads the log finds it.
    let name = format!("(process {})", std::process::id());
    assert!(error.to_string().contains(&name), "{error}");
    assert!(read < EVENTS, "nothing was cut off");
    // It may come back, and is told that it missed some for good.
    let after = idle.position().expect("a position");
    let gap = idler.events().resume(&ours(), after).await;
    let gap = gap.expect_err("too much was missed");
    assert!(gap.is(Code::OutOfRange), "{gap}");
}

#[test]
fn a_subscriber_that_never_reads_is_cut_off_and_the_daemon_stays_small() {
    let host = Host::new("idle-subscriber");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start a runtime");
    runtime.block_on(story(&host));
    drop(runtime);
    let log = host.log();
    let told = log.lines();
    let mut told = told.filter(|line| line.contains("event subscriber is too slow: cut off"));
    let name = format!("(process {})", std::process::id());
    assert!(told.any(|line| line.contains(&name)), "{log}");
    host.finish();
}

/// What `ctr events` says on stderr goes here.
fn complaints(host: &Host) -> PathBuf {
    host.path("watch.stderr")
}

#[test]
fn a_watch_outlives_the_daemon_and_says_that_it_missed_something() {
    let mut host = Host::new("watch-restart");
    let mut watch = Watch::start(&host, &bin_dir().join("ctr"));
    host.kill();
    host.start();
    // Made before the watch is back: replayed.
    host.image();
    let topics = watch.topics_until("/images/create");
    assert_eq!(topics.iter().filter(|t| *t == "/images/create").count(), 1);
    let told = fs::read_to_string(complaints(&host)).expect("complaints");
    assert!(
        told.contains("events are missed") && told.contains("another run"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
    drop(watch);
    host.finish();
}
