//! `containerd publish`: how older shims hand an event to the daemon.

use std::io::Read;
use std::time::Duration;

use client::connect;
use grpc::events::EventsClient;
use protos::Message as _;
use protos::services::events::PublishRequest;
use protos::well_known::Any;
use types::{Error, Namespace, Result, Scope};

/// Longest that a shim waits for it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Publishes the event that `input` holds to the daemon at `address`.
///
/// # Errors
/// `InvalidArgument` for a bad event, topic or namespace; `Unavailable` without a daemon.
pub(crate) async fn publish(
    address: &str,
    namespace: &str,
    topic: String,
    input: impl Read,
) -> Result<()> {
    let namespace = Namespace::try_from(namespace.to_owned())?;
    let event = Some(event(input)?).into();
    let mut client = EventsClient::new(connect(address, DEADLINE).await?);
    let request = PublishRequest {
        topic,
        event,
        ..Default::default()
    };
    let mut request = grpc::request(&Scope::new(namespace), request)?;
    request.set_timeout(DEADLINE);
    let answer = client.publish(request).await;
    answer.map_err(|status| grpc::status::to_error(&status))?;
    Ok(())
}

/// Reads an event to its end; one that is too long for a message is refused there.
fn event(input: impl Read) -> Result<Any> {
    let mut bytes = Vec::new();
    input
        .take(grpc::MAX_MESSAGE as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::os("read standard input", e))?;
    Any::parse_from_bytes(&bytes)
        .map_err(|e| Error::invalid_argument("standard input holds no event").with_source(e))
}
