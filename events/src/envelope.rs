//! The envelope: one event with when, where and what.
//!
//! Invariant: an [`Envelope`] that exists has a valid namespace and topic. The event itself stays
//! opaque: only the [`Codec`], given by the daemon, knows wire types.

use std::cell::OnceCell;
use std::time::SystemTime;

use types::{Any, Error, Event, Filterable, Namespace, Result, Topic};

/// How events become opaque values and how a filter looks into one; given by the daemon, because
/// this crate knows no wire types.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    /// Encodes an event of ours.
    pub encode: fn(&Event) -> Any,
    /// The fields of an encoded event; `None` when nobody knows any.
    pub open: fn(&Any) -> Option<Fields>,
}

/// The text of the field at a path inside an event; `None` when there is none.
pub type Fields = Box<dyn Fn(&[&str]) -> Option<String>>;

/// What the allocator adds to an envelope's parts: five blocks, each with a header and rounded up.
const HEADERS: usize = 5 * 24;

/// An event on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// When it happened.
    pub timestamp: SystemTime,
    /// In which namespace.
    pub namespace: Namespace,
    /// What kind, as in `/tasks/exit`.
    pub topic: Topic,
    /// The encoded event.
    pub event: Any,
}

impl Envelope {
    /// An envelope from the parts of a forwarded message.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad namespace or topic and for a missing timestamp.
    pub fn parse(
        timestamp: Option<SystemTime>,
        namespace: String,
        topic: String,
        event: Any,
    ) -> Result<Self> {
        let namespace = Namespace::try_from(namespace)
            .map_err(|e| e.ctx("event envelope has invalid namespace"))?;
        let topic = Topic::try_from(topic).map_err(|e| e.ctx("event envelope"))?;
        let timestamp = timestamp.ok_or_else(Self::no_timestamp)?;
        Ok(Self {
            timestamp,
            namespace,
            topic,
            event,
        })
    }

    pub(crate) fn no_timestamp() -> Error {
        Error::invalid_argument("timestamp must be set on forwarded event")
    }

    /// What the envelope takes in memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>()
            + HEADERS
            + self.namespace.as_str().len()
            + self.topic.as_str().len()
            + self.event.type_url.len()
            + self.event.value.len()
    }
}

/// An envelope as filters see it: `namespace`, `topic`, `event.<path>`.
/// The event is opened for the first filter that looks into it, and for all of them.
pub(crate) struct Matched<'a> {
    pub(crate) envelope: &'a Envelope,
    codec: Codec,
    event: OnceCell<Option<Fields>>,
}

impl<'a> Matched<'a> {
    pub(crate) fn new(envelope: &'a Envelope, codec: Codec) -> Self {
        Self {
            envelope,
            codec,
            event: OnceCell::new(),
        }
    }
}

impl Filterable for Matched<'_> {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["namespace"] => Some(self.envelope.namespace.to_string()),
            ["topic"] => Some(self.envelope.topic.to_string()),
            ["event", inner @ ..] if !inner.is_empty() => {
                let open = || (self.codec.open)(&self.envelope.event);
                self.event.get_or_init(open).as_ref()?(inner)
            }
            _ => None,
        }
    }
}
