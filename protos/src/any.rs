//! Typed messages in and out of `Any`.

/// A message that knows its full name, the text of its type URL.
pub trait Named: protobuf::Message {
    /// Package and name, as in `containerd.events.TaskExit`.
    const FULL_NAME: &'static str;
}

include!(concat!(env!("OUT_DIR"), "/names.rs"));
