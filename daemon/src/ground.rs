//! First floor: backends that know no namespaces. Content, snapshotters, the event exchange.
//!
//! A new snapshotter is one candidate here and one section in `config/plugins.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{ContentStore, Local};
use events::{Codec, Exchange};
use snapshotters::{Native, Overlay, OverlayConfig, Snapshotter};
use types::{Any, Error, Event, Result};

use crate::config::{self, Config};
use crate::point::{Candidate, Facts, Point, Row};

/// Kind of content stores.
const CONTENT: &str = "io.containerd.content.v1";
/// Kind of snapshotters.
pub(crate) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

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

    /// The backends under the root to be looked at: their indexes are copied into `scratch`, an empty
    /// directory, and nothing is changed.
    ///
    /// # Errors
    /// As [`Ground::open`].
    pub(crate) fn examine(config: &Config, scratch: &Path) -> Result<Self> {
        Self::assemble(config, Some(scratch))
    }

    fn assemble(config: &Config, scratch: Option<&Path>) -> Result<Self> {
        let directory = config.root.join(format!("{CONTENT}.content"));
        let content = match scratch {
            None => Local::open(&directory).map_err(|e| e.ctx("open content store"))?,
            Some(_) => Local::examine(&directory),
        };
        let snapshotters = snapshotters(config, scratch)?;

        let mut rows = vec![
            Row::ready(CONTENT, "content", &[]),
            Row::ready("io.containerd.event.v1", "exchange", &[]),
        ];
        rows.extend_from_slice(snapshotters.rows());
        let events = Arc::new(Exchange::new(Codec {
            encode,
            field: protos::event::field,
        }));
        Ok(Self {
            content: Arc::new(content),
            snapshotters,
            events,
            rows,
        })
    }
}

fn snapshotters(config: &Config, scratch: Option<&Path>) -> Result<Point<dyn Snapshotter>> {
    let facts = |root: &Path| Facts::of_host().export("root", root.display());
    let overlay = || {
        let (root, section) = overlay_of(config)?;
        let settings = OverlayConfig {
            upperdir_label: section.upperdir_label,
            sync_remove: section.sync_remove,
            mount_options: section.mount_options,
        };
        let made: Arc<dyn Snapshotter> = Arc::new(match scratch {
            None => Overlay::open(&root, settings)?,
            Some(scratch) => Overlay::examine(&root, &scratch.join("overlayfs"))?,
        });
        // Parity: core/snapshots: clients unpack several layers at a time where they find this word.
        let facts = facts(&root).capability("rebase", made.rebases());
        Ok((made, facts))
    };
    let native = || {
        let root = native_of(config)?;
        let made: Arc<dyn Snapshotter> = Arc::new(match scratch {
            None => Native::open(&root)?,
            Some(scratch) => Native::examine(&root, &scratch.join("native"))?,
        });
        Ok((made, facts(&root)))
    };
    let candidates = vec![
        Candidate {
            id: "native",
            requires: &[],
            build: Box::new(native),
        },
        Candidate {
            id: "overlayfs",
            requires: &[],
            build: Box::new(overlay),
        },
    ];
    Point::build(SNAPSHOTTER, config, candidates)
}

/// The files of indexes that [`Ground::examine`] copies, as far as they are there.
///
/// # Errors
/// `InvalidArgument` for a section that does not fit.
pub(crate) fn copied(config: &Config) -> Result<impl Iterator<Item = PathBuf>> {
    let roots = [overlay_of(config)?.0, native_of(config)?];
    let files = |root: PathBuf| snapshotters::index_files(&root);
    Ok(roots.into_iter().flat_map(files))
}

fn overlay_of(config: &Config) -> Result<(PathBuf, config::Overlay)> {
    let mut section: config::Overlay = config.section(&format!("{SNAPSHOTTER}.overlayfs"))?;
    let root = root_of(config, "overlayfs", std::mem::take(&mut section.root_path));
    Ok((root, section))
}

fn native_of(config: &Config) -> Result<PathBuf> {
    let section: config::RootPath = config.section(&format!("{SNAPSHOTTER}.native"))?;
    Ok(root_of(config, "native", section.root_path))
}

/// The configured directory of a snapshotter, or its own under the root.
fn root_of(config: &Config, id: &str, configured: PathBuf) -> PathBuf {
    if configured.as_os_str().is_empty() {
        config.root.join(format!("{SNAPSHOTTER}.{id}"))
    } else {
        configured
    }
}

/// An event for the exchange. One that is too large to encode goes out with its type alone.
fn encode(event: &Event) -> Any {
    protos::event::encode(event).unwrap_or_else(|error: Error| {
        tracing::error!(%error, topic = event.topic(), "event published without its content");
        Any::default()
    })
}
