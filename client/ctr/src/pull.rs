//! `ctr images pull`.

use std::time::Instant;

use ::images::PlatformSet;
use client::Client;
use transfer::{Deps, PullOpts};
use types::transfer::{Endpoint, Store, Unpack};
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::out;
use crate::progress::Display;
use crate::registry::{self, only_local};
use crate::text;

/// Pull an image from a registry
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: registry::Flags,
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Labels of the image
    #[arg(long)]
    label: Vec<String>,
    /// Pull content for a specific platform
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Vec<Platform>,
    /// Pull content and metadata from all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Skip metadata for unused platforms; such an image can only be pushed by platform
    #[arg(long)]
    skip_metadata: bool,
    /// What is done without --skip-metadata: for scripts that are older
    #[arg(long, hide = true, conflicts_with = "skip_metadata")]
    all_metadata: bool,
    /// Print the resulting image's chain ID
    #[arg(long)]
    print_chainid: bool,
    /// Layers fetched at a time
    #[arg(long, default_value_t = 0)]
    max_concurrent_downloads: usize,
    /// Flush what is unpacked; that is done with and without it
    #[arg(long)]
    sync_fs: bool,
    /// Pull in this process instead of the daemon
    #[arg(long)]
    local: bool,
    /// Image reference
    reference: String,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let start = Instant::now();
    let work = async |client: Client| {
        let display = Display::new();
        let pulled = if args.local {
            let deps = Deps {
                snapshotter: client.transfer_snapshotter(&name).await?,
                applier: client.transfer_applier().await?,
                ..deps(&client, &name)
            };
            interruptible(here(&args, &deps, &display)).await
        } else {
            interruptible(there(&client, &name, &args, &display)).await
        };
        display.finish();
        pulled?;
        if args.print_chainid {
            print_chains(&client, &args).await?;
        }
        Ok(())
    };
    client.with_lease(work).await?;
    out::line(&format_args!("done: {:.3?}", start.elapsed()))?;
    Ok(0)
}

/// Pulls in this process, over the daemon's stores.
async fn here(args: &Args, deps: &Deps, display: &Display) -> Result<()> {
    let platforms = platforms(&args.platform, args.all_platforms);
    let opts = PullOpts {
        platforms: platforms.clone(),
        labels: text::parse_labels(&args.label),
        unpack: true,
        max_concurrent: args.max_concurrent_downloads,
        registry: args.registry.opts()?,
        all_metadata: !args.skip_metadata,
        progress: display.listener(),
        ..PullOpts::default()
    };
    let image = transfer::pull(&args.reference, deps, opts).await?;
    for platform in unpacked(deps, &image.target, &platforms).await? {
        out::line(&format_args!("unpacked {platform} {}", image.target.digest))?;
    }
    Ok(())
}

/// Has the daemon pull.
async fn there(client: &Client, snapshotter: &str, args: &Args, display: &Display) -> Result<()> {
    only_local(&[(
        "max-concurrent-downloads",
        args.max_concurrent_downloads > 0,
    )])?;
    let wanted = match (args.platform.as_slice(), args.all_platforms) {
        (_, true) => Vec::new(),
        ([], false) => vec![Platform::host()],
        (given, false) => given.to_vec(),
    };
    let unpack = |platform: &Platform| Unpack {
        platform: platform.clone(),
        snapshotter: snapshotter.to_owned(),
    };
    let store = Store {
        name: args.reference.clone(),
        labels: text::parse_labels(&args.label),
        all_metadata: !args.skip_metadata,
        unpacks: wanted.iter().map(unpack).collect(),
        platforms: wanted,
        ..Store::default()
    };
    let remote = args.registry.remote(client, &args.reference).await?;
    let (remote, store) = (Endpoint::Registry(remote), Endpoint::Store(store));
    let told = |event| display.event(&event);
    client.transfer(&remote, &store, told).await
}

async fn print_chains(client: &Client, args: &Args) -> Result<()> {
    let platforms = platforms(&args.platform, args.all_platforms);
    let target = client.images().get(&args.reference).await?.target;
    let content = client.content();
    let store = content.as_ref();
    for (_, manifest) in ::images::manifests(store, &target, &platforms).await? {
        let config = ::images::read_config(store, &manifest.config).await?;
        if let Some(chain) = ::images::chain_of(&config.diff_ids)? {
            out::line(&format_args!("image chain ID: {chain}"))?;
        }
    }
    Ok(())
}

/// The platforms of the images that were unpacked.
async fn unpacked(
    deps: &Deps,
    target: &types::Descriptor,
    wanted: &PlatformSet,
) -> Result<Vec<Platform>> {
    let store = deps.content.as_ref();
    let mut found = Vec::new();
    for (_, manifest) in ::images::manifests(store, target, wanted).await? {
        if ::images::is_config(&manifest.config.media_type) {
            found.push(
                ::images::read_config(store, &manifest.config)
                    .await?
                    .platform,
            );
        }
    }
    Ok(found)
}

/// The set that `--platform` and `--all-platforms` name.
pub(crate) fn platforms(given: &[Platform], all: bool) -> PlatformSet {
    if all {
        PlatformSet::All
    } else if given.is_empty() {
        PlatformSet::default()
    } else {
        PlatformSet::Only(given.to_vec())
    }
}

/// The daemon's stores, for a transfer that runs here.
pub(crate) fn deps(client: &Client, snapshotter: &str) -> Deps {
    Deps {
        content: client.content(),
        images: std::sync::Arc::new(client.images()),
        snapshotter: client.snapshotter(snapshotter),
        snapshotter_name: snapshotter.to_owned(),
        applier: client.applier(),
    }
}

/// Runs `work` until it is done or the user interrupts; what it holds is given back then.
pub(crate) async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|e| Error::os("listen for signals", e));
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(Error::cancelled("interrupted")),
        _ = terminate.recv() => Err(Error::cancelled("terminated")),
    }
}
