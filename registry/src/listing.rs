//! What a registry has: tags of a repository, repositories, and what refers to a manifest.
//!
//! Invariant: a list has a bound, in pages, entries and bytes; a registry that goes on for ever is
//! refused, not believed.

use http::header::LINK;
use http::{HeaderMap, Method, Uri};
use serde::Deserialize;
use types::{
    Context as _, Descriptor, Digest, Error, Labels, Result, bound_json, media_type as mt,
};

use crate::MAX_MANIFEST;
use crate::budget::within;
use crate::call::{Call, Target, Tries};
use crate::host::Host;
use crate::hosts::Capabilities;
use crate::http::whole;
use crate::race::{self, Failure};
use crate::repository::Repository;
use crate::url::{self, Origin, pair};

/// Largest page.
const MAX_PAGE: usize = 4 << 20;
/// Pages of one list.
const MAX_PAGES: usize = 1000;
/// Entries of one list.
const MAX_ENTRIES: usize = 100_000;
/// Entries of a page that we ask for.
const PAGE: usize = 1000;

/// Which hosts may be asked.
type Can = fn(&Capabilities) -> bool;

/// Those for lists of names, of which capabilities say nothing.
const NAMES: Can = |can| can.pull || can.referrers;

/// A manifest that refers to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest.
    pub descriptor: Descriptor,
    /// What kind of thing it is.
    pub artifact_type: String,
}

#[derive(Deserialize)]
struct Tags {
    // Some registries say null for none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    artifact_type: String,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Repository {
    /// The tags of the repository, in the order of the registry.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; `ResourceExhausted` for a list without an end.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let path = format!(
            "{}?{}",
            self.path("tags", "list"),
            pair("n", &PAGE.to_string())
        );
        let call = Call::new(Method::GET, path, &[self.scope("pull")]);
        let names = self.list(NAMES, call, |page: Tags| page.tags.unwrap_or_default());
        within(self.budget(), names)
            .await
            .ctx_with(|| format!("list tags of {}", self.reference()))
    }

    /// The repositories of the registry that this one is in.
    ///
    /// # Errors
    /// As [`Repository::tags`]; `NotFound` or `NotImplemented` when the registry does not tell.
    pub async fn catalog(&self) -> Result<Vec<String>> {
        let path = format!("_catalog?{}", pair("n", &PAGE.to_string()));
        let call = Call::new(Method::GET, path, &["registry:catalog:*".to_owned()]);
        let names = self.list(NAMES, call, |page: Catalog| {
            page.repositories.unwrap_or_default()
        });
        within(self.budget(), names)
            .await
            .ctx_with(|| format!("list repositories of {}", self.reference()))
    }

    /// The manifests that refer to `digest`, of one kind when `artifact_type` is not empty. A registry
    /// without that API, or of which it is not to be expected by its hosts file, is asked for the tag by which
    /// such manifests are kept there.
    ///
    /// # Errors
    /// As [`Repository::tags`].
    pub async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Referrer>> {
        let mut path = self.path("referrers", digest.as_str());
        if !artifact_type.is_empty() {
            path = format!("{path}?{}", pair("artifactType", artifact_type));
        }
        let mut call = Call::new(Method::GET, path, &[self.scope("pull")]);
        mt::OCI_INDEX.clone_into(&mut call.accept);
        let found = within(self.budget(), async {
            let entries = |page: Index| page.manifests.unwrap_or_default();
            let listed = self.list(|can| can.referrers, call, entries);
            match listed.await {
                Err(error) if error.is_not_found() || error.is(types::Code::NotImplemented) => {
                    self.tagged(digest).await
                }
                listed => listed,
            }
        });
        let named = || format!("list referrers of {digest} in {}", self.reference());
        let found = found.await.ctx_with(named)?;
        let found: Result<Vec<_>> = found.into_iter().map(Entry::into_referrer).collect();
        // A registry may leave the choice to us.
        let wanted = |r: &Referrer| artifact_type.is_empty() || r.artifact_type == artifact_type;
        Ok(found.ctx_with(named)?.into_iter().filter(wanted).collect())
    }

    /// The index under the tag that stands for `digest`.
    async fn tagged(&self, digest: &Digest) -> Result<Vec<Entry>> {
        let tag = digest.as_str().replace(':', "-");
        let path = self.path("manifests", &tag);
        let mut call = Call::new(Method::GET, path, &[self.scope("pull")]);
        mt::OCI_INDEX.clone_into(&mut call.accept);
        let entries = |page: Index| page.manifests.unwrap_or_default();
        let listed = self.list(|can| can.resolve, call, entries);
        Ok(listed.await.absent_ok()?.unwrap_or_default())
    }

    /// All entries of a list that comes in pages, from one of the hosts that `can` give it: who has the
    /// first page gives the others.
    async fn list<P, T>(&self, can: Can, call: Call, entries: fn(P) -> Vec<T>) -> Result<Vec<T>>
    where
        P: serde::de::DeserializeOwned + Send,
    {
        let shared = &self.shared;
        let hosts = shared.able(can).await?;
        let mut tries = Tries::new(self.budget());
        let (host, (first, mut next)) = loop {
            let call = &call;
            let asked = race::first(
                &hosts,
                &shared.health,
                shared.limits.hedge,
                &mut tries,
                |host| async move { page::<P>(&host, call).await },
            );
            match asked.await {
                Ok(found) => break found,
                Err((error, wish)) => tries.again(&shared.limits, error, wish).await?,
            }
        };
        let mut all = entries(first);
        for _ in 1..MAX_PAGES {
            let Some(url) = next.take() else {
                return Ok(all);
            };
            let mut call = call.clone();
            call.target = Target::Url(url);
            let mut tries = Tries::new(self.budget());
            let page = loop {
                match page::<P>(&host, &call).await {
                    Ok((page, more)) => {
                        next = more;
                        break page;
                    }
                    Err((error, wish)) => tries.again(&shared.limits, error, wish).await?,
                }
            };
            all.extend(entries(page));
            if all.len() > MAX_ENTRIES {
                break;
            }
        }
        if next.is_none() && all.len() <= MAX_ENTRIES {
            return Ok(all);
        }
        Err(Error::resource_exhausted(format_args!(
            "list of {} is longer than {MAX_PAGES} pages or {MAX_ENTRIES} entries",
            host.root()
        )))
    }
}

