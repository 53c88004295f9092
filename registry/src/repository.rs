//! One repository of one registry: names become descriptors, descriptors become bytes.

use std::ops::Range;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use types::{Algorithm, Context as _, Descriptor, Digest, Error, Labels, Result, media_type as mt};

use crate::MAX_MANIFEST;
use crate::budget::{Budget, within};
use crate::call::{Call, Tries};
use crate::health::Health;
use crate::host::{self, Host};
use crate::hosts::Capabilities;
use crate::http::whole;
use crate::opts::{Limits, RegistryOpts};
use crate::race::{self, Failure};
use crate::reader::BlobReader;
use crate::reference::Reference;
use crate::wide::{self, WideReader};

/// The types that a name may resolve to, best first.
const ACCEPT: [&str; 4] = [
    mt::OCI_INDEX,
    mt::DOCKER_INDEX,
    mt::OCI_MANIFEST,
    mt::DOCKER_MANIFEST,
];

/// A repository, with the authorization and the connections for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) reference: Reference,
    opts: RegistryOpts,
    hosts: OnceCell<Vec<Arc<Host>>>,
    pub(crate) health: Health,
    pub(crate) limits: Limits,
    pub(crate) budget: Option<Budget>,
    pub(crate) room: Option<Arc<Semaphore>>,
    /// The process's places for pieces of blobs.
    pub(crate) places: Arc<Semaphore>,
}

impl Shared {
    /// The hosts that may be asked for something, in the order of their configuration; at least one.
    pub(crate) async fn able(&self, can: fn(&Capabilities) -> bool) -> Result<Vec<Arc<Host>>> {
        let hosts = self.hosts.get_or_try_init(|| async {
            let (reference, opts) = (self.reference.clone(), self.opts.clone());
            tokio::task::spawn_blocking(move || host::hosts(&reference, &opts))
                .await
                .map_err(|error| Error::internal(format_args!("hosts: {error}")))?
        });
        let able: Vec<_> = hosts
            .await?
            .iter()
            .filter(|host| can(&host.capabilities))
            .cloned()
            .collect();
        if able.is_empty() {
            return Err(Error::not_found(format_args!(
                "no host of {} is configured for this",
                self.reference.host()
            )));
        }
        Ok(able)
    }
}

