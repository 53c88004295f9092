//! Answers to challenges: Basic, and tokens from the server that the registry names.
//!
//! Invariant: the header made here is for one origin and one repository; the caller attaches it to
//! requests to that origin only. A secret goes to a token server over https, or in the clear only
//! when the registry itself is talked to in the clear.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::Mutex;
use types::{Error, Result};

use crate::challenge::Challenge;
use crate::http::{Http, status_error, whole};
use crate::opts::Credentials;
use crate::url::{self, Origin, pair};

/// What we call ourselves.
pub(crate) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("containerd/", env!("CARGO_PKG_VERSION")));
/// Largest token document.
const MAX_TOKEN: usize = 1 << 20;

/// The authorization for one repository.
#[derive(Debug)]
pub(crate) struct Auth {
    origin: Origin,
    scope: String,
    credentials: Option<Credentials>,
    header: Mutex<Option<HeaderValue>>,
}

impl Auth {
    pub(crate) fn new(origin: Origin, path: &str, credentials: Option<Credentials>) -> Self {
        let scope = format!("repository:{path}:pull");
        Self {
            origin,
            scope,
            credentials,
            header: Mutex::new(None),
        }
    }

    /// The origin that the header is for.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The header to send, once there is one.
    pub(crate) async fn header(&self) -> Option<HeaderValue> {
        self.header.lock().await.clone()
    }

    /// Makes a new header after `refused` was refused. Parallel requests share one answer.
    pub(crate) async fn answer(
        &self,
        http: &Http,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<()> {
        let mut header = self.header.lock().await;
        if header.is_some() && header.as_ref() != refused {
            return Ok(());
        }
        *header = None;
        *header = Some(match challenge {
            Challenge::Basic => match &self.credentials {
                Some(credentials) => basic(credentials)?,
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
                let scope = scope.as_deref().unwrap_or(&self.scope);
                let token = self.token(http, realm, service.as_deref(), scope).await?;
                secret(&format!("Bearer {token}"))?
            }
        });
        Ok(())
    }

    async fn token(
        &self,
        http: &Http,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let request = self.request(realm, service, scope)?;
        let answer = http.send(request).await.map_err(|e| e.ctx("fetch token"))?;
        if !answer.status().is_success() {
            return Err(status_error(answer, http.limits().read)
                .await
                .ctx("fetch token"));
        }
        let body = whole(answer.into_body(), MAX_TOKEN, http.limits().read)
            .await
            .map_err(|e| e.ctx("fetch token"))?;
        let token: Token = serde_json::from_slice(&body)
            .map_err(|error| Error::unauthenticated(format_args!("token answer: {error}")))?;
        let given = token.access_token.or(token.token).filter(|t| !t.is_empty());
        given.ok_or_else(|| Error::unauthenticated("token server gave no token"))
    }

    /// GET for anonymous users and passwords, POST for a refresh token.
    fn request(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Request<Full<Bytes>>> {
        let realm = url::parse(realm)?;
        let to = Origin::of(&realm)?;
        if self.credentials.is_some() && self.origin.https && !to.https {
            return Err(Error::unauthenticated(format_args!(
                "refusing to send a password unencrypted to {}",
                url::shown(&realm)
            )));
        }
        let mut pairs: Vec<String> = service.map(|s| pair("service", s)).into_iter().collect();
        pairs.extend(
            scope
                .split(' ')
                .filter(|s| !s.is_empty())
                .map(|s| pair("scope", s)),
        );
        let refresh = self.credentials.as_ref().filter(|c| c.user.is_empty());
        let request = Request::builder()
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json");
        let built = if let Some(Credentials { secret, .. }) = refresh {
            pairs.extend([
                pair("grant_type", "refresh_token"),
                pair("client_id", "containerd-client"),
                pair("refresh_token", secret),
            ]);
            request
                .method(Method::POST)
                .uri(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(pairs.join("&")))
        } else {
            let separator = if realm.query().is_some() { '&' } else { '?' };
            let mut request = request.uri(format!("{realm}{separator}{}", pairs.join("&")));
            if let Some(credentials) = &self.credentials {
                request = request.header(AUTHORIZATION, basic(credentials)?);
            }
            request.body(Full::default())
        };
        built.map_err(|error| Error::invalid_argument(format_args!("token server: {error}")))
    }
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
        let auth = Auth::new(origin, "a", Some(credentials));
        let error = auth.request("http://auth.io/t", None, "s").unwrap_err();
        assert!(error.is(types::Code::Unauthenticated));
        let request = auth
            .request("https://auth.io/t?a=b", Some("s s"), "x y")
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
        let auth = Auth::new(origin, "a", Some(credentials));
        let request = auth.request("https://auth.io/t", None, "s").unwrap();
        assert_eq!(request.method(), Method::POST);
        assert!(!request.headers().contains_key(AUTHORIZATION));
    }
}
