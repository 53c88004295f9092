//! Events: what is published, forwarded, and told to whom.

use std::time::SystemTime;

use grpc::events::EventsClient;
use protos::MessageField;
use protos::any::{Named, pack, unpack};
use protos::events::TaskExit;
use protos::services::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use protos::services::images::ImageCreate;
use protos::types::Envelope;
use protos::well_known::{Any, Timestamp};
use protos::wire::Wire as _;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::heard::Heard;
use crate::images::{create_image, image};
use crate::peer::{NAMESPACE, Peer, refused, scoped, within};

rules! {
    both {
        an_event_is_told_with_namespace_topic_and_time
        a_topic_is_made_of_identifiers
        a_namespace_is_required
        a_forwarded_event_keeps_namespace_topic_and_time
        what_cannot_be_forwarded_is_refused
        nothing_is_replayed
        without_a_filter_all_namespaces_are_heard
        filters_look_at_namespace_and_topic
        filters_look_into_events
        a_filter_must_parse
        subscribers_hear_all_in_one_order
        a_subscriber_that_does_not_read_misses_nothing
        events_of_images_are_of_their_own_package
    }
    ours {
        a_subscriber_that_reads_nothing_at_all_is_cut_off
        a_filter_that_does_not_parse_has_its_class
        a_subscription_is_answered_before_the_first_event
        an_event_that_nobody_can_read_passes
        a_subscription_has_sixteen_patterns_at_most
        a_subscription_has_64_conditions_at_most
    }
}

/// The event in an envelope.
#[track_caller]
pub(crate) fn event<M: Named>(envelope: &Envelope) -> M {
    let any = envelope.event.clone().unwrap_or_default();
    let any = types::Any::from_wire(any).expect("an event");
    assert!(!any.type_url.contains('/'), "{}", any.type_url);
    unpack(&any).expect("an event of that type")
}

/// An event for an envelope.
fn packed<M: Named>(message: &M) -> MessageField<Any> {
    MessageField::some(pack(message).expect("an event").to_wire())
}

fn publish(topic: &str, event: MessageField<Any>) -> PublishRequest {
    PublishRequest {
        topic: topic.into(),
        event,
        ..PublishRequest::default()
    }
}

fn subscribe(filters: &[&str]) -> SubscribeRequest {
    SubscribeRequest {
        filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        ..SubscribeRequest::default()
    }
}

/// An event of containerd's own, which filters can look into.
fn exit(id: &str) -> TaskExit {
    TaskExit {
        container_id: id.into(),
        id: "init".into(),
        exit_status: 137,
        ..TaskExit::default()
    }
}

struct Events(EventsClient<Channel>);

impl Events {
    fn of(peer: &Peer) -> Self {
        Self(EventsClient::new(peer.channel()))
    }

    async fn publish(&mut self, namespace: &str, topic: &str, id: &str) -> Result<(), Status> {
        let request = within(namespace, publish(topic, packed(&exit(id))));
        self.0.publish(request).await.map(drop)
    }

    async fn forward(&mut self, envelope: Envelope) -> Result<(), Status> {
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        self.0.forward(scoped(request)).await.map(drop)
    }
}

fn topics(told: &[Envelope]) -> Vec<&str> {
    told.iter()
        .map(|envelope| envelope.topic.as_str())
        .collect()
}

async fn an_event_is_told_with_namespace_topic_and_time(peer: &Peer) {
    let mut watch = Heard::matching(peer, &[]).await;
    let mut events = Events::of(peer);
    let before = SystemTime::now().to_wire().seconds;
    events
        .publish("a.b-c", "/tasks/exit", "c")
        .await
        .expect("publish");
    let told = watch.told(peer).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].namespace, "a.b-c");
    assert_eq!(told[0].topic, "/tasks/exit");
    assert!((before..before + 60).contains(&told[0].timestamp.seconds));
    assert_eq!(event::<TaskExit>(&told[0]), exit("c"));
}

