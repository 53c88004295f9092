//! The command line: flags of the daemon, `config`, `publish` and `fsck`.
//!
//! Go's flag parser takes long flags with one dash as well; scripts use both.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{Level, Overrides};
use crate::{failure, version};

/// What `containerd` was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "containerd",
    about = "container runtime daemon",
    version = version::LINE,
    after_help = failure::HELP,
    disable_version_flag = true
)]
pub(crate) struct Cli {
    /// Configuration file [default: /etc/containerd/config.toml]
    #[arg(short, long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Path of the gRPC socket
    #[arg(short, long, value_name = "PATH", global = true)]
    pub(crate) address: Option<String>,
    /// Directory for what survives a reboot
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) root: Option<PathBuf>,
    /// Directory for what does not
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    /// Least level that is logged
    #[arg(short, long, value_name = "LEVEL", value_enum, global = true)]
    pub(crate) log_level: Option<Level>,
    /// Print the version
    #[arg(short, long, action = ArgAction::Version)]
    version: Option<bool>,
    /// What to do instead of serving
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Information on the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Publish an event that is read from standard input as a protobuf Any
    Publish {
        /// Namespace of the event
        #[arg(long, default_value = "")]
        namespace: String,
        /// Topic of the event
        #[arg(long)]
        topic: String,
    },
    /// Check the records and files of a daemon that is stopped; its codes are those of fsck(8): 0
    /// nothing is wrong, 1 all was repaired, 4 something is wrong still, 8 nothing could be checked
    Fsck(Fsck),
}

/// How to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct Fsck {
    /// Repair what can be repaired
    #[arg(long)]
    pub(crate) repair: bool,
    /// Read no blobs: compare lengths only
    #[arg(long)]
    pub(crate) quick: bool,
}

/// What to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// The defaults
    Default,
    /// What the file, its imports and the flags make of them
    Dump,
    /// The file alone, in the layout of the newest version that other daemons read, too
    Migrate,
}

impl Cli {
    /// Reads the arguments of the process; prints help and errors itself.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        Self::try_parse_from(std::env::args_os().map(two_dashes))
    }

    /// The values that win over the file.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            address: self.address.clone(),
            root: self.root.clone(),
            state: self.state.clone(),
            level: self.log_level,
        }
    }
}

/// Gives a long flag with one dash its second one.
fn two_dashes(arg: OsString) -> OsString {
    const LONG: [&str; 10] = [
        "config",
        "address",
        "root",
        "state",
        "log-level",
        "version",
        "namespace",
        "topic",
        "repair",
        "quick",
    ];
    let Some(name) = arg.to_str().and_then(|text| text.strip_prefix('-')) else {
        return arg;
    };
    let bare = name.split('=').next().unwrap_or(name);
    if LONG.contains(&bare) {
        format!("--{name}").into()
    } else {
        arg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = ["containerd"]
            .iter()
            .chain(args)
            .map(|a| two_dashes(a.into()));
        Cli::try_parse_from(args)
    }

    #[test]
    fn the_flags_of_dockerd_and_of_scripts_parse() {
        let cli = parse(&["--config", "/c.toml", "--log-level", "debug"]).unwrap();
        assert_eq!(cli.config, Some("/c.toml".into()));
        assert_eq!(cli.log_level, Some(Level::Debug));
        let cli = parse(&[
            "-c",
            "/c",
            "-a=/sock",
            "-root",
            "/r",
            "-state=/s",
            "-l",
            "warn",
        ])
        .unwrap();
        let flags = cli.overrides();
        assert_eq!(
            (flags.root, flags.state),
            (Some("/r".into()), Some("/s".into()))
        );
        assert_eq!(
            (flags.address, flags.level),
            (Some("/sock".into()), Some(Level::Warn))
        );
    }

    #[test]
    fn subcommands_take_the_global_flags_on_either_side() {
        let cli = parse(&["-c", "/c", "config", "dump"]).unwrap();
        assert!(matches!(
            cli.command,
            Some(Command::Config(ConfigCommand::Dump))
        ));
        let cli = parse(&[
            "--address",
            "/a",
            "publish",
            "--topic",
            "/t",
            "--namespace",
            "n",
        ]);
        let Command::Publish { namespace, topic } = cli.unwrap().command.unwrap() else {
            panic!("not publish");
        };
        assert_eq!((namespace.as_str(), topic.as_str()), ("n", "/t"));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for bad in [
            &["--log-level", "loud"][..],
            &["serve"],
            &["--rooty", "/x"],
            &["config"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