impl Entry {
    fn into_referrer(self) -> Result<Referrer> {
        let mut annotations = Labels::new();
        for (key, value) in self.annotations.unwrap_or_default() {
            annotations = annotations.with(&key, value);
        }
        Ok(Referrer {
            descriptor: Descriptor {
                media_type: self.media_type,
                digest: self.digest.parse()?,
                size: self.size,
                annotations,
            },
            artifact_type: self.artifact_type,
        })
    }
}

/// One page, and where the next one is.
async fn page<P: serde::de::DeserializeOwned>(
    host: &Host,
    call: &Call,
) -> Result<(P, Option<Uri>), Failure> {
    let asked = match &call.target {
        Target::Path(path) => host.url(path).map_err(forever)?,
        Target::Url(url) => url.clone(),
    };
    let answer = call.once(host).await?;
    let next = next(&asked, answer.headers()).map_err(forever)?;
    let limit = MAX_PAGE.max(usize::try_from(MAX_MANIFEST).unwrap_or_default());
    let body = whole(answer.into_body(), limit, host.http.limits().read).await;
    let parsed = body.and_then(|body| {
        bound_json(&body)?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::unknown(format_args!("answer cannot be read: {error}")))
    });
    let page = parsed.map_err(|error| forever(error.ctx(host.root().to_owned())))?;
    Ok((page, next))
}

/// `Link: <url>; rel="next"` (RFC 8288); only within the registry.
fn next(asked: &Uri, headers: &HeaderMap) -> Result<Option<Uri>> {
    for value in headers.get_all(LINK) {
        let links = value.to_str().unwrap_or_default();
        let Some((target, rest)) = links
            .trim()
            .strip_prefix('<')
            .and_then(|l| l.split_once('>'))
        else {
            continue;
        };
        let parameters = rest.replace(' ', "").to_ascii_lowercase();
        if !parameters.contains("rel=\"next\"") && !parameters.contains("rel=next") {
            continue;
        }
        let to = url::join(asked, target)?;
        if Origin::of(&to)? != Origin::of(asked)? {
            return Err(Error::permission_denied(format_args!(
                "list goes on at another host, {}",
                url::shown(&to)
            )));
        }
        return Ok(Some(to));
    }
    Ok(None)
}

fn forever(error: Error) -> Failure {
    (error, None)
}
