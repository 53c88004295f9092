//! `oci`: the spec that a container gets by default.

use client::spec::Spec;
use types::{Error, Platform, Result};

use crate::context::Context;
use crate::out;

/// Arguments of the group.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// See the output of the default OCI spec.
    Spec {
        /// Platform of the spec to print, as `linux/arm64`.
        #[arg(long)]
        platform: Option<String>,
    },
}

/// Prints the spec; needs no daemon.
#[expect(clippy::unused_async, reason = "all groups are called alike")]
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let Command::Spec { platform } = args.command;
    if let Some(text) = platform {
        let platform: Platform = text.parse()?;
        if platform.os != "linux" {
            return Err(Error::not_implemented(format_args!(
                "failed to generate spec: platform {text:?}"
            )));
        }
    }
    out::json(Spec::template(&ctx.namespace).value())?;
    Ok(0)
}
