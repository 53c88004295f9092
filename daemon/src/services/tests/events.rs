//! Events: what is published is heard, by whom it concerns.

use std::time::{Duration, SystemTime};

use grpc::containers::ContainersClient;
use grpc::events::EventsClient;
use protos::any::pack;
use protos::events::{ContainerCreate, TaskExit};
use protos::services::containers::{Container, CreateContainerRequest, container::Runtime};
use protos::services::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use protos::shim::events_ttrpc::EventsClient as EventsShimClient;
use protos::types::Envelope;
use protos::well_known::Any;
use protos::wire::Wire as _;
use protos::{Message as _, MessageField};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use super::{Daemon, NAMESPACE, SOON, refused, scoped};
use crate::publish::publish;

async fn subscribe(daemon: &Daemon, filters: &[&str]) -> Streaming<Envelope> {
    let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
    let request = SubscribeRequest {
        filters,
        ..Default::default()
    };
    EventsClient::new(daemon.channel())
        .subscribe(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<Envelope>) -> Envelope {
    timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

fn exit() -> Any {
    let message = TaskExit {
        container_id: "c".into(),
        exit_status: 7,
        ..Default::default()
    };
    pack(&message).unwrap().to_wire()
}

#[tokio::test]
async fn a_change_is_heard_by_who_subscribed_before_it() {
    let daemon = Daemon::start().await;
    let mut all = subscribe(&daemon, &[]).await;
    let mut tasks = subscribe(&daemon, &["topic~=|^/tasks/|"]).await;
    let container = Container {
        id: "c".into(),
        image: "i".into(),
        runtime: MessageField::some(Runtime {
            name: "r".into(),
            options: MessageField::some(exit()),
            ..Default::default()
        }),
        spec: MessageField::some(Any {
            type_url: "spec".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        container: MessageField::some(container),
        ..Default::default()
    };
    ContainersClient::new(daemon.channel())
        .create(scoped(request))
        .await
        .unwrap();
    let publish = PublishRequest {
        topic: "/tasks/exit".into(),
        event: MessageField::some(exit()),
        ..Default::default()
    };
    EventsClient::new(daemon.channel())
        .publish(scoped(publish))
        .await
        .unwrap();

    let mut heard = next(&mut all).await;
    if heard.topic == "/namespaces/create" {
        heard = next(&mut all).await;
    }
    assert_eq!(
        (heard.topic.as_str(), heard.namespace.as_str()),
        ("/containers/create", NAMESPACE)
    );
    assert_eq!(heard.event.type_url, "containerd.events.ContainerCreate");
    let message = ContainerCreate::parse_from_bytes(&heard.event.value).unwrap();
    assert_eq!((message.id.as_str(), message.image.as_str()), ("c", "i"));
    let runtime = message.runtime.unwrap_or_default();
    assert_eq!(
        (runtime.name.as_str(), runtime.options.unwrap_or_default()),
        ("r", exit())
    );
    assert_eq!(next(&mut all).await.topic, "/tasks/exit");
    let heard = next(&mut tasks).await;
    assert_eq!(
        (heard.topic.as_str(), heard.event.unwrap()),
        ("/tasks/exit", exit())
    );
}

#[tokio::test]
async fn filters_look_into_events_and_cross_namespaces() {
    let daemon = Daemon::start().await;
    let mut wanted = subscribe(&daemon, &["event.container_id==c,namespace==elsewhere"]).await;
    let mut client = EventsClient::new(daemon.channel());
    let at = SystemTime::now() - Duration::from_secs(60);
    for namespace in ["test", "elsewhere"] {
        let envelope = Envelope {
            timestamp: MessageField::some(at.to_wire()),
            namespace: namespace.into(),
            topic: "/tasks/exit".into(),
            event: MessageField::some(exit()),
            ..Default::default()
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..Default::default()
        };
        client.forward(request).await.unwrap();
    }
    let heard = next(&mut wanted).await;
    assert_eq!(heard.namespace, "elsewhere");
    assert_eq!(heard.timestamp.unwrap(), at.to_wire());
}

#[tokio::test]
async fn bad_events_are_refused() {
    let daemon = Daemon::start().await;
    let mut client = EventsClient::new(daemon.channel());
    for topic in ["", "tasks/exit", "/", "/a b"] {
        let request = PublishRequest {
            topic: topic.into(),
            ..Default::default()
        };
        assert_eq!(
            refused(client.publish(scoped(request)).await).0,
            Code::InvalidArgument
        );
    }
    let envelope = |namespace: &str, timed: bool| Envelope {
        timestamp: timed.then(SystemTime::now).to_wire(),
        namespace: namespace.into(),
        topic: "/t".into(),
        ..Default::default()
    };
    for (envelope, part) in [
        (None, "envelope must not be empty"),
        (Some(envelope("n", false)), "timestamp must be set"),
        (Some(envelope("", true)), "namespace"),
    ] {
        let request = ForwardRequest {
            envelope: envelope.into(),
            ..Default::default()
        };
        let (code, text) = refused(client.forward(request).await);
        assert_eq!(code, Code::InvalidArgument, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let bad = SubscribeRequest {
        filters: vec!["==".into()],
        ..Default::default()
    };
    let mut stream = client.subscribe(bad).await.unwrap().into_inner();
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_subscriber_that_hangs_up_is_forgotten() {
    let daemon = Daemon::start().await;
    let stream = subscribe(&daemon, &[]).await;
    assert!(format!("{:?}", daemon.exchange).contains("subscribers: 1"));
    drop(stream);
    let topic = types::Topic::try_from("/t".to_owned()).unwrap();
    let gone = async {
        while format!("{:?}", daemon.exchange).contains("subscribers: 1") {
            // Who is gone is noticed with the next event.
            let namespace = NAMESPACE.parse().unwrap();
            daemon
                .exchange
                .publish_any(&namespace, topic.clone(), types::Any::default());
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_shim_publishes_over_ttrpc() {
    let daemon = Daemon::start().await;
    let mut heard = subscribe(&daemon, &["topic==\"/tasks/exit\""]).await;
    let address = format!("unix://{}", daemon.ttrpc);
    let connection = ttrpc::r#async::Client::connect(&address);
    let client = EventsShimClient::new(connection.await.unwrap());
    let envelope = |namespace: &str| Envelope {
        timestamp: Some(SystemTime::now()).to_wire(),
        namespace: namespace.into(),
        topic: "/tasks/exit".into(),
        event: MessageField::some(exit()),
        ..Default::default()
    };
    let forward = |namespace: &str| protos::shim::events::ForwardRequest {
        envelope: MessageField::some(envelope(namespace)),
        ..Default::default()
    };
    let context = || ttrpc::context::with_duration(SOON);
    client.forward(context(), &forward("n")).await.unwrap();
    assert_eq!(next(&mut heard).await.namespace, "n");
    let refused = client
        .forward(context(), &forward("../n"))
        .await
        .unwrap_err();
    let refused = protos::status::from_ttrpc(&refused);
    assert_eq!(refused.code(), types::Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn one_connection_holds_as_many_streams_as_there_are_containers() {
    let daemon = Daemon::start().await;
    let mut streams = Vec::new();
    for _ in 0..400 {
        streams.push(timeout(SOON, subscribe(&daemon, &[])).await.unwrap());
    }
    let publish = PublishRequest {
        topic: "/t".into(),
        ..Default::default()
    };
    let mut client = EventsClient::new(daemon.channel());
    client.publish(scoped(publish.clone())).await.unwrap();
    for stream in &mut streams {
        assert_eq!(next(stream).await.topic, "/t");
    }
    drop(streams);
    timeout(SOON, client.publish(scoped(publish)))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn an_older_shim_publishes_through_the_binary() {
    let daemon = Daemon::start().await;
    let mut heard = subscribe(&daemon, &[]).await;
    let event = exit().write_to_bytes().unwrap();
    let topic = || "/tasks/exit".to_owned();
    publish(&daemon.address, "n", topic(), event.as_slice())
        .await
        .unwrap();
    let got = next(&mut heard).await;
    assert_eq!((got.namespace.as_str(), got.event.unwrap()), ("n", exit()));

    for (namespace, topic, input, part) in [
        ("../n", topic(), &event[..], "must match"),
        ("n", "tasks".to_owned(), &event[..], "must start with '/'"),
        ("n", topic(), &[0xff][..], "standard input holds no event"),
    ] {
        let refused = publish(&daemon.address, namespace, topic, input)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), types::Code::InvalidArgument, "{refused}");
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

/// Subscribes with positions, from one on or from now on.
async fn follow(
    daemon: &Daemon,
    after: &str,
) -> Result<tonic::Response<Streaming<Envelope>>, tonic::Status> {
    let request = SubscribeRequest {
        filters: vec!["topic==\"/t\"".to_owned()],
        positions: after.is_empty(),
        after: after.to_owned(),
        ..Default::default()
    };
    EventsClient::new(daemon.channel()).subscribe(request).await
}

fn position(metadata: &tonic::metadata::MetadataMap) -> String {
    let value = metadata.get(grpc::EVENTS_POSITION).unwrap();
    value.to_str().unwrap().to_owned()
}

fn shout(daemon: &Daemon, size: usize) {
    let event = types::Any {
        type_url: "t".into(),
        value: vec![0; size],
    };
    let topic = types::Topic::try_from("/t".to_owned()).unwrap();
    daemon
        .exchange
        .publish_any(&NAMESPACE.parse().unwrap(), topic, event);
}

#[tokio::test]
async fn a_subscriber_goes_on_where_its_last_connection_broke() {
    let daemon = Daemon::start().await;
    let answer = follow(&daemon, "").await.unwrap();
    let start = position(answer.metadata());
    let mut stream = answer.into_inner();
    for size in [1, 2] {
        shout(&daemon, size);
    }
    let first = next(&mut stream).await;
    drop(stream);
    shout(&daemon, 3);
    for (after, want) in [(&first.position, 2), (&start, 1)] {
        let answer = follow(&daemon, after).await.unwrap();
        assert_eq!(&position(answer.metadata()), after);
        let mut stream = answer.into_inner();
        for size in want..=3 {
            assert_eq!(next(&mut stream).await.event.value.len(), size);
        }
    }
}

#[tokio::test]
async fn who_cannot_go_on_is_refused_and_told_where_it_could() {
    let daemon = Daemon::start().await;
    let start = position(follow(&daemon, "").await.unwrap().metadata());
    shout(&daemon, 1);
    // More than is held.
    shout(&daemon, 3 << 20);
    shout(&daemon, 2);
    let (run, _) = start.split_once(':').unwrap();
    let foreign = format!("{:016x}:0", !u64::from_str_radix(run, 16).unwrap());
    for after in [start, foreign] {
        let refused = follow(&daemon, &after).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert!(refused.message().contains(&after), "{refused}");
        let from = position(refused.metadata());
        let mut stream = follow(&daemon, &from).await.unwrap().into_inner();
        assert_eq!(next(&mut stream).await.event.value.len(), 2);
    }
    let mut bad = follow(&daemon, "nonsense").await.unwrap().into_inner();
    let refused = bad.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn who_does_not_ask_for_positions_gets_none() {
    let daemon = Daemon::start().await;
    let request = SubscribeRequest::default();
    let mut client = EventsClient::new(daemon.channel());
    let answer = client.subscribe(request).await.unwrap();
    assert!(!answer.metadata().contains_key(grpc::EVENTS_POSITION));
    shout(&daemon, 1);
    assert_eq!(next(&mut answer.into_inner()).await.position, "");
}
