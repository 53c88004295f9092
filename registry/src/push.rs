//! Pushing: blobs and manifests into a repository.
//!
//! ```text
//! push_blob: exists? -> mount from another repository? -> Upload (monolithic, or in chunks)
//! push_manifest: one PUT under a tag or the digest
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use types::{Algorithm, Code, Context as _, Descriptor, Digest, Error, Result};

use crate::MAX_MANIFEST;
use crate::body::{BlobSource, OnSent, Payload};
use crate::budget::within;
use crate::call::{Call, Tries};
use crate::host::Host;
use crate::repository::{Repository, is_tag, kind};
use crate::upload::{Session, Upload};
use crate::url::pair;

/// Repositories that a blob is tried to be mounted from: each costs a request.
const MAX_MOUNTS: usize = 2;

/// How a pushed blob came to be in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from this repository of its own.
    Mounted(String),
    /// It was sent.
    Uploaded,
}

impl Repository {
    /// Whether the registry that we push to has this blob or manifest in this repository.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; `FailedPrecondition` when it is there with another length.
    pub async fn exists(&self, descriptor: &Descriptor) -> Result<bool> {
        let (kind, media_type) = kind(descriptor);
        let path = self.path(kind, descriptor.digest.as_str());
        let mut call = Call::new(Method::HEAD, path, &[self.scope("pull,push")]);
        if kind == "manifests" {
            call.accept = format!("{media_type}, */*");
        }
        let host = self.push_host().await?;
        let mut tries = Tries::new(self.budget());
        let asked = within(self.budget(), call.run(&host, &mut tries));
        let answer = asked.await.absent_ok();
        let Some(answer) = answer.ctx_with(|| format!("look for {}", descriptor.digest))? else {
            return Ok(false);
        };
        let length = answer.headers().get(CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|l| l.to_str().ok()?.parse().ok());
        match length {
            Some(length) if length != descriptor.size => {
                Err(Error::failed_precondition(format_args!(
                    "{} has {} for {} with {length} bytes, it has {}",
                    host.root(),
                    self.reference(),
                    descriptor.digest,
                    descriptor.size
                )))
            }
            _ => Ok(true),
        }
    }

    /// Makes the registry have this blob: nothing is sent when it is there, or can be mounted from
    /// one of the repositories `from` (paths at the same registry, best first; two are tried).
    ///
    /// `on` is told the bytes sent so far; the number falls when an upload has to begin anew.
    /// Dropping the future ends the upload.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; those of `source`; `FailedPrecondition` when the registry says
    /// that it got something else.
    pub async fn push_blob(
        &self,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        from: &[String],
        on: OnSent,
    ) -> Result<Pushed> {
        let host = self.push_host().await?;
        let on = self.counted(on);
        let push = async {
            if self.exists(descriptor).await? {
                return Ok(Pushed::Existed);
            }
            let mut session = None;
            for repository in from.iter().take(MAX_MOUNTS) {
                match self.mount(&host, descriptor, repository).await? {
                    Mount::Done => return Ok(Pushed::Mounted(repository.clone())),
                    Mount::Session(begun) => session = Some(begun),
                    Mount::Refused => {}
                }
            }
            source.ready().await?;
            let upload = Upload {
                host: &host,
                descriptor,
                source,
                on,
                start: self.path("blobs", "uploads/"),
                scopes: vec![self.scope("pull,push")],
                budget: self.budget().cloned(),
            };
            upload.run(session).await?;
            Ok(Pushed::Uploaded)
        };
        within(self.budget(), push).await.ctx_with(|| {
            format!(
                "push blob {} to {} at {}",
                descriptor.digest,
                self.reference(),
                host.root()
            )
        })
    }

    /// Tells the budget, too.
    fn counted(&self, on: OnSent) -> OnSent {
        match self.budget().cloned() {
            None => on,
            Some(budget) => {
                let best = AtomicU64::new(0);
                Arc::new(move |sent| {
                    // What is sent again is no gain.
                    let before = best.fetch_max(sent, Ordering::Relaxed);
                    match sent.saturating_sub(before) {
                        0 => budget.progress(),
                        gained => budget.gained(gained),
                    }
                    on(sent);
                })
            }
        }
    }

