//! A daemon that is away, comes, goes in the middle, refuses.

use super::*;
use crate::testing::block_on;
use async_trait::async_trait;
use protos::events::{TaskOOM, TaskStart};
use protos::shim::events_ttrpc::{Events, create_events};
use protos::well_known::Empty;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};

struct Daemon {
    got: mpsc::UnboundedSender<String>,
    refuse: Refuse,
}

/// What a daemon refuses: events with this topic, with this code, so many times.
#[derive(Clone)]
struct Refuse {
    topic: &'static str,
    code: Code,
    left: Arc<AtomicU32>,
}

impl Refuse {
    fn nothing() -> Self {
        Self::times("", Code::Internal, 0)
    }

    fn times(topic: &'static str, code: Code, times: u32) -> Self {
        let left = Arc::new(AtomicU32::new(times));
        Self { topic, code, left }
    }

    fn takes(&self, topic: &str) -> bool {
        let less = |left: u32| left.checked_sub(1);
        topic == self.topic && self.left.fetch_update(Relaxed, Relaxed, less).is_ok()
    }
}

#[async_trait]
impl Events for Daemon {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = protos::any::unpack::<TaskStart>(&types::Any {
            type_url: envelope.event.type_url.clone(),
            value: envelope.event.value.to_vec(),
        });
        let text = match event {
            Ok(start) => format!(
                "{} {} {}",
                envelope.namespace, envelope.topic, start.container_id
            ),
            Err(_) => envelope.topic.clone(),
        };
        drop(self.got.send(text));
        if self.refuse.takes(&envelope.topic) {
            let error = Error::new(self.refuse.code, "no");
            return Err(protos::status::to_ttrpc(&error));
        }
        Ok(Empty::new())
    }
}

async fn daemon(path: &Path, refuse: Refuse) -> (Server, mpsc::UnboundedReceiver<String>) {
    drop(std::fs::remove_file(path));
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let (got, events) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(create_events(Arc::new(Daemon { got, refuse })));
    server.start().await.unwrap();
    (server, events)
}

fn publisher() -> Arc<Publisher> {
    Arc::new(Publisher::new("ns".parse().unwrap()))
}

fn start(id: &str) -> TaskStart {
    TaskStart {
        container_id: id.to_owned(),
        ..TaskStart::default()
    }
}

#[test]
fn events_wait_for_the_daemon_and_arrive_in_order() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let publisher = publisher();
        tokio::spawn(Arc::clone(&publisher).run(format!("unix://{}", path.display())));
        publisher.publish("/tasks/start", &start("a"));
        publisher.publish("/tasks/start", &start("b"));
        tokio::task::yield_now().await;
        let (mut first, mut events) = daemon(&path, Refuse::nothing()).await;
        assert_eq!(events.recv().await.unwrap(), "ns /tasks/start a");
        assert_eq!(events.recv().await.unwrap(), "ns /tasks/start b");
        publisher.drain(Duration::from_secs(20)).await;
        first.shutdown().await.unwrap();
        publisher.publish("/tasks/start", &start("c"));
        let (_second, mut events) = daemon(&path, Refuse::nothing()).await;
        assert_eq!(events.recv().await.unwrap(), "ns /tasks/start c");
    });
}

/// What a daemon that refuses so gets of one event and the one behind it, as long as that is not
/// longer than it takes.
async fn offered(topic: &'static str, refuse: Refuse, times: u32) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (_server, mut events) = daemon(&path, refuse).await;
    let publisher = publisher();
    tokio::spawn(Arc::clone(&publisher).run(path.display().to_string()));
    publisher.publish(topic, &TaskOOM::default());
    publisher.publish("/tasks/start", &start("a"));
    let mut got = Vec::new();
    for _ in 0..times {
        got.push(events.recv().await.unwrap());
    }
    got
}

#[test]
fn a_refused_event_does_not_stop_the_ones_behind_it() {
    block_on(async {
        tokio::time::pause();
        let refuse = Refuse::times("/tasks/paused", Code::Internal, u32::MAX);
        let got = offered("/tasks/paused", refuse, REFUSALS + 1).await;
        let (last, refused) = got.split_last().unwrap();
        assert!(refused.iter().all(|topic| topic == "/tasks/paused"));
        assert_eq!(last, "ns /tasks/start a");
    });
}

#[test]
fn a_daemon_that_is_not_ready_gets_everything_later() {
    for code in NOT_NOW {
        block_on(async {
            tokio::time::pause();
            let refuse = Refuse::times("/tasks/paused", code, 20);
            let got = offered("/tasks/paused", refuse, 22).await;
            assert!(got[..21].iter().all(|topic| topic == "/tasks/paused"));
            assert_eq!(got[21], "ns /tasks/start a", "{code:?}");
        });
    }
}

