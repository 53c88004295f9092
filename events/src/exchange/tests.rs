//! Tests of module `exchange`.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use types::{Any, Code, Event, Filter, Labels, Namespace, Topic};

use super::named;
use super::{Exchange, Limits, Position, Subscription};
use crate::late::Late;
use crate::{Codec, Envelope};

mod cut;
mod model;

thread_local! {
    /// Events that were opened on this thread: those of one test.
    static OPENED: Cell<usize> = const { Cell::new(0) };
}

fn codec() -> Codec {
    Codec {
        encode: |event| Any {
            type_url: event.topic().to_owned(),
            value: format!("{event:?}").into_bytes(),
        },
        open: |any| {
            OPENED.with(|opened| opened.set(opened.get() + 1));
            let size = any.value.len().to_string();
            Some(Box::new(move |path| {
                matches!(path, ["size"]).then(|| size.clone())
            }))
        },
    }
}

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn event(name: &str) -> Event {
    Event::ImageCreate {
        name: name.to_owned(),
        labels: Labels::new(),
    }
}

fn subscribe(exchange: &Exchange, filters: &[&str]) -> Subscription {
    exchange.subscribe(Filter::parse(filters).unwrap())
}

async fn topic(subscription: &mut Subscription) -> String {
    subscription.recv().await.unwrap().topic.to_string()
}

#[tokio::test]
async fn an_event_is_opened_once_for_all_that_look_into_it() {
    let exchange = Exchange::new(codec());
    let opened = || OPENED.with(Cell::take);
    let mut others = subscribe(&exchange, &["topic==\"/images/create\""]);
    exchange.publish(&namespace("a"), &event("x"));
    assert_eq!(opened(), 0);
    let mut all = [["event.none", "event.size", "topic~=x"]; 5].map(|f| subscribe(&exchange, &f));
    exchange.publish(&namespace("a"), &event("x"));
    assert_eq!(opened(), 1);
    for subscription in &mut all {
        assert_eq!(topic(subscription).await, "/images/create");
    }
    assert_eq!(topic(&mut others).await, "/images/create");
}

#[tokio::test]
async fn subscribers_see_all_events_in_order_and_nothing_from_before() {
    let exchange = Exchange::new(codec());
    exchange.publish(&namespace("a"), &event("before"));
    let mut one = subscribe(&exchange, &[]);
    let mut two = subscribe(&exchange, &[]);
    for n in 0..100 {
        exchange.publish(&namespace("a"), &event(&n.to_string()));
    }
    for n in 0..100 {
        let want = Any {
            type_url: "/images/create".into(),
            value: format!("{:?}", event(&n.to_string())).into_bytes(),
        };
        assert_eq!(one.recv().await.unwrap().event, want);
        assert_eq!(two.recv().await.unwrap().event, want);
    }
}

#[tokio::test]
async fn filters_see_namespace_topic_and_the_event_itself() {
    let exchange = Exchange::new(codec());
    let mut by_namespace = subscribe(&exchange, &["namespace==moby,topic~=|^/tasks/|"]);
    let mut by_field = subscribe(&exchange, &["event.size==3"]);
    let mut by_nothing = subscribe(&exchange, &["event", "event.nope", "timestamp"]);
    let any = |len| Any {
        type_url: "t".into(),
        value: vec![0; len],
    };
    let topic_of = |t: &str| Topic::try_from(t.to_owned()).unwrap();
    exchange.publish_any(&namespace("moby"), topic_of("/images/create"), any(1));
    exchange.publish_any(&namespace("other"), topic_of("/tasks/exit"), any(3));
    exchange.publish_any(&namespace("moby"), topic_of("/tasks/start"), any(2));
    assert_eq!(topic(&mut by_namespace).await, "/tasks/start");
    assert_eq!(topic(&mut by_field).await, "/tasks/exit");
    drop(exchange);
    for subscription in [&mut by_namespace, &mut by_field, &mut by_nothing] {
        assert!(subscription.recv().await.unwrap_err().is(Code::Unavailable));
    }
}

