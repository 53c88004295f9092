//! The daemon: configuration, assembly, services.
//!
//! Invariant: everything is put together once, from the ground up (`ground` → `store` → `engine` →
//! `face`), each floor from the one below it; a service holds handles and no state of its own.

mod activations;
mod checkpoints;
mod cli;
mod config;
mod debug;
mod drivers;
mod engine;
mod face;
mod failure;
mod flights;
mod fsck;
mod ground;
mod handover;
mod identity;
mod listen;
mod lock;
mod log;
mod memory;
mod metrics;
mod networks;
mod notify;
mod passed;
mod point;
mod publish;
mod reload;
mod restart;
mod serve;
mod services;
mod signals;
mod sockets;
mod store;
mod streams;
mod traces;
mod transfers;
mod ttrpc_server;
mod unclean;
mod version;
mod web;

use std::io::{self, Write as _};
use std::process::ExitCode;

use types::{CheckOpts, Error, Result};

use crate::cli::{Cli, Command, ConfigCommand};
use crate::config::Config;
use crate::failure::Failure;
use crate::handover::Heir;
use crate::reload::Source;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(told) => {
            // Help and version are such "errors", too.
            let printed = told.print();
            return match (told.use_stderr(), printed) {
                (false, Ok(())) => ExitCode::SUCCESS,
                _ => ExitCode::from(failure::USAGE),
            };
        }
    };
    let mut heir = None;
    match run(&cli, &mut heir) {
        Ok(code) => ExitCode::from(code),
        Err(Failure { error, code }) => {
            // A standard error that is closed leaves nobody to tell.
            let _told = writeln!(io::stderr(), "containerd: {error}");
            if let Some(heir) = &heir {
                heir.fail(&error);
            }
            match &cli.command {
                Some(Command::Fsck(_)) => ExitCode::from(fsck::FAILED),
                _ => ExitCode::from(code),
            }
        }
    }
}

fn run(cli: &Cli, heir: &mut Option<Heir>) -> Result<u8, Failure> {
    if cli.command.is_none() {
        *heir = Heir::take()?;
    }
    if let Some(Command::Config(ConfigCommand::Default)) = &cli.command {
        print(&Config::starter().to_toml()?)?;
        return Ok(0);
    }
    if let Some(Command::Config(ConfigCommand::Migrate)) = &cli.command {
        let (text, warnings) = config::migrated(cli.config.as_deref()).map_err(Failure::config)?;
        log::start(&config::Debug::default());
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        print(&text)?;
        return Ok(0);
    }
    let loaded = config::load(cli.config.as_deref(), cli.overrides()).map_err(Failure::config)?;
    let mut logging = loaded.config.debug.clone();
    if matches!(&cli.command, Some(Command::Fsck(how)) if !how.repair) {
        // What it makes of copies is no news: the findings tell.
        logging.level = config::Level::Error;
    }
    log::start(&logging);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match &cli.command {
        Some(Command::Config(_)) => print(&loaded.config.to_toml()?)?,
        Some(Command::Fsck(how)) => {
            let opts = CheckOpts {
                repair: how.repair,
                quick: how.quick,
                since: None,
            };
            return Ok(fsck::run(&loaded.config, opts, print)?);
        }
        Some(Command::Publish { namespace, topic }) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Error::os("start runtime", e))?;
            let address = &loaded.config.grpc.address;
            let event = publish::publish(address, namespace, topic.clone(), io::stdin());
            runtime.block_on(event)?;
        }
        None => {
            let file = cli.config.clone();
            let source = Source {
                file,
                flags: cli.overrides(),
                said: loaded.config.clone(),
                was_blank: loaded.is_blank,
                asked: false,
            };
            serve::run(loaded.config, source, heir)?;
        }
    }
    Ok(0)
}

fn print(text: &str) -> Result<()> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Error::os("write standard output", e))
}
