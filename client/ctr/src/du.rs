//! `du`: what a namespace takes on the disk, and what keeps a part of it there.

use client::Client;
use types::{Context as _, Digest, Error, Filter, Holders, Resource, Result, SnapshotKey};

use crate::context::Context;
use crate::out::{self, Pad, Table, plain};
use crate::text;

/// Type of the plugins that are snapshotters.
const SNAPSHOTTERS: &str = "type==io.containerd.snapshotter.v1";

/// Arguments of `du`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say what keeps this blob (by its digest) or this snapshot (by its name).
    #[arg(long, value_name = "DIGEST|SNAPSHOT")]
    why: Option<String>,
    /// The snapshot is in this snapshotter. Empty: the namespace's, else the default.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Display sizes in bytes.
    #[arg(short = 'b')]
    bytes: bool,
}

/// Lists what there is, or tells of one object.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    match args.why {
        Some(what) => out::text(&told(&why(&client, &args.snapshotter, &what).await?))?,
        None => sums(&client, args.bytes).await?.print()?,
    }
    Ok(0)
}

/// A digest may be that of a blob, or the name of a layer's snapshot.
async fn why(client: &Client, snapshotter: &str, what: &str) -> Result<Holders> {
    let namespace = client.namespace().clone();
    let introspection = client.introspection();
    if let Ok(digest) = what.parse::<Digest>() {
        let of = Resource::Content(digest);
        match introspection.holders(&namespace, &of).await {
            Err(error) if error.is_not_found() => {}
            answer => return answer,
        }
    }
    let of = Resource::Snapshot {
        snapshotter: client.snapshotter_name(snapshotter).await?,
        key: what.parse::<SnapshotKey>()?,
    };
    let answer = introspection.holders(&namespace, &of).await;
    answer.map_err(|error| match error.is_not_found() {
        true => Error::not_found(format_args!("blob or snapshot {what:?}")),
        false => error,
    })
}

/// Names are anybody's: a terminal gets them without what it would obey.
fn told(holders: &Holders) -> String {
    let text = holders.to_string();
    text.lines().map(|line| plain(line) + "\n").collect()
}

async fn sums(client: &Client, exact: bool) -> Result<Table> {
    let size = |size: u64| match exact {
        true => size.to_string(),
        false => text::bytes(size),
    };
    let mut table = Table::new(Pad::WIDE);
    table.row(["KIND", "COUNT", "SIZE"]);
    let blobs = client.content().list(&Filter::default()).await?;
    let sum = blobs.iter().map(|blob| blob.size).sum();
    table.row(["content".to_owned(), blobs.len().to_string(), size(sum)]);
    let filter = Filter::parse(&[SNAPSHOTTERS])?;
    for plugin in client.introspection().plugins(&filter).await? {
        if plugin.fault.is_some() {
            continue;
        }
        let snapshotter = client.snapshotter(&plugin.id);
        let all = snapshotter.list(&Filter::default()).await?;
        let mut sum = 0;
        for info in &all {
            // One may be removed meanwhile.
            let usage = snapshotter.usage(&info.name).await.absent_ok()?;
            sum += usage.map_or(0, |usage| usage.size);
        }
        if !all.is_empty() {
            let kind = format!("snapshots {}", plugin.id);
            table.row([kind, all.len().to_string(), size(sum)]);
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_a_terminal() {
        let holders = Holders {
            chains: vec![vec!["image \x1b[2J".into(), "content x".into()]],
            ..Holders::default()
        };
        let text = told(&holders);
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(text.contains(" -> content x\n"), "{text:?}");
    }
}
