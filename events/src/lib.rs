//! Events: the exchange that hands every published envelope to every subscriber.
//!
//! Invariant: a publisher never waits and memory is bounded. A subscriber that does not read is cut
//! off with an error that says so; subscribers see events in one common order. Called by `metadata`
//! (after its commits), the runtime's event forwarder and the events service; nothing is replayed.
//!
//! ```text
//! publish(Event) --encode--> Envelope --filter--> queue of subscriber 1 --> recv()
//! forward(Envelope) ------------^          \----> queue of subscriber 2 --> recv()
//! ```

mod envelope;
mod exchange;

pub use envelope::{Codec, Envelope};
pub use exchange::{Exchange, Limits, Subscription};
