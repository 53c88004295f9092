//! `version`: of this program and of the daemon.

use types::Result;

use crate::context::Context;
use crate::out;

/// Version of this program.
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// Revision of the sources, when the build knew it.
const REVISION: &str = match option_env!("CONTAINERD_REVISION") {
    Some(revision) => revision,
    None => "",
};
/// What `--version` prints after the program's name: package, version.
pub(crate) const LINE: &str = concat!("containerd v", env!("CARGO_PKG_VERSION"));

/// Arguments: none.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Prints both versions, this program's even when there is no daemon.
pub(crate) async fn run(ctx: &Context, _: Args) -> Result<u8> {
    out::text(&block("Client", VERSION, REVISION))?;
    out::line("")?;
    let introspection = ctx.client().await?.introspection();
    let version = introspection.version().await?;
    let server = introspection.server().await?;
    out::text(&block("Server", &version.version, &version.revision))?;
    out::line(&format_args!("  UUID: {}", server.uuid))?;
    if version.version != VERSION {
        out::note("WARNING: version mismatch");
    }
    if version.revision != REVISION {
        out::note("WARNING: revision mismatch");
    }
    Ok(0)
}

fn block(who: &str, version: &str, revision: &str) -> String {
    format!("{who}:\n  Version:  {version}\n  Revision: {revision}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_in_go() {
        assert_eq!(
            block("Server", "1.6.20", "abc"),
            "Server:\n  Version:  1.6.20\n  Revision: abc\n"
        );
    }
}
