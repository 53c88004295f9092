//! `plugins`: the parts of the daemon and whether they work.

use std::collections::BTreeSet;

use client::Plugin;
use types::{Filter, Result};

use crate::context::Context;
use crate::out::{self, Pad, Table};

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the plugins.
    #[command(visible_alias = "ls")]
    List {
        /// Print only the ids.
        #[arg(short, long)]
        quiet: bool,
        /// Print detailed information about each plugin.
        #[arg(short, long)]
        detailed: bool,
        /// Only plugins that pass one of these filters.
        filters: Vec<String>,
    },
}

/// Runs a command of the group.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let Command::List {
        quiet,
        detailed,
        filters,
    } = args.command;
    let filter = Filter::parse(&filters)?;
    let all = ctx.client().await?.introspection().plugins(&filter).await?;
    if quiet {
        out::lines(all.iter().map(|plugin| &plugin.id))?;
    } else if detailed {
        details(&all).print()?;
    } else {
        table(&all).print()?;
    }
    Ok(0)
}

/// Platforms in order, each once; `None` when there are none.
fn platforms(plugin: &Plugin) -> Option<String> {
    let all: BTreeSet<_> = plugin.platforms.iter().map(ToString::to_string).collect();
    let all: Vec<_> = all.into_iter().collect();
    (!all.is_empty()).then(|| all.join(","))
}

fn table(plugins: &[Plugin]) -> Table {
    let mut table = Table::new(Pad::WIDE);
    table.row(["TYPE", "ID", "PLATFORMS", "STATUS", ""]);
    for plugin in plugins {
        let platforms = platforms(plugin).unwrap_or_else(|| "-".to_owned());
        table.row([&plugin.kind, &plugin.id, &platforms, plugin.status(), ""]);
    }
    table
}

fn details(plugins: &[Plugin]) -> Table {
    let mut table = Table::new(Pad::WIDE);
    for (at, plugin) in plugins.iter().enumerate() {
        if at > 0 {
            table.row([""; 4]);
        }
        // Go puts a space before every value.
        table.row(["Type:", &format!(" {}", plugin.kind)]);
        table.row(["ID:", &format!(" {}", plugin.id)]);
        if !plugin.requires.is_empty() {
            table.row(["Requires:", ""]);
            for kind in &plugin.requires {
                table.row(["", &format!(" {kind}")]);
            }
        }
        if let Some(platforms) = platforms(plugin) {
            table.row(["Platforms:", &format!(" {platforms}")]);
        }
        if !plugin.exports.is_empty() {
            table.row(["Exports:", ""]);
            for (name, value) in &plugin.exports {
                table.row(["", &format!(" {name} "), &format!(" {value}")]);
            }
        }
        if !plugin.capabilities.is_empty() {
            let all = plugin.capabilities.join(",");
            table.row(["Capabilities:", &format!(" {all}")]);
        }
        if let Some(fault) = &plugin.fault {
            table.row(["Error:", ""]);
            table.row(["", " Code:", &format!(" {}", fault.code)]);
            table.row(["", " Message:", &format!(" {}", fault.message)]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::PluginFault;
    use types::Platform;

    fn plugin(kind: &str, id: &str) -> Plugin {
        Plugin {
            kind: kind.into(),
            id: id.into(),
            requires: Vec::new(),
            platforms: Vec::new(),
            exports: vec![("root".into(), "/r".into())],
            capabilities: Vec::new(),
            fault: None,
        }
    }

    fn some() -> [Plugin; 2] {
        let mut second = plugin("io.containerd.snapshotter.v1", "btrfs");
        second.platforms = vec!["linux/amd64".parse::<Platform>().unwrap(); 2];
        second.capabilities = vec!["a".into(), "b".into()];
        second.fault = Some(PluginFault {
            code: "Unknown".into(),
            message: "no btrfs: skip plugin".into(),
        });
        [plugin("io.containerd.content.v1", "content"), second]
    }

    #[test]
    fn the_table_reads_as_in_go() {
        assert_eq!(
            table(&some()).render(),
            "TYPE                            ID         PLATFORMS      STATUS    \n\
             io.containerd.content.v1        content    -              ok        \n\
             io.containerd.snapshotter.v1    btrfs      linux/amd64    skip      \n"
        );
    }

    #[test]
    fn details_read_as_in_go() {
        assert_eq!(
            details(&some())
                .render()
                .lines()
                .map(str::trim_end)
                .collect::<Vec<_>>(),
            [
                "Type:             io.containerd.content.v1",
                "ID:               content",
                "Exports:",
                "                  root      /r",
                "",
                "Type:             io.containerd.snapshotter.v1",
                "ID:               btrfs",
                "Platforms:        linux/amd64",
                "Exports:",
                "                  root      /r",
                "Capabilities:     a,b",
                "Error:",
                "                  Code:        Unknown",
                "                  Message:     no btrfs: skip plugin",
            ]
        );
    }
}
