//! `snapshots`: the layered file systems of one snapshotter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use clap::ArgAction;
use serde_json::{Map, Value, json};
use snapshotters::Snapshotter;
use types::{
    Context as _, Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, SnapshotKind,
    Usage, gc_label,
};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::{changes, text, unpack};

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Snapshotter name. Empty: the namespace's, else the default.
    #[arg(
        long,
        global = true,
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = ""
    )]
    snapshotter: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Commit an active snapshot under a name.
    Commit {
        /// The name.
        name: SnapshotKey,
        /// The active snapshot.
        active: SnapshotKey,
    },
    /// Get the diff of two snapshots, by default of one and its parent.
    Diff(changes::Args),
    /// Get info about a snapshot.
    Info {
        /// Its key.
        key: SnapshotKey,
    },
    /// List snapshots.
    #[command(visible_alias = "ls")]
    List {
        /// Only snapshots that pass one of these filters.
        filters: Vec<String>,
    },
    /// Get mount commands for a snapshot.
    #[command(visible_aliases = ["m", "mount"])]
    Mounts {
        /// Where it will be mounted.
        target: String,
        /// Its key.
        key: SnapshotKey,
    },
    /// Prepare a snapshot from a committed snapshot.
    Prepare(Make),
    /// Remove snapshots.
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Their keys.
        keys: Vec<SnapshotKey>,
    },
    /// Set and clear labels of a snapshot.
    Label {
        /// Its name.
        name: SnapshotKey,
        /// The labels, as `key=value`; an empty value clears one.
        labels: Vec<String>,
    },
    /// Display the snapshots as a tree.
    Tree,
    /// Unpack the layers of an image that is in the content store.
    Unpack(unpack::Args),
    /// Show what snapshots take on disk.
    Usage {
        /// Display sizes in bytes.
        #[arg(short = 'b', action = ArgAction::SetTrue)]
        bytes: bool,
        /// Their keys; none: all.
        keys: Vec<SnapshotKey>,
    },
    /// Create a read-only snapshot from a committed snapshot.
    View(Make),
}

/// Arguments of `prepare` and `view`.
#[derive(Debug, clap::Args)]
struct Make {
    /// Print mount commands for this mount point.
    #[arg(short, long)]
    target: Option<String>,
    /// Print the mounts as JSON.
    #[arg(long)]
    mounts: bool,
    /// The new snapshot's key.
    key: SnapshotKey,
    /// Its parent.
    parent: Option<SnapshotKey>,
}

/// Runs a command of the group.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let snapshotter = client.snapshotter(&name);
    match args.command {
        Command::Commit { name, active } => {
            snapshotter.commit(&name, &active, rooted()).await?;
        }
        Command::Diff(args) => changes::run(&client, &name, args).await?,
        Command::Info { key } => out::json(&document(&snapshotter.stat(&key).await?))?,
        Command::List { filters } => {
            table(&snapshotter.list(&Filter::parse(&filters)?).await?).print()?;
        }
        Command::Mounts { target, key } => {
            out::lines(commands(&target, &snapshotter.mounts(&key).await?))?;
        }
        Command::Prepare(make) => {
            let (key, parent) = (&make.key, make.parent.as_ref());
            make.show(&snapshotter.prepare(key, parent, rooted()).await?)?;
        }
        Command::View(make) => {
            let (key, parent) = (&make.key, make.parent.as_ref());
            make.show(&snapshotter.view(key, parent, rooted()).await?)?;
        }
        Command::Delete { keys } => {
            for key in keys {
                let done = snapshotter.remove(&key).await;
                done.ctx_with(|| format!("failed to remove {:?}", key.as_str()))?;
            }
        }
        Command::Label { name, labels } => {
            let made = label(&snapshotter, &name, text::parse_labels(&labels)).await?;
            out::line(&text::labels(&made.labels))?;
        }
        Command::Tree => {
            let all = snapshotter.list(&Filter::default()).await?;
            out::text(&tree(&all))?;
        }
        Command::Unpack(args) => unpack::run(&client, &name, args).await?,
        Command::Usage { bytes, keys } => usages(&snapshotter, bytes, keys).await?.print()?,
    }
    Ok(0)
}

