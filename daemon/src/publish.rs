//! `containerd publish`: how older shims hand an event to the daemon.

use std::io::Read as _;
use std::time::Duration;

use client::connect;
use grpc::events::EventsClient;
use protos::Message as _;
use protos::services::events::PublishRequest;
use protos::well_known::Any;
use types::{Error, Namespace, Result, Scope};

/// Longest that a shim waits for it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Publishes the event on standard input to the daemon at `address`.
///
/// # Errors
/// `InvalidArgument` for a bad event, topic or namespace; `Unavailable` without a daemon.
pub(crate) async fn publish(address: &str, namespace: &str, topic: String) -> Result<()> {
    let namespace = Namespace::try_from(namespace.to_owned())?;
    let request = PublishRequest {
        topic,
        event: Some(event()?).into(),
        ..Default::default()
    };
    let mut client = EventsClient::new(connect(address, DEADLINE).await?);
    let mut request = grpc::request(&Scope::new(namespace), request)?;
    request.set_timeout(DEADLINE);
    client
        .publish(request)
        .await
        .map_err(|status| grpc::status::to_error(&status))?;
    Ok(())
}

fn event() -> Result<Any> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| Error::os("read standard input", e))?;
    Any::parse_from_bytes(&bytes)
        .map_err(|e| Error::invalid_argument("standard input holds no event").with_source(e))
}
