//! `ctr images pull`.

use std::time::Instant;

use ::images::PlatformSet;
use client::Client;
use registry::{Credentials, RegistryOpts};
use transfer::{Deps, PullOpts};
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::out;
use crate::progress::Display;
use crate::text;

/// Pull an image from a registry
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Skip SSL certificate validation
    #[arg(short = 'k', long)]
    skip_verify: bool,
    /// Allow connections using plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Registry user and password, `user[:password]`
    #[arg(short, long)]
    user: Option<String>,
    /// Refresh token for the authorization server
    #[arg(long, conflicts_with = "user")]
    refresh: Option<String>,
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
    /// Print the resulting image's chain ID
    #[arg(long)]
    print_chainid: bool,
    /// Layers fetched at a time
    #[arg(long, default_value_t = 0)]
    max_concurrent_downloads: usize,
    /// Pull in this process, as is always done
    #[arg(long, hide = true)]
    local: bool,
    /// Image reference
    reference: String,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let credentials = credentials(&args)?;
    let client = ctx.client().await?;
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let start = Instant::now();
    let work = async |client: Client| {
        let deps = Deps {
            snapshotter: client.transfer_snapshotter(&name).await?,
            ..deps(&client, &name)
        };
        let display = Display::new();
        let platforms = platforms(&args.platform, args.all_platforms);
        let opts = PullOpts {
            platforms: platforms.clone(),
            labels: text::parse_labels(&args.label),
            unpack: true,
            max_concurrent: args.max_concurrent_downloads,
            registry: RegistryOpts {
                plain_http: args.plain_http,
                skip_verify: args.skip_verify,
                credentials: credentials.clone(),
                ..RegistryOpts::default()
            },
            progress: display.listener(),
        };
        let pulled = interruptible(transfer::pull(&args.reference, &deps, opts)).await;
        display.finish();
        let image = pulled?;
        for platform in unpacked(&deps, &image.target, &platforms).await? {
            out::line(&format_args!("unpacked {platform} {}", image.target.digest))?;
        }
        if args.print_chainid {
            let store = deps.content.as_ref();
            for (_, manifest) in ::images::manifests(store, &image.target, &platforms).await? {
                let config = ::images::read_config(store, &manifest.config).await?;
                if let Some(chain) = ::images::chain_of(&config.diff_ids)? {
                    out::line(&format_args!("image chain ID: {chain}"))?;
                }
            }
        }
        Ok(())
    };
    client.with_lease(work).await?;
    out::line(&format_args!("done: {:.3?}", start.elapsed()))?;
    Ok(0)
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

fn credentials(args: &Args) -> Result<Option<Credentials>> {
    if let Some(token) = &args.refresh {
        return Ok(Some(Credentials {
            user: String::new(),
            secret: token.clone(),
        }));
    }
    let Some(user) = &args.user else {
        return Ok(None);
    };
    if let Some((user, secret)) = user.split_once(':') {
        return Ok(Some(Credentials {
            user: user.to_owned(),
            secret: secret.to_owned(),
        }));
    }
    Err(Error::invalid_argument(
        "--user needs a password: user:password",
    ))
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
