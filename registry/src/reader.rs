//! Reading a blob: exactly as many bytes as its descriptor says, over as many connections and hosts as
//! needed.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use recorder::On;
use tokio::time::Instant;
use types::{Code, Digest, Error, Result};

use crate::blame::{Blame, blame};
use crate::budget::within;
use crate::call::{Call, Tries};
use crate::host::Host;
use crate::http::next;
use crate::race::{self, Failure};
use crate::repository::Shared;
use crate::silence::Silences;

/// A blob, or a part of one, as it comes in. The digest is not checked here: the content store does
/// that.
#[derive(Debug)]
pub struct BlobReader {
    shared: Arc<Shared>,
    digest: Digest,
    /// `call.from` is where the next byte comes from.
    call: Call,
    /// Length of the blob.
    size: u64,
    /// Where reading ends.
    end: u64,
    open: Option<Open>,
    /// Who sent bytes last.
    host: Option<Arc<Host>>,
    /// Others could have given them.
    alternatives: bool,
    tries: Tries,
    silences: Silences,
    /// What hosts have failed of since there was progress, the last of each.
    failures: Vec<(Arc<Host>, String)>,
    /// Nothing is tried again, and an answer without the range is none.
    is_piece: bool,
    window: Window,
    /// How far any connection has come in the blob, also in bytes that were passed over.
    reached: u64,
}

/// What has come since when, to notice a server that only trickles.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// All bytes.
    seen: u64,
    /// Those of them that are further in the blob than any before.
    gained: u64,
}

impl Window {
    fn now() -> Self {
        Self {
            since: Instant::now(),
            seen: 0,
            gained: 0,
        }
    }
}

/// Who sent bytes.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) host: Arc<Host>,
    /// Others could have given them.
    pub(crate) alternatives: bool,
}

/// A connection that gives the blob.
#[derive(Debug)]
struct Open {
    body: Incoming,
    host: Arc<Host>,
    /// Bytes to pass over: the server did not honour the range.
    skip: u64,
    /// Other hosts could give it, too.
    alternatives: bool,
    /// As long as bytes may come.
    _coming: recorder::Stage,
}

