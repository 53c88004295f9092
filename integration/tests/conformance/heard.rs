//! What a daemon publishes, as a rule hears it.

use std::sync::atomic::{AtomicUsize, Ordering};

use grpc::events::EventsClient;
use protos::MessageField;
use protos::any::{Named, pack};
use protos::events::ContainerDelete;
use protos::services::events::{PublishRequest, SubscribeRequest};
use protos::types::Envelope;
use protos::well_known::Any;
use protos::wire::Wire as _;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::peer::{NAMESPACE, Peer, SOON, scoped, texts};

/// Topic, or its beginning, of the events that only tell a subscription where it is.
const PROBE: &str = "/probe";

/// A subscription from before what a rule does.
pub(crate) struct Heard(Streaming<Envelope>);

impl Heard {
    /// Hears everything from now on.
    pub(crate) async fn all(peer: &Peer) -> Self {
        Self::matching(peer, &[]).await
    }

    /// Hears what passes one of the filters from now on.
    ///
    /// Go's answer does not begin before the first event, so some are made until it does.
    pub(crate) async fn matching(peer: &Peer, filters: &[&str]) -> Self {
        let mut filters = texts(filters);
        if !filters.is_empty() {
            filters.push(format!("topic~=|^{PROBE}|"));
        }
        let request = SubscribeRequest {
            filters,
            ..SubscribeRequest::default()
        };
        let mut client = EventsClient::new(peer.channel());
        let opening = tokio::spawn(async move { client.subscribe(request).await });
        while !opening.is_finished() {
            publish(peer, PROBE, payload()).await;
        }
        let answer = opening.await.expect("a subscriber");
        Self(answer.expect("subscribe").into_inner())
    }

    /// The next event, one of ours among them.
    async fn any(&mut self) -> Envelope {
        let next = timeout(SOON, self.0.message()).await.expect("in time");
        next.expect("no failure").expect("no end")
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Envelope {
        loop {
            let heard = self.any().await;
            if !heard.topic.starts_with(PROBE) {
                return heard;
            }
        }
    }

    /// All that was told since the last time.
    pub(crate) async fn told(&mut self, peer: &Peer) -> Vec<Envelope> {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{PROBE}/n{}", MARKS.fetch_add(1, Ordering::Relaxed));
        publish(peer, &mark, payload()).await;
        let mut told = Vec::new();
        loop {
            let heard = self.any().await;
            if heard.topic == mark {
                return told;
            }
            if !heard.topic.starts_with(PROBE) {
                told.push(heard);
            }
        }
    }

    /// The next event, which must be under this topic and of this type.
    pub(crate) async fn event<M: Named>(&mut self, topic: &str) -> M {
        let heard = self.next().await;
        assert_eq!(heard.topic, topic);
        assert_eq!(heard.namespace, NAMESPACE);
        assert!(heard.timestamp.seconds > 0, "{heard:?}");
        assert_eq!(heard.event.type_url, M::FULL_NAME);
        M::parse_from_bytes(&heard.event.value).expect("the event")
    }

    /// How many more events there are before it is cut off, and why it is.
    pub(crate) async fn end(mut self) -> (usize, Status) {
        let mut heard = 0;
        loop {
            match timeout(SOON, self.0.message()).await.expect("in time") {
                Ok(Some(event)) => heard += usize::from(!event.topic.starts_with(PROBE)),
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return (heard, status),
            }
        }
    }

    /// Nothing more was published.
    pub(crate) async fn nothing(&mut self, peer: &Peer) {
        publish(peer, "/end", payload()).await;
        assert_eq!(self.next().await.topic, "/end");
    }
}

/// Publishes an event of somebody else's.
pub(crate) async fn publish(peer: &Peer, topic: &str, event: Any) {
    let request = PublishRequest {
        topic: topic.into(),
        event: MessageField::some(event),
        ..PublishRequest::default()
    };
    let mut client = EventsClient::new(peer.channel());
    drop(client.publish(scoped(request)).await.expect("publish"));
}

/// Any payload that all daemons know.
pub(crate) fn payload() -> Any {
    let message = ContainerDelete {
        id: "probe".into(),
        ..ContainerDelete::default()
    };
    pack(&message).expect("pack").to_wire()
}
