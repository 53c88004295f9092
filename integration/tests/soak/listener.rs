//! A subscriber that hears everything, over restarts of the daemon.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Envelope, Heard};
use types::Filter;

use crate::gate::{Gate, Turn};

/// How long the daemon may be away, and an event behind what it tells of.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks whether it is over.
const BREATH: Duration = Duration::from_millis(200);

/// What was heard.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// Topics by container.
    heard: Mutex<HashMap<String, Vec<String>>>,
    /// All events.
    pub(crate) count: AtomicU64,
    /// Times that the daemon said that events may be missing.
    pub(crate) gaps: AtomicU64,
}

impl Listener {
    /// Listens until it is over.
    pub(crate) fn listen(&self, address: &str, namespace: &str, gate: &Gate) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let namespace = namespace.parse().expect("a namespace");
        runtime.expect("a runtime").block_on(async {
            let client = Client::connect(address, namespace, PATIENCE).await;
            let texts = ["topic~=^/(tasks|containers|namespaces)/"];
            let filter = Filter::parse(&texts).expect("a filter");
            let events = client.expect("connect").events();
            let mut follow = events.follow(filter, PATIENCE);
            while !gate.is_closed() {
                match tokio::time::timeout(BREATH, follow.next()).await {
                    Ok(next) => self.hear(next.expect("a stream of events")),
                    Err(_nothing) => {}
                }
            }
        });
    }

    fn hear(&self, heard: Heard) {
        let Heard::Event(event) = heard else {
            self.gaps.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let of = subject(&event);
        let mut heard = self.heard.lock().expect("no panic");
        heard.entry(of).or_default().push(event.topic);
        drop(heard);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the last of these topics was heard about a container, which must have had all of them
    /// in this order. Says nothing when the daemon was away meanwhile.
    pub(crate) fn expect(&self, id: &str, want: &[&str], turn: &Turn<'_>) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard.lock().expect("no panic");
            let topics = heard.get(id).cloned().unwrap_or_default();
            drop(heard);
            if turn.is_disturbed() || topics == want {
                return Ok(());
            }
            let is_complete = topics.last().map(String::as_str) == want.last().copied();
            if is_complete || Instant::now() > deadline {
                return Err(format!("events of {id}: {topics:?} instead of {want:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Forgets what was heard about a container.
    pub(crate) fn forget(&self, id: &str) {
        self.heard.lock().expect("no panic").remove(id);
    }
}

/// The container that an event is about; empty for one of none.
fn subject(event: &Envelope) -> String {
    let json = event.json().unwrap_or_default();
    let names = ["container_id", "id"].into_iter();
    let name = names.filter_map(|name| json[name].as_str()).next();
    name.unwrap_or_default().to_owned()
}
