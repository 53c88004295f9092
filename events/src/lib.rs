//! Events: the exchange that hands every published envelope to every subscriber.
//!
//! Invariant: a publisher never waits and memory is bounded. A subscriber that does not read is cut
//! off with an error that says so; subscribers see events in one common order. One that comes back
//! with its position gets all that it missed, or is told that it cannot; one without gets what happened
//! before there was an exchange, and what it missed when it was cut off by a hand-over. Called by `metadata` (after its commits), the runtime's event forwarder and
//! the events service.
//!
//! ```text
//! publish(Event) --encode--> Envelope --number--> ring: the newest, for replay
//! forward(Envelope) ------------^           `--filter--> queue of a subscriber --> step()
//!                                    ring --filter--> replay of one that resumes -----^
//! ```

mod cut;
mod envelope;
mod exchange;
mod late;
mod position;
mod ring;
mod subscription;

pub use cut::Cut;
pub use envelope::{Codec, Envelope, Fields};
pub use exchange::{Counts, Exchange, History, Limits};
pub use position::{Gap, Position};
pub use subscription::{Step, Subscription};