/// Labels of a snapshot that the collector leaves alone.
pub(crate) fn rooted() -> Labels {
    Labels::new().with(gc_label::ROOT, text::rfc3339_seconds(SystemTime::now()))
}

impl Make {
    fn show(&self, mounts: &[Mount]) -> Result<()> {
        if let Some(target) = &self.target {
            out::lines(commands(target, mounts))?;
        }
        if self.mounts {
            let all: Vec<_> = mounts.iter().map(mount_document).collect();
            out::json(&all)?;
        }
        Ok(())
    }
}

/// The commands that mount `mounts` at `target`.
fn commands(target: &str, mounts: &[Mount]) -> Vec<String> {
    let command = |mount: &Mount| {
        let options = match mount.options.join(",") {
            none if none.is_empty() => none,
            options => format!(" -o {options}"),
        };
        let target = Path::new(target).join(mount.target.trim_start_matches('/'));
        let target = target.display().to_string();
        let target = match target.trim_end_matches('/') {
            "" => "/",
            target => target,
        };
        let Mount { kind, source, .. } = mount;
        format!("mount -t {kind} {source} {target}{options}")
    };
    mounts.iter().map(command).collect()
}

fn mount_document(mount: &Mount) -> Value {
    json!({
        "Type": mount.kind,
        "Source": mount.source,
        "Target": mount.target,
        "Options": mount.options,
    })
}

fn document(info: &SnapshotInfo) -> Value {
    let mut made = Map::new();
    made.insert("Kind".to_owned(), json!(kind(info.kind)));
    made.insert("Name".to_owned(), json!(info.name.as_str()));
    if let Some(parent) = &info.parent {
        made.insert("Parent".to_owned(), json!(parent.as_str()));
    }
    if !info.labels.is_empty() {
        made.insert("Labels".to_owned(), json!(*info.labels));
    }
    for (name, time) in [("Created", info.created_at), ("Updated", info.updated_at)] {
        made.insert(name.to_owned(), json!(text::rfc3339(time)));
    }
    Value::Object(made)
}

/// The word that tables have for a kind.
fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::View => "View",
        SnapshotKind::Active => "Active",
        SnapshotKind::Committed => "Committed",
    }
}

fn table(snapshots: &[SnapshotInfo]) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row(["KEY", "PARENT", "KIND", ""]);
    for info in snapshots {
        let parent = info.parent.as_ref().map_or("", SnapshotKey::as_str);
        table.row([info.name.as_str(), parent, kind(info.kind), ""]);
    }
    table
}

/// The snapshots as a forest, children indented below their parents.
fn tree(snapshots: &[SnapshotInfo]) -> String {
    let names: BTreeSet<_> = snapshots.iter().map(|info| info.name.as_str()).collect();
    let mut children: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
    for info in snapshots {
        // The parent may be gone since it was listed.
        let parent = info.parent.as_ref().map(SnapshotKey::as_str);
        let parent = parent.filter(|parent| names.contains(parent));
        children.entry(parent).or_default().push(info.name.as_str());
    }
    let below = |name: Option<&str>, level: usize| {
        let all = children.get(&name).into_iter().flatten().rev();
        all.map(move |child| (*child, level)).collect::<Vec<_>>()
    };
    let mut made = String::new();
    let mut left = below(None, 0);
    while let Some((name, level)) = left.pop() {
        let branch = if level > 0 { "\\_" } else { "" };
        made.push_str(&format!("{}{branch} {name}\n", "  ".repeat(level)));
        left.extend(below(Some(name), level + 1));
    }
    made
}

