//! `ctr images import`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::time::SystemTime;

use ::images::name::Prefix;
use client::Client;
use transfer::{ImportOpts, Names};
use types::transfer::{Endpoint, ImportStream, NameRule, Store, Unpack};
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::progress::Display;
use crate::pull::{deps, interruptible, platforms};
use crate::registry::only_local;
use crate::{out, text};

/// Import images from a tar archive
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Base image name for added images; when given, only images with this prefix are imported
    #[arg(long, default_value = "")]
    base_name: String,
    /// Also name images `base-name@digest`
    #[arg(long)]
    digests: bool,
    /// Name images by digest only when they have no other name
    #[arg(long, requires = "digests")]
    skip_digest_for_named: bool,
    /// Image name for the whole index of the archive
    #[arg(long)]
    index_name: Option<String>,
    /// Import content for all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Import content for a specific platform
    #[arg(long)]
    platform: Option<Platform>,
    /// Skip unpacking the images
    #[arg(long, conflicts_with = "discard_unpacked_layers")]
    no_unpack: bool,
    /// Let the garbage collector have the layers once they are unpacked; only with --local
    #[arg(long)]
    discard_unpacked_layers: bool,
    /// Flush what is unpacked; that is done with and without it
    #[arg(long)]
    sync_fs: bool,
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Labels of the images
    #[arg(long)]
    label: Vec<String>,
    /// Compress layers of a Docker archive that are not
    #[arg(long)]
    compress_blobs: bool,
    /// Import in this process instead of the daemon
    #[arg(long)]
    local: bool,
    /// Archive, `-` for standard input
    archive: PathBuf,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let reader: Box<dyn Read + Send> = if args.archive.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let file = File::open(&args.archive);
        Box::new(file.map_err(|e| Error::os(format_args!("open {}", args.archive.display()), e))?)
    };
    let client = ctx.client().await?;
    let snapshotter = client.snapshotter_name(&args.snapshotter).await?;
    let work = async |client: Client| {
        let display = Display::new();
        let done = if args.local {
            interruptible(here(&client, &snapshotter, &args, reader, &display)).await
        } else {
            interruptible(there(&client, &snapshotter, &args, reader, &display)).await
        };
        display.finish();
        done
    };
    client.with_lease(work).await?;
    Ok(0)
}

/// Imports in this process, over the daemon's stores.
async fn here(
    client: &Client,
    snapshotter: &str,
    args: &Args,
    reader: Box<dyn Read + Send>,
    display: &Display,
) -> Result<()> {
    let deps = deps(client, snapshotter);
    let mut opts = ImportOpts {
        platforms: platforms(&given(args), args.all_platforms),
        labels: text::parse_labels(&args.label),
        compress: args.compress_blobs,
        discard_layers: args.discard_unpacked_layers,
        progress: display.listener(),
        ..ImportOpts::new(Names {
            name: args.index_name.clone().unwrap_or_default(),
            rules: vec![rule(args)],
        })
    };
    if !args.no_unpack {
        let wanted = platforms(&given(args), false);
        opts.unpacks = vec![(deps.clone(), wanted)];
    }
    for image in transfer::import(reader, &deps, opts).await? {
        let how = if args.no_unpack { "saved" } else { "unpacking" };
        out::line(&format_args!(
            "{how} {} ({})...done",
            image.name, image.target.digest
        ))?;
    }
    Ok(())
}

/// Has the daemon import what is sent to it.
async fn there(
    client: &Client,
    snapshotter: &str,
    args: &Args,
    reader: Box<dyn Read + Send>,
    display: &Display,
) -> Result<()> {
    only_local(&[("discard-unpacked-layers", args.discard_unpacked_layers)])?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let unpack = Unpack {
        platform: platform.clone(),
        snapshotter: snapshotter.to_owned(),
    };
    let store = Store {
        name: args.index_name.clone().unwrap_or_default(),
        labels: text::parse_labels(&args.label),
        platforms: (!args.all_platforms)
            .then_some(platform)
            .into_iter()
            .collect(),
        references: vec![rule(args)],
        unpacks: (!args.no_unpack).then_some(unpack).into_iter().collect(),
        ..Store::default()
    };
    let (stream, mut sent) = client.send_bytes(reader).await?;
    let import = ImportStream {
        stream,
        force_compress: args.compress_blobs,
        ..ImportStream::default()
    };
    let (import, store) = (Endpoint::Import(import), Endpoint::Store(store));
    let told = |event| display.event(&event);
    let done = client.transfer(&import, &store, told).await;
    match sent.try_recv() {
        // What could not be read is why the daemon found the archive cut.
        Ok(Err(error)) if done.is_err() && error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::os("read archive", error))
        }
        _ => done,
    }
}

fn given(args: &Args) -> Vec<Platform> {
    args.platform.iter().cloned().collect()
}

/// How images without a full name are named.
fn rule(args: &Args) -> NameRule {
    let dated = Prefix::dated(SystemTime::now());
    let (Prefix::Add(dated) | Prefix::Filter(dated)) = dated;
    let is_dated = args.base_name.is_empty();
    NameRule {
        name: if is_dated {
            dated
        } else {
            args.base_name.clone()
        },
        is_prefix: true,
        // A name that was made up gives way to a real one.
        allow_overwrite: is_dated,
        add_digest: args.digests,
        skip_named_digest: args.skip_digest_for_named,
    }
}
