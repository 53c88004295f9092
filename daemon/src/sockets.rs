//! The sockets of the daemon: bound, or passed by a service manager or by the daemon before this one.
//!
//! Invariant: what was passed stays where and as it is. Held by [`crate::serve`] as long as the daemon is
//! one, however often it begins to serve. The debug socket is among them when it was passed; else
//! [`crate::debug`] binds it anew each time, since a daemon that hands over gives it up by itself.

use std::os::fd::BorrowedFd;
use std::path::Path;

use types::Result;

use crate::config::Config;
use crate::debug;
use crate::handover::Given;
use crate::listen::Socket;
use crate::passed::Passed;

/// What clients and shims connect to.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Of clients.
    pub(crate) grpc: Socket,
    /// Of shims.
    pub(crate) ttrpc: Socket,
    /// Of those who look into the daemon, when it was passed.
    pub(crate) debug: Option<Socket>,
}

impl Sockets {
    /// Takes what was passed, and binds the rest. The configuration then has the paths as they are:
    /// shims are told them.
    ///
    /// # Errors
    /// `Unavailable` while another daemon serves there; the errno.
    pub(crate) fn open(config: &mut Config, passed: &mut Passed) -> Result<Self> {
        let (uid, gid) = (config.grpc.uid, config.grpc.gid);
        let grpc = one("grpc", &config.grpc.address, (uid, gid), passed)?;
        config.grpc.address = grpc.path().display().to_string();
        let (uid, gid) = (config.ttrpc.uid, config.ttrpc.gid);
        let ttrpc = one("ttrpc", &config.ttrpc_address(), (uid, gid), passed)?;
        config.ttrpc.address = ttrpc.path().display().to_string();
        let debug = match config.enabled(debug::SERVER) {
            true => passed.take("debug", Path::new(&config.debug.address))?,
            false => None,
        };
        if let Some(debug) = &debug {
            config.debug.address = debug.path().display().to_string();
        }
        Ok(Self { grpc, ttrpc, debug })
    }

    /// All, with their names.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Socket)> {
        let debug = self.debug.as_ref().map(|socket| ("debug", socket));
        [("grpc", &self.grpc), ("ttrpc", &self.ttrpc)]
            .into_iter()
            .chain(debug)
    }

    /// What a successor is told of them.
    pub(crate) fn given(&self) -> Vec<Given> {
        let given = |(name, socket): (&str, &Socket)| Given {
            name: name.to_owned(),
            owned: socket.is_owned(),
        };
        self.named().map(given).collect()
    }

    /// Their descriptors, in the same order.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.named().map(|(_, socket)| socket.fd())
    }

    /// Says which of them the configuration wants elsewhere or for others: what was handed over stays as
    /// it is.
    pub(crate) fn tell_changes(&self, said: &Config) {
        let (grpc, ttrpc, debug) = (&said.grpc, &said.ttrpc, &said.debug);
        let mut wanted = vec![
            (grpc.address.clone(), (grpc.uid, grpc.gid)),
            (said.ttrpc_address(), (ttrpc.uid, ttrpc.gid)),
        ];
        // One that was passed under its name need not be in the configuration.
        if !debug.address.is_empty() {
            wanted.push((debug.address.clone(), (debug.uid, debug.gid)));
        }
        for ((name, socket), (address, owner)) in self.named().zip(wanted) {
            let at = socket.path().display();
            if socket.path() != Path::new(&address) {
                tracing::warn!(socket = name, %at, address, "another address needs a restart");
            } else if let Some(is) = socket.owner().filter(|is| *is != owner) {
                let (is, wanted) = (format!("{is:?}"), format!("{owner:?}"));
                tracing::warn!(socket = name, %at, is, wanted, "another owner needs a restart");
            }
        }
    }

    /// Leaves them to whoever they were passed to.
    pub(crate) fn leave(self) {
        self.grpc.leave();
        self.ttrpc.leave();
        if let Some(debug) = self.debug {
            debug.leave();
        }
    }
}

fn one(name: &str, path: &str, owner: (u32, u32), passed: &mut Passed) -> Result<Socket> {
    match passed.take(name, Path::new(path))? {
        Some(socket) => Ok(socket),
        None => Socket::bind(Path::new(path), owner.0, owner.1),
    }
}
