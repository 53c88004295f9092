//! `ctr images import`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::SystemTime;

use ::images::name::Prefix;
use client::Client;
use transfer::ImportOpts;
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::progress::Display;
use crate::pull::{deps, interruptible, platforms};
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
    #[arg(long)]
    no_unpack: bool,
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Labels of the images
    #[arg(long)]
    label: Vec<String>,
    /// Import in this process, as is always done
    #[arg(long, hide = true)]
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
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let prefix = if args.base_name.is_empty() {
        Prefix::dated(SystemTime::now())
    } else {
        Prefix::Filter(args.base_name.clone())
    };
    let given: Vec<Platform> = args.platform.iter().cloned().collect();
    let work = async move |client: Client| {
        let display = Display::new();
        let opts = ImportOpts {
            digests: args.digests,
            skip_digest_for_named: args.skip_digest_for_named,
            index_name: args.index_name,
            platforms: platforms(&given, args.all_platforms),
            labels: text::parse_labels(&args.label),
            unpack: !args.no_unpack,
            progress: display.listener(),
            ..ImportOpts::new(prefix)
        };
        let deps = deps(&client, &name);
        let imported = interruptible(transfer::import(reader, &deps, opts)).await;
        display.finish();
        for image in imported? {
            let how = if args.no_unpack { "saved" } else { "unpacking" };
            out::line(&format_args!(
                "{how} {} ({})...done",
                image.name, image.target.digest
            ))?;
        }
        Ok(0)
    };
    client.with_lease(work).await
}