impl Repository {
    /// The repository that `reference` is in. Nothing is asked yet; the hosts files are read with the
    /// first request.
    ///
    /// # Errors
    /// `InvalidArgument` when the reference names no repository.
    pub fn new(reference: &Reference, opts: RegistryOpts) -> Result<Self> {
        if reference.path().is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "no repository in {reference}"
            )));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                reference: reference.clone(),
                hosts: OnceCell::new(),
                health: opts.health.clone(),
                limits: opts.limits,
                budget: opts.budget.clone(),
                room: opts.room.clone(),
                places: wide::places(),
                opts,
            }),
        })
    }

    /// What the reference names: its digest, or else what the tag points at now.
    ///
    /// # Errors
    /// `NotFound`, `Unauthenticated`, `PermissionDenied`; `Unavailable` when the registry cannot be
    /// reached; `ResourceExhausted` for a manifest beyond the limit; `NotImplemented` for one of the
    /// first schema.
    pub async fn resolve(&self) -> Result<Descriptor> {
        let reference = &self.shared.reference;
        let digest = reference.digest()?;
        let object = match &digest {
            Some(digest) => digest.as_str(),
            None if is_tag(reference.tag()) => reference.tag(),
            None if reference.object().is_empty() => {
                return Err(Error::invalid_argument(format_args!(
                    "{reference}: object required"
                )));
            }
            None => {
                return Err(Error::invalid_argument(format_args!(
                    "{reference}: invalid tag"
                )));
            }
        };
        let asked = within(self.budget(), self.find(object, digest.as_ref()));
        asked
            .await
            .ctx_with(|| format!("failed to resolve reference \"{reference}\""))
    }

    /// Asks all hosts, again and again when that may help.
    async fn find(&self, object: &str, wanted: Option<&Digest>) -> Result<Descriptor> {
        let shared = &self.shared;
        let by_digest = wanted.is_some();
        let hosts = match by_digest {
            true => shared.able(|c| c.pull || c.resolve).await?,
            false => shared.able(|c| c.resolve).await?,
        };
        let mut tries = Tries::new(self.budget());
        loop {
            let asked = race::first(
                &hosts,
                &shared.health,
                shared.limits.hedge,
                &mut tries,
                |host| async move { self.head(&host, object, wanted).await },
            );
            match asked.await {
                Ok((_, descriptor)) => return Ok(descriptor),
                Err((error, wish)) => tries.again(&shared.limits, error, wish).await?,
            }
        }
    }

    async fn head(
        &self,
        host: &Host,
        object: &str,
        wanted: Option<&Digest>,
    ) -> Result<Descriptor, Failure> {
        let call = self.call(Method::HEAD, "manifests", object, &ACCEPT.join(", "));
        let answer = match call.once(host).await {
            Ok(answer) => answer,
            Err((error, _)) if error.is(types::Code::NotImplemented) => {
                // A registry without HEAD.
                tracing::debug!(%error, "asking for the whole manifest");
                return self.get(host, call, wanted).await;
            }
            Err((error, _)) if error.is_not_found() => {
                tracing::debug!(%error, "no such manifest");
                let error = Error::not_found(&self.shared.reference);
                return Err(forever(error.ctx(host.root().to_owned())));
            }
            Err(failure) => return Err(failure),
        };
        let headers = answer.headers();
        let named = headers
            .get("docker-content-digest")
            .and_then(|d| d.to_str().ok());
        let length: Option<u64> = headers
            .get(CONTENT_LENGTH)
            .and_then(|l| l.to_str().ok()?.parse().ok());
        let (Some(digest), Some(size)) = (named, length) else {
            return self.get(host, call, wanted).await;
        };
        let made = digest.parse().ctx("digest in the registry's answer");
        let made = made.and_then(|digest| {
            same(&digest, wanted)?;
            descriptor(headers, digest, size)
        });
        made.map_err(|error| forever(error.ctx(host.root().to_owned())))
    }

    /// Learns digest and size from the manifest itself.
    async fn get(
        &self,
        host: &Host,
        call: Call,
        wanted: Option<&Digest>,
    ) -> Result<Descriptor, Failure> {
        let call = Call {
            method: Method::GET,
            ..call
        };
        let answer = call.once(host).await?;
        let headers = answer.headers().clone();
        let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let made = async {
            let body = whole(answer.into_body(), limit, host.http.limits().read).await?;
            // A wanted digest of another kind is checked when its blob is stored.
            let digest = match wanted {
                Some(digest) if digest.algorithm() != Algorithm::Sha256 => digest.clone(),
                _ => Digest::from_bytes(Algorithm::Sha256, &Sha256::digest(&body))?,
            };
            same(&digest, wanted)?;
            descriptor(&headers, digest, body.len() as u64)
        };
        made.await
            .map_err(|error| forever(error.ctx(host.root().to_owned())))
    }

    /// Opens a blob or a manifest at byte `offset`, to resume an earlier read.
    ///
    /// # Errors
    /// `OutOfRange` for an offset beyond the end. The registry is asked at the first read.
    pub fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobReader> {
        self.reader(descriptor, offset, descriptor.size)
    }

    /// As [`Repository::open`], over several connections where one is slow and the registry gives
    /// ranges.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open_wide(&self, descriptor: &Descriptor, offset: u64) -> Result<WideReader> {
        let one = self.open(descriptor, offset)?;
        Ok(WideReader::new(self.clone(), descriptor.clone(), one))
    }

    /// Opens the bytes `range` of a blob, which may be read beside others of the same blob. A server
    /// that does not know ranges sends what comes before as well: ask for a part only when another one
    /// has shown that it saves something.
    ///
    /// # Errors
    /// `OutOfRange` when it is no part of the blob. The registry is asked at the first read.
    pub fn open_range(&self, descriptor: &Descriptor, range: Range<u64>) -> Result<BlobReader> {
        self.reader(descriptor, range.start, range.end)
    }

    /// As [`Repository::open_range`], for who can do without: asked for once, and only of a server that
    /// gives ranges.
    pub(crate) fn open_piece(
        &self,
        descriptor: &Descriptor,
        range: Range<u64>,
    ) -> Result<BlobReader> {
        self.open_range(descriptor, range).map(BlobReader::once)
    }

    fn reader(&self, descriptor: &Descriptor, from: u64, to: u64) -> Result<BlobReader> {
        let size = descriptor.size;
        if from > to || to > size {
            return Err(Error::out_of_range(format_args!(
                "offset {from} to {to} in a blob of {size} bytes"
            )));
        }
        let (kind, accept) = kind(descriptor);
        let mut call = self.call(Method::GET, kind, descriptor.digest.as_str(), accept);
        call.from = from;
        call.to = (to < size).then_some(to);
        let (shared, digest) = (Arc::clone(&self.shared), descriptor.digest.clone());
        Ok(BlobReader::new(shared, digest, call, size, to))
    }

    fn call(&self, method: Method, kind: &str, object: &str, accept: &str) -> Call {
        let mut call = Call::new(method, self.path(kind, object), &[self.scope("pull")]);
        accept.clone_into(&mut call.accept);
        call
    }

    /// The host that takes what is pushed.
    pub(crate) async fn push_host(&self) -> Result<Arc<Host>> {
        let able = self.shared.able(|c| c.push).await?;
        let first = able.into_iter().next();
        first.ok_or_else(|| Error::not_found("no push hosts"))
    }

    /// What all requests together may take.
    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.shared.budget.as_ref()
    }

    /// Path of an object of this repository, below the root of a host.
    pub(crate) fn path(&self, kind: &str, object: &str) -> String {
        format!("{}/{kind}/{object}", self.shared.reference.path())
    }

    /// Host and path of this repository, as users write it.
    pub(crate) fn reference(&self) -> String {
        let reference = &self.shared.reference;
        format!("{}/{}", reference.host(), reference.path())
    }

    /// The scope for `actions` on this repository.
    pub(crate) fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.shared.reference.path())
    }
}

