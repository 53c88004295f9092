//! The socket beside the main one, on which shims publish their events.

use std::sync::Arc;

use protos::shim::events_ttrpc::create_events;
use ttrpc::r#async::Server;
use ttrpc::asynchronous::transport::Listener;
use types::{Error, Result};

use crate::listen::{Socket, same_user, spoken};
use crate::services::events::Events;

/// Serves until the result is dropped. Only processes of our own user are let in.
///
/// # Errors
/// The errno of the socket.
pub(crate) async fn serve(socket: &Socket, events: Events) -> Result<Server> {
    let listener = Listener::new(spoken(socket.incoming(same_user)?));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_events(Arc::new(events)));
    server
        .start()
        .await
        .map_err(|e| Error::internal(e).ctx("serve ttrpc"))?;
    Ok(server)
}
