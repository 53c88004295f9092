//! The arguments before the group's name, and which group they lead to.

use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
use types::{Error, Result};

use crate::context::Context;
use crate::{
    containers, content, du, events, flights, fsck, images, info, leases, namespaces, network, oci,
    out, plugins, run, snapshots, tasks, text, version,
};

/// Where a daemon listens unless told otherwise.
const ADDRESS: &str = "/run/containerd/containerd.sock";
/// How long to wait for the daemon to answer the first time, as Go's client.
const CONNECT: Duration = Duration::from_secs(10);

/// Command line of containerd.
#[derive(Debug, Parser)]
#[command(
    name = "ctr",
    version = version::LINE,
    disable_version_flag = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Print the version.
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Enable debug output in logs.
    #[arg(long)]
    debug: bool,
    /// Address of containerd's gRPC server.
    #[arg(short, long, env = "CONTAINERD_ADDRESS", default_value = ADDRESS)]
    address: String,
    /// Total timeout for the command.
    #[arg(long, value_parser = text::duration, default_value = "0s", hide_default_value = true)]
    timeout: Duration,
    /// Timeout for connecting to containerd.
    #[arg(long, value_parser = text::duration, default_value = "0s", hide_default_value = true)]
    connect_timeout: Duration,
    /// Namespace to use with commands.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    group: Option<Group>,
}

#[derive(Debug, Subcommand)]
enum Group {
    /// Provide information about containerd's plugins.
    #[command(visible_alias = "plugin")]
    Plugins(plugins::Args),
    /// Print the client and server versions.
    Version(version::Args),
    /// Manage containers.
    #[command(visible_aliases = ["c", "container"])]
    Containers(containers::Args),
    /// Manage content.
    Content(content::Args),
    /// Display containerd events.
    #[command(visible_alias = "event")]
    Events(events::Args),
    /// Manage images.
    #[command(visible_aliases = ["image", "i"])]
    Images(images::Args),
    /// Manage leases.
    #[command(alias = "lease")]
    Leases(leases::Args),
    /// Manage namespaces.
    #[command(visible_aliases = ["namespace", "ns"])]
    Namespaces(namespaces::Args),
    /// Manage network namespaces and the interfaces in them.
    #[command(visible_aliases = ["net", "networks"])]
    Network(network::Args),
    /// Run a container.
    Run(Box<run::Args>),
    /// Manage snapshots.
    #[command(visible_alias = "snapshot")]
    Snapshots(snapshots::Args),
    /// Manage tasks.
    #[command(visible_aliases = ["t", "task"])]
    Tasks(tasks::Args),
    /// OCI tools.
    Oci(oci::Args),
    /// Print the server info.
    Info(info::Args),
    /// Show what the daemon is doing and what it waits for.
    Inflight(flights::Args),
    /// Say what a container or an image waits for, and what took long before.
    Why(flights::Why),
    /// Have the daemon check its records and files.
    Fsck(fsck::Args),
    /// Show what the namespace takes on the disk, or what keeps a part of it.
    Du(du::Args),
}

impl Cli {
    /// Runs the command; the value is the exit code.
    pub(crate) async fn run(self) -> Result<u8> {
        let Some(group) = self.group else {
            out::text(&Self::command().render_help().to_string())?;
            return Ok(0);
        };
        log(self.debug);
        let ctx = Context {
            address: self.address,
            namespace: self.namespace.parse()?,
            connect: Some(self.connect_timeout)
                .filter(|limit| !limit.is_zero())
                .unwrap_or(CONNECT),
        };
        let work = Box::pin(group.run(&ctx));
        if self.timeout.is_zero() {
            return work.await;
        }
        let late = |_| Err(Error::deadline_exceeded(""));
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(late)
    }
}

