//! `ctr images usage`, `prune`, `convert`.

use std::collections::BTreeSet;

use ::images::{Compress, ConvertOpts, Family, PlatformSet};
use client::Client;
use types::{Context as _, Error, Filter, Platform, Result, SnapshotKey};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::pull::{interruptible, platforms};
use crate::text;

/// Display usage of snapshots for an image
#[derive(Debug, clap::Args)]
pub(crate) struct Usage {
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Image
    image: String,
}

/// Remove unused images
#[derive(Debug, clap::Args)]
pub(crate) struct Prune {
    /// Remove all images that no container uses; without it none is
    #[arg(long)]
    all: bool,
}

/// Convert an image
#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    /// Make layers uncompressed
    #[arg(long, conflicts_with_all = ["gzip", "zstd"])]
    uncompress: bool,
    /// Compress layers with gzip
    #[arg(long, conflicts_with = "zstd")]
    gzip: bool,
    /// Compress layers with zstd
    #[arg(long)]
    zstd: bool,
    /// Convert Docker media types to OCI media types
    #[arg(long, conflicts_with = "docker")]
    oci: bool,
    /// Convert OCI media types to Docker media types
    #[arg(long)]
    docker: bool,
    #[command(flatten)]
    erofs: Erofs,
    /// Convert content for a specific platform
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Vec<Platform>,
    /// Convert content for all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Image
    source: String,
    /// Name of the new image
    target: String,
}

pub(crate) async fn usage(ctx: &Context, args: Usage) -> Result<u8> {
    let client = ctx.client().await?;
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let image = client.images().get(&args.image).await?;
    let content = client.content();
    let store = content.as_ref();
    let wanted = PlatformSet::default();
    let config = ::images::config(store, &image.target, &wanted).await?;
    let chain = ::images::chain_of(&config.diff_ids)?;
    let snapshots = client.snapshotter(&name);
    let mut at = match &chain {
        Some(chain) => Some(chain.as_str().parse::<SnapshotKey>()?),
        None => None,
    };
    if let Some(top) = &at
        && snapshots.stat(top).await.absent_ok()?.is_none()
    {
        return Err(Error::failed_precondition(format_args!(
            "image {} isn't unpacked in snapshotter {name}",
            args.image
        )));
    }
    let mut table = Table::new(Pad::NARROW);
    table.row(["KEY", "SIZE", "INODES", ""]);
    while let Some(key) = at {
        let used = snapshots
            .usage(&key)
            .await
            .ctx_with(|| format!("failed to get usage for snapshot {key}"))?;
        let size = text::bytes(used.size);
        table.row([
            key.to_string(),
            size,
            used.inodes.to_string(),
            String::new(),
        ]);
        at = snapshots.stat(&key).await?.parent;
    }
    table.print()?;
    Ok(0)
}

/// Parity: cmd/ctr/commands/images/images.go: without `--all` nothing is pruned; the last removal waits
/// for the collector.
pub(crate) async fn prune(ctx: &Context, args: Prune) -> Result<u8> {
    if !args.all {
        out::note("No images pruned. `image prune` requires --all to be specified.");
        return Ok(0);
    }
    let client = ctx.client().await?;
    let containers = client.containers().list(&Filter::default()).await?;
    let used: BTreeSet<String> = containers.into_iter().map(|c| c.image).collect();
    let images = client.images().list(&Filter::default()).await?;
    let mut unused = images.into_iter().map(|image| image.name);
    let unused: Vec<String> = unused
        .by_ref()
        .filter(|name| !used.contains(name))
        .collect();
    for (at, name) in unused.iter().enumerate() {
        let is_last = at + 1 == unused.len();
        if client
            .images()
            .delete(name, is_last)
            .await
            .absent_ok()?
            .is_some()
        {
            out::line(name)?;
        }
    }
    Ok(0)
}

/// What is refused by name: who has a script for it is told where it is done instead.
#[derive(Debug, clap::Args)]
struct Erofs {
    #[arg(long, hide = true)]
    erofs: Option<String>,
    #[arg(long, hide = true)]
    erofs_compressors: Option<String>,
    #[arg(long, hide = true)]
    erofs_mkfs_options: Option<String>,
}

impl Erofs {
    fn refuse(&self) -> Result<()> {
        let given = [
            &self.erofs,
            &self.erofs_compressors,
            &self.erofs_mkfs_options,
        ];
        if given.iter().all(|given| given.is_none()) {
            return Ok(());
        }
        Err(Error::not_implemented(
            "EROFS layers in images: the erofs snapshotter makes its own of any layer",
        ))
    }
}

pub(crate) async fn convert(ctx: &Context, args: Convert) -> Result<u8> {
    args.erofs.refuse()?;
    let opts = ConvertOpts {
        compress: match (args.uncompress, args.gzip, args.zstd) {
            (true, _, _) => Some(Compress::Plain),
            (_, true, _) => Some(Compress::Gzip),
            (_, _, true) => Some(Compress::Zstd),
            _ => None,
        },
        family: match (args.oci, args.docker) {
            (true, _) => Some(Family::Oci),
            (_, true) => Some(Family::Docker),
            _ => None,
        },
        platforms: platforms(&args.platform, args.all_platforms),
    };
    let client = ctx.client().await?;
    let work = async |client: Client| {
        let image = client.images().get(&args.source).await?;
        let content = client.content();
        let converting = ::images::convert(&content, &image.target, &opts);
        let target = interruptible(converting).await?;
        let images = client.images();
        let images: &dyn ::images::ImageStore = &images;
        images
            .put(&args.target, target.clone(), image.labels)
            .await?;
        out::line(&target.digest)
    };
    client.with_lease(work).await?;
    Ok(0)
}
