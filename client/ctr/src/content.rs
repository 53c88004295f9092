//! `content`: blobs and the ingests that become blobs.

use std::io::Read as _;
use std::sync::Arc;

use ::content::{ContentStore, IngestSpec};
use bytes::Bytes;
use types::{
    BlobInfo, Context as _, Digest, Error, Fields, Filter, IngestStatus, Labels, Result, gc_label,
};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::text;

/// How much is read and written at once.
const CHUNK: usize = 1 << 20;

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Display the ongoing transfers.
    Active {
        /// Only those whose name matches this regular expression.
        matching: Option<String>,
    },
    /// Permanently delete blobs.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Their digests.
        digests: Vec<String>,
    },
    /// Get the data of a blob.
    Get {
        /// Its digest.
        digest: String,
    },
    /// Accept a blob from stdin.
    Ingest {
        /// Refuse another size.
        #[arg(long)]
        expected_size: Option<u64>,
        /// Refuse other content.
        #[arg(long)]
        expected_digest: Option<String>,
        /// Name of the transfer.
        key: String,
    },
    /// List the blobs.
    #[command(visible_alias = "ls")]
    List {
        /// Print only the digests.
        #[arg(short, long)]
        quiet: bool,
        /// Only blobs that pass one of these filters.
        filters: Vec<String>,
    },
    /// Set and clear labels of a blob.
    Label {
        /// Its digest.
        digest: String,
        /// The labels, as `key=value`; an empty value clears one.
        labels: Vec<String>,
    },
    /// Prune content that nothing but labels keeps.
    #[command(subcommand)]
    Prune(Prune),
}

#[derive(Debug, clap::Subcommand)]
enum Prune {
    /// Remove the labels by which manifests keep their layers, then collect.
    References {
        /// Do not wait for the collector.
        #[arg(long = "async")]
        detached: bool,
        /// Only show what would be removed.
        #[arg(long)]
        dry: bool,
    },
}

/// Runs a command of the group.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    // A bad digest is told without asking the daemon.
    if let Command::Get { digest } | Command::Label { digest, .. } = &args.command {
        digest.parse::<Digest>()?;
    }
    let client = ctx.client().await?;
    let store = client.content();
    match args.command {
        Command::Active { matching } => {
            let filter = matching.map(|m| format!("ref~={}", quote(&m)));
            let filter = Filter::parse(filter.as_slice())?;
            active(&store.statuses(&filter).await?).print()?;
        }
        Command::Delete { digests } => return delete(&*store, &digests).await,
        Command::Get { digest } => get(&*store, &digest.parse()?).await?,
        Command::Ingest {
            expected_size,
            expected_digest,
            key,
        } => {
            let spec = IngestSpec {
                reference: key.parse()?,
                total: expected_size,
                expected: expected_digest.map(|d| d.parse()).transpose()?,
            };
            ingest(&*store, spec).await?;
        }
        Command::List { quiet, filters } => {
            let all = store.list(&Filter::parse(&filters)?).await?;
            if quiet {
                out::lines(all.iter().map(|info| &info.digest))?;
            } else {
                table(&all).print()?;
            }
        }
        Command::Label { digest, labels } => {
            let labels = text::parse_labels(&labels);
            let made = label(&*store, &digest.parse()?, labels).await?;
            out::line(&text::labels(&made.labels))?;
        }
        Command::Prune(Prune::References { detached, dry }) => {
            prune(&store, dry).await?;
            // Removing a lease is what makes the daemon collect.
            let leases = client.leases();
            let life = std::time::Duration::from_hours(1);
            let lease = client::default_lease_id()?;
            leases.create(&lease, Labels::new(), Some(life)).await?;
            leases.delete(&lease, !detached).await?;
        }
    }
    Ok(0)
}

/// A value of a filter, whatever is in it.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn active(statuses: &[IngestStatus]) -> Table {
    let mut table = Table::new(Pad::Tabs);
    table.row(["REF", "SIZE", "AGE", ""]);
    for status in statuses {
        let (size, age) = (text::size(status.offset), text::age(status.started_at));
        table.row([status.reference.as_str(), &size, &age, ""]);
    }
    table
}

fn table(blobs: &[BlobInfo]) -> Table {
    let mut table = Table::new(Pad::Tabs);
    table.row(["DIGEST", "SIZE", "AGE", "LABELS"]);
    for blob in blobs {
        let (size, age) = (text::size(blob.size), text::age(blob.created_at));
        let labels = text::labels_or_dash(&blob.labels);
        table.row([blob.digest.as_str(), &size, &age, &labels]);
    }
    table
}

/// Goes on past a blob that cannot be deleted; prints those that were.
async fn delete(store: &dyn ContentStore, digests: &[String]) -> Result<u8> {
    let mut code = 0;
    for text in digests {
        let done = async { store.delete(&text.parse()?).await.absent_ok() };
        match done.await {
            Ok(Some(())) => out::line(text)?,
            Ok(None) => {}
            Err(error) => {
                code = 1;
                out::complain(error.ctx(format!("could not delete {text}")));
            }
        }
    }
    Ok(code)
}

pub(crate) async fn get(store: &dyn ContentStore, digest: &Digest) -> Result<()> {
    let blob = store.open(digest).await?;
    let mut offset = 0;
    while offset < blob.size() {
        let data = blob.read_at(offset, CHUNK).await?;
        out::bytes(&data)?;
        offset += data.len() as u64;
    }
    Ok(())
}

