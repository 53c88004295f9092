//! What a daemon publishes, as a rule hears it.

use grpc::events::EventsClient;
use protos::MessageField;
use protos::any::{Named, pack};
use protos::events::ContainerDelete;
use protos::services::events::{PublishRequest, SubscribeRequest};
use protos::types::Envelope;
use protos::well_known::Any;
use protos::wire::Wire as _;
use tokio::time::timeout;
use tonic::Streaming;

use crate::peer::{NAMESPACE, Peer, SOON, scoped, texts};

/// Topic of the events that are made to find out whether a subscription is there.
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
            filters.push(format!("topic=={PROBE:?}"));
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

    /// The next event.
    pub(crate) async fn next(&mut self) -> Envelope {
        loop {
            let next = timeout(SOON, self.0.message()).await.expect("in time");
            let heard = next.expect("no failure").expect("no end");
            if heard.topic != PROBE {
                return heard;
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
