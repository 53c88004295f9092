//! `namespaces`: the tenants of the daemon.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use types::{Context as _, Error, Namespace, NamespaceInfo, Result};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::text;

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a new namespace.
    #[command(visible_alias = "c")]
    Create {
        /// Its name.
        name: String,
        /// Its labels, as `key=value`.
        labels: Vec<String>,
    },
    /// List namespaces.
    #[command(visible_alias = "ls")]
    List {
        /// Print only the names.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove namespaces, which must be empty.
    #[command(visible_alias = "rm")]
    Remove {
        /// Delete the namespace's cgroup as well.
        #[arg(short, long)]
        cgroup: bool,
        /// Their names.
        names: Vec<String>,
    },
    /// Set and clear labels of a namespace.
    Label {
        /// Its name.
        name: String,
        /// The labels, as `key=value`; an empty value clears one.
        labels: Vec<String>,
    },
}

/// Runs a command of the group.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let namespaces = ctx.client().await?.namespaces();
    match args.command {
        Command::Create { name, labels } => {
            let namespace = NamespaceInfo {
                name: name.parse()?,
                labels: text::parse_labels(&labels),
            };
            namespaces.create(&namespace).await?;
        }
        Command::List { quiet: true } => {
            out::lines(namespaces.list().await?.iter().map(|n| &n.name))?;
        }
        Command::List { quiet: false } => table(&namespaces.list().await?).print()?,
        Command::Remove { cgroup, names } => return remove(&namespaces, cgroup, &names).await,
        Command::Label { name, labels } => {
            let labels = text::parse_labels(&labels);
            if !labels.is_empty() {
                namespaces.set_labels(&name.parse()?, &labels).await?;
            }
        }
    }
    Ok(0)
}

fn table(namespaces: &[NamespaceInfo]) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row(["NAME", "LABELS", ""]);
    for namespace in namespaces {
        let labels = text::labels(&namespace.labels);
        table.row([namespace.name.as_str(), &labels, ""]);
    }
    table
}

/// Goes on past a namespace that cannot be removed; one that is gone counts as removed.
async fn remove(namespaces: &client::Namespaces, cgroup: bool, names: &[String]) -> Result<u8> {
    let mut code = 0;
    for name in names {
        let namespace: Namespace = name.parse()?;
        let done = async {
            if cgroup {
                remove_cgroup(Path::new(CGROUPS), &namespace)?;
            }
            namespaces.delete(&namespace).await.absent_ok()
        };
        match done.await {
            Ok(_) => out::line(name)?,
            Err(error) => {
                code = 1;
                out::complain(error.ctx(format!("unable to delete {name}")));
            }
        }
    }
    Ok(code)
}

/// Removes the cgroup `/<namespace>` in the one hierarchy or in each of several.
fn remove_cgroup(root: &Path, namespace: &Namespace) -> Result<()> {
    let mut hierarchies = vec![PathBuf::from(root)];
    if !root.join("cgroup.controllers").exists() {
        let entries = std::fs::read_dir(root)
            .map_err(|e| Error::os(format_args!("read {}", root.display()), e))?;
        hierarchies.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for hierarchy in hierarchies {
        let dir = hierarchy.join(namespace.as_str());
        match std::fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::os(format_args!("remove {}", dir.display()), e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Labels;

    #[test]
    fn the_table_reads_as_in_go() {
        let namespace = |name: &str, labels| NamespaceInfo {
            name: name.parse().unwrap(),
            labels,
        };
        let made = table(&[
            namespace("a", Labels::new().with("z", "1").with("x", "y")),
            namespace("default", Labels::new()),
        ]);
        assert_eq!(
            made.render(),
            "NAME    LABELS  \na       x=y,z=1 \ndefault         \n"
        );
    }

    #[test]
    fn cgroups_go_in_every_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        let namespace: Namespace = "moby".parse().unwrap();
        for dir in ["cpu/moby", "memory/moby", "pids"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        remove_cgroup(root.path(), &namespace).unwrap();
        assert!(!root.path().join("cpu/moby").exists());
        assert!(!root.path().join("memory/moby").exists());
        assert!(root.path().join("pids").exists());
        std::fs::create_dir_all(root.path().join("cpu/moby/busy")).unwrap();
        remove_cgroup(root.path(), &namespace).unwrap_err();
    }
}
