//! `du`: what a namespace takes on the disk, and what keeps a part of it there.

use client::Client;
use futures::future::join_all;
use snapshotters::Snapshotter;
use types::{Context as _, Digest, Error, Filter, Holders, Resource, Result, SnapshotKey};

use crate::context::Context;
use crate::out::{self, Pad, Table, plain};
use crate::text;

/// Snapshots that a snapshotter is asked for at once.
const AT_ONCE: usize = 8;

/// Type of the plugins that are snapshotters.
const SNAPSHOTTERS: &str = "type==io.containerd.snapshotter.v1";

/// Arguments of `du`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say what keeps this blob (by its digest) or this snapshot (by its name).
    #[arg(long, value_name = "DIGEST|SNAPSHOT")]
    why: Option<String>,
    /// It is a snapshot, also where a blob has that digest, and in this snapshotter. Without it, a snapshot is
    /// looked for in that of `$CONTAINERD_SNAPSHOTTER`, else the namespace's, else the default.
    #[arg(long)]
    snapshotter: Option<String>,
    /// Display sizes in bytes.
    #[arg(short = 'b')]
    bytes: bool,
}

/// Lists what there is, or tells of one object.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    match args.why {
        Some(what) => {
            let snapshotter = args.snapshotter.as_deref();
            out::text(&told(&why(&client, snapshotter, &what).await?))?;
        }
        None => sums(&client, args.bytes).await?.print()?,
    }
    Ok(0)
}

/// The blob that is meant, if it may be one: a digest may be the name of a layer's snapshot as well.
fn blob(snapshotter: Option<&str>, what: &str) -> Option<Resource> {
    let digest = what.parse::<Digest>().ok()?;
    snapshotter.is_none().then_some(Resource::Content(digest))
}

async fn why(client: &Client, snapshotter: Option<&str>, what: &str) -> Result<Holders> {
    let namespace = client.namespace().clone();
    let introspection = client.introspection();
    if let Some(of) = blob(snapshotter, what) {
        match introspection.holders(&namespace, &of).await {
            Err(error) if error.is_not_found() => {}
            answer => return answer,
        }
    }
    let snapshotter = match snapshotter {
        Some(name) => name.to_owned(),
        None => std::env::var("CONTAINERD_SNAPSHOTTER").unwrap_or_default(),
    };
    let of = Resource::Snapshot {
        snapshotter: client.snapshotter_name(&snapshotter).await?,
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
        let sums = snapshots(&*client.snapshotter(&plugin.id)).await;
        if let Some([count, size]) = cells(sums, size) {
            table.row([format!("snapshots {}", plugin.id), count, size]);
        }
    }
    Ok(table)
}

/// How many snapshots there are, and their bytes.
async fn snapshots(snapshotter: &dyn Snapshotter) -> Result<(usize, u64)> {
    let all = snapshotter.list(&Filter::default()).await?;
    let mut sum = 0;
    for some in all.chunks(AT_ONCE) {
        let asked = some.iter().map(|info| snapshotter.usage(&info.name));
        for usage in join_all(asked).await {
            // One may be removed meanwhile.
            sum += usage.absent_ok()?.map_or(0, |usage| usage.size);
        }
    }
    Ok((all.len(), sum))
}

/// What a row says; none when there is nothing. One that does not answer hides nothing of the others.
fn cells(sums: Result<(usize, u64)>, size: impl Fn(u64) -> String) -> Option<[String; 2]> {
    match sums {
        Ok((0, _)) => None,
        Ok((count, sum)) => Some([count.to_string(), size(sum)]),
        Err(error) => Some(["?".to_owned(), plain(&format!("not known: {error}"))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_a_snapshotter_means_a_snapshot() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(blob(None, &digest).is_some());
        assert!(blob(Some("native"), &digest).is_none());
        assert!(blob(Some(""), &digest).is_none());
        assert!(blob(None, "web").is_none());
    }

    #[test]
    fn who_does_not_answer_has_a_row_that_says_so() {
        let size = |size: u64| size.to_string();
        assert_eq!(cells(Ok((0, 0)), size), None);
        assert_eq!(cells(Ok((2, 3)), size), Some(["2".into(), "3".into()]));
        let [count, text] = cells(Err(Error::unavailable("away\x1b[2J")), size).unwrap();
        assert_eq!(count, "?");
        assert!(text.contains("away") && !text.contains('\x1b'), "{text:?}");
    }

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
