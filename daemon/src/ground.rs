//! First floor: backends that know no namespaces. Content, snapshotters, the event exchange.
//!
//! A new snapshotter is one candidate in `snapshotters` and one section in `config/plugins.rs`.

pub(crate) mod proxies;
mod snapshotters;

use std::path::Path;
use std::sync::Arc;

use ::snapshotters::Snapshotter;
use content::{ContentStore, Local};
use events::{Codec, Exchange, History};
use types::{Any, Error, Event, Result};

use crate::config::{Config, ProxyKind};
use crate::point::{Candidate, Facts, Point, Row};

pub(crate) use self::snapshotters::copied;

/// Kind of content stores.
const CONTENT: &str = "io.containerd.content.v1";
/// Kind of snapshotters.
pub(crate) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// How events are written and looked into.
const CODEC: Codec = Codec {
    encode,
    open: protos::event::fields,
};

/// The backends.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Blobs of all namespaces.
    pub(crate) content: Arc<dyn ContentStore>,
    /// Snapshots of all namespaces.
    pub(crate) snapshotters: Point<dyn Snapshotter>,
    /// Who hears what.
    pub(crate) events: Arc<Exchange>,
    /// What there is, for introspection.
    pub(crate) rows: Vec<Row>,
}

impl Ground {
    /// Opens the backends under the root.
    ///
    /// # Errors
    /// That of the content store or of a required snapshotter.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        Self::assemble(config, None)
    }

    /// Goes on with the events of the daemon before.
    pub(crate) fn after(self, history: History) -> Self {
        Self {
            events: Arc::new(Exchange::after(CODEC, history)),
            ..self
        }
    }

    /// The backends under the root to be looked at: their indexes are copied into `scratch`, an empty
    /// directory, and nothing is changed.
    ///
    /// # Errors
    /// As [`Ground::open`].
    pub(crate) fn examine(config: &Config, scratch: &Path) -> Result<Self> {
        Self::assemble(config, Some(scratch))
    }

    fn assemble(config: &Config, scratch: Option<&Path>) -> Result<Self> {
        let stores = contents(config, scratch)?;
        let snapshotters = snapshotters::open(config, scratch)?;

        let mut rows = stores.rows().to_vec();
        rows.push(Row::ready("io.containerd.event.v1", "exchange", &[]));
        rows.extend_from_slice(snapshotters.rows());
        rows.extend(proxies::skipped(config)?);
        let content = only(&stores)?;
        let events = Arc::new(Exchange::new(CODEC));
        Ok(Self {
            content,
            snapshotters,
            events,
            rows,
        })
    }
}

/// Our content store, and those that others keep for us.
fn contents(config: &Config, scratch: Option<&Path>) -> Result<Point<dyn ContentStore>> {
    let ours = || -> Result<(Arc<dyn ContentStore>, Facts)> {
        let directory = config.root.join(format!("{CONTENT}.content"));
        let made = match scratch {
            None => Local::open(&directory).map_err(|e| e.ctx("open content store"))?,
            Some(_) => Local::examine(&directory),
        };
        Ok((Arc::new(made), Facts::default()))
    };
    let mut candidates = vec![Candidate {
        id: "content",
        requires: &[],
        build: Box::new(ours),
    }];
    candidates.extend(proxies::candidates(
        config,
        ProxyKind::Content,
        |caller, _, _| -> Arc<dyn ContentStore> {
            Arc::new(client::remote::RemoteContent::new(caller))
        },
    ));
    Point::build(CONTENT, config, candidates)
}

/// The one content store: which of several has a blob, nobody could say.
fn only(stores: &Point<dyn ContentStore>) -> Result<Arc<dyn ContentStore>> {
    let mut ready = stores.ready().values();
    match (ready.next(), ready.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        (None, _) => {
            let failed = stores.rows().iter().find_map(|row| row.failure.clone());
            let (code, why) = failed.unwrap_or_else(|| {
                let none = "every one is disabled".to_owned();
                (types::Code::FailedPrecondition, none)
            });
            Err(Error::new(code, format_args!("no content store: {why}")))
        }
        (Some(_), Some(_)) => {
            let ids: Vec<_> = stores.ready().keys().map(String::as_str).collect();
            Err(Error::failed_precondition(format_args!(
                "{} content stores, {}: disable all but one of them",
                ids.len(),
                ids.join(" and ")
            )))
        }
    }
}

/// An event for the exchange. One that is too large to encode goes out with its type alone.
fn encode(event: &Event) -> Any {
    protos::event::encode(event).unwrap_or_else(|error: Error| {
        tracing::error!(%error, topic = event.topic(), "event published without its content");
        Any::default()
    })
}

#[cfg(test)]
mod tests;
