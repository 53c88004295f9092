//! `fsck`: asks the daemon to check its records and files.

use types::{CheckOpts, Result};

use crate::context::Context;
use crate::out;

/// Exit codes, as of fsck(8).
const CORRECTED: u8 = 1;
const LEFT: u8 = 4;

/// Arguments of `fsck`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Repair what can be repaired.
    #[arg(long)]
    repair: bool,
    /// Read no blobs: compare lengths only.
    #[arg(long)]
    quick: bool,
}

/// Prints what is wrong, a line each, and the sum.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let opts = CheckOpts {
        repair: args.repair,
        quick: args.quick,
        since: None,
    };
    let report = ctx.client().await?.introspection().check(&opts).await?;
    for finding in &report.findings {
        out::line(finding)?;
    }
    out::line(&report)?;
    Ok(if report.is_faulty() {
        LEFT
    } else if report.is_clean() {
        0
    } else {
        CORRECTED
    })
}
