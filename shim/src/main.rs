//! `containerd-shim-runc-v2`: one small process per container or pod that keeps it.
//!
//! It wraps the OCI runtime, outlives the daemon, reaps, owns the streams and tells the truth about
//! the end. Invariant: one thread; nothing is printed but the answer to the action asked for.
//!
//! ```text
//! main ─ flags ─┬─ boot (start: socket, fork) ──> serve ─ service ─ container ─ process ─ lifecycle
//!               ├─ cleanup (delete)                          │          │          │
//!               └─ info (-info, -v)                          reap       runc       stdio, console
//!                                                            publish               logger
//! ```

mod attach;
mod boot;
mod caught;
mod cleanup;
mod config;
mod console;
mod container;
mod criu;
mod exits;
mod flags;
mod info;
mod lifecycle;
mod log;
mod logger;
mod options;
mod process;
mod publish;
mod reap;
mod runc;
mod serve;
mod service;
mod stats;
mod stdio;
#[cfg(test)]
mod testing;
mod watch;
mod wire;

use std::io::Write as _;
use std::process::ExitCode;

use flags::{Action, Flags};

fn main() -> ExitCode {
    let result = Flags::parse(std::env::args_os().skip(1)).and_then(|flags| match flags.action {
        Action::Version => Ok(info::version().into_bytes()),
        Action::Info => info::info(),
        Action::Start => boot::start(&flags),
        Action::Delete => cleanup::delete(&flags),
        Action::Serve => boot::serve_inherited(&flags).map(|()| Vec::new()),
    });
    match result {
        Ok(answer) => {
            let mut out = std::io::stdout();
            // Nobody is left to be told when the answer cannot be written.
            drop(out.write_all(&answer).and_then(|()| out.flush()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Standard error is read as part of the answer by daemons: this is how they learn why.
            drop(writeln!(
                std::io::stderr(),
                "containerd-shim-runc-v2: {error}"
            ));
            ExitCode::FAILURE
        }
    }
}