async fn a_topic_is_made_of_identifiers(peer: &Peer) {
    let mut watch = Heard::matching(peer, &[]).await;
    let mut events = Events::of(peer);
    let long = format!("/{}", "x".repeat(77));
    for topic in [
        "",
        "/",
        "tasks",
        "tasks/exit",
        "//",
        "/tasks/",
        "/tasks//exit",
        "/a b",
        "/a/../b",
        "/-a",
        &long,
    ] {
        refused(Code::InvalidArgument, events.publish("n", topic, "c").await);
    }
    let fits = &long[..77];
    for topic in ["/a", "/a/b/c/d", "/a.b/c-d_e", "/0", fits] {
        events.publish("n", topic, "c").await.expect("publish");
    }
    let told = watch.told(peer).await;
    assert_eq!(topics(&told), ["/a", "/a/b/c/d", "/a.b/c-d_e", "/0", fits]);
}

async fn a_namespace_is_required(peer: &Peer) {
    let mut events = Events::of(peer);
    let message = publish("/a", packed(&exit("c")));
    let answer = events.0.publish(Request::new(message.clone())).await;
    refused(Code::FailedPrecondition, answer);
    let mut request = Request::new(message);
    let bad = "a/b".parse().expect("a value");
    request.metadata_mut().insert("containerd-namespace", bad);
    refused(Code::InvalidArgument, events.0.publish(request).await);
}

/// An envelope with all that it needs.
fn envelope(namespace: &str, topic: &str) -> Envelope {
    Envelope {
        timestamp: MessageField::some(Timestamp {
            seconds: 1_000_000_000,
            nanos: 7,
            ..Timestamp::default()
        }),
        namespace: namespace.into(),
        topic: topic.into(),
        event: packed(&exit("c")),
        ..Envelope::default()
    }
}

async fn a_forwarded_event_keeps_namespace_topic_and_time(peer: &Peer) {
    let mut watch = Heard::matching(peer, &[]).await;
    let mut events = Events::of(peer);
    let sent = envelope("elsewhere", "/tasks/exit");
    events.forward(sent.clone()).await.expect("forward");
    assert_eq!(watch.told(peer).await, [sent]);
}

async fn what_cannot_be_forwarded_is_refused(peer: &Peer) {
    let mut watch = Heard::matching(peer, &[]).await;
    let mut events = Events::of(peer);
    let untimed = Envelope {
        timestamp: MessageField::none(),
        ..envelope("n", "/a")
    };
    for sent in [
        envelope("", "/a"),
        envelope("a/b", "/a"),
        envelope("n", ""),
        envelope("n", "a"),
        envelope("n", "/"),
        envelope("n", "/a//b"),
        untimed,
    ] {
        refused(Code::InvalidArgument, events.forward(sent).await);
    }
    assert_eq!(watch.told(peer).await, []);
}

async fn nothing_is_replayed(peer: &Peer) {
    let mut events = Events::of(peer);
    events.publish("n", "/early", "c").await.expect("publish");
    let mut watch = Heard::matching(peer, &[]).await;
    events.publish("n", "/late", "c").await.expect("publish");
    assert_eq!(topics(&watch.told(peer).await), ["/late"]);
}

async fn without_a_filter_all_namespaces_are_heard(peer: &Peer) {
    let mut watch = Heard::matching(peer, &[]).await;
    let mut events = Events::of(peer);
    for namespace in ["a", "b", "c"] {
        events.publish(namespace, "/x", "c").await.expect("publish");
    }
    let told = watch.told(peer).await;
    let heard: Vec<_> = told.iter().map(|one| one.namespace.as_str()).collect();
    assert_eq!(heard, ["a", "b", "c"]);
}

