//! Reading a blob: exactly as many bytes as its descriptor says, over as many connections as needed.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use hyper::body::Incoming;
use tokio::time::Instant;
use types::{Error, Result};

use crate::call::{Call, Tries};
use crate::http::next;
use crate::repository::Shared;

/// A blob as it comes in. The digest is not checked here: the content store does that.
#[derive(Debug)]
pub struct BlobReader {
    shared: Arc<Shared>,
    /// `call.from` is where the next byte comes from.
    call: Call,
    size: u64,
    body: Option<Incoming>,
    /// Bytes to pass over: the server did not honour the range.
    skip: u64,
    tries: Tries,
    /// Bytes since when, to notice a server that only trickles.
    window: (Instant, u64),
}

impl BlobReader {
    pub(crate) fn new(shared: Arc<Shared>, call: Call, size: u64) -> Self {
        Self {
            shared,
            call,
            size,
            body: None,
            skip: 0,
            tries: Tries::new(),
            window: (Instant::now(), 0),
        }
    }

    /// Position of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.call.from
    }

    /// The next bytes; `None` at the end. A connection that breaks is resumed from where it broke.
    ///
    /// # Errors
    /// As [`crate::Repository::resolve`]; `FailedPrecondition` when the registry has more or fewer
    /// bytes than the descriptor says.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.call.from == self.size {
                self.body = None;
                return Ok(None);
            }
            match self.read().await {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.call.from += data.len() as u64;
                    return Ok(Some(data));
                }
                Err(error) => {
                    self.body = None;
                    let limits = self.shared.host.http.limits();
                    self.tries.again(limits, error, None).await?;
                }
            }
        }
    }

    /// Bytes at `call.from`; empty when some were passed over.
    async fn read(&mut self) -> Result<Bytes> {
        let deadline = self.shared.host.http.limits().read;
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.connect().await?,
        };
        let Some(mut data) = next(&mut body, deadline).await? else {
            return Err(Error::unavailable(format_args!(
                "connection ended at byte {} of {}: unexpected EOF",
                self.call.from, self.size
            )));
        };
        let passed = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
        data.advance(passed);
        self.skip -= passed as u64;
        if data.len() as u64 > self.size - self.call.from {
            return Err(self.longer());
        }
        self.progress((passed + data.len()) as u64)?;
        self.body = Some(body);
        Ok(data)
    }

    async fn connect(&mut self) -> Result<Incoming> {
        let shared = Arc::clone(&self.shared);
        let answer = self.call.run(&shared.host, &mut self.tries).await?;
        self.window = (Instant::now(), 0);
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
            self.skip = 0;
        } else {
            self.skip = self.call.from;
            let length: Option<u64> = header(CONTENT_LENGTH).and_then(|l| l.parse().ok());
            if length.is_some_and(|length| length != self.size) {
                return Err(Error::failed_precondition(format_args!(
                    "registry has {} bytes for a blob of {}",
                    length.unwrap_or_default(),
                    self.size
                )));
            }
        }
        Ok(answer.into_body())
    }

    fn longer(&self) -> Error {
        Error::failed_precondition(format_args!(
            "registry sends more than the {} bytes of the blob",
            self.size
        ))
    }

    /// Counts bytes; enough of them forgive the failures before, too few in their time are one.
    fn progress(&mut self, bytes: u64) -> Result<()> {
        let limits = self.shared.host.http.limits();
        let (since, seen) = &mut self.window;
        *seen += bytes;
        let least = limits.least(limits.read);
        if *seen >= least {
            self.tries = Tries::new();
        }
        if since.elapsed() >= limits.read {
            if *seen < least {
                return Err(Error::unavailable(format_args!(
                    "registry only trickles data: {seen} bytes in {:?}",
                    limits.read
                )));
            }
            self.window = (Instant::now(), 0);
        }
        Ok(())
    }
}