impl BlobReader {
    /// Reads `call` from where it says up to `end`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        digest: Digest,
        call: Call,
        size: u64,
        end: u64,
    ) -> Self {
        let tries = Tries::new(shared.budget.as_ref());
        Self {
            shared,
            digest,
            call,
            size,
            end,
            open: None,
            host: None,
            alternatives: false,
            tries,
            silences: Silences::new(),
            failures: Vec::new(),
            is_piece: false,
            window: Window::now(),
            reached: 0,
        }
    }

    /// Without a second try, and only from who gives ranges.
    pub(crate) fn once(self) -> Self {
        Self {
            is_piece: true,
            ..self
        }
    }

    /// Who sent the last bytes.
    pub(crate) fn source(&self) -> Option<Source> {
        self.host.as_ref().map(|host| Source {
            host: Arc::clone(host),
            alternatives: self.alternatives,
        })
    }

    /// Position of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.call.from
    }

    /// Who sent the last bytes, `https://example.test/v2`; empty before the first.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.as_ref().map_or("", |host| host.root())
    }

    /// What was read is not what the digest says: other hosts are asked first from now on. Whether
    /// there are any.
    #[must_use = "without another host a new try gives the same"]
    pub fn distrust(&self) -> bool {
        if let Some(host) = &self.host {
            self.shared.health.failed(host.origin());
        }
        self.alternatives
    }

    /// The next bytes; `None` at the end. A connection that breaks is resumed from where it broke.
    /// Cancel safe: bytes are counted when they are returned.
    ///
    /// # Errors
    /// As [`crate::Repository::resolve`]; `FailedPrecondition` when the registry has more or fewer
    /// bytes than the descriptor says.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let shared = Arc::clone(&self.shared);
        let read = within(shared.budget.as_ref(), self.resumed()).await;
        read.map_err(|error| self.named(error))
    }

    async fn resumed(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.call.from == self.end {
                self.open = None;
                return Ok(None);
            }
            match self.read().await {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.call.from += data.len() as u64;
                    return Ok(Some(data));
                }
                Err((error, _)) if self.is_piece => return Err(error),
                Err((error, wish)) => {
                    let error = match self.open.take() {
                        Some(open) => self.failed(open, error),
                        None => error,
                    };
                    let limits = &self.shared.limits;
                    if self.silences.take_new() && self.alternatives {
                        self.tries.after_silence(limits, error).await?;
                    } else {
                        self.tries.again(limits, error, wish).await?;
                    }
                }
            }
        }
    }

    /// Bytes at `call.from`; empty when some were passed over.
    async fn read(&mut self) -> Result<Bytes, Failure> {
        let limits = self.shared.limits;
        if self.open.is_none() {
            let open = self.connect().await?;
            self.host = Some(Arc::clone(&open.host));
            self.alternatives = open.alternatives;
            self.window = Window::now();
            self.open = Some(open);
        }
        let Some(open) = &mut self.open else {
            return Err((Error::internal("no connection"), None));
        };
        let deadline = if open.alternatives {
            let left = self.tries.left(&limits);
            self.silences.allowed(&open.host, &limits, left)
        } else {
            limits.read
        };
        let asked = Instant::now();
        let came = next(&mut open.body, deadline).await;
        let waited = asked.elapsed();
        match &came {
            Ok(_) => self.silences.heard(waited, &limits),
            Err(_) if waited >= deadline => self.silences.note(&open.host),
            Err(_) => {}
        }
        let Some(mut data) = came.map_err(forever)? else {
            let at = self.call.from;
            let text = format!(
                "connection ended at byte {at} of {}: unexpected EOF",
                self.end
            );
            return Err(forever(Error::unavailable(text)));
        };
        let passed = usize::try_from(open.skip).map_or(data.len(), |skip| skip.min(data.len()));
        data.advance(passed);
        open.skip -= passed as u64;
        let left = self.end - self.call.from;
        if data.len() as u64 > left {
            if self.end == self.size {
                return Err(forever(self.longer()));
            }
            // A server that does not know ranges goes on where we stop.
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let came = (passed + data.len()) as u64;
        let at = self.call.from - open.skip + data.len() as u64;
        let gained = at.saturating_sub(self.reached).min(came);
        self.reached = self.reached.max(at);
        self.progress(came, gained, deadline).map_err(forever)?;
        if let Some(budget) = self.shared.budget.as_ref().filter(|_| gained > 0) {
            budget.gained(gained);
        }
        Ok(data)
    }

    async fn connect(&mut self) -> Result<Open, Failure> {
        let shared = Arc::clone(&self.shared);
        let hosts = shared.able(|c| c.pull).await.map_err(forever)?;
        let (this, failed) = (&*self, Mutex::new(Vec::new()));
        let note = |host: &Arc<Host>, failure: Failure| {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.push((Arc::clone(host), failure.0.to_string()));
            failure
        };
        let note = &note;
        let mut tries = self.tries.clone();
        let asked = race::first(
            &hosts,
            &shared.health,
            shared.limits.hedge,
            &mut tries,
            |host| async move {
                let answer = this.call.once(&host).await;
                let answer = answer.map_err(|failure| note(&host, failure))?;
                let skip = this
                    .vet(&answer)
                    .map_err(|error| note(&host, forever(error.ctx(host.root().to_owned()))))?;
                Ok((answer.into_body(), skip))
            },
        );
        let asked = asked.await;
        self.tries = tries;
        let failed = failed.into_inner();
        for (host, said) in failed.unwrap_or_else(PoisonError::into_inner) {
            self.note(host, said);
        }
        let (host, (body, skip)) = asked?;
        let digest = self.digest.as_str();
        let named = || On::named(format!("{} of {digest}", host.root()));
        Ok(Open {
            _coming: recorder::stage("bytes of registry", named),
            body,
            host,
            skip,
            alternatives: hosts.len() > 1,
        })
    }

    /// How many bytes of the answer come before those that were asked for.
    fn vet(&self, answer: &Response<Incoming>) -> Result<u64> {
        let header = |name| answer.headers().get(name).and_then(|v| v.to_str().ok());
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            // `bytes first-last/total`
            let range = header(CONTENT_RANGE).and_then(|r| r.strip_prefix("bytes "));
            let first = range.and_then(|r| r.split('-').next()?.trim().parse().ok());
            if first != Some(self.call.from) {
                return Err(Error::failed_precondition(
                    "registry answers with another range",
                ));
            }
            return Ok(0);
        }
        if self.is_piece {
            return Err(Error::not_implemented("registry gives no ranges"));
        }
        let length: Option<u64> = header(CONTENT_LENGTH).and_then(|l| l.parse().ok());
        match length {
            Some(length) if length != self.size => Err(Error::failed_precondition(format_args!(
                "registry has {length} bytes for a blob of {}",
                self.size
            ))),
            _ => Ok(self.call.from),
        }
    }

    fn longer(&self) -> Error {
        Error::failed_precondition(format_args!(
            "registry sends more than the {} bytes of the blob",
            self.size
        ))
    }

    /// Counts bytes: too few in their time are a failure; enough that are further than any before forgive
    /// the failures before. A server that begins anew with each connection and always ends at the same
    /// place makes no progress.
    fn progress(&mut self, came: u64, gained: u64, window: std::time::Duration) -> Result<()> {
        let least = self.shared.limits.least(window);
        self.window.seen += came;
        self.window.gained += gained;
        if self.window.gained >= least {
            self.tries.renew();
            self.failures.clear();
        }
        if self.window.since.elapsed() >= window {
            let seen = self.window.seen;
            if seen < least {
                if let Some(open) = &self.open {
                    self.silences.note(&open.host);
                }
                return Err(Error::unavailable(format_args!(
                    "registry only trickles data: {seen} bytes in {window:?}"
                )));
            }
            self.window = Window::now();
        }
        Ok(())
    }

    /// Notes that a host has failed that sent bytes, and says so.
    fn failed(&mut self, open: Open, error: Error) -> Error {
        let host = open.host;
        if open.alternatives {
            self.shared.health.failed(host.origin());
        }
        let error = match error.to_string().contains(host.root()) {
            true => error,
            false => error.ctx(host.root().to_owned()),
        };
        self.note(host, error.to_string());
        error
    }

    fn note(&mut self, host: Arc<Host>, said: String) {
        self.failures.retain(|known| !Arc::ptr_eq(&known.0, &host));
        self.failures.push((host, said));
    }

    /// Says which blob from where, as far as the error does not.
    fn named(&self, error: Error) -> Error {
        let failures = self.failures.iter().map(|(host, said)| Blame {
            host: host.root(),
            said: said.clone(),
        });
        let error = blame(error, failures);
        let said = error.to_string();
        let error = match self.host() {
            host if host.is_empty() || said.contains(host) || error.is(Code::Internal) => error,
            host => error.ctx(host.to_owned()),
        };
        error.ctx(format!("read {} at byte {}", self.digest, self.call.from))
    }
}

fn forever(error: Error) -> Failure {
    (error, None)
}
