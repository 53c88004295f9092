//! `snapshots diff`: what one snapshot changed over another, as a layer archive on stdout.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::Client;
use diff::CompareOpts;
use snapshotters::Snapshotter;
use types::{Context as _, Descriptor, Labels, Mount, Result, SnapshotKey, SnapshotKind};

use crate::{content, snapshots, text};

/// Variable of the environment with the seconds since 1970 that no time in a layer is beyond.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Media type of the archive.
    #[arg(long, default_value = types::media_type::OCI_LAYER_GZIP)]
    media_type: String,
    /// Name of the upload.
    #[arg(long = "ref")]
    reference: Option<String>,
    /// Keep the archive in the content store.
    #[arg(long)]
    keep: bool,
    /// Labels of the archive, as `key=value`.
    #[arg(long)]
    label: Vec<String>,
    /// The snapshot; alone: compared with its parent.
    first: SnapshotKey,
    /// The snapshot that the first is changed to.
    second: Option<SnapshotKey>,
}

/// Makes the archive under a lease, writes it to stdout and forgets it unless it is to be kept.
pub(crate) async fn run(client: &Client, snapshotter: &str, args: Args) -> Result<()> {
    let work = async |client: Client| {
        let archive = compare(&client, snapshotter, &args, epoch()).await?;
        content::get(&*client.content(), &archive.digest).await
    };
    client.with_lease(work).await
}

/// What a snapshot has over its parent, as a blob.
pub(crate) async fn over_parent(
    client: &Client,
    snapshotter: &str,
    key: SnapshotKey,
) -> Result<Descriptor> {
    let args = Args {
        media_type: types::media_type::OCI_LAYER_GZIP.to_owned(),
        reference: None,
        keep: false,
        label: Vec::new(),
        first: key,
        second: None,
    };
    // What goes on from there is to find the times that it left.
    compare(client, snapshotter, &args, None).await
}

/// The latest time that a layer may have, where the environment says one: builds that are to give the same
/// bytes each time do.
fn epoch() -> Option<SystemTime> {
    let text = std::env::var_os(EPOCH)?;
    let text = text.to_string_lossy();
    let parsed = parse_epoch(&text);
    if parsed.is_none() && !text.is_empty() {
        // Parity: ctr: it is told and does not count.
        tracing::warn!(
            "{EPOCH}={text:?} is not a number of seconds since 1970: times stay as they are"
        );
    }
    parsed
}

/// Before 1970 is 1970, as everywhere in layers.
fn parse_epoch(text: &str) -> Option<SystemTime> {
    let seconds: i64 = text.parse().ok()?;
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    UNIX_EPOCH.checked_add(since)
}

async fn compare(
    client: &Client,
    snapshotter: &str,
    args: &Args,
    epoch: Option<SystemTime>,
) -> Result<Descriptor> {
    let mut labels = text::parse_labels(&args.label);
    if args.keep {
        labels.extend(
            snapshots::rooted()
                .iter()
                .map(|(k, v)| (k.clone(), v.clone())),
        );
    }
    let opts = CompareOpts {
        media_type: args.media_type.clone(),
        reference: args.reference.as_ref().map(|r| r.parse()).transpose()?,
        labels,
        source_date_epoch: epoch,
        ..CompareOpts::default()
    };
    let mut views = Views::new(client, snapshotter);
    let done = async {
        let (lower, upper) = match &args.second {
            Some(second) => (views.of(&args.first).await?, views.of(second).await?),
            None => {
                let parent = views.snapshotter.stat(&args.first).await?.parent;
                (
                    views.view(parent.as_ref()).await?,
                    views.of(&args.first).await?,
                )
            }
        };
        let store = client.content();
        client
            .comparer()
            .compare(&store, &lower, &upper, opts)
            .await
    };
    let done = done.await;
    views.close().await;
    done
}

/// Views that were made to read committed snapshots.
struct Views {
    snapshotter: Arc<dyn Snapshotter>,
    /// Makes keys that nobody else has.
    unique: String,
    keys: Vec<SnapshotKey>,
}

impl Views {
    fn new(client: &Client, snapshotter: &str) -> Self {
        let lease = client.caller().scope().lease.as_ref();
        Self {
            snapshotter: client.snapshotter(snapshotter),
            unique: lease.map(ToString::to_string).unwrap_or_default(),
            keys: Vec::new(),
        }
    }

    /// The mounts of a snapshot, whatever its kind.
    async fn of(&mut self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        match self.snapshotter.stat(key).await?.kind {
            SnapshotKind::Committed => self.view(Some(key)).await,
            SnapshotKind::Active | SnapshotKind::View => self.snapshotter.mounts(key).await,
        }
    }

    /// The mounts of a view of `parent`.
    async fn view(&mut self, parent: Option<&SnapshotKey>) -> Result<Vec<Mount>> {
        let key: SnapshotKey = format!("diff-view-{}-{}", self.unique, self.keys.len()).parse()?;
        let mounts = self.snapshotter.view(&key, parent, Labels::new()).await?;
        self.keys.push(key);
        Ok(mounts)
    }

    async fn close(self) {
        for key in self.keys {
            if let Err(error) = self.snapshotter.remove(&key).await.absent_ok() {
                tracing::warn!(%error, %key, "cannot remove a view");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_number_of_seconds() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, want) in [
            ("0", at(0)),
            ("1700000000", at(1_700_000_000)),
            ("-1", at(0)),
            ("", None),
            ("yesterday", None),
            ("1.5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_epoch(text), want, "{text:?}");
        }
    }
}
