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
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use types::{Error, Result};

use crate::body::Outgoing;
use crate::challenge::Challenge;
use crate::http::{Http, status_error, whole};
use crate::opts::Credentials;
use crate::url::{self, Origin, pair};

/// What we call ourselves.
pub(crate) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("containerd/", env!("CARGO_PKG_VERSION")));
/// Largest token document.
const MAX_TOKEN: usize = 8 << 20;

/// Longest that a token is taken to live, whatever the server says.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token without a stated life, by the token specification.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Scopes with a header of their own; a push mounts from a few repositories.
const MAX_SCOPES: usize = 64;

/// The authorization for one origin.
#[derive(Debug)]
pub(crate) struct Auth {
    origin: Origin,
    credentials: Option<Credentials>,
    headers: Mutex<HashMap<String, Held>>,
}

/// A header, how it was asked for, and until when it is good.
#[derive(Clone, Debug)]
struct Held {
    header: HeaderValue,
    challenge: Challenge,
    until: Option<Instant>,
}

impl Held {
    fn is_good(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl Auth {
    pub(crate) fn new(origin: Origin, credentials: Option<Credentials>) -> Self {
        Self {
            origin,
            credentials,
            headers: Mutex::new(HashMap::new()),
        }
    }

    /// The origin that the headers are for.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The header to send for `scopes`, once there is one. A token that has run out is renewed first.
    pub(crate) async fn header(
        &self,
        http: &Http,
        scopes: &[String],
    ) -> Result<Option<HeaderValue>> {
        let mut headers = self.headers.lock().await;
        let key = scopes.join(" ");
        let Some(held) = headers.get(&key) else {
            return Ok(None);
        };
        if held.is_good() {
            return Ok(Some(held.header.clone()));
        }
        let challenge = held.challenge.clone();
        headers.remove(&key);
        let made = self.make(http, challenge, scopes).await?;
        let header = made.header.clone();
        headers.insert(key, made);
        Ok(Some(header))
    }

    /// Makes a new header after `refused` was refused. Parallel requests share one answer.
    pub(crate) async fn answer(
        &self,
        http: &Http,
        challenge: Challenge,
        scopes: &[String],
        refused: Option<&HeaderValue>,
    ) -> Result<()> {
        let mut headers = self.headers.lock().await;
        let key = scopes.join(" ");
        if let Some(held) = headers.get(&key)
            && Some(&held.header) != refused
        {
            return Ok(());
        }
        headers.remove(&key);
        if headers.len() >= MAX_SCOPES {
            headers.clear();
        }
        let made = self.make(http, challenge, scopes).await?;
        headers.insert(key, made);
        Ok(())
    }

    async fn make(&self, http: &Http, challenge: Challenge, scopes: &[String]) -> Result<Held> {
        let (header, until) = match &challenge {
            Challenge::Basic => match &self.credentials {
                Some(credentials) => (basic(credentials)?, None),
                None => {
                    return Err(Error::unauthenticated(
                        "registry wants a user and a password",
                    ));
                }
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scopes = merged(scopes, scope.as_deref());
                let request = self.request(realm, service.as_deref(), &scopes)?;
                let (token, life) = fetch(http, request)
                    .await
                    .map_err(|e| e.ctx("fetch token"))?;
                (
                    secret(&format!("Bearer {token}"))?,
                    Some(Instant::now() + life),
                )
            }
        };
        Ok(Held {
            header,
            challenge,
            until,
        })
    }

    /// GET for anonymous users and passwords, POST for a refresh token.
    fn request(
        &self,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Request<Outgoing>> {
        let realm = url::parse(realm)?;
        let to = Origin::of(&realm)?;
        if self.credentials.is_some() && self.origin.https && !to.https {
            return Err(Error::unauthenticated(format_args!(
                "refusing to send a password unencrypted to {}",
                url::shown(&realm)
            )));
        }
        let mut pairs: Vec<String> = service.map(|s| pair("service", s)).into_iter().collect();
        let refresh = self.credentials.as_ref().filter(|c| c.user.is_empty());
        let request = Request::builder()
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json");
        let built = if let Some(Credentials { secret, .. }) = refresh {
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
            if let Some(credentials) = &self.credentials {
                request = request.header(AUTHORIZATION, basic(credentials)?);
            }
            request.body(Outgoing::Whole(Bytes::new()))
        };
        built.map_err(|error| Error::invalid_argument(format_args!("token server: {error}")))
    }
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
    secret(&format!("Basic {}", base64(pair.as_bytes())))
}

fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::unauthenticated("credentials do not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for part in data.chunks(3) {
        let byte = |at: usize| u32::from(part.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit > part.len() {
                text.push('=');
            } else {
                let value = (bits >> (18 - 6 * digit)) & 63;
                text.push(char::from(DIGITS[value as usize]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (data, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(data.as_bytes()), want);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn a_password_does_not_go_out_in_the_clear() {
        let origin = Origin::of(&"https://r.io/".parse().unwrap()).unwrap();
        let credentials = Credentials {
            user: "u".into(),
            secret: "p".into(),
        };
        let auth = Auth::new(origin, Some(credentials));
        let error = auth.request("http://auth.io/t", None, &[]).err().unwrap();
        assert!(error.is(types::Code::Unauthenticated));
        let request = auth
            .request(
                "https://auth.io/t?a=b",
                Some("s s"),
                &["x".into(), "y".into()],
            )
            .unwrap();
        assert_eq!(
            request.uri().query(),
            Some("a=b&service=s%20s&scope=x&scope=y")
        );
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        assert!(!format!("{auth:?}").contains("secret: \"p\""));
    }

    #[test]
    fn a_refresh_token_is_posted() {
        let origin = Origin::of(&"https://r.io/".parse().unwrap()).unwrap();
        let credentials = Credentials {
            user: String::new(),
            secret: "r".into(),
        };
        let auth = Auth::new(origin, Some(credentials));
        let request = auth.request("https://auth.io/t", None, &[]).unwrap();
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
