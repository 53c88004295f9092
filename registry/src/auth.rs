//! Answers to challenges: Basic, and tokens from the server that the registry names.
//!
//! Invariant: the header made here is for one origin and one repository; the caller attaches it to
//! requests to that origin only. A secret goes to a token server of the registry's domain, or one that
//! its hosts file names; over https, or in the clear only when the registry itself is talked to so.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use recorder::On;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use types::{Error, Result};

use crate::base64;
use crate::body::Outgoing;
use crate::call::{MAX_REDIRECTS, is_redirect, redirected};
use crate::challenge::{Bearer, Challenge, Challenged};
use crate::credentials::{Answer, Credentials, Question, Source};
use crate::http::{Http, status_error, whole};
use crate::thought::Thought;
use crate::url::{self, Origin, pair};

/// What we call ourselves.
pub(crate) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("containerd/", env!("CARGO_PKG_VERSION")));
/// Largest token document: what is in it has to fit into the head of a request.
const MAX_TOKEN: usize = 1 << 20;

/// Longest that a token is taken to live, whatever the server says.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token without a stated life, by the token specification.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Scopes with a header of their own; a push mounts from a few repositories.
const MAX_SCOPES: usize = 64;

/// The authorization for one host.
#[derive(Debug)]
pub(crate) struct Auth {
    source: Source,
    /// How the host is called when credentials are asked for.
    host: String,
    reference: String,
    /// Origins of token servers that may have a password besides those of the host's own domain.
    token_servers: Vec<String>,
    /// How long we took to say who we are.
    pub(crate) thought: Thought,
    headers: Mutex<HashMap<Key, Held>>,
}

/// The origin that a header is for, and the scopes.
type Key = (Origin, String);

/// A header, how it was asked for, and until when it is good.
#[derive(Clone, Debug)]
struct Held {
    header: HeaderValue,
    challenged: Challenged,
    until: Option<Instant>,
}

