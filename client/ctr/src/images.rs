//! `ctr images`: what is known by name.

use std::collections::BTreeSet;

use ::images::PlatformSet;
use client::Client;
use content::ContentStore;
use types::{
    Context as _, Descriptor, Error, Fields, Filter, Image, Platform, Result, SnapshotKey,
};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::text;
use crate::{export, image_care, image_mounts, import, inspect, pull, push, tag};

/// Manage images.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Pull an image from a registry
    Pull(pull::Args),
    /// Push an image to a registry
    Push(push::Args),
    /// Import images from a tar archive
    Import(import::Args),
    /// Export images as a tar archive
    Export(export::Args),
    /// List images known to containerd
    #[command(visible_alias = "ls")]
    List(List),
    /// Check that all content of images is available locally
    Check(Check),
    /// Tag an image
    Tag(tag::Args),
    /// Set and clear labels of an image
    Label(Label),
    /// Inspect an image
    #[command(visible_alias = "i")]
    Inspect(inspect::Args),
    /// Mount an image to a target path
    Mount(image_mounts::Mount),
    /// Unmount the image from the target
    Unmount(image_mounts::Unmount),
    /// Display usage of snapshots for an image
    Usage(image_care::Usage),
    /// Convert an image
    Convert(image_care::Convert),
    /// Remove unused images
    Prune(image_care::Prune),
    /// Remove images by reference
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print only the image refs
    #[arg(short, long)]
    quiet: bool,
    /// Filters
    filters: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Check {
    /// Print only the refs of images that are complete and unpacked
    #[arg(short, long)]
    quiet: bool,
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Filters
    filters: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Label {
    /// Replace all labels
    #[arg(short, long)]
    replace_all: bool,
    /// Image
    name: String,
    /// `key=value`; an empty value clears the label
    labels: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Delete {
    /// Wait until everything that nothing else needs is removed
    #[arg(long)]
    sync: bool,
    /// Images
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    match args.command {
        Command::Pull(args) => pull::run(ctx, args).await,
        Command::Push(args) => push::run(ctx, args).await,
        Command::Import(args) => import::run(ctx, args).await,
        Command::Export(args) => export::run(ctx, args).await,
        Command::List(args) => list(ctx, args).await,
        Command::Check(args) => check(ctx, args).await,
        Command::Tag(args) => tag::run(ctx, args).await,
        Command::Label(args) => label(ctx, args).await,
        Command::Inspect(args) => inspect::run(ctx, args).await,
        Command::Mount(args) => image_mounts::mount(ctx, args).await,
        Command::Unmount(args) => image_mounts::unmount(ctx, args).await,
        Command::Usage(args) => image_care::usage(ctx, args).await,
        Command::Convert(args) => image_care::convert(ctx, args).await,
        Command::Prune(args) => image_care::prune(ctx, args).await,
        Command::Delete(args) => delete(ctx, args).await,
    }
}

async fn list(ctx: &Context, args: List) -> Result<u8> {
    let filter = Filter::parse(&args.filters)?;
    let client = ctx.client().await?;
    let images = client
        .images()
        .list(&filter)
        .await
        .ctx("failed to list images")?;
    if args.quiet {
        for image in images {
            out::line(&image.name)?;
        }
        return Ok(0);
    }
    let store = client.content();
    let mut table = Table::new(Pad::NARROW);
    table.row(["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS", ""]);
    for image in images {
        let size = size(store.as_ref(), &image.target)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, image = image.name, "failed calculating size");
                0
            });
        let platforms = platforms(store.as_ref(), &image.target)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, image = image.name, "failed resolving platform");
                BTreeSet::new()
            });
        let platforms: Vec<String> = platforms.into_iter().collect();
        let platforms = if platforms.is_empty() {
            "-".to_owned()
        } else {
            platforms.join(",")
        };
        table.row([
            image.name,
            image.target.media_type,
            image.target.digest.to_string(),
            text::bytes(size),
            platforms,
            text::labels_or_dash(&image.labels),
            String::new(),
        ]);
    }
    table.print()?;
    Ok(0)
}

/// Bytes of the image for this host: its documents and layers.
///
/// Parity: core/images/image.go: as far as it is known what they are, whether or not they are here.
async fn size(store: &dyn ContentStore, target: &Descriptor) -> Result<u64> {
    let wanted = PlatformSet::default();
    let Ok((manifest_at, manifest)) = ::images::find_manifest(store, target, &wanted).await else {
        if !::images::is_index(&target.media_type) {
            return Ok(target.size);
        }
        let entries = ::images::read_index(store, target).await?.manifests;
        let named: Vec<_> = entries.iter().map(|entry| entry.platform.clone()).collect();
        let first = wanted
            .choose(&named)
            .first()
            .and_then(|at| entries.get(*at));
        return Ok(target.size + first.map_or(0, |entry| entry.descriptor.size));
    };
    let index = if manifest_at.digest == target.digest {
        0
    } else {
        target.size
    };
    let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
    Ok(index + manifest_at.size + manifest.config.size + layers)
}

/// What the image says it is for, whether or not that content is here.
async fn platforms(store: &dyn ContentStore, target: &Descriptor) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut add = |platform: &Platform| {
        if platform.os != "unknown" && platform.architecture != "unknown" {
            found.insert(platform.normalized().to_string());
        }
    };
    if ::images::is_index(&target.media_type) {
        for entry in ::images::read_index(store, target).await?.manifests {
            match &entry.platform {
                Some(platform) => add(platform),
                None if ::images::is_manifest(&entry.descriptor.media_type) => {
                    let manifest = ::images::read_manifest(store, &entry.descriptor).await;
                    if let Some(manifest) = manifest.absent_ok()? {
                        add(&::images::read_config(store, &manifest.config)
                            .await?
                            .platform);
                    }
                }
                None => {}
            }
        }
    } else {
        let config = ::images::config(store, target, &PlatformSet::All).await?;
        add(&config.platform);
    }
    Ok(found)
}

