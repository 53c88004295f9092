//! The plugins of transfers: what may be unpacked, who verifies, and the limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use images::{BinDir, BinDirOpts, Verifier};
use types::{Error, Platform, Result};

use super::{Live, Parts, Transfers, Unpacking};
use crate::config::{self, Config};
use crate::engine::{Differ, Differs, EROFS};
use crate::point::{Candidate, Facts, Point, Row};
use crate::store::Store;
use crate::streams::Streams;

/// Kind of transfers.
const TRANSFER: &str = "io.containerd.transfer.v1";
/// Section with the order of differs.
const DIFF: &str = "io.containerd.service.v1.diff-service";
/// Kind of image verifiers.
const VERIFIER: &str = "io.containerd.image-verifier.v1";
/// Blobs at a time where the disk turns: as few as with one processor.
const TURNING: usize = 4;

/// Puts transfers together; `None` when they are disabled or do not work, as a row tells.
///
/// # Errors
/// That of a required plugin.
pub(crate) fn open(
    store: &Store,
    differs: &Point<dyn Differ>,
    streams: &Streams,
    config: &Config,
) -> Result<(Option<Transfers>, Vec<Row>)> {
    let verifiers = verifiers(config)?;
    let agree: Vec<Arc<dyn Verifier>> = verifiers.ready().values().cloned().collect();
    let local = || {
        let section: config::Transfer = config.section(&format!("{TRANSFER}.local"))?;
        let order: config::Diff = config.section(DIFF)?;
        let fitted = fitted(&config.root);
        let parts = Parts {
            metadata: store.metadata.clone(),
            streams: streams.clone(),
            unpacking: unpacking(store, differs, &section, &order)?,
            strict: section.check_platform_supported,
            verifiers: agree,
            live: Live::new(&section, fitted),
            applier: Arc::new(Differs::select(differs, &order)),
        };
        Ok((Arc::new(Transfers::new(parts)), Facts::default()))
    };
    let candidates = vec![Candidate {
        id: "local",
        requires: &[
            "io.containerd.lease.v1",
            "io.containerd.metadata.v1",
            "io.containerd.differ.v1",
            VERIFIER,
            "io.containerd.snapshotter.v1",
        ],
        build: Box::new(local),
    }];
    let made: Point<Transfers> = Point::build(TRANSFER, config, candidates)?;
    let mut rows = verifiers.rows().to_vec();
    rows.extend_from_slice(made.rows());
    let local = made.ready().get("local").map(|local| (**local).clone());
    Ok((local, rows))
}

/// How many blobs are on their way at a time where nothing is configured. A disk that turns is slower the
/// more files it writes or reads at a time.
fn fitted(root: &Path) -> usize {
    let fitted = transfer::fitted();
    match sys::disk::turns(root) {
        true => fitted.min(TURNING),
        false => fitted,
    }
}

/// Directories, separated by colons.
pub(super) fn directories(text: &str) -> Vec<PathBuf> {
    let named = text.split(':').filter(|directory| !directory.is_empty());
    named.map(PathBuf::from).collect()
}

fn verifiers(config: &Config) -> Result<Point<dyn Verifier>> {
    let bindir = || {
        let section: config::BinDir = config.section(&format!("{VERIFIER}.bindir"))?;
        let opts = BinDirOpts {
            directory: section.bin_dir,
            // Parity: pkg/imageverifier/bindir: a negative number is no limit.
            most: usize::try_from(section.max_verifiers).ok(),
            patience: section.per_verifier_timeout,
        };
        let made: Arc<dyn Verifier> = Arc::new(BinDir::new(opts));
        Ok((made, Facts::default()))
    };
    let candidates = vec![Candidate {
        id: "bindir",
        requires: &[],
        build: Box::new(bindir),
    }];
    Point::build(VERIFIER, config, candidates)
}

/// The differs of an unpacking with this one.
fn asked(differ: &str, order: &config::Diff) -> Vec<String> {
    match differ {
        "" => order.default.clone(),
        // Where Go's daemon would not have it at all (mkfs.erofs before 1.7), archives are unpacked as files.
        EROFS => [EROFS, "walking"].map(str::to_owned).to_vec(),
        other => vec![other.to_owned()],
    }
}

/// What is configured; without that, every snapshotter for the host's platform.
fn unpacking(
    store: &Store,
    differs: &Point<dyn Differ>,
    section: &config::Transfer,
    order: &config::Diff,
) -> Result<Vec<Unpacking>> {
    let snapshotters = store.ground.snapshotters.ready();
    let Some(configured) = &section.unpack_config else {
        let applier = Arc::new(Differs::select(differs, order));
        let all = snapshotters.keys().map(|name| Unpacking {
            platform: Platform::host(),
            snapshotter: name.clone(),
            applier: Arc::clone(&applier) as _,
        });
        return Ok(all.collect());
    };
    let mut all = Vec::new();
    for one in configured {
        let unpacking = || {
            if !snapshotters.contains_key(&one.snapshotter) {
                return Err(Error::not_found(format_args!(
                    "snapshotter {:?}",
                    one.snapshotter
                )));
            }
            if !one.differ.is_empty() && !differs.ready().contains_key(&one.differ) {
                return Err(Error::not_found(format_args!("differ {:?}", one.differ)));
            }
            let order = config::Diff {
                default: asked(&one.differ, order),
                ..order.clone()
            };
            Ok(Unpacking {
                platform: one.platform.parse()?,
                snapshotter: one.snapshotter.clone(),
                applier: Arc::new(Differs::select(differs, &order)),
            })
        };
        match unpacking() {
            Ok(made) => all.push(made),
            Err(error) if one.optional => {
                tracing::info!(%error, "optional unpack configuration is left out");
            }
            Err(error) => return Err(error.ctx("unpack_config")),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_erofs_differ_declines_is_unpacked_as_files() {
        let order = config::Diff {
            default: vec!["far".into()],
            ..config::Diff::default()
        };
        assert_eq!(asked("", &order), ["far"]);
        assert_eq!(asked("near", &order), ["near"]);
        assert_eq!(asked(EROFS, &order), [EROFS, "walking"]);
    }
}