/// Writes stdin into the store. A blob that is there already is as good as a written one.
async fn ingest(store: &dyn ContentStore, spec: IngestSpec) -> Result<()> {
    let (total, expected) = (spec.total, spec.expected.clone());
    let writer = match store.ingest(spec).await {
        Err(error) if error.is_already_exists() => return Ok(()),
        writer => writer?,
    };
    let mut writer = writer;
    // What an earlier attempt wrote stays; the same data comes again.
    let mut skip = writer.status().offset;
    loop {
        let data = read_stdin().await?;
        if data.is_empty() {
            break;
        }
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
        skip -= known as u64;
        if known < data.len() {
            writer.write(data.slice(known..)).await?;
        }
    }
    if skip > 0 {
        let reason = "stdin is shorter than what is there already";
        return Err(Error::out_of_range(reason));
    }
    match writer.commit(total, expected, Labels::new()).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// The next piece of stdin, empty at its end.
async fn read_stdin() -> Result<Bytes> {
    let read = || {
        let mut data = Vec::with_capacity(CHUNK);
        let mut stdin = std::io::stdin().lock().take(CHUNK as u64);
        stdin.read_to_end(&mut data).map(|_| Bytes::from(data))
    };
    let done = tokio::task::spawn_blocking(read).await;
    done.map_err(|e| Error::internal("read stdin").with_source(e))?
        .map_err(|e| Error::os("read stdin", e))
}

/// Sets labels; none: only asks.
async fn label(store: &dyn ContentStore, digest: &Digest, labels: Labels) -> Result<BlobInfo> {
    if labels.is_empty() {
        return store.info(digest).await;
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let fields = Fields::new(paths);
    store.update(digest, labels.without_empty(), &fields).await
}

/// Removes the labels by which blobs keep layers.
async fn prune(store: &Arc<dyn ContentStore>, dry: bool) -> Result<()> {
    for blob in store.list(&Filter::default()).await? {
        let keys = blob.labels.keys().filter(|key| keeps_layer(key));
        let keys: Vec<_> = keys.map(|key| format!("labels.{key}")).collect();
        if dry {
            out::lines(keys.iter().map(|key| format!("{} {key}", blob.digest)))?;
        } else if !keys.is_empty() {
            let fields = Fields::new(keys);
            store.update(&blob.digest, Labels::new(), &fields).await?;
        }
    }
    Ok(())
}

/// True for a label that keeps a layer: `...content.l.<n>`, or `...content.<n>` of old clients, who
/// gave number 0 to the configuration.
fn keeps_layer(key: &str) -> bool {
    let Some(rest) = key.strip_prefix(gc_label::REF_CONTENT) else {
        return false;
    };
    let Some(rest) = rest.strip_prefix('.') else {
        return false;
    };
    rest.starts_with("l.") || (rest != "0" && rest.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const DIGEST: &str = "sha256:502e4800c1e35720fa1e22564bf965c33e37be594ae51c490000bcb04c7dd4d4";

    #[test]
    fn the_tables_read_as_in_go() {
        let now = SystemTime::now();
        let blob = BlobInfo {
            digest: DIGEST.parse().unwrap(),
            size: 421,
            created_at: now,
            updated_at: now,
            labels: Labels::new().with("a", "b"),
        };
        assert_eq!(
            table(&[blob]).render(),
            format!(
                "DIGEST\t\t\t\t\t\t\t\t\tSIZE\tAGE\t\t\tLABELS\n{DIGEST}\t421B\tLess than a second\ta=b\n"
            )
        );
        let status = IngestStatus {
            reference: "layer-1".parse().unwrap(),
            offset: 1500,
            total: 0,
            expected: None,
            started_at: now,
            updated_at: now,
        };
        assert_eq!(
            active(&[status]).render(),
            "REF\tSIZE\tAGE\t\t\t\nlayer-1\t1.5kB\tLess than a second\t\n"
        );
    }

    #[test]
    fn any_text_is_a_filter_value() {
        for value in ["^layer", "a\"b", "a\\.b", "a,b"] {
            assert!(
                Filter::parse(&[format!("ref~={}", quote(value))]).is_ok(),
                "{value}"
            );
        }
    }

    #[test]
    fn labels_that_keep_layers_are_known() {
        for (key, keeps) in [
            ("containerd.io/gc.ref.content.l.0", true),
            ("containerd.io/gc.ref.content.1", true),
            ("containerd.io/gc.ref.content.0", false),
            ("containerd.io/gc.ref.content.config", false),
            ("containerd.io/gc.ref.contents.1", false),
            ("a", false),
        ] {
            assert_eq!(keeps_layer(key), keeps, "{key}");
        }
    }

    #[tokio::test]
    async fn labels_are_set_cleared_and_pruned() {
        // The local store keeps no labels and says so; that it is asked at all is the point here.
        let dir = tempfile::tempdir().unwrap();
        let store = ::content::Local::open(dir.path()).unwrap();
        let digest: Digest = DIGEST.parse().unwrap();
        let error = label(&store, &digest, Labels::new()).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert_eq!(delete(&store, &[DIGEST.to_owned()]).await.unwrap(), 0);
        assert_eq!(delete(&store, &["sha256:x".to_owned()]).await.unwrap(), 1);
    }
}