    async fn mount(&self, host: &Host, descriptor: &Descriptor, from: &str) -> Result<Mount> {
        let path = format!(
            "{}?{}&{}",
            self.path("blobs", "uploads/"),
            pair("mount", descriptor.digest.as_str()),
            pair("from", from)
        );
        let scopes = [self.scope("pull,push"), format!("repository:{from}:pull")];
        let call = Call::new(Method::POST, path, &scopes);
        match call.run(host, &mut Tries::new(self.budget())).await {
            Ok(answer) if answer.status() == StatusCode::CREATED => Ok(Mount::Done),
            Ok(answer) => Ok(Mount::Session(Session::begun(
                &host.url(&self.path("blobs", "uploads/"))?,
                &answer,
            )?)),
            Err(error) => match error.code() {
                // We may not read there, or it is not there: the blob is sent then.
                Code::Unauthenticated
                | Code::PermissionDenied
                | Code::NotFound
                | Code::NotImplemented
                | Code::InvalidArgument => {
                    tracing::debug!(%error, from, "not mounted");
                    Ok(Mount::Refused)
                }
                _ => Err(error),
            },
        }
    }

    /// Writes a manifest or an index of which all children are there, under `tag` or its digest.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; `InvalidArgument` when `bytes` is not what `descriptor` says, or
    /// for a bad tag; `ResourceExhausted` for a manifest beyond the limit; `FailedPrecondition` when
    /// the registry says that it got something else.
    pub async fn push_manifest(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<()> {
        vet(descriptor, &bytes)?;
        let object = match tag {
            Some(tag) if !is_tag(tag) => {
                return Err(Error::invalid_argument(format_args!("invalid tag {tag:?}")));
            }
            Some(tag) => tag,
            None => descriptor.digest.as_str(),
        };
        let path = self.path("manifests", object);
        let mut call = Call::new(Method::PUT, path, &[self.scope("pull,push")]);
        let media_type = HeaderValue::from_str(&descriptor.media_type).map_err(|_| {
            Error::invalid_argument(format_args!("media type {:?}", descriptor.media_type))
        })?;
        call.headers.insert(CONTENT_TYPE, media_type);
        call.payload = Payload::Whole(bytes);
        let host = self.push_host().await?;
        let push = async {
            let answer = call.run(&host, &mut Tries::new(self.budget())).await?;
            stored(&answer, &descriptor.digest)
        };
        within(self.budget(), push).await.ctx_with(|| {
            format!(
                "push manifest {} to {} at {}",
                descriptor.digest,
                self.reference(),
                host.root()
            )
        })
    }
}

enum Mount {
    Done,
    /// The registry would rather have it uploaded, and has begun.
    Session(Session),
    Refused,
}

/// The bytes are those of the descriptor.
fn vet(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    let size = bytes.len() as u64;
    if size > MAX_MANIFEST {
        return Err(Error::resource_exhausted(format_args!(
            "manifest {} of {size} bytes, the limit is {MAX_MANIFEST}",
            descriptor.digest
        )));
    }
    let hashed = match descriptor.digest.algorithm() {
        Algorithm::Sha256 => Digest::from_bytes(Algorithm::Sha256, &Sha256::digest(bytes))?,
        // The registry compares those of other kinds.
        _ => descriptor.digest.clone(),
    };
    if size != descriptor.size || hashed != descriptor.digest {
        return Err(Error::invalid_argument(format_args!(
            "manifest {} of {} bytes does not match its {size} bytes",
            descriptor.digest, descriptor.size
        )));
    }
    Ok(())
}

/// The registry says what it stored, if it says anything.
pub(crate) fn stored(answer: &Response<Incoming>, wanted: &Digest) -> Result<()> {
    let named = answer.headers().get("docker-content-digest");
    match named.and_then(|digest| digest.to_str().ok()) {
        // It may name the same bytes by another algorithm.
        Some(digest) if digest != wanted.as_str() && same_kind(digest, wanted) => Err(
            Error::failed_precondition(format_args!("got digest {digest}, expected {wanted}")),
        ),
        _ => Ok(()),
    }
}

fn same_kind(named: &str, wanted: &Digest) -> bool {
    let kind = |digest: &str| digest.split(':').next().map(str::to_owned);
    kind(named) == kind(wanted.as_str())
}
