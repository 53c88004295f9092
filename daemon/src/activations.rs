//! The mount manager in this daemon: where its files are, and what the collector does with it.

use std::sync::Arc;

use async_trait::async_trait;
use metadata::Metadata;
use metadata::gc::{HeldMount, Mounts as Collected};
use mounts::{Held, Mounts, OpenOpts};
use types::Result;

use crate::config::Config;
use crate::point::Row;

/// Kind of the manager.
const MANAGER: &str = "io.containerd.mount-manager.v1";
/// Kind of what performs mounts of its own.
const HANDLER: &str = "io.containerd.mount-handler.v1";
/// Parity: the name stands in paths that clients see.
const ID: &str = "bolt";

/// Opens the manager, and lets the collector of `metadata` take its mounts away.
///
/// # Errors
/// I/O on its directory.
pub(crate) fn open(metadata: &Metadata, config: &Config) -> Result<(Mounts, Vec<Row>)> {
    let mounts = Mounts::open(OpenOpts {
        directory: config.state.join(format!("{MANAGER}.{ID}")),
        // Snapshotters ask for directories and disks in their own.
        roots: vec![config.root.clone()],
    })?;
    metadata.collect_mounts(Arc::new(Kept(mounts.clone())));
    let requires = &["io.containerd.metadata.v1", HANDLER];
    let rows = vec![
        Row::ready(HANDLER, "erofs", &[]),
        Row::ready(HANDLER, "loop", &[]),
        Row::ready(MANAGER, ID, requires),
    ];
    Ok((mounts, rows))
}

/// The activations as the collector knows them.
#[derive(Debug)]
struct Kept(Mounts);

#[async_trait]
impl Collected for Kept {
    fn held(&self) -> Vec<HeldMount> {
        let held = |one: Held| HeldMount {
            namespace: one.namespace,
            name: one.name,
            number: one.number,
            lease: one.lease,
            labels: one.labels,
        };
        self.0.held().into_iter().map(held).collect()
    }

    async fn end(&self, mount: &HeldMount) {
        let held = Held {
            namespace: mount.namespace.clone(),
            name: mount.name.clone(),
            number: mount.number,
            lease: None,
            labels: types::Labels::new(),
        };
        if let Err(error) = self.0.collect(&held).await {
            tracing::warn!(name = held.name, %error, "mount that nobody keeps stays for now");
        }
    }
}
