//! gRPC over the messages of `protos`: codec, stubs, and what every call has in common.
//!
//! One module per service (`containers`, `content`, …), each with the trait to implement, the
//! server that carries it and the client. A service method is three lines around [`serve`], which
//! reads the scope, keeps the deadline, and turns errors into statuses. Used by the daemon (server)
//! and by `client`; nothing here knows a domain.

mod call;
mod codec;
pub mod connections;
mod corked;
mod detached;
mod halves;
pub mod meter;
mod pull;
mod request;
mod routes;
mod scope;
mod serve;
pub mod status;
mod stream;
mod written;

pub use call::peer_pid;
pub use codec::{Codec, MessageDecoder, MessageEncoder, Outgoing};
pub use pull::serve_unscoped_pull;
pub use request::{filter, kept_filter, known};
pub use routes::{Asked, Routes};
pub use scope::{Anybody, LEASE, NAMESPACE, Tenant, request, scope, unscoped};
pub use serve::{
    serve, serve_cancellable, serve_duplex, serve_stream, serve_tenant, serve_unscoped,
    serve_unscoped_cancellable, serve_unscoped_stream,
};
pub use stream::{PAGE, ResponseStream, Room, Sender, items, pages};
pub use written::Written;

/// Largest message in either direction, the default of containerd's server and clients. The
/// `max_*_message_size` methods of a server or client set another.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Metadata key of a position among events: in the answer's head where the subscription begins, in a
/// refusal to go on the oldest place where it could.
pub const EVENTS_POSITION: &str = "containerd-events-position";

include!(concat!(env!("OUT_DIR"), "/services.rs"));

/// A client with containerd's limits.
fn limited<T>(client: tonic::client::Grpc<T>) -> tonic::client::Grpc<T> {
    client
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

#[cfg(test)]
mod tests;