/// What a subscriber with these filters hears of some events, as `namespace` and `topic`.
async fn heard(peer: &Peer, filters: &[&str]) -> Vec<String> {
    let mut watch = Heard::matching(peer, filters).await;
    let mut events = Events::of(peer);
    for (namespace, topic, id) in [
        ("moby", "/tasks/exit", "a"),
        ("moby", "/other/exit", "b"),
        ("moby", "/tasks/oom", "a"),
        ("other", "/tasks/exit", "b"),
    ] {
        events.publish(namespace, topic, id).await.expect("publish");
    }
    let told = watch.told(peer).await;
    told.iter()
        .map(|one| format!("{}{}", one.namespace, one.topic))
        .collect()
}

async fn filters_look_at_namespace_and_topic(peer: &Peer) {
    for (filters, want) in [
        // The Docker daemon's.
        (
            &["namespace==moby,topic~=|^/tasks/|"][..],
            &["moby/tasks/exit", "moby/tasks/oom"][..],
        ),
        (&["namespace!=moby"], &["other/tasks/exit"]),
        (&["namespace==nobody"], &[]),
        (&["topic==\"/tasks/oom\""], &["moby/tasks/oom"]),
        (
            &["topic==\"/tasks/oom\"", "namespace==other"],
            &["moby/tasks/oom", "other/tasks/exit"],
        ),
        (&["nothing==x"], &[]),
    ] {
        assert_eq!(heard(peer, filters).await, want, "{filters:?}");
    }
}

async fn filters_look_into_events(peer: &Peer) {
    for (filters, want) in [
        (
            &["event.container_id==a"][..],
            &["moby/tasks/exit", "moby/tasks/oom"][..],
        ),
        (
            &["event.container_id==b,namespace==other"],
            &["other/tasks/exit"],
        ),
        (&["event.id==exec"], &[]),
        (&["event.nothing"], &[]),
    ] {
        assert_eq!(heard(peer, filters).await, want, "{filters:?}");
    }
}

/// How subscriptions with filters that do not parse are refused.
async fn refusals(peer: &Peer) -> Vec<Status> {
    let mut events = Events::of(peer);
    let mut refusals = Vec::new();
    for filter in ["topic==", "(((", "topic=x"] {
        let request = Request::new(subscribe(&["topic==x", filter]));
        let answer = crate::peer::all(events.0.subscribe(request).await).await;
        refusals.push(answer.expect_err("a refusal"));
    }
    refusals
}

async fn a_filter_must_parse(peer: &Peer) {
    for status in refusals(peer).await {
        assert!(status.message().ends_with(": invalid argument"), "{status}");
    }
}

/// Go 1.6 has but the text.
async fn a_filter_that_does_not_parse_has_its_class(peer: &Peer) {
    for status in refusals(peer).await {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

/// They are kept, and asked for every event.
async fn a_subscription_has_sixteen_patterns_at_most(peer: &Peer) {
    let mut client = Events::of(peer).0;
    let pattern = "topic~=^/tasks/";
    let answer = client.subscribe(Request::new(subscribe(&[pattern; 16])));
    drop(answer.await.expect("subscribe"));
    let answer = client.subscribe(Request::new(subscribe(&[pattern; 17])));
    let refused = crate::peer::all(answer.await).await.expect_err("a refusal");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("the limit is 16"), "{refused}");
}

/// As many are asked for every event as well.
async fn a_subscription_has_64_conditions_at_most(peer: &Peer) {
    let mut client = Events::of(peer).0;
    let answer = client.subscribe(Request::new(subscribe(&["topic"; 64])));
    drop(answer.await.expect("subscribe"));
    let answer = client.subscribe(Request::new(subscribe(&["topic"; 65])));
    let refused = crate::peer::all(answer.await).await.expect_err("a refusal");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("the limit is 64"), "{refused}");
}

