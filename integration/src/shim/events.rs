//! The daemon's end of the shims' events.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use protos::Message as _;
use protos::events::{TaskDelete, TaskExit, TaskOOM};
use protos::shim::events::ForwardRequest;
use protos::shim::events_ttrpc::{Events, create_events};
use protos::types::Envelope;
use protos::well_known::Empty;
use ttrpc::asynchronous::{TtrpcContext, transport::Listener};

use super::Driver;
use crate::until;

/// An event as it came.
#[derive(Clone, Debug)]
pub struct Event {
    /// The whole envelope.
    pub envelope: Envelope,
    /// Its topic.
    pub topic: String,
    /// The container that it is about.
    pub container: String,
    /// The exit, when it tells of one.
    pub exit: Option<TaskExit>,
    /// The deletion, when it tells of one.
    pub delete: Option<TaskDelete>,
}

impl From<Envelope> for Event {
    fn from(envelope: Envelope) -> Self {
        let bytes = &envelope.event.value;
        let of = |topic: &str| (envelope.topic == topic).then_some(());
        let exit = of("/tasks/exit").and_then(|()| TaskExit::parse_from_bytes(bytes).ok());
        let delete = of("/tasks/delete").and_then(|()| TaskDelete::parse_from_bytes(bytes).ok());
        // The container's id is the first field of every event about tasks.
        let container = TaskOOM::parse_from_bytes(bytes).unwrap_or_default();
        Self {
            topic: envelope.topic.clone(),
            container: container.container_id,
            exit,
            delete,
            envelope,
        }
    }
}

/// Everything that was heard, in order.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Vec<Event>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sink(Arc<Heard>);

#[async_trait]
impl Events for Sink {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        self.0.lock().push(envelope.into());
        Ok(Empty::new())
    }
}

/// A serving events' socket.
pub(super) struct Server(ttrpc::asynchronous::Server);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Driver {
    /// Serves the events' socket, as a daemon that has started.
    ///
    /// # Panics
    /// When it cannot be bound.
    pub fn listen(&self) {
        let _inside = self.runtime.enter();
        let path = self.path("c.sock.ttrpc");
        let listener = tokio::net::UnixListener::bind(path).expect("bind");
        let mut server = ttrpc::asynchronous::Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_events(Arc::new(Sink(Arc::clone(&self.heard)))));
        self.runtime.block_on(server.start()).expect("serve");
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(Server(server));
    }

    /// Stops serving events, as a daemon that is gone.
    ///
    /// # Panics
    /// When its socket cannot be removed.
    pub fn deafen(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Server(mut server)) = server.take() {
            drop(self.runtime.block_on(server.shutdown()));
            fs::remove_file(self.path("c.sock.ttrpc")).expect("remove the socket");
        }
    }

    /// Everything that was heard so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.heard.lock().clone()
    }

    /// What was heard about a container so far.
    #[must_use]
    pub fn events_of(&self, container: &str) -> Vec<Event> {
        let heard = self.heard.lock();
        let of = |event: &&Event| event.container == container;
        heard.iter().filter(of).cloned().collect()
    }

    /// What was heard about a container up to its `/tasks/delete`: topics, without their root.
    ///
    /// # Panics
    /// When that does not come.
    #[must_use]
    pub fn topics_of(&self, container: &str) -> Vec<String> {
        self.until_event(container, "/tasks/delete");
        let short = |event: &Event| event.topic.trim_start_matches("/tasks/").to_owned();
        self.events_of(container).iter().map(short).collect()
    }

    /// Waits for an event of a container.
    ///
    /// # Panics
    /// When it does not come.
    pub fn until_event(&self, container: &str, topic: &str) {
        until(&format!("{topic} of {container}"), || {
            let mut events = self.events_of(container).into_iter();
            events.any(|event| event.topic == topic)
        });
    }
}
