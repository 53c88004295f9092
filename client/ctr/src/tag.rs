//! `ctr images tag`.

use client::Client;
use types::transfer::{Endpoint, Store};
use types::{Context as _, Fields, Result};

use crate::context::Context;
use crate::out;
use crate::pull::interruptible;

/// Tag an image
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// With `--local`, replace the target reference when it exists; without, that is done anyway and told
    #[arg(long)]
    force: bool,
    /// Do not check the target references
    #[arg(long)]
    skip_reference_check: bool,
    /// Write the records from this process
    #[arg(long)]
    local: bool,
    /// Image to tag
    source: String,
    /// New references
    #[arg(required = true)]
    targets: Vec<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    if !args.skip_reference_check {
        for target in &args.targets {
            ::images::name::normalize(target).ctx_with(|| {
                format!("error parsing reference: {target:?} is not a valid repository/tag")
            })?;
        }
    }
    let client = ctx.client().await?;
    let work = async |client: Client| {
        for target in &args.targets {
            let tagging = tag(&client, &args, target);
            interruptible(tagging).await?;
            out::line(target)?;
        }
        Ok(0)
    };
    client.with_lease(work).await
}

async fn tag(client: &Client, args: &Args, target: &str) -> Result<()> {
    let images = client.images();
    if !args.local {
        // Parity: cmd/ctr/commands/images/tag.go: a transfer replaces what is there, with and without
        // `--force`. Not without a word.
        let before = images.get(target).await.absent_ok()?;
        let named = |name: &str| {
            Endpoint::Store(Store {
                name: name.to_owned(),
                ..Store::default()
            })
        };
        let (from, to) = (named(&args.source), named(target));
        client.transfer(&from, &to, drop).await?;
        if let Some(before) = before
            && !args.force
            && before.target.digest != images.get(&args.source).await?.target.digest
        {
            let digest = before.target.digest;
            out::note(format_args!("{target} was {digest} before"));
        }
        return Ok(());
    }
    let mut image = images.get(&args.source).await?;
    target.clone_into(&mut image.name);
    match images.create(&image).await {
        Err(e) if e.is_already_exists() && args.force => {
            let fields = Fields::new(vec!["target".into(), "labels".into()]);
            images.update(&image, &fields).await.map(drop)
        }
        made => made.map(drop),
    }
}
