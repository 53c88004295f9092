//! `ctr images export`.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use ::images::PlatformSet;
use ::images::archive::ExportOpts;
use client::Client;
use types::transfer::{Endpoint, ExportStream, NameRule, Store};
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::progress::Display;
use crate::pull::{interruptible, platforms};
use crate::target::Target;

/// Export images as a tar archive
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not add Docker's manifest.json to the archive
    #[arg(long)]
    skip_manifest_json: bool,
    /// Leave out layers that may not be distributed
    #[arg(long)]
    skip_non_distributable: bool,
    /// Export content for a specific platform
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Vec<Platform>,
    /// Export content for all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Export in this process instead of the daemon
    #[arg(long)]
    local: bool,
    /// Archive, `-` for standard output
    archive: PathBuf,
    /// Images
    #[arg(required = true)]
    images: Vec<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    let (display, target, writer): (_, _, Box<dyn Write + Send>) =
        if args.archive.as_os_str() == "-" {
            (Display::silent(), None, Box::new(std::io::stdout()))
        } else {
            let (target, file) = Target::create(&args.archive)?;
            (Display::new(), Some(target), Box::new(file))
        };
    let work = async |client: Client| {
        if args.local {
            interruptible(here(&client, &args, writer)).await
        } else {
            interruptible(there(&client, &args, writer, &display)).await
        }
    };
    let done = client.with_lease(work).await;
    display.finish();
    done?;
    // Half an archive helps nobody: only now it is at its name.
    target.map_or(Ok(()), Target::finish)?;
    Ok(0)
}

/// Exports in this process, out of the daemon's stores.
async fn here(client: &Client, args: &Args, writer: Box<dyn Write + Send>) -> Result<()> {
    let mut images = Vec::new();
    for name in &args.images {
        let image = client.images().get(name).await?;
        images.push((image.name, image.target));
    }
    let opts = ExportOpts {
        platforms: match args.all_platforms {
            true => PlatformSet::All,
            false => platforms(&args.platform, false),
        },
        skip_docker_manifest: args.skip_manifest_json,
        skip_non_distributable: args.skip_non_distributable,
    };
    ::images::archive::export(client.content().as_ref(), &images, &opts, writer).await
}

/// Has the daemon export, and writes what comes.
async fn there(
    client: &Client,
    args: &Args,
    writer: Box<dyn Write + Send>,
    display: &Display,
) -> Result<()> {
    let named = |name: &String| NameRule {
        name: name.clone(),
        ..NameRule::default()
    };
    let store = Store {
        references: args.images.iter().map(named).collect(),
        ..Store::default()
    };
    let (stream, mut written) = client.receive_bytes(writer).await?;
    let export = ExportStream {
        stream,
        platforms: args.platform.clone(),
        all_platforms: args.all_platforms,
        skip_compatibility_manifest: args.skip_manifest_json,
        skip_non_distributable: args.skip_non_distributable,
        ..ExportStream::default()
    };
    let (store, export) = (Endpoint::Store(store), Endpoint::Export(export));
    let told = |event| display.event(&event);
    if let Err(error) = client.transfer(&store, &export, told).await {
        return Err(match written.try_recv() {
            // The archive could not be written: that is why the daemon could not send it.
            Ok(Err(cause)) if error.is(types::Code::Cancelled) => Error::os("write archive", cause),
            _ => error,
        });
    }
    let written = written
        .await
        .unwrap_or_else(|_| Err(ErrorKind::Interrupted.into()));
    written.map_err(|e| Error::os("write archive", e))
}
