//! Answers to challenges: Basic, and tokens from the server that the registry names.
//!
//! Invariant: the header made here is for one origin and one repository; the caller attaches it to
//! requests to that origin only. A secret goes to a token server over https, or in the clear only
//! when the registry itself is talked to in the clear.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request};
use recorder::On;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use types::{Error, Result};

use crate::base64;
use crate::body::Outgoing;
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
    pub(crate) fn new(source: Source, host: String, reference: String) -> Self {
        Self {
            source,
            host,
            reference,
            thought: Thought::default(),
            headers: Mutex::new(HashMap::new()),
        }
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
                let request = token_request(origin, bearer, who, scopes)?;
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

/// GET for anonymous users and passwords, POST for a refresh token.
fn token_request(
    origin: &Origin,
    bearer: &Bearer,
    who: &Answer,
    scopes: &[String],
) -> Result<Request<Outgoing>> {
    let scopes = merged(scopes, bearer.scope.as_deref());
    let realm = url::parse(&bearer.realm)?;
    let to = Origin::of(&realm)?;
    if *who != Answer::Anonymous && origin.https && !to.https {
        return Err(Error::unauthenticated(format_args!(
            "refusing to send a password unencrypted to {}",
            url::shown(&realm)
        )));
    }
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
    let answer = http.send(request).await?;
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
    fn a_password_does_not_go_out_in_the_clear() {
        let who = Answer::User(Credentials {
            user: "u".into(),
            secret: "p".into(),
        });
        let plain = bearer("http://auth.example.test/t");
        for who in [&who, &Answer::Refresh("r".into())] {
            let error = token_request(&origin(), &plain, who, &[]).err().unwrap();
            assert!(error.is(types::Code::Unauthenticated));
        }
        token_request(&origin(), &plain, &Answer::Anonymous, &[]).unwrap();
        let scopes = ["x".into(), "y".into()];
        let secure = bearer("https://auth.example.test/t?a=b");
        let request = token_request(&origin(), &secure, &who, &scopes).unwrap();
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
        let auth = Auth::new(Source::Fixed(credentials), String::new(), String::new());
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
        let request = token_request(&origin(), &to, &who, &[]).unwrap();
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
