//! One upload of a blob: begun, sent whole or in chunks, asked after when it broke, finished.
//!
//! Invariant: bytes are sent again only when the registry does not have them, or has lost the upload.
//!
//! ```text
//! none --POST--> Session{offset 0} --PUT whole--> done
//!                   | chunks wanted, or resumed
//!                   +--PATCH..PATCH--> offset = size --PUT empty--> done
//! broken: GET tells the offset; when it knows nothing of the upload, POST again
//! ```

use std::sync::Arc;

use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use types::{Code, Descriptor, Error, Result};

use crate::body::{BlobSource, OnSent, Payload};
use crate::budget::Budget;
use crate::call::{Call, Target, Tries};
use crate::host::Host;
use crate::push::stored;
use crate::race::Failure;
use crate::url::{self, Origin, pair};

/// Least size of a chunk that a registry may ask for (distribution specification, "Pushing a blob in
/// chunks").
const MIN_CHUNK: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// Size of a chunk when only small requests are accepted.
const CHUNK: u64 = 8 << 20;
/// Largest chunk that a registry may make us send in one piece; more is sent as one whole.
const MAX_CHUNK: u64 = 1 << 30;

/// An upload that the registry knows.
#[derive(Debug)]
pub(crate) struct Session {
    url: Uri,
    /// Bytes that the registry has; unknown after a failure.
    offset: Option<u64>,
    /// Send chunks of this size instead of all at once.
    chunk: Option<u64>,
}

impl Session {
    /// The upload that `answer` to a POST to `asked` tells of.
    pub(crate) fn begun(asked: &Uri, answer: &Response<Incoming>) -> Result<Self> {
        let least = answer.headers().get(MIN_CHUNK);
        let least: Option<u64> = least.and_then(|l| l.to_str().ok()?.parse().ok());
        Ok(Self {
            url: location(asked, answer)?,
            offset: Some(0),
            chunk: least.map(|least| least.clamp(CHUNK, MAX_CHUNK)),
        })
    }
}

/// What to upload, and where to.
pub(crate) struct Upload<'a> {
    pub(crate) host: &'a Host,
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) on: OnSent,
    /// Path that begins an upload.
    pub(crate) start: String,
    pub(crate) scopes: Vec<String>,
    /// Of the whole push.
    pub(crate) budget: Option<Budget>,
}

