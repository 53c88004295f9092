//! `ctr images push`.

use ::images::PlatformSet;
use client::Client;
use transfer::PushOpts;
use types::transfer::{Endpoint, Store};
use types::{Context as _, Descriptor, Digest, Platform, Result, media_type};

use crate::context::Context;
use crate::progress::Display;
use crate::pull::interruptible;
use crate::registry::{self, only_local};

/// Push an image to a registry
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: registry::Flags,
    /// Digest of the manifest to push
    #[arg(long)]
    manifest: Option<Digest>,
    /// Media type of that manifest
    #[arg(long, default_value = media_type::OCI_MANIFEST)]
    manifest_type: String,
    /// Push content of a specific platform
    #[arg(long)]
    platform: Vec<Platform>,
    /// Blobs sent at a time
    #[arg(long, default_value_t = 0)]
    max_concurrent_uploaded_layers: usize,
    /// Push from this process instead of the daemon
    #[arg(long)]
    local: bool,
    /// Also push layers that may not be distributed
    #[arg(long)]
    allow_non_distributable_blobs: bool,
    /// Reference in the registry
    remote: String,
    /// Image to push, when its name is another
    image: Option<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    let work = async |client: Client| {
        let display = Display::new();
        let done = if args.local {
            interruptible(here(&client, &args, &display)).await
        } else {
            interruptible(there(&client, &args, &display)).await
        };
        display.finish();
        done
    };
    client.with_lease(work).await?;
    Ok(0)
}

/// Pushes from this process, out of the daemon's store.
async fn here(client: &Client, args: &Args, display: &Display) -> Result<()> {
    let content = client.content();
    let target = match &args.manifest {
        Some(digest) => Descriptor {
            media_type: args.manifest_type.clone(),
            digest: digest.clone(),
            size: content.info(digest).await?.size,
            annotations: types::Labels::new(),
        },
        None => {
            client
                .images()
                .get(image(args))
                .await
                .ctx("unable to resolve image to manifest")?
                .target
        }
    };
    let opts = PushOpts {
        platforms: match args.platform.as_slice() {
            [] => PlatformSet::All,
            given => PlatformSet::Only(given.to_vec()),
        },
        max_concurrent: args.max_concurrent_uploaded_layers,
        allow_non_distributable: args.allow_non_distributable_blobs,
        registry: args.registry.opts()?,
        progress: display.listener(),
        ..PushOpts::default()
    };
    transfer::push(&args.remote, &target, &content, opts).await
}

/// Has the daemon push.
async fn there(client: &Client, args: &Args, display: &Display) -> Result<()> {
    only_local(&[
        ("manifest", args.manifest.is_some()),
        (
            "manifest-type",
            args.manifest_type != media_type::OCI_MANIFEST,
        ),
        (
            "max-concurrent-uploaded-layers",
            args.max_concurrent_uploaded_layers > 0,
        ),
        (
            "allow-non-distributable-blobs",
            args.allow_non_distributable_blobs,
        ),
    ])?;
    let store = Store {
        name: image(args).to_owned(),
        platforms: args.platform.clone(),
        ..Store::default()
    };
    let remote = args.registry.remote(client, &args.remote).await?;
    let (store, remote) = (Endpoint::Store(store), Endpoint::Registry(remote));
    let told = |event| display.event(&event);
    client.transfer(&store, &remote, told).await
}

fn image(args: &Args) -> &str {
    args.image.as_deref().unwrap_or(&args.remote)
}
