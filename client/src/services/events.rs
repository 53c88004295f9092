//! Events as they happen.

use std::time::SystemTime;

use grpc::events::EventsClient;
use protos::services::events as wire;
use protos::wire::{Wire as _, time};
use serde_json::Value;
use tonic::Streaming;
use tonic::transport::Channel;
use types::{Any, Filter, Result, Topic};

use crate::call::done;
use crate::json;

super::service! {
    /// The events of a daemon.
    Events, EventsClient<Channel>
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
pub struct Subscription(Streaming<protos::types::Envelope>);

impl Subscription {
    /// The next event; `None` when the daemon ended the stream.
    ///
    /// # Errors
    /// Of the stream; `ResourceExhausted` when this subscriber was too slow.
    pub async fn next(&mut self) -> Result<Option<Envelope>> {
        let next = self
            .0
            .message()
            .await
            .map_err(|s| grpc::status::to_error(&s))?;
        let Some(envelope) = next else {
            return Ok(None);
        };
        Ok(Some(Envelope {
            timestamp: time(envelope.timestamp)?,
            namespace: envelope.namespace,
            topic: envelope.topic,
            event: Option::from_wire(envelope.event)?,
        }))
    }
}

impl Events {
    /// Subscribes to the events that pass the filter, from all namespaces. There is no replay.
    ///
    /// Parity: a Go daemon sends nothing before the first event, so this waits for that.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad filter.
    pub async fn subscribe(&self, filter: &Filter) -> Result<Subscription> {
        let message = wire::SubscribeRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let stream = done(self.stub().subscribe(self.caller.endless(message)?).await)?;
        Ok(Subscription(stream))
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
