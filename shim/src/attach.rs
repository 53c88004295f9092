//! The Stdio service: the descriptors of a process's stdio, handed to whoever asks. Ours; docs/attach.md
//! is for clients.
//!
//! Invariant: a client has a place at a stream exactly as long as its session lives, also when the
//! answer never reached it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use protos::EnumOrUnknown;
use protos::frame::Request;
use protos::shim::stdio as api;
use protos::well_known::Empty;
use types::{Error, Result};

use crate::service::{Shim, decode, message, run};
use crate::stdio::{Hub, Session, Tag};
use crate::wire::Reply;

/// The service's name.
pub(crate) const SERVICE: &str = "containerd.runtime.stdio.v1.Stdio";

/// Answers a call.
///
/// # Errors
/// `NotImplemented` for a method that is not here, else the method's own.
pub(crate) async fn dispatch(shim: &Arc<Shim>, request: &Request) -> Result<Reply> {
    let body = request.payload.as_slice();
    match request.method.as_str() {
        "Attach" => {
            let (shim, request) = (Arc::clone(shim), decode(body)?);
            run(async move { attach(&shim, &request).await }).await
        }
        "ReopenLogs" => {
            let request: api::ReopenLogsRequest = decode(body)?;
            let container = shim.container(&request.id)?;
            container.process(&request.exec_id)?.reopen_logs()?;
            message(&Empty::new())
        }
        other => Err(Error::not_implemented(format_args!("method {other}"))),
    }
}

async fn attach(shim: &Shim, request: &api::AttachRequest) -> Result<Reply> {
    let process = shim.container(&request.id)?.process(&request.exec_id)?;
    let (session, line) = Session::open()?;
    let outlets = process.outlets(request.stdin)?;
    process.attached(&session);
    let mut places = Places {
        session,
        hubs: Vec::new(),
    };
    let mut given = vec![(api::Stream::CONTROL, line)];
    if let Some(stdin) = outlets.stdin {
        given.push((api::Stream::STDIN, stdin));
    }
    for hub in outlets.outputs {
        let (wanted, stream) = match hub.tag() {
            Tag::Stdout => (request.stdout, api::Stream::STDOUT),
            Tag::Stderr => (request.stderr, api::Stream::STDERR),
        };
        if wanted {
            given.push((stream, places.take(hub).await?));
        }
    }
    if given.len() == 1 {
        return Err(Error::failed_precondition(
            "the process has no stdio to attach to",
        ));
    }
    drop(tokio::spawn(async move { places.session.follow().await }));
    let (streams, fds): (Vec<_>, Vec<OwnedFd>) = given.into_iter().unzip();
    let answer = api::AttachResponse {
        terminal: process.paths.terminal,
        streams: streams.into_iter().map(EnumOrUnknown::new).collect(),
        ..api::AttachResponse::default()
    };
    Ok(Reply {
        fds,
        ..message(&answer)?
    })
}

/// The places of one client. They are given back when this is dropped.
struct Places {
    session: Arc<Session>,
    hubs: Vec<Arc<Hub>>,
}

impl Places {
    async fn take(&mut self, hub: Arc<Hub>) -> Result<OwnedFd> {
        let end = hub.join(&self.session).await?;
        self.hubs.push(hub);
        Ok(end)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // Others may wait for this client to share what it never got.
        self.session.give_up();
        for hub in &self.hubs {
            hub.leave(&self.session);
        }
    }
}