impl Held {
    fn is_good(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl Auth {
    pub(crate) fn new(
        source: Source,
        host: String,
        reference: String,
        token_servers: Vec<String>,
    ) -> Self {
        Self {
            source,
            host,
            reference,
            token_servers,
            thought: Thought::default(),
            headers: Mutex::new(HashMap::new()),
        }
    }

    #[cfg(test)]
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The header to send to `origin` for `scopes`, once there is one. A token that has run out is
    /// renewed first.
    pub(crate) async fn header(
        &self,
        http: &Http,
        origin: &Origin,
        scopes: &[String],
    ) -> Result<Option<HeaderValue>> {
        let mut headers = self.headers.lock().await;
        let key = (origin.clone(), scopes.join(" "));
        let Some(held) = headers.get(&key) else {
            return Ok(None);
        };
        if held.is_good() {
            return Ok(Some(held.header.clone()));
        }
        let challenged = held.challenged.clone();
        headers.remove(&key);
        let made = self.make(http, origin, challenged, scopes).await?;
        let header = made.header.clone();
        headers.insert(key, made);
        Ok(Some(header))
    }

    /// Makes a new header after `origin` refused `refused`. Parallel requests share one answer.
    pub(crate) async fn answer(
        &self,
        http: &Http,
        origin: &Origin,
        challenged: Challenged,
        scopes: &[String],
        refused: Option<&HeaderValue>,
    ) -> Result<()> {
        let mut headers = self.headers.lock().await;
        let key = (origin.clone(), scopes.join(" "));
        if let Some(held) = headers.get(&key)
            && Some(&held.header) != refused
        {
            return Ok(());
        }
        headers.remove(&key);
        if headers.len() >= MAX_SCOPES {
            headers.clear();
        }
        let made = self.make(http, origin, challenged, scopes).await?;
        headers.insert(key, made);
        Ok(())
    }

    async fn make(
        &self,
        http: &Http,
        origin: &Origin,
        challenged: Challenged,
        scopes: &[String],
    ) -> Result<Held> {
        let question = Question {
            host: self.host.clone(),
            reference: self.reference.clone(),
            challenges: challenged.raw.clone(),
        };
        let asking = self.thought.ask();
        let whose = || On::named(self.host.clone());
        let waiting = recorder::stage("credentials", whose);
        let asked = timeout(http.limits().credentials, self.source.answer(&question)).await;
        drop(asking);
        let who = asked
            .map_err(|_| Error::unavailable("no credentials in time"))?
            .map_err(|error| error.ctx(format!("credentials for {}", self.host)))?;
        drop(waiting);
        let (header, until) = match (&challenged.choice, &who) {
            (_, Answer::Header(value)) => (secret(value)?, None),
            (Challenge::Basic, Answer::User(credentials)) => (basic(credentials)?, None),
            (Challenge::Basic, Answer::Anonymous | Answer::Refresh(_)) => {
                return Err(Error::unauthenticated(
                    "registry wants a user and a password",
                ));
            }
            (Challenge::Bearer(bearer), who) => {
                if *who != Answer::Anonymous {
                    self.trusted(origin, &url::parse(&bearer.realm)?)?;
                }
                let request = token_request(bearer, who, scopes)?;
                let token = fetch(http, request).await;
                let (token, life) = token.map_err(|error| error.ctx("fetch token"))?;
                let header = secret(&format!("Bearer {token}"))?;
                (header, Some(Instant::now() + life))
            }
        };
        Ok(Held {
            header,
            challenged,
            until,
        })
    }
}

impl Auth {
    /// Checks that the token server at `realm` may see what is for `origin`. Any registry may name any.
    fn trusted(&self, origin: &Origin, realm: &Uri) -> Result<()> {
        let (to, shown) = (Origin::of(realm)?, url::shown(realm));
        if origin.https && !to.https {
            return Err(Error::unauthenticated(format_args!(
                "refusing to send a password unencrypted to {shown}"
            )));
        }
        if origin.is_of_domain_of(&to) || self.token_servers.contains(&to.to_string()) {
            return Ok(());
        }
        Err(Error::unauthenticated(format_args!(
            "refusing to send a password for {origin} to {shown}, of another domain: \
             name it in token_servers of hosts.toml"
        )))
    }
}

/// GET for anonymous users and passwords, POST for a refresh token.
fn token_request(bearer: &Bearer, who: &Answer, scopes: &[String]) -> Result<Request<Outgoing>> {
    let scopes = merged(scopes, bearer.scope.as_deref());
    let realm = url::parse(&bearer.realm)?;
    let service = bearer.service.as_deref();
    let mut pairs: Vec<String> = service.map(|s| pair("service", s)).into_iter().collect();
    let request = Request::builder()
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "application/json");
    let built = if let Answer::Refresh(secret) = who {
        pairs.extend([
            pair("scope", &scopes.join(" ")),
            pair("grant_type", "refresh_token"),
            pair("client_id", "containerd-client"),
            pair("refresh_token", secret),
        ]);
        request
            .method(Method::POST)
            .uri(realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Outgoing::Whole(pairs.join("&").into()))
    } else {
        pairs.extend(scopes.iter().map(|scope| pair("scope", scope)));
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let mut request = request.uri(format!("{realm}{separator}{}", pairs.join("&")));
        if let Answer::User(credentials) = who {
            request = request.header(AUTHORIZATION, basic(credentials)?);
        }
        request.body(Outgoing::Whole(Bytes::new()))
    };
    built.map_err(|error| Error::invalid_argument(format_args!("token server: {error}")))
}

/// The token and how long to use it.
async fn fetch(http: &Http, request: Request<Outgoing>) -> Result<(String, Duration)> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let read = http.limits().read;
    let answer = followed(http, request).await?;
    if !answer.status().is_success() {
        return Err(status_error(answer, read).await);
    }
    let body = whole(answer.into_body(), MAX_TOKEN, read).await?;
    let token: Token = serde_json::from_slice(&body)
        .map_err(|error| Error::unauthenticated(format_args!("token answer: {error}")))?;
    let given = token.access_token.filter(|t| !t.is_empty());
    let given = given.or(token.token).filter(|t| !t.is_empty());
    let given = given.ok_or_else(|| Error::unauthenticated("token server gave no token"))?;
    let life = match token.expires_in {
        None | Some(0) => DEFAULT_LIFE,
        Some(seconds) => Duration::from_secs(seconds).min(MAX_LIFE),
    };
    // A tenth less: it must still be good when the request arrives.
    Ok((given, life.mul_f64(0.9)))
}

/// The answer to a token request, redirects followed: not those of a POST, which has a secret in its body.
async fn followed(http: &Http, mut request: Request<Outgoing>) -> Result<Response<Incoming>> {
    for _ in 0..=MAX_REDIRECTS {
        let (from, mut headers) = (request.uri().clone(), request.headers().clone());
        let is_get = request.method() == Method::GET;
        let answer = http.send(request).await?;
        if !is_get || !is_redirect(answer.status()) {
            return Ok(answer);
        }
        let to = redirected(&from, &answer)?;
        if Origin::of(&to)? != Origin::of(&from)? {
            // For good: a way back would be a way to have it sent where a stranger says.
            headers.remove(AUTHORIZATION);
        }
        request = Request::new(Outgoing::Whole(Bytes::new()));
        (*request.uri_mut(), *request.headers_mut()) = (to, headers);
    }
    Err(Error::unknown("token server redirects too often"))
}