async fn usages(
    snapshotter: &Arc<dyn Snapshotter>,
    exact: bool,
    keys: Vec<SnapshotKey>,
) -> Result<Table> {
    let keys = if keys.is_empty() {
        let all = snapshotter.list(&Filter::default()).await?;
        all.into_iter().map(|info| info.name).collect()
    } else {
        keys
    };
    let mut table = Table::new(Pad::NARROW);
    table.row(["KEY", "SIZE", "INODES", ""]);
    for key in keys {
        let Usage { size, inodes } = snapshotter.usage(&key).await?;
        let size = if exact {
            size.to_string()
        } else {
            text::bytes(size)
        };
        table.row([key.as_str(), &size, &inodes.to_string(), ""]);
    }
    Ok(table)
}

/// Sets labels; none: only asks.
async fn label(
    snapshotter: &Arc<dyn Snapshotter>,
    name: &SnapshotKey,
    labels: Labels,
) -> Result<SnapshotInfo> {
    let info = snapshotter.stat(name).await?;
    if labels.is_empty() {
        return Ok(info);
    }
    let fields = Fields::new(labels.keys().map(|key| format!("labels.{key}")).collect());
    let labels = labels.without_empty();
    snapshotter
        .update(SnapshotInfo { labels, ..info }, &fields)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn info(name: &str, parent: Option<&str>, kind: SnapshotKind) -> SnapshotInfo {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        SnapshotInfo {
            kind,
            name: name.parse().unwrap(),
            parent: parent.map(|p| p.parse().unwrap()),
            labels: Labels::new(),
            created_at: time,
            updated_at: time,
        }
    }

    fn some() -> Vec<SnapshotInfo> {
        use SnapshotKind::{Active, Committed, View};
        vec![
            info("a", None, Committed),
            info("b", Some("a"), Committed),
            info("c", Some("b"), Active),
            info("d", Some("a"), View),
            info("e", Some("gone"), Active),
        ]
    }

    #[test]
    fn the_table_reads_as_in_go() {
        assert_eq!(
            table(&some()).render(),
            "KEY PARENT KIND      \n\
             a          Committed \n\
             b   a      Committed \n\
             c   b      Active    \n\
             d   a      View      \n\
             e   gone   Active    \n"
        );
    }

    #[test]
    fn the_tree_reads_as_in_go() {
        assert_eq!(tree(&some()), " a\n  \\_ b\n    \\_ c\n  \\_ d\n e\n");
        assert_eq!(tree(&[]), "");
    }

    #[test]
    fn mount_commands_name_type_source_target_options() {
        let mount = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["index=off".into(), "lowerdir=/a:/b".into()],
        };
        let sub = Mount {
            kind: "bind".into(),
            source: "/s".into(),
            target: "/sub".into(),
            options: Vec::new(),
        };
        assert_eq!(
            commands("/mnt/", &[mount, sub]),
            [
                "mount -t overlay overlay /mnt -o index=off,lowerdir=/a:/b",
                "mount -t bind /s /mnt/sub",
            ]
        );
    }

    #[test]
    fn info_leaves_out_what_is_empty() {
        let mut info = info("a", None, SnapshotKind::Committed);
        assert_eq!(
            document(&info).to_string(),
            r#"{"Kind":"Committed","Name":"a","Created":"1970-01-01T00:00:01.5Z","Updated":"1970-01-01T00:00:01.5Z"}"#
        );
        info.labels = Labels::new().with("k", "v");
        assert!(
            document(&info)
                .to_string()
                .contains(r#""Labels":{"k":"v"}"#)
        );
    }

    #[tokio::test]
    async fn labels_and_usages_come_from_the_snapshotter() {
        let dir = tempfile::tempdir().unwrap();
        let native: Arc<dyn Snapshotter> =
            Arc::new(snapshotters::Native::open(dir.path()).unwrap());
        let key: SnapshotKey = "k".parse().unwrap();
        native.prepare(&key, None, rooted()).await.unwrap();
        let labels = Labels::new().with("a", "b").with(gc_label::ROOT, "");
        let made = label(&native, &key, labels).await.unwrap();
        assert_eq!(text::labels(&made.labels), "a=b");
        let shown = usages(&native, true, Vec::new()).await.unwrap().render();
        assert!(shown.starts_with("KEY SIZE"), "{shown}");
        assert!(shown.lines().nth(1).unwrap().starts_with("k   "), "{shown}");
    }
}