async fn check(ctx: &Context, args: Check) -> Result<u8> {
    let filter = Filter::parse(&args.filters)?;
    let client = ctx.client().await?;
    let snapshotter = client.snapshotter_name(&args.snapshotter).await?;
    let images = client
        .images()
        .list(&filter)
        .await
        .ctx("failed listing images")?;
    let mut table = Table::new(Pad::NARROW);
    table.row(["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED", ""]);
    let mut complete_ones = Vec::new();
    for image in images {
        let found = Found::of(&client, &image, &snapshotter).await?;
        if found.complete() && found.unpacked {
            complete_ones.push(image.name.clone());
        }
        table.row([
            image.name,
            image.target.media_type,
            image.target.digest.to_string(),
            found.status(),
            found.size(),
            found.unpacked.to_string(),
        ]);
    }
    if !args.quiet {
        table.print()?;
        return Ok(0);
    }
    for name in complete_ones {
        out::line(&name)?;
    }
    Ok(0)
}

/// How much of an image is here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The manifest is here, so what is required is known.
    available: bool,
    required: (usize, u64),
    present: (usize, u64),
    unpacked: bool,
}

impl Found {
    async fn of(client: &Client, image: &Image, snapshotter: &str) -> Result<Self> {
        let store = client.content();
        let wanted = PlatformSet::default();
        let manifest = ::images::find_manifest(store.as_ref(), &image.target, &wanted).await;
        let Some((_, manifest)) = manifest.absent_ok()? else {
            return Ok(Self::default());
        };
        let mut found = Self {
            available: true,
            ..Self::default()
        };
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            found.required = (found.required.0 + 1, found.required.1 + blob.size);
            if store.info(&blob.digest).await.absent_ok()?.is_some() {
                found.present = (found.present.0 + 1, found.present.1 + blob.size);
            }
        }
        let config = ::images::read_config(store.as_ref(), &manifest.config)
            .await
            .absent_ok()?;
        if let Some(config) = config
            && let Some(chain) = ::images::chain_of(&config.diff_ids)?
        {
            let key: SnapshotKey = chain.as_str().parse()?;
            let there = client
                .snapshotter(snapshotter)
                .stat(&key)
                .await
                .absent_ok()?;
            found.unpacked = there.is_some();
        }
        Ok(found)
    }

    fn complete(&self) -> bool {
        self.available && self.present == self.required
    }

    fn status(&self) -> String {
        let present = self.present.0;
        if !self.available {
            return format!("unavailable ({present}/?)");
        }
        let word = if self.complete() {
            "complete"
        } else {
            "incomplete"
        };
        format!("{word} ({present}/{})", self.required.0)
    }

    fn size(&self) -> String {
        let present = text::bytes(self.present.1);
        if self.available {
            format!("{present}/{}", text::bytes(self.required.1))
        } else {
            format!("{present}/?")
        }
    }
}

async fn label(ctx: &Context, args: Label) -> Result<u8> {
    let labels = text::parse_labels(&args.labels);
    if labels.is_empty() && !args.replace_all {
        return Err(Error::invalid_argument("no labels given"));
    }
    let client = ctx.client().await?;
    let images = client.images();
    let paths = if args.replace_all {
        vec!["labels".to_owned()]
    } else {
        labels.keys().map(|key| format!("labels.{key}")).collect()
    };
    // Only the name and the labels count: the target is not in the mask.
    let mut image = images.get(&args.name).await?;
    image.labels = if args.replace_all {
        labels.without_empty()
    } else {
        labels
    };
    let updated = images.update(&image, &Fields::new(paths)).await?;
    out::line(&text::labels(&updated.labels))?;
    Ok(0)
}

async fn delete(ctx: &Context, args: Delete) -> Result<u8> {
    let client = ctx.client().await?;
    let images = client.images();
    let mut code = 0;
    let last = args.names.len() - 1;
    for (at, name) in args.names.iter().enumerate() {
        match images.delete(name, args.sync && at == last).await {
            Ok(()) => out::line(name)?,
            Err(e) if e.is_not_found() => {
                // Parity: cmd/ctr/commands/images/images.go: an image that is not there is no error.
                tracing::warn!("{name}: image not found");
            }
            Err(e) => {
                out::complain(e.ctx(format!("unable to delete {name}")));
                code = 1;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_told_in_go_s_words() {
        let found = |available, required, present| Found {
            available,
            required,
            present,
            unpacked: false,
        };
        for (found, status, complete) in [
            (found(true, (2, 2048), (2, 2048)), "complete (2/2)", true),
            (found(true, (2, 2048), (1, 1024)), "incomplete (1/2)", false),
            (found(false, (0, 0), (0, 0)), "unavailable (0/?)", false),
        ] {
            assert_eq!(
                (found.status().as_str(), found.complete()),
                (status, complete)
            );
        }
        assert_eq!(found(true, (2, 2048), (1, 1024)).size(), "1.0 KiB/2.0 KiB");
        assert_eq!(found(false, (0, 0), (0, 0)).size(), "0.0 B/?");
    }
}
