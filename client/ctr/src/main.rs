//! `ctr`: the command line for a daemon, with the words, flags and tables of Go's `ctr`.
//!
//! Invariant: a command's result is on stdout and nothing else is; a failure is one line
//! `ctr: <text>` on stderr and exit code 1. What `run` and `tasks exec` started gives its own code.
//!
//! ```text
//! arguments --> cli::Cli --> group::run(&Context, group::Args) -> Result<u8>
//!                                |                                   `-> exit code
//!                                `-> client::Client          out::{Table, json, line}
//! ```

mod attached;
mod changes;
mod checkpoint;
mod cli;
mod containers;
mod content;
mod context;
mod create;
mod devices;
mod du;
mod events;
mod export;
mod flags;
mod flights;
mod fsck;
mod image_care;
mod image_mounts;
mod images;
mod import;
mod info;
mod inspect;
mod leases;
mod namespaces;
mod network;
mod oci;
mod out;
mod plugins;
mod progress;
mod pull;
mod push;
mod registry;
mod run;
mod snapshots;
mod tag;
mod target;
mod tasks;
mod text;
mod unpack;
mod version;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match start(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) if out::is_closed(&error) => ExitCode::from(out::CLOSED),
        Err(error) => {
            out::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Help and version, or what is wrong with the arguments.
fn refuse(error: &clap::Error) -> ExitCode {
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if help {
        // A reader that is gone needs no help.
        drop(out::text(&error.to_string()));
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::MissingSubcommand
        && let Some(help) = cli::help_for(error)
    {
        drop(out::text(&help));
        return ExitCode::SUCCESS;
    }
    out::complain(cli::one_line(&error.to_string()));
    ExitCode::FAILURE
}

fn start(cli: Cli) -> types::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| types::Error::os("start the runtime", e))?;
    let code = runtime.block_on(cli.run());
    // A read of stdin that is still waiting must not hold up the exit.
    runtime.shutdown_background();
    code
}
