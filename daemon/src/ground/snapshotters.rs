//! The snapshotters: ours, each in a directory of its own, and those of other programs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::remote::RemoteSnapshotter;
use snapshotters::{
    Blockfile, BlockfileConfig, Btrfs, Erofs, ErofsConfig, Local, Native, Overlay, OverlayConfig,
    SETTLES, Snapshotter,
};
use types::{Error, Result};

use super::{SNAPSHOTTER, proxies};
use crate::config::{self, Config, ProxyKind};
use crate::point::{Candidate, Facts, Point};

/// What makes one of ours, or looks at it by a copy of its index in that directory.
type Open = fn(&Config, &Path, Option<&Path>) -> Result<(Local, Facts)>;

/// Ours, in the order of their names.
const OURS: [(&str, Open); 5] = [
    ("blockfile", blockfile),
    ("btrfs", btrfs),
    ("erofs", erofs),
    ("native", native),
    ("overlayfs", overlay),
];

/// Opens the snapshotters under the root; those that cannot work are rows with the reason.
///
/// # Errors
/// That of a required snapshotter.
pub(super) fn open(config: &Config, scratch: Option<&Path>) -> Result<Point<dyn Snapshotter>> {
    let ours = OURS.iter().map(|(id, open)| {
        let build = move || -> Result<(Arc<dyn Snapshotter>, Facts)> {
            let root = root_of(config, id)?;
            let copy = scratch.map(|scratch| scratch.join(id));
            let (made, mut facts) = open(config, &root, copy.as_deref())?;
            let words = made.capabilities().into_iter().map(str::to_owned);
            facts.capabilities.extend(words);
            Ok((Arc::new(made), facts.export("root", root.display())))
        };
        Candidate {
            id,
            requires: &[],
            build: Box::new(build),
        }
    });
    let mut candidates: Vec<_> = ours.collect();
    candidates.extend(proxies::candidates(
        config,
        ProxyKind::Snapshot,
        |caller, name, plugin| -> Arc<dyn Snapshotter> {
            let has = |wanted: &str| plugin.capabilities.iter().any(|word| word == wanted);
            let made = RemoteSnapshotter::new(caller, name);
            // One of ours under another name than overlayfs says the one word alone.
            let made = made.with_rebase(has("rebase") || has(SETTLES));
            Arc::new(made.with_settling(has(SETTLES)).as_backend())
        },
    ));
    Point::build(SNAPSHOTTER, config, candidates)
}

fn overlay(config: &Config, root: &Path, scratch: Option<&Path>) -> Result<(Local, Facts)> {
    let section: config::Overlay = config.section(&uri("overlayfs"))?;
    // Parity: overlay plugin: clients do not try by themselves where they find this word.
    let facts = Facts::of_host().capability("only-remap-ids", !section.slow_chown);
    let made = match scratch {
        Some(scratch) => Overlay::examine(root, scratch)?,
        None => {
            let settings = OverlayConfig {
                upperdir_label: section.upperdir_label,
                sync_remove: section.sync_remove,
                slow_chown: section.slow_chown,
                mount_options: section.mount_options,
            };
            Overlay::open(root, settings)?
        }
    };
    Ok((made, facts))
}

fn native(_: &Config, root: &Path, scratch: Option<&Path>) -> Result<(Local, Facts)> {
    let made = match scratch {
        Some(scratch) => Native::examine(root, scratch)?,
        None => Native::open(root)?,
    };
    Ok((made, Facts::of_host()))
}

fn btrfs(_: &Config, root: &Path, scratch: Option<&Path>) -> Result<(Local, Facts)> {
    let made = match scratch {
        Some(scratch) => Btrfs::examine(root, scratch)?,
        None => Btrfs::open(root)?,
    };
    Ok((made, Facts::of_host()))
}

fn erofs(config: &Config, root: &Path, scratch: Option<&Path>) -> Result<(Local, Facts)> {
    let section: config::Erofs = config.section(&uri("erofs"))?;
    section.check_supported()?;
    let made = match scratch {
        Some(scratch) => Erofs::examine(root, scratch)?,
        None => {
            let settings = ErofsConfig {
                ovl_mount_options: section.ovl_mount_options,
                set_immutable: section.set_immutable,
            };
            Erofs::open(root, settings)?
        }
    };
    Ok((made, Facts::of_host()))
}

fn blockfile(config: &Config, root: &Path, scratch: Option<&Path>) -> Result<(Local, Facts)> {
    let section: config::Blockfile = config.section(&uri("blockfile"))?;
    let made = match scratch {
        Some(scratch) => Blockfile::examine(root, scratch)?,
        None => {
            let given = Some(section.scratch_file);
            let settings = BlockfileConfig {
                scratch_file: given.filter(|path| !path.as_os_str().is_empty()),
                fs_type: section.fs_type,
                mount_options: section.mount_options,
                recreate_scratch: section.recreate_scratch,
            };
            Blockfile::open(root, settings)?
        }
    };
    Ok((made, Facts::of_host()))
}

/// The files of indexes that [`super::Ground::examine`] copies, as far as they are there.
///
/// # Errors
/// `InvalidArgument` for a section that does not fit.
pub(crate) fn copied(config: &Config) -> Result<impl Iterator<Item = PathBuf>> {
    let roots: Result<Vec<_>> = OURS.iter().map(|(id, _)| root_of(config, id)).collect();
    let files = |root: PathBuf| snapshotters::index_files(&root);
    Ok(roots?.into_iter().flat_map(files))
}

fn uri(id: &str) -> String {
    format!("{SNAPSHOTTER}.{id}")
}

/// The configured directory of a snapshotter, or its own under the root.
fn root_of(config: &Config, id: &str) -> Result<PathBuf> {
    let section: config::RootPath = config.section(&uri(id))?;
    let root = section.root_path;
    if root.as_os_str().is_empty() {
        return Ok(config.root.join(uri(id)));
    }
    std::path::absolute(&root).map_err(|e| Error::os(format_args!("resolve {}", root.display()), e))
}