async fn subscribers_hear_all_in_one_order(peer: &Peer) {
    let mut one = Heard::matching(peer, &["namespace==n"]).await;
    let mut other = Heard::matching(peer, &["namespace==n"]).await;
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..8 {
        let mut events = Events::of(peer);
        publishers.spawn(async move {
            for number in 0..25 {
                let topic = format!("/p{publisher}/n{number}");
                events.publish("n", &topic, "c").await.expect("publish");
            }
        });
    }
    while let Some(done) = publishers.join_next().await {
        done.expect("a publisher");
    }
    let (one, other) = (one.told(peer).await, other.told(peer).await);
    assert_eq!(one.len(), 200);
    assert_eq!(topics(&one), topics(&other));
    for publisher in 0..8 {
        let from = format!("/p{publisher}/");
        let heard = topics(&one);
        let heard: Vec<_> = heard.iter().filter(|t| t.starts_with(&from)).collect();
        let sent: Vec<_> = (0..25).map(|number| format!("{from}n{number}")).collect();
        assert_eq!(heard, sent.iter().collect::<Vec<_>>());
    }
}

async fn a_subscriber_that_does_not_read_misses_nothing(peer: &Peer) {
    let mut watch = Heard::matching(peer, &["namespace==n"]).await;
    let mut events = Events::of(peer);
    // More than flow control lets on its way.
    let id = "x".repeat(2000);
    for number in 0..2000 {
        let topic = format!("/n{number}");
        events.publish("n", &topic, &id).await.expect("publish");
    }
    let told = watch.told(peer).await;
    let sent: Vec<_> = (0..2000).map(|number| format!("/n{number}")).collect();
    assert_eq!(topics(&told), sent);
}

/// Go gives it all of the daemon's memory.
async fn a_subscriber_that_reads_nothing_at_all_is_cut_off(peer: &Peer) {
    let watch = Heard::matching(peer, &["namespace==n"]).await;
    // What is not read blocks its connection.
    let channel = peer.connect().await;
    let mut events = Events(EventsClient::new(channel));
    // Far more than what the limit and all buffers on the way hold.
    let id = "x".repeat(1 << 20);
    for _ in 0..40 {
        events.publish("n", "/big", &id).await.expect("publish");
    }
    let (heard, status) = watch.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!((1..40).contains(&heard), "{heard}");
}

async fn events_of_images_are_of_their_own_package(peer: &Peer) {
    let mut watch = Heard::matching(peer, &["event.name==i"]).await;
    let mut images = grpc::images::ImagesClient::new(peer.channel());
    let request = scoped(create_image(image("i", '1')));
    images.create(request).await.expect("create");
    let told = watch.told(peer).await;
    assert_eq!(topics(&told), ["/images/create"]);
    assert_eq!(told[0].namespace, NAMESPACE);
    let url = &told[0].event.type_url;
    assert_eq!(url, "containerd.services.images.v1.ImageCreate");
    assert_eq!(event::<ImageCreate>(&told[0]).name, "i");
}

/// Go is silent until there is one, so that nobody knows when it hears.
async fn a_subscription_is_answered_before_the_first_event(peer: &Peer) {
    let mut events = Events::of(peer);
    let answer = events.0.subscribe(Request::new(subscribe(&[]))).await;
    let mut stream = answer.expect("subscribe").into_inner();
    events.publish("n", "/first", "c").await.expect("publish");
    let heard = stream.message().await.expect("no error").expect("an event");
    assert_eq!(heard.topic, "/first");
}

async fn an_event_that_nobody_can_read_passes(peer: &Peer) {
    let mut watch = Heard::matching(peer, &["namespace==n"]).await;
    let mut picky = Heard::matching(peer, &["event.container_id==c"]).await;
    let mut events = Events::of(peer);
    let foreign = Any {
        type_url: "example.test/nothing".into(),
        value: vec![0xff, 0xff],
        ..Any::default()
    };
    for event in [MessageField::none(), MessageField::some(foreign.clone())] {
        let request = within("n", publish("/x", event));
        events.0.publish(request).await.expect("publish");
    }
    let told = watch.told(peer).await;
    assert_eq!(topics(&told), ["/x", "/x"]);
    assert_eq!(told[1].event.as_ref(), Some(&foreign));
    assert_eq!(picky.told(peer).await, []);
}