#[tokio::test]
async fn a_slow_subscriber_is_cut_off_and_others_go_on() {
    let limits = Limits {
        count: 4,
        bytes: 1 << 20,
    };
    let exchange = Exchange::with_limits(codec(), limits, Limits::REPLAY);
    let slow = subscribe(&exchange, &["topic~=|^/images/|", "namespace==a"]);
    let mut slow = slow.of_process(4711);
    let mut quick = subscribe(&exchange, &[]);
    for n in 0..10 {
        exchange.publish(&namespace("a"), &event(&n.to_string()));
        topic(&mut quick).await;
    }
    for _ in 0..4 {
        topic(&mut slow).await;
    }
    let error = slow.recv().await.unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let name = "event subscriber 0 (process 4711) of topic~=|^/images/| or namespace==a";
    let text = format!("{name} read too slowly and was cut off");
    assert!(error.to_string().starts_with(&text), "{error}");
    assert!(slow.recv().await.unwrap_err().is(Code::ResourceExhausted));
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_too() {
    let limits = Limits {
        count: 1000,
        bytes: 10_000,
    };
    let exchange = Exchange::with_limits(codec(), limits, Limits::REPLAY);
    let mut slow = subscribe(&exchange, &[]);
    let big = Any {
        type_url: "t".into(),
        value: vec![0; 4000],
    };
    for _ in 0..3 {
        let topic = Topic::try_from("/a".to_owned()).unwrap();
        exchange.publish_any(&namespace("a"), topic, big.clone());
    }
    let mut read = 0;
    let error = loop {
        match slow.recv().await {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(read, 2);
    assert!(error.is(Code::ResourceExhausted));
}

#[tokio::test]
async fn a_dropped_subscription_is_forgotten_though_nothing_is_published() {
    let exchange = Exchange::new(codec());
    let mut kept = subscribe(&exchange, &[]);
    let replayed = exchange.resume(Filter::default(), kept.start());
    for gone in [subscribe(&exchange, &[]), replayed.unwrap()] {
        drop(gone);
    }
    assert_eq!(exchange.lock().subscribers.len(), 1);
    exchange.publish(&namespace("a"), &event("x"));
    kept.recv().await.unwrap();
    drop(exchange);
    assert_eq!(kept.recv().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn forwarded_envelopes_keep_their_time_and_need_one() {
    let exchange = Exchange::new(codec());
    let mut subscription = subscribe(&exchange, &[]);
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let parse = |at, namespace: &str, topic: &str| {
        Envelope::parse(at, namespace.into(), topic.into(), Any::default())
    };
    let envelope = parse(Some(at), "a", "/tasks/exit").unwrap();
    exchange.forward(envelope.clone()).unwrap();
    assert_eq!(*subscription.recv().await.unwrap(), envelope);
    let zero = Envelope {
        timestamp: SystemTime::UNIX_EPOCH,
        ..envelope
    };
    assert!(
        exchange
            .forward(zero)
            .unwrap_err()
            .is(Code::InvalidArgument)
    );
    for (at, namespace, topic) in [
        (None, "a", "/x"),
        (Some(at), "", "/x"),
        (Some(at), "a/b", "/x"),
        (Some(at), "a", "x"),
        (Some(at), "a", ""),
    ] {
        let error = parse(at, namespace, topic).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
}

fn small(count: usize) -> Limits {
    Limits {
        count,
        bytes: 1 << 20,
    }
}

#[tokio::test]
async fn who_comes_back_gets_what_was_missed_and_nothing_twice() {
    let exchange = Exchange::new(codec());
    let filter = || Filter::parse(&["namespace==a"]).unwrap();
    let mut first = exchange.follow(filter());
    exchange.publish(&namespace("a"), &event("seen"));
    let mut position = first.step().await.unwrap().position;
    exchange.publish(&namespace("a"), &event("unread"));
    drop(first);
    exchange.publish(&namespace("b"), &event("of others"));
    exchange.publish(&namespace("a"), &event("missed"));
    let mut second = exchange.resume(filter(), position).unwrap();
    assert_eq!(second.start(), position);
    exchange.publish(&namespace("a"), &event("live"));
    for name in ["unread", "missed", "live"] {
        let step = second.step().await.unwrap();
        let want = format!("{:?}", event(name)).into_bytes();
        assert_eq!(step.envelope.unwrap().event.value, want);
        position = step.position;
    }
    let mut third = exchange.resume(filter(), position).unwrap();
    exchange.publish(&namespace("a"), &event("next"));
    let want = format!("{:?}", event("next")).into_bytes();
    assert_eq!(third.recv().await.unwrap().event.value, want);
}

#[tokio::test]
async fn what_is_not_held_any_more_is_counted() {
    let exchange = Exchange::with_limits(codec(), Limits::QUEUE, small(3));
    let start = exchange.follow(Filter::default()).start();
    for n in 0..5 {
        exchange.publish(&namespace("a"), &event(&n.to_string()));
    }
    let gap = exchange.resume(Filter::default(), start).unwrap_err();
    assert_eq!((gap.after, gap.missed), (start, Some(2)));
    let error = types::Error::from(gap);
    assert!(error.is(Code::OutOfRange), "{error}");
    let mut rest = exchange.resume(Filter::default(), gap.from).unwrap();
    let want = format!("{:?}", event("2")).into_bytes();
    assert_eq!(rest.recv().await.unwrap().event.value, want);
}

#[tokio::test]
async fn a_position_of_another_run_is_not_taken_for_one_of_ours() {
    let before = Exchange::new(codec());
    before.publish(&namespace("a"), &event("x"));
    let theirs = before.follow(Filter::default()).start();
    let exchange = Exchange::new(codec());
    exchange.publish(&namespace("a"), &event("first of this run"));
    let beyond = Position {
        sequence: 9,
        ..exchange.follow(Filter::default()).start()
    };
    let last = |position| Position {
        sequence: u64::MAX,
        ..position
    };
    for foreign in [theirs, beyond, last(theirs), last(beyond)] {
        let gap = exchange.resume(Filter::default(), foreign).unwrap_err();
        assert_eq!((gap.after, gap.missed), (foreign, None));
        let mut all = exchange.resume(Filter::default(), gap.from).unwrap();
        assert_eq!(topic(&mut all).await, "/images/create");
    }
}

#[tokio::test]
async fn who_waits_for_what_does_not_come_keeps_a_fresh_position() {
    let exchange = Exchange::with_limits(codec(), Limits::QUEUE, small(8));
    let filter = || Filter::parse(&["namespace==b"]).unwrap();
    let mut follower = exchange.follow(filter());
    let mut plain = exchange.subscribe(filter());
    for n in 0..100 {
        exchange.publish(&namespace("a"), &event(&n.to_string()));
    }
    exchange.publish(&namespace("b"), &event("at last"));
    let mut position = follower.start();
    let mut marks = 0;
    loop {
        let step = follower.step().await.unwrap();
        if step.envelope.is_some() {
            break;
        }
        position = step.position;
        marks += 1;
    }
    assert!((10..=30).contains(&marks), "{marks} marks of 100 events");
    // The last mark before the event still holds.
    exchange.resume(filter(), position).unwrap();
    let step = plain.step().await.unwrap();
    assert!(step.envelope.is_some(), "marks are for those who follow");
}

#[tokio::test]
async fn who_comes_and_goes_while_others_publish_misses_nothing() {
    const EVENTS: usize = 5000;
    let everything = Limits {
        count: EVENTS,
        bytes: usize::MAX,
    };
    let exchange = Arc::new(Exchange::with_limits(codec(), everything, everything));
    let mut position = exchange.follow(Filter::default()).start();
    let publisher = Arc::clone(&exchange);
    let published = tokio::task::spawn_blocking(move || {
        for n in 0..EVENTS {
            publisher.publish(&namespace("a"), &event(&n.to_string()));
        }
    });
    let mut n = 0;
    while n < EVENTS {
        let mut visit = exchange.resume(Filter::default(), position).unwrap();
        for _ in 0..7.min(EVENTS - n) {
            let step = visit.step().await.unwrap();
            let want = format!("{:?}", event(&n.to_string())).into_bytes();
            assert_eq!(step.envelope.unwrap().event.value, want);
            position = step.position;
            n += 1;
        }
    }
    published.await.unwrap();
}

#[test]
fn the_name_of_a_subscriber_is_as_long_as_a_line_can_be() {
    let many = vec!["namespace==a"; 1000];
    let name = named(7, None, &Filter::parse(&many).unwrap());
    assert!(name.starts_with("event subscriber 7 of namespace==a or namespace==a or "));
    assert!(name.ends_with('…') && name.len() < 300, "{name}");
    let all = named(8, Some(42), &Filter::default());
    assert_eq!(all, "event subscriber 8 (process 42) of everything");
}

#[tokio::test]
async fn an_exchange_that_goes_on_with_another_ones_history_leaves_nothing_out() {
    let old = Exchange::new(codec());
    let mut early = old.follow(Filter::parse::<&str>(&[]).unwrap());
    let start = early.start();
    for n in 0..5 {
        old.publish(&namespace("a"), &event(&n.to_string()));
    }
    let mut seen = start;
    for _ in 0..3 {
        seen = early.step().await.unwrap().position;
    }
    let new = Exchange::after(codec(), old.history());
    new.publish(&namespace("a"), &event("5"));
    for (after, want) in [(start, 0..6), (seen, 3..6)] {
        let all = Filter::parse::<&str>(&[]).unwrap();
        let mut again = new.resume(all, after).unwrap();
        for n in want {
            let told = again.recv().await.unwrap();
            let value = format!("{:?}", event(&n.to_string())).into_bytes();
            assert_eq!(told.event.value, value, "{n}");
        }
    }
    // What was never published here is no position.
    let beyond = Position {
        sequence: 7,
        ..seen
    };
    let all = Filter::parse::<&str>(&[]).unwrap();
    new.resume(all, beyond).unwrap_err();
}

#[test]
fn a_history_that_was_cut_short_has_the_gap_that_it_had() {
    let limits = Limits {
        count: 2,
        bytes: 1 << 20,
    };
    let old = Exchange::with_limits(codec(), Limits::QUEUE, limits);
    let start = old.subscribe(Filter::parse::<&str>(&[]).unwrap()).start();
    for n in 0..5 {
        old.publish(&namespace("a"), &event(&n.to_string()));
    }
    let new = Exchange::after(codec(), old.history());
    let gap = new
        .resume(Filter::parse::<&str>(&[]).unwrap(), start)
        .unwrap_err();
    assert_eq!((gap.missed, gap.from.sequence), (Some(3), 3));
}

#[tokio::test]
async fn what_was_published_and_who_was_cut_off_is_counted() {
    let few = Limits {
        count: 2,
        ..Limits::QUEUE
    };
    let exchange = Exchange::with_limits(codec(), few, Limits::REPLAY);
    let slow = exchange.subscribe(Filter::default());
    for n in 0..4 {
        exchange.publish(&namespace("a"), &event(&n.to_string()));
    }
    let counts = exchange.counts();
    assert_eq!(
        (counts.published, counts.subscribers, counts.cut_off),
        (4, 0, 1)
    );
    drop(slow);
}

fn ended(exchange: &Exchange, name: &str, when: SystemTime) {
    let envelope = Envelope {
        timestamp: when,
        namespace: namespace("a"),
        topic: Topic::from(&event(name)),
        event: (codec().encode)(&event(name)),
    };
    exchange.forward(envelope).unwrap();
}

#[tokio::test]
async fn who_comes_back_is_told_what_happened_while_nobody_could_be() {
    let before = SystemTime::now() - Duration::from_secs(1);
    let exchange = Exchange::new(codec());
    let mut early = subscribe(&exchange, &[]);
    ended(&exchange, "while nobody was there", before);
    exchange.publish(&namespace("a"), &event("since"));
    let rejoin = |filter| exchange.rejoin(Filter::parse(&[filter]).unwrap(), None, true);
    let (mut back, mut other) = (rejoin("namespace==a"), rejoin("namespace==b"));
    let mut new = subscribe(&exchange, &["namespace==a"]);
    exchange.publish(&namespace("a"), &event("now"));
    exchange.publish(&namespace("b"), &event("now"));
    for (subscription, want) in [
        (&mut back, vec!["while nobody was there", "now"]),
        (&mut early, vec!["while nobody was there", "since", "now"]),
        (&mut other, vec!["now"]),
        (&mut new, vec!["now"]),
    ] {
        for name in want {
            let seen = subscription.recv().await.unwrap();
            assert_eq!(seen.event, (codec().encode)(&event(name)));
        }
    }
}

#[tokio::test]
async fn who_comes_later_is_told_what_happens_from_then_on() {
    let before = SystemTime::now() - Duration::from_secs(1);
    let exchange = Exchange::new(codec());
    exchange.lock().late = Late::lasting(Duration::ZERO, 8);
    ended(&exchange, "while nobody was there", before);
    let mut late = exchange.rejoin(Filter::parse(&["namespace==a"]).unwrap(), None, true);
    exchange.publish(&namespace("a"), &event("now"));
    let seen = late.recv().await.unwrap();
    assert_eq!(seen.event, (codec().encode)(&event("now")));
}
