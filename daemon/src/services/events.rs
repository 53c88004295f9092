//! `containerd.services.events.v1.Events`, and the same service for shims over ttrpc.

use std::sync::Arc;

use async_trait::async_trait;
use events::{Envelope, Exchange, Gap, Position, Subscription};
use futures::stream::{Stream, try_unfold};
use grpc::events::Events as Service;
use grpc::{
    EVENTS_POSITION, ResponseStream, kept_filter, peer_pid, serve, serve_unscoped,
    serve_unscoped_pull,
};
use protos::MessageField;
use protos::services::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use protos::shim::events as shim;
use protos::shim::events_ttrpc;
use protos::types::Envelope as WireEnvelope;
use protos::well_known::Empty;
use protos::wire::{Wire as _, time};
use runtime_v2::Tasks;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Response, Status};
use ttrpc::r#async::TtrpcContext;
use types::{Any, Error, Result, Topic};

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

    fn open(
        &self,
        request: &SubscribeRequest,
        pid: Option<u32>,
    ) -> Result<Result<Subscription, Gap>> {
        let filter = kept_filter(&request.filters)?;
        Ok(match (request.after.as_str(), request.positions) {
            // One that asks for the state of things first must not be told what led to it as news.
            ("", false) => Ok(self
                .exchange
                .rejoin(filter, pid, !pid.is_some_and(is_younger))),
            ("", true) => Ok(self.exchange.follow(filter)),
            (after, _) => self.exchange.resume(filter, after.parse()?),
        })
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
        // Subscribed before the answer's head goes out: who sees it misses nothing after it.
        let pid = peer_pid(&request);
        let opened = match self.open(request.get_ref(), pid) {
            Ok(Err(gap)) => return Err(refusal(gap)),
            Ok(Ok(subscription)) => Ok(match pid {
                Some(pid) => subscription.of_process(pid),
                None => subscription,
            }),
            Err(error) => Err(error),
        };
        let asked = request.get_ref();
        let told = asked.positions || !asked.after.is_empty();
        let start = opened.as_ref().map(|s| ascii(&s.start())).ok();
        let mut answer = serve_unscoped_pull(request, |_| messages(opened, told))?;
        if let Some(start) = start.filter(|_| told) {
            answer.metadata_mut().insert(EVENTS_POSITION, start);
        }
        Ok(answer)
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

/// True for a process that was started after the daemon: it cannot have missed a daemon before.
fn is_younger(pid: u32) -> bool {
    let [theirs, ours] = [pid, std::process::id()].map(sys::process::start_time);
    theirs > ours
}

/// What a subscription hands out, each with its position for those who are told.
fn messages(
    opened: Result<Subscription>,
    told: bool,
) -> impl Stream<Item = Result<WireEnvelope>> + Send {
    try_unfold(opened, move |opened| async move {
        let mut subscription = opened?;
        let step = subscription.step().await?;
        // That of a mark is empty.
        let envelope = step.envelope.as_deref();
        let mut message = envelope.map_or_else(WireEnvelope::new, to_wire);
        if told {
            message.position = step.position.to_string();
        }
        Ok::<_, Error>(Some((message, Ok(subscription))))
    })
}

/// The error of a subscription that cannot go on, with where it could.
fn refusal(gap: Gap) -> Status {
    let mut status = grpc::status::from_error(&gap.into());
    let from = ascii(&gap.from);
    status.metadata_mut().insert(EVENTS_POSITION, from);
    status
}

fn ascii(position: &Position) -> AsciiMetadataValue {
    let text = position.to_string();
    AsciiMetadataValue::try_from(text).unwrap_or_else(|_| AsciiMetadataValue::from_static(""))
}

/// The message of an event.
pub(crate) fn to_wire(envelope: &Envelope) -> WireEnvelope {
    WireEnvelope {
        timestamp: Some(envelope.timestamp).to_wire(),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.to_string(),
        event: MessageField::some(envelope.event.to_wire()),
        ..Default::default()
    }
}
