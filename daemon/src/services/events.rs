//! `containerd.services.events.v1.Events`, and the same service for shims over ttrpc.

use std::sync::Arc;

use async_trait::async_trait;
use events::{Envelope, Exchange};
use grpc::events::Events as Service;
use grpc::{ResponseStream, serve, serve_unscoped, serve_unscoped_stream};
use protos::MessageField;
use protos::services::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use protos::shim::events as shim;
use protos::shim::events_ttrpc;
use protos::types::Envelope as WireEnvelope;
use protos::well_known::Empty;
use protos::wire::{Wire as _, time};
use runtime_v2::Tasks;
use tonic::{Request, Response, Status};
use ttrpc::r#async::TtrpcContext;
use types::{Any, Error, Result, Topic};

use super::filter;

/// Publishes, forwards and subscribes.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    /// Where events go through.
    pub(crate) exchange: Arc<Exchange>,
    /// Learns from what shims publish, before anybody else hears of it.
    pub(crate) tasks: Arc<Tasks>,
}

impl Events {
    /// Hands on what somebody else published.
    fn take(&self, envelope: Option<WireEnvelope>) -> Result<Empty> {
        let envelope =
            envelope.ok_or_else(|| Error::invalid_argument("envelope must not be empty"))?;
        let event = Option::<Any>::from_wire(envelope.event)?.unwrap_or_default();
        // A missing time becomes the epoch, which the exchange refuses.
        let timestamp = Some(time(envelope.timestamp)?);
        let made = Envelope::parse(timestamp, envelope.namespace, envelope.topic, event)?;
        self.tasks
            .observe(&made.namespace, made.topic.as_str(), &made.event);
        self.exchange.forward(made)?;
        Ok(Empty::new())
    }
}

#[async_trait]
impl Service for Events {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<Empty>, Status> {
        let events = self.clone();
        serve(request, |scope, request| async move {
            let topic: Topic = request.topic.try_into()?;
            let event = Option::<Any>::from_wire(request.event)?.unwrap_or_default();
            events
                .tasks
                .observe(&scope.namespace, topic.as_str(), &event);
            events.exchange.publish_any(&scope.namespace, topic, event);
            Ok(Empty::new())
        })
        .await
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<Empty>, Status> {
        let events = self.clone();
        serve_unscoped(request, |request| async move {
            events.take(request.envelope.into_option())
        })
        .await
    }

    type SubscribeStream = ResponseStream<WireEnvelope>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        serve_unscoped_stream(request, |request, sender| {
            // Subscribed before the answer's head goes out: who sees it misses nothing after it.
            let subscribed = filter(&request.filters).map(|f| self.exchange.subscribe(f));
            async move {
                let mut subscription = subscribed?;
                loop {
                    sender.send(to_wire(&*subscription.recv().await?)).await?;
                }
            }
        })
    }
}

#[async_trait]
impl events_ttrpc::Events for Events {
    async fn forward(
        &self,
        _context: &TtrpcContext,
        request: shim::ForwardRequest,
    ) -> ttrpc::Result<Empty> {
        self.take(request.envelope.into_option())
            .map_err(|e| protos::status::to_ttrpc(&e))
    }
}

fn to_wire(envelope: &Envelope) -> WireEnvelope {
    WireEnvelope {
        timestamp: Some(envelope.timestamp).to_wire(),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.to_string(),
        event: MessageField::some(envelope.event.to_wire()),
        ..Default::default()
    }
}
