//! Tests of module `exchange`.

use std::time::{Duration, SystemTime};

use types::{Any, Code, Event, Filter, Labels, Namespace, Topic};

use super::{Exchange, Limits, Subscription};
use crate::{Codec, Envelope};

fn codec() -> Codec {
    Codec {
        encode: |event| Any {
            type_url: event.topic().to_owned(),
            value: format!("{event:?}").into_bytes(),
        },
        field: |any, path| match path {
            ["size"] => Some(any.value.len().to_string()),
            _ => None,
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
    let exchange = Exchange::with_limits(codec(), limits);
    let mut slow = subscribe(&exchange, &[]);
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
    assert!(slow.recv().await.unwrap_err().is(Code::ResourceExhausted));
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_too() {
    let limits = Limits {
        count: 1000,
        bytes: 10_000,
    };
    let exchange = Exchange::with_limits(codec(), limits);
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
async fn a_dropped_subscription_is_forgotten() {
    let exchange = Exchange::new(codec());
    drop(subscribe(&exchange, &[]));
    exchange.publish(&namespace("a"), &event("x"));
    assert!(exchange.lock().is_empty());
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