impl Upload<'_> {
    /// Sends the blob, from where `session` is.
    pub(crate) async fn run(&self, mut session: Option<Session>) -> Result<()> {
        let limits = self.host.http.limits();
        let (mut tries, mut best) = (Tries::new(self.budget.as_ref()), 0);
        // Sizes are forgotten with their session, but not that only small requests pass.
        let mut small = false;
        loop {
            let thought = &self.host.auth.thought;
            let before = thought.taken();
            let (error, wish) = match self.attempt(&mut session, small).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            tries.excuse(thought.taken() - before);
            let had = session.as_ref().and_then(|s| s.offset).unwrap_or_default();
            if had > best {
                best = had;
                tries.renew();
            }
            if error.is(Code::ResourceExhausted) && !small {
                small = true;
                session = None;
                continue;
            }
            let lost = error.is_not_found() || error.is(Code::OutOfRange);
            let error = match &mut session {
                // A registry that forgot the upload, or counts otherwise than we do.
                begun @ Some(_) if lost => {
                    *begun = None;
                    error.reclass(Code::Unavailable)
                }
                Some(session) => {
                    session.offset = None;
                    error
                }
                None => error,
            };
            tries.again(limits, error, wish).await?;
        }
    }

    async fn attempt(&self, session: &mut Option<Session>, small: bool) -> Result<(), Failure> {
        let size = self.descriptor.size;
        if let Some(begun) = session
            && begun.offset.is_none()
            && !self.ask(begun).await?
        {
            *session = None;
        }
        let session = match session {
            Some(session) => session,
            None => session.insert(self.begin().await?),
        };
        if small {
            session.chunk = Some(session.chunk.unwrap_or(CHUNK));
        }
        let offset = session.offset.unwrap_or_default();
        if offset == 0 && session.chunk.is_none() {
            return self.finish(session, Some(0)).await;
        }
        while let Some(offset) = session.offset.filter(|offset| *offset < size) {
            let chunk = session.chunk.unwrap_or(u64::MAX);
            self.chunk(session, offset, size.min(offset.saturating_add(chunk)))
                .await?;
        }
        self.finish(session, None).await
    }

    async fn begin(&self) -> Result<Session, Failure> {
        let call = Call::new(Method::POST, self.start.as_str(), &self.scopes);
        let answer = call.once(self.host).await?;
        let asked = self.host.url(&self.start).map_err(forever)?;
        Session::begun(&asked, &answer).map_err(forever)
    }

    /// Learns how much the registry has; false when it has forgotten the upload.
    async fn ask(&self, session: &mut Session) -> Result<bool, Failure> {
        let mut call = Call::new(Method::GET, "", &self.scopes);
        call.target = Target::Url(session.url.clone());
        let answer = match call.once(self.host).await {
            Ok(answer) => answer,
            Err((error, wish)) if error.is(Code::Unavailable) => return Err((error, wish)),
            Err((error, _)) => {
                tracing::debug!(%error, "the upload begins anew");
                return Ok(false);
            }
        };
        match received(&answer) {
            Some(offset) if offset <= self.descriptor.size => {
                session.moved(&answer)?;
                session.offset = Some(offset);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn chunk(&self, session: &mut Session, from: u64, to: u64) -> Result<(), Failure> {
        let mut call = self.call(Method::PATCH, session.url.clone(), from..to);
        let range = HeaderValue::from_str(&format!("{from}-{}", to - 1));
        call.headers
            .extend(range.ok().map(|range| (CONTENT_RANGE, range)));
        let answer = call.once(self.host).await?;
        session.moved(&answer)?;
        session.offset = Some(match received(&answer) {
            // It may have taken less.
            Some(has) if has > from && has <= to => has,
            Some(has) => {
                let text = format!("registry has {has} bytes after bytes {from} to {to} were sent");
                return Err((Error::out_of_range(text), None));
            }
            None => to,
        });
        Ok(())
    }

    /// Ends the upload, with all bytes when `from` is given.
    async fn finish(&self, session: &Session, from: Option<u64>) -> Result<(), Failure> {
        let size = self.descriptor.size;
        let digest = pair("digest", self.descriptor.digest.as_str());
        let separator = if session.url.query().is_some() {
            '&'
        } else {
            '?'
        };
        let url = url::parse(&format!("{}{separator}{digest}", session.url)).map_err(forever)?;
        let call = self.call(Method::PUT, url, from.unwrap_or(size)..size);
        let answer = call.once(self.host).await?;
        stored(&answer, &self.descriptor.digest).map_err(forever)
    }

    fn call(&self, method: Method, url: Uri, range: std::ops::Range<u64>) -> Call {
        let mut call = Call::new(method, "", &self.scopes);
        call.target = Target::Url(url);
        let kind = HeaderValue::from_static("application/octet-stream");
        call.headers.insert(CONTENT_TYPE, kind);
        if !range.is_empty() {
            call.payload = Payload::Part {
                source: Arc::clone(&self.source),
                from: range.start,
                to: range.end,
                on: Arc::clone(&self.on),
            };
        }
        call
    }
}

impl Session {
    /// An answer may send the rest of the upload elsewhere.
    fn moved(&mut self, answer: &Response<Incoming>) -> Result<(), Failure> {
        if answer.headers().contains_key(LOCATION) {
            self.url = location(&self.url, answer).map_err(forever)?;
        }
        Ok(())
    }
}

/// Bytes that the registry says to have: `0-last`. None at all look like one.
fn received(answer: &Response<Incoming>) -> Option<u64> {
    let expected = [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK];
    let range = answer.headers().get(RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    if first.trim() != "0" || !expected.contains(&answer.status()) {
        return None;
    }
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

/// Where the upload goes on.
fn location(asked: &Uri, answer: &Response<Incoming>) -> Result<Uri> {
    let to = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let Some(to) = to else {
        return Err(Error::unknown("registry names no place for the upload"));
    };
    let to = url::join(asked, to)?;
    if Origin::of(asked)?.https && !Origin::of(&to)?.https {
        return Err(Error::permission_denied(format_args!(
            "refusing to upload unencrypted to {}",
            url::shown(&to)
        )));
    }
    Ok(to)
}

fn forever(error: Error) -> Failure {
    (error, None)
}