#[test]
fn an_end_is_offered_until_it_is_taken_or_makes_no_sense() {
    block_on(async {
        tokio::time::pause();
        let begin = tokio::time::Instant::now();
        for topic in KEPT {
            let refuse = Refuse::times(topic, Code::Internal, 20);
            let got = offered(topic, refuse, 22).await;
            assert!(got[..21].iter().all(|got| got == topic));
            assert_eq!(got[21], "ns /tasks/start a");
        }
        // With growing pauses: a daemon in trouble is not pressed.
        assert!(begin.elapsed() > LONGEST_PAUSE * 10);
        let refuse = Refuse::times(KEPT[0], Code::InvalidArgument, u32::MAX);
        let got = offered(KEPT[0], refuse, 2).await;
        assert_eq!(got, [KEPT[0], "ns /tasks/start a"]);
    });
}

#[test]
fn an_end_that_is_always_refused_does_not_stay_for_ever() {
    block_on(async {
        tokio::time::pause();
        let refuse = Refuse::times(KEPT[0], Code::Internal, u32::MAX);
        let got = offered(KEPT[0], refuse, REFUSALS_OF_KEPT + 1).await;
        assert_eq!(got.last().unwrap(), "ns /tasks/start a");
    });
}

#[test]
fn what_is_too_long_to_be_sent_is_dropped() {
    block_on(async {
        tokio::time::pause();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_server, mut events) = daemon(&path, Refuse::nothing()).await;
        let publisher = publisher();
        tokio::spawn(Arc::clone(&publisher).run(path.display().to_string()));
        publisher.publish("/tasks/exit", &start(&"a".repeat(5 << 20)));
        publisher.publish("/tasks/start", &start("b"));
        assert_eq!(events.recv().await.unwrap(), "ns /tasks/start b");
    });
}

#[test]
fn refusals_are_counted_for_each_event() {
    block_on(async {
        tokio::time::pause();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let refuse = Refuse::times("/tasks/paused", Code::Internal, u32::MAX);
        let (_server, mut events) = daemon(&path, refuse).await;
        let publisher = publisher();
        tokio::spawn(Arc::clone(&publisher).run(path.display().to_string()));
        publisher.publish("/tasks/paused", &TaskOOM::default());
        for _ in 1..REFUSALS {
            events.recv().await.unwrap();
        }
        // As the bound takes it.
        publisher.done(publisher.first().unwrap().serial);
        publisher.publish("/tasks/paused", &TaskOOM::default());
        publisher.publish("/tasks/start", &start("a"));
        for _ in 0..REFUSALS {
            assert_eq!(events.recv().await.unwrap(), "/tasks/paused");
        }
        assert_eq!(events.recv().await.unwrap(), "ns /tasks/start a");
    });
}

#[test]
fn a_daemon_that_is_back_ends_the_pause() {
    block_on(async {
        let publisher = publisher();
        let rest = publisher.rest(Duration::from_secs(3600));
        let ((), next) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                publisher.hurry();
            },
            rest
        );
        assert_eq!(next, FIRST_PAUSE);
        // Back while an attempt was under way.
        publisher.hurry();
        assert_eq!(publisher.rest(Duration::from_secs(3600)).await, FIRST_PAUSE);
        // The last moments of a shim are none to pause in.
        publisher.publish("/tasks/start", &start("a"));
        publisher.drain(Duration::ZERO).await;
        assert_eq!(publisher.rest(Duration::from_secs(3600)).await, FIRST_PAUSE);
        assert_eq!(publisher.rest(FIRST_PAUSE).await, FIRST_PAUSE * 2);
    });
}

#[test]
fn the_queue_is_bounded_and_drops_the_oldest() {
    let publisher = publisher();
    for n in 0..=CAPACITY {
        publisher.publish("/tasks/start", &start(&n.to_string()));
    }
    assert_eq!(publisher.with(|queue| queue.events.len()), CAPACITY);
    assert_eq!(publisher.first().unwrap().serial, 2);
    publisher.done(1);
    assert_eq!(publisher.first().unwrap().serial, 2);
    publisher.done(2);
    assert_eq!(publisher.first().unwrap().serial, 3);
}

#[test]
fn an_end_is_the_last_thing_to_be_dropped() {
    let publisher = publisher();
    let topics = ["/tasks/exit", "/tasks/oom", "/tasks/start"];
    for n in 0..CAPACITY {
        publisher.publish(topics[n % 3], &start("a"));
    }
    let kept = |publisher: &Publisher| {
        publisher.with(|queue| {
            let all = queue.events.iter();
            all.filter(|e| e.topic != "/tasks/start").count()
        })
    };
    let before = kept(&publisher);
    let others = CAPACITY - before;
    for _ in 0..others {
        publisher.publish("/tasks/exit", &start("b"));
    }
    assert_eq!(kept(&publisher), CAPACITY);
    let first = publisher.first().unwrap().serial;
    // Nothing else is left: now the oldest goes.
    publisher.publish("/tasks/exit", &start("c"));
    assert_eq!(publisher.with(|queue| queue.events.len()), CAPACITY);
    assert!(publisher.first().unwrap().serial > first);
    let all = u64::try_from(others + 1).unwrap();
    assert_eq!(publisher.with(|q| q.dropped), Dropped { all, kept: 1 });
    publisher.done(publisher.first().unwrap().serial);
    assert_eq!(publisher.with(|q| q.dropped), Dropped::default());
}