/// What we need and what the registry asks for, once each: the actions of one resource in one scope.
///
/// Parity: core/remotes/docker/scope.go: servers get sorted scopes.
fn merged(own: &[String], asked: Option<&str>) -> Vec<String> {
    let asked = asked
        .unwrap_or_default()
        .split(' ')
        .filter(|s| !s.is_empty());
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for scope in own.iter().map(String::as_str).chain(asked) {
        let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        let known = all.entry(resource).or_default();
        for action in actions.split(',') {
            if !known.contains(&action) {
                known.push(action);
            }
        }
    }
    all.into_iter()
        .map(|(resource, mut actions)| {
            actions.sort_unstable();
            match actions.join(",") {
                none if none.is_empty() => resource.to_owned(),
                actions => format!("{resource}:{actions}"),
            }
        })
        .collect()
}

fn basic(credentials: &Credentials) -> Result<HeaderValue> {
    let pair = format!("{}:{}", credentials.user, credentials.secret);
    secret(&format!("Basic {}", base64::encode(pair.as_bytes())))
}

fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::unauthenticated("credentials do not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin::of(&"https://r.example.test/".parse().unwrap()).unwrap()
    }

    fn bearer(realm: &str) -> Bearer {
        Bearer {
            realm: realm.into(),
            service: Some("s s".into()),
            scope: None,
        }
    }

    #[test]
    fn a_password_goes_to_whom_it_may_go() {
        let auth = Auth::new(
            Source::None,
            String::new(),
            String::new(),
            vec!["https://token.other.test:443".into()],
        );
        let plain = Origin::of(&"http://r.example.test/".parse().unwrap()).unwrap();
        for (from, realm, refused) in [
            (&origin(), "https://auth.example.test/t", ""),
            (&origin(), "https://r.example.test:8443/t", ""),
            (&origin(), "https://token.other.test/t", ""),
            (
                &origin(),
                "http://auth.example.test/t",
                "unencrypted to http://auth",
            ),
            (&origin(), "http://token.other.test/t", "unencrypted"),
            (&origin(), "https://token.other.test:444/t", "token_servers"),
            (
                &origin(),
                "https://evil.test/t?k=v",
                "to https://evil.test/t, of",
            ),
            (&plain, "http://auth.example.test/t", ""),
            (&plain, "https://auth.example.test/t", ""),
            (&plain, "http://evil.test/t", "token_servers"),
        ] {
            match auth.trusted(from, &realm.parse().unwrap()) {
                Ok(()) => assert_eq!(refused, "", "{realm}"),
                Err(error) => {
                    assert!(error.is(types::Code::Unauthenticated));
                    let said = error.to_string();
                    assert!(!refused.is_empty() && said.contains(refused), "{said}");
                }
            }
        }
    }

    #[test]
    fn a_password_is_in_the_header_and_nowhere_else() {
        let who = Answer::User(Credentials {
            user: "u".into(),
            secret: "p".into(),
        });
        let scopes = ["x".into(), "y".into()];
        let secure = bearer("https://auth.example.test/t?a=b");
        let request = token_request(&secure, &who, &scopes).unwrap();
        assert_eq!(
            request.uri().query(),
            Some("a=b&service=s%20s&scope=x&scope=y")
        );
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        assert!(!format!("{who:?}").contains('p'));
    }

    #[tokio::test]
    async fn a_header_is_for_the_whole_origin() {
        let http = Http::new(
            crate::Limits::default(),
            crate::tls::Trust::default(),
            std::sync::Arc::default(),
            None,
        );
        let credentials = Credentials {
            user: "u".into(),
            secret: "p".into(),
        };
        let source = Source::Fixed(credentials);
        let auth = Auth::new(source, String::new(), String::new(), Vec::new());
        let asked = Challenged {
            choice: Challenge::Basic,
            raw: Vec::new(),
        };
        let answered = auth.answer(&http, &origin(), asked, &[], None).await;
        answered.unwrap();
        for (at, is_home) in [
            ("https://r.example.test:443/", true),
            ("http://r.example.test/", false),
            ("http://r.example.test:443/", false),
            ("https://r.example.test:444/", false),
        ] {
            let at = Origin::of(&at.parse().unwrap()).unwrap();
            let held = auth.header(&http, &at, &[]).await.unwrap();
            assert_eq!(held.is_some(), is_home, "{at}");
        }
    }

    #[test]
    fn a_refresh_token_is_posted() {
        let who = Answer::Refresh("r".into());
        let to = bearer("https://auth.example.test/t");
        let request = token_request(&to, &who, &[]).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert!(!request.headers().contains_key(AUTHORIZATION));
    }

    #[test]
    fn scopes_are_merged_by_resource() {
        let own = [
            "repository:b:pull,push".to_owned(),
            "repository:c:pull".into(),
        ];
        for (asked, want) in [
            (None, "repository:b:pull,push repository:c:pull"),
            (
                Some("repository:b:pull repository:a:pull"),
                "repository:a:pull repository:b:pull,push repository:c:pull",
            ),
            (
                Some("aws repository:c:*"),
                "aws repository:b:pull,push repository:c:*,pull",
            ),
        ] {
            assert_eq!(merged(&own, asked).join(" "), want);
        }
        assert!(merged(&[], None).is_empty());
    }
}
