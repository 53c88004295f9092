//! `snapshots unpack`: the layers of an image that is here already, as snapshots.

use ::images::PlatformSet;
use client::Client;
use transfer::OnProgress;
use types::{Digest, Error, Filter, Result};

use crate::{out, pull};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Digest that an image names: of an index or a manifest.
    digest: String,
}

/// Unpacks for this machine's platform what the first image with that digest names.
pub(crate) async fn run(client: &Client, snapshotter: &str, args: Args) -> Result<()> {
    let digest: Digest = args.digest.parse()?;
    let filter = Filter::parse(&[format!("target.digest=={digest}")])?;
    let image = client.images().list(&filter).await?.into_iter().next();
    let target = image
        .ok_or_else(|| Error::not_found(format_args!("manifest {digest}")))?
        .target;
    let work = async |client: Client| {
        let deps = pull::deps(&client, snapshotter);
        let (wanted, quiet) = (PlatformSet::default(), OnProgress::default());
        let work = transfer::unpack_image(&deps, &target, &wanted, &quiet);
        pull::interruptible(work).await
    };
    client.with_lease(work).await?;
    out::line(&format_args!(
        "unpacking {digest} ({})...done",
        target.media_type
    ))
}
