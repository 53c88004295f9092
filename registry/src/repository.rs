//! One repository of one registry: names become descriptors, descriptors become bytes.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};
use sha2::{Digest as _, Sha256};
use types::{Algorithm, Context as _, Descriptor, Digest, Error, Labels, Result, media_type as mt};

use crate::MAX_MANIFEST;
use crate::call::{Call, Tries};
use crate::host::Host;
use crate::http::{Http, whole};
use crate::opts::RegistryOpts;
use crate::reader::BlobReader;
use crate::reference::Reference;

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
    pub(crate) host: Arc<Host>,
}

impl Repository {
    /// The repository that `reference` is in. Nothing is asked yet.
    ///
    /// # Errors
    /// `InvalidArgument` when the reference names no repository.
    pub fn new(reference: &Reference, opts: RegistryOpts) -> Result<Self> {
        if reference.path().is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "no repository in {reference}"
            )));
        }
        // Parity: core/remotes/docker: the name that everybody uses is not the host that serves it.
        let host = match reference.host() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = if opts.plain_http { "http" } else { "https" };
        let http = Http::new(opts.limits, opts.skip_verify);
        Ok(Self {
            shared: Arc::new(Shared {
                reference: reference.clone(),
                host: Arc::new(Host::new(
                    format!("{scheme}://{host}/v2"),
                    http,
                    opts.credentials,
                )?),
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
        self.head(object, digest.as_ref())
            .await
            .ctx_with(|| format!("failed to resolve reference \"{reference}\""))
    }

    async fn head(&self, object: &str, wanted: Option<&Digest>) -> Result<Descriptor> {
        let call = self.call(Method::HEAD, "manifests", object, &ACCEPT.join(", "));
        let answer = match call.run(&self.shared.host, &mut Tries::new()).await {
            Ok(answer) => answer,
            Err(error) if error.is(types::Code::NotImplemented) => {
                // A registry without HEAD.
                tracing::debug!(%error, "asking for the whole manifest");
                return self.get(call, wanted).await;
            }
            Err(error) if error.is_not_found() => {
                tracing::debug!(%error, "no such manifest");
                return Err(Error::not_found(&self.shared.reference));
            }
            Err(error) => return Err(error),
        };
        let headers = answer.headers();
        let named = headers
            .get("docker-content-digest")
            .and_then(|d| d.to_str().ok());
        let length: Option<u64> = headers
            .get(CONTENT_LENGTH)
            .and_then(|l| l.to_str().ok()?.parse().ok());
        let (Some(digest), Some(size)) = (named, length) else {
            return self.get(call, wanted).await;
        };
        let digest: Digest = digest.parse().ctx("digest in the registry's answer")?;
        same(&digest, wanted)?;
        descriptor(headers, digest, size)
    }

    /// Learns digest and size from the manifest itself.
    async fn get(&self, call: Call, wanted: Option<&Digest>) -> Result<Descriptor> {
        let call = Call {
            method: Method::GET,
            ..call
        };
        let host = &self.shared.host;
        let answer = call.run(host, &mut Tries::new()).await?;
        let headers = answer.headers().clone();
        let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let body = whole(answer.into_body(), limit, host.http.limits().read).await?;
        // A wanted digest of another kind is checked when its blob is stored.
        let digest = match wanted {
            Some(digest) if digest.algorithm() != Algorithm::Sha256 => digest.clone(),
            _ => Digest::from_bytes(Algorithm::Sha256, &Sha256::digest(&body))?,
        };
        same(&digest, wanted)?;
        descriptor(&headers, digest, body.len() as u64)
    }

    /// Opens a blob or a manifest at byte `offset`, to resume an earlier read.
    ///
    /// # Errors
    /// `OutOfRange` for an offset beyond the end. The registry is asked at the first read.
    pub fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobReader> {
        if offset > descriptor.size {
            return Err(Error::out_of_range(format_args!(
                "offset {offset} in a blob of {} bytes",
                descriptor.size
            )));
        }
        let (kind, accept) = kind(descriptor);
        let mut call = self.call(Method::GET, kind, descriptor.digest.as_str(), accept);
        call.from = offset;
        Ok(BlobReader::new(
            Arc::clone(&self.shared),
            call,
            descriptor.size,
        ))
    }

    fn call(&self, method: Method, kind: &str, object: &str, accept: &str) -> Call {
        let mut call = Call::new(method, self.path(kind, object), &[self.scope("pull")]);
        accept.clone_into(&mut call.accept);
        call
    }

    /// The host that takes what is pushed.
    pub(crate) async fn push_host(&self) -> Result<Arc<Host>> {
        Ok(Arc::clone(&self.shared.host))
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