impl Group {
    async fn run(self, ctx: &Context) -> Result<u8> {
        match self {
            Self::Plugins(args) => plugins::run(ctx, args).await,
            Self::Version(args) => version::run(ctx, args).await,
            Self::Containers(args) => containers::run(ctx, args).await,
            Self::Content(args) => content::run(ctx, args).await,
            Self::Events(args) => events::run(ctx, args).await,
            Self::Images(args) => Box::pin(images::run(ctx, args)).await,
            Self::Leases(args) => leases::run(ctx, args).await,
            Self::Namespaces(args) => namespaces::run(ctx, args).await,
            Self::Network(args) => network::run(ctx, args).await,
            Self::Run(args) => run::run(ctx, *args).await,
            Self::Snapshots(args) => snapshots::run(ctx, args).await,
            Self::Tasks(args) => tasks::run(ctx, args).await,
            Self::Oci(args) => oci::run(ctx, args).await,
            Self::Info(args) => info::run(ctx, args).await,
            Self::Inflight(args) => flights::run(ctx, args).await,
            Self::Why(args) => flights::why(ctx, args).await,
            Self::Fsck(args) => fsck::run(ctx, args).await,
            Self::Du(args) => du::run(ctx, args).await,
        }
    }
}

/// The log goes to stderr: warnings, or everything with `--debug`.
fn log(debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    let made = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
    drop(made);
}

/// The help of a group that was called without a command.
pub(crate) fn help_for(error: &clap::Error) -> Option<String> {
    let ContextValue::String(path) = error.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    let mut root = Cli::command();
    root.build();
    let mut group = &mut root;
    for name in path.split(' ').skip(1) {
        group = group.find_subcommand_mut(name)?;
    }
    Some(group.render_help().to_string())
}

/// clap's message without the usage that follows it.
pub(crate) fn one_line(message: &str) -> String {
    let head = message.split("\n\n").next().unwrap_or_default();
    let head = head.strip_prefix("error: ").unwrap_or(head);
    head.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn go_s_names_and_aliases_are_known() {
        for line in [
            "ctr version",
            "ctr -a /x -n moby plugins ls",
            "ctr --address /x --namespace=moby plugin list -d type==x",
            "ctr ns ls -q",
            "ctr namespace rm -c a b",
            "ctr namespaces c other a=b",
            "ctr namespaces label other a=",
            "ctr leases rm --sync a b",
            "ctr run --net bridge:br0 --ip 10.0.0.2/24,gateway=10.0.0.9 -p 127.0.0.1:80:80/udp img id sh",
            "ctr containers create --net cni:a,b --port [::]:80:80 img id",
            "ctr leases create --id x -x 1h30m a=b",
            "ctr content del sha256:0",
            "ctr content ingest --expected-size 3 --expected-digest sha256:0 key",
            "ctr snapshot --snapshotter native ls",
            "ctr snapshots tree",
            "ctr snapshots unpack sha256:0",
            "ctr snapshots diff --keep --ref x a b",
            "ctr snapshots prepare --target /x --mounts key parent",
            "ctr event topic==x",
            "ctr network netns create --adopt /x --label a=b n",
            "ctr net netns ls --json name==n",
            "ctr network link create --netns n --kind veth --peer p --peer-netns host --up --address 10.0.0.2/24 eth0",
            "ctr network link set --netns n --to-netns host --rename x --down --no-bridge eth0",
            "ctr network link rm --netns n a b",
            "ctr network ls --check --json driver==bridge",
            "ctr network status cni",
            "ctr oci spec --platform linux/arm64",
            "ctr du --why sha256:0 --snapshotter native",
            "ctr du -b",
            "ctr --debug --timeout 1m --connect-timeout 5s info",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn a_group_without_a_command_gets_its_help() {
        let error = Cli::try_parse_from(["ctr", "snapshots", "--snapshotter", "x"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::MissingSubcommand);
        let help = help_for(&error).unwrap();
        assert!(help.contains("Usage: ctr snapshots"), "{help}");
    }

    #[test]
    fn wrong_arguments_are_told_in_one_line() {
        for (line, told) in [
            ("ctr --nope", "unexpected argument '--nope' found"),
            ("ctr frobnicate", "unrecognized subcommand 'frobnicate'"),
            (
                "ctr snapshots info",
                "the following required arguments were not provided: <KEY>",
            ),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(one_line(&error.to_string()), told);
        }
    }
}
