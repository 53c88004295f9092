//! Events as they happen.

use std::time::SystemTime;

use grpc::events::EventsClient;
use protos::services::events as wire;
use protos::wire::{Wire as _, time};
use serde_json::Value;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};
use types::{Any, Filter, Result, Topic};

use crate::again::Again;
use crate::call::done;
use crate::json;

super::service! {
    /// The events of a daemon.
    Events, EventsClient<Again>
}

/// An event and its circumstances.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// When it happened.
    pub timestamp: SystemTime,
    /// Namespace, empty for those outside of all.
    pub namespace: String,
    /// Topic.
    pub topic: String,
    /// What happened.
    pub event: Option<Any>,
}

impl Envelope {
    /// The event as JSON; `None` for one of an unknown type.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        let message = protos::event::decode(self.event.as_ref()?)?;
        Some(json::message(&*message))
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Subscription {
    stream: Streaming<protos::types::Envelope>,
    position: Option<String>,
}

impl Subscription {
    /// The next event; `None` when the daemon ended the stream. Cancel safe.
    ///
    /// # Errors
    /// Of the stream; `ResourceExhausted` when this subscriber was too slow.
    pub async fn next(&mut self) -> Result<Option<Envelope>> {
        loop {
            let next = self.stream.message().await;
            let Some(mut envelope) = next.map_err(|s| grpc::status::to_error(&s))? else {
                return Ok(None);
            };
            let position = std::mem::take(&mut envelope.position);
            if !position.is_empty() {
                self.position = Some(position);
            }
            // A mark tells the position and nothing else.
            if envelope.topic.is_empty() {
                continue;
            }
            return Ok(Some(Envelope {
                timestamp: time(envelope.timestamp)?,
                namespace: envelope.namespace,
                topic: envelope.topic,
                event: Option::from_wire(envelope.event)?,
            }));
        }
    }

    /// From where to go on after what was handed out so far, with [`Events::resume`]; `None` when
    /// the daemon does not replay.
    #[must_use]
    pub fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }
}

impl Events {
    /// Subscribes to the events that pass the filter, from all namespaces, from now on.
    ///
    /// Parity: a Go daemon sends nothing before the first event, so this waits for that.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad filter.
    pub async fn subscribe(&self, filter: &Filter) -> Result<Subscription> {
        self.open(filter, "")
            .await
            .map_err(|s| grpc::status::to_error(&s))
    }

    /// Subscribes to the events that came after a position, and to those to come. The position of
    /// the subscription is `None` when the daemon does not replay and began with now instead.
    ///
    /// # Errors
    /// `OutOfRange` when the daemon does not hold all of them any more, or never did because it is
    /// another than before; `InvalidArgument` for a bad filter or position.
    pub async fn resume(&self, filter: &Filter, after: &str) -> Result<Subscription> {
        self.open(filter, after)
            .await
            .map_err(|s| grpc::status::to_error(&s))
    }

    pub(super) async fn open(
        &self,
        filter: &Filter,
        after: &str,
    ) -> std::result::Result<Subscription, Status> {
        let message = wire::SubscribeRequest {
            filters: filter.texts().to_vec(),
            positions: true,
            after: after.to_owned(),
            ..Default::default()
        };
        let request = self.caller.endless(message);
        let request = request.map_err(|e| grpc::status::from_error(&e))?;
        let answer = self.stub().subscribe(request).await?;
        let position = position(answer.metadata());
        Ok(Subscription {
            stream: answer.into_inner(),
            position,
        })
    }

    /// Publishes an event in this client's namespace.
    ///
    /// # Errors
    /// Of the call.
    pub async fn publish(&self, topic: &Topic, event: Any) -> Result<()> {
        let message = wire::PublishRequest {
            topic: topic.to_string(),
            event: Some(event).to_wire(),
            ..Default::default()
        };
        done(self.stub().publish(self.caller.request(message)?).await)?;
        Ok(())
    }
}

/// The position in the head of an answer or in a refusal.
pub(super) fn position(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get(grpc::EVENTS_POSITION)?;
    value.to_str().ok().map(str::to_owned)
}