/// Under which name the registry keeps the object, and which media type to ask for.
pub(crate) fn kind(descriptor: &Descriptor) -> (&'static str, &str) {
    let media_type = descriptor.media_type.as_str();
    if ACCEPT.contains(&media_type) {
        ("manifests", media_type)
    } else {
        ("blobs", "*/*")
    }
}

fn forever(error: Error) -> Failure {
    (error, None)
}

fn same(got: &Digest, wanted: Option<&Digest>) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != got => Err(Error::failed_precondition(format_args!(
            "registry answers {got} for {wanted}"
        ))),
        _ => Ok(()),
    }
}

fn descriptor(headers: &HeaderMap, digest: Digest, size: u64) -> Result<Descriptor> {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|t| t.to_str().ok())
        .unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default().trim();
    if media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        return Err(Error::not_implemented(format_args!(
            "media type {media_type:?} (schema 1) is no longer supported, rebuild the image"
        )));
    }
    if !ACCEPT.contains(&media_type) {
        return Err(Error::not_found(format_args!(
            "{digest} is no image: media type {media_type:?}"
        )));
    }
    if size > MAX_MANIFEST {
        return Err(Error::resource_exhausted(format_args!(
            "rejecting manifest of {size} bytes, the limit is {MAX_MANIFEST}"
        )));
    }
    Ok(Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: Labels::new(),
    })
}

/// The rule for tags of the distribution specification.
pub(crate) fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}
