//! `network`: network namespaces and the interfaces in them.

mod attached;
pub(crate) mod container;
mod driver;
mod link;
mod spec;

use std::path::PathBuf;

use client::Client;
use serde_json::{Value, json};
use types::network::NetNamespace;
use types::{Context as _, Filter, Result};

use crate::context::Context;
use crate::out::{self, Pad, Table};
use crate::text;

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Manage network namespaces.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Netns {
        #[command(subcommand)]
        command: Netns,
    },
    /// Manage interfaces.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Link {
        #[command(subcommand)]
        command: link::Command,
    },
    /// List containers that are joined to networks by a driver.
    #[command(visible_alias = "list")]
    Ls(attached::Ls),
    /// See whether a driver can join containers, and what is in the way.
    Status(attached::Status),
    /// Have a CNI network forget every attachment but those that are known here. What others have attached to it is
    /// forgotten, too.
    Collect(attached::Collect),
    /// Join a container's network namespace to networks.
    Setup(Box<driver::Args>),
    /// See whether a container's networks are as they were made.
    Check(Box<driver::Args>),
    /// Part a container from its networks.
    Teardown(Box<driver::Args>),
}

#[derive(Debug, clap::Subcommand)]
enum Netns {
    /// Create a network namespace with its loopback up; prints its path.
    Create {
        /// Give the one at this path a name instead.
        #[arg(long)]
        adopt: Option<PathBuf>,
        /// Its labels, as `key=value`.
        #[arg(long)]
        label: Vec<String>,
        /// Its name.
        name: String,
    },
    /// List network namespaces.
    #[command(visible_alias = "list")]
    Ls {
        /// Print only the names.
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON.
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
        /// Only those that pass one of these filters.
        filters: Vec<String>,
    },
    /// Remove network namespaces that nobody uses.
    #[command(visible_aliases = ["del", "delete", "remove"])]
    Rm {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs a command of the group.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    match args.command {
        Command::Netns { command } => netns(&client, command).await?,
        Command::Link { command } => link::run(&client, command).await?,
        Command::Ls(args) => attached::ls(&client, args).await?,
        Command::Status(args) => attached::status(&client, args).await?,
        Command::Collect(args) => attached::collect(&client, args).await?,
        Command::Setup(args) => driver::run(&client, driver::Work::Setup, *args).await?,
        Command::Check(args) => driver::run(&client, driver::Work::Check, *args).await?,
        Command::Teardown(args) => driver::run(&client, driver::Work::Teardown, *args).await?,
    }
    Ok(0)
}

async fn netns(client: &Client, command: Netns) -> Result<()> {
    let networks = client.networks();
    match command {
        Netns::Create { adopt, label, name } => {
            let labels = text::labels_with(&label, "");
            let made = networks
                .create_namespace(&name, adopt.as_deref(), &labels)
                .await?;
            out::line(&made.path.display())
        }
        Netns::Ls {
            quiet,
            json,
            filters,
        } => {
            let all = networks.list_namespaces(&Filter::parse(&filters)?).await?;
            if quiet {
                out::lines(all.iter().map(|one| &one.name))
            } else if json {
                out::json(&all.iter().map(document).collect::<Vec<_>>())
            } else {
                table(&all).print()
            }
        }
        Netns::Rm { names } => {
            for name in names {
                let done = networks.delete_namespace(&name).await;
                done.ctx_with(|| format!("failed to remove network namespace {name:?}"))?;
                out::line(&name)?;
            }
            Ok(())
        }
    }
}

fn table(all: &[NetNamespace]) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row(["NAME", "PATH", "ADOPTED", "CREATED AT", "LABELS", ""]);
    for one in all {
        let adopted = one.adopted.display().to_string();
        table.row([
            one.name.as_str(),
            &one.path.display().to_string(),
            if adopted.is_empty() { "-" } else { &adopted },
            &text::rfc3339_seconds(one.created_at),
            &text::labels_or_dash(&one.labels),
            "",
        ]);
    }
    table
}

fn document(one: &NetNamespace) -> Value {
    json!({
        "name": one.name,
        "path": one.path.display().to_string(),
        "inode": one.inode,
        "adopted": one.adopted.display().to_string(),
        "labels": *one.labels,
        "createdAt": text::rfc3339(one.created_at),
        "updatedAt": text::rfc3339(one.updated_at),
    })
}
