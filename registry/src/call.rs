//! A request with all that can come between it and its answer: challenges, redirects, retries.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use rand::Rng as _;
use tokio::time::{Instant, sleep};
use types::{Code, Error, Result};

use crate::auth::{AGENT, Auth};
use crate::challenge::challenge;
use crate::http::{Http, status_error};
use crate::url::{self, Origin};

/// Redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Challenges of one request: a stale token, then its successor.
const MAX_CHALLENGES: usize = 2;
/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What to ask.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) accept: String,
    /// First byte wanted.
    pub(crate) from: u64,
}

/// Tries without progress, counted.
#[derive(Debug)]
pub(crate) struct Tries {
    failed: u32,
    since: Instant,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self {
            failed: 0,
            since: Instant::now(),
        }
    }

    /// Waits before the next try, or gives up with `error`.
    pub(crate) async fn again(
        &mut self,
        http: &Http,
        error: Error,
        wish: Option<Duration>,
    ) -> Result<()> {
        let limits = http.limits();
        self.failed += 1;
        let doubled = limits
            .backoff
            .saturating_mul(1 << self.failed.min(16).saturating_sub(1));
        // Up to half more, so that many clients do not come back in step.
        let jitter = rand::rng().random_range(1.0..1.5);
        let pause = pause(wish.unwrap_or(doubled), jitter);
        let over = self.since.elapsed() + pause > limits.patience;
        if !error.is(Code::Unavailable) || self.failed >= limits.attempts || over {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        sleep(pause).await;
        Ok(())
    }
}

impl Call {
    /// The answer with a status that is no failure.
    pub(crate) async fn run(
        &self,
        http: &Http,
        auth: &Auth,
        tries: &mut Tries,
    ) -> Result<Response<Incoming>> {
        loop {
            let (error, wish) = match self.once(http, auth).await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let wish = retry_after(&answer);
                    (self.refused(http, answer).await, wish)
                }
                Err(error) => (error, None),
            };
            tries.again(http, error, wish).await?;
        }
    }

    /// Redirects followed, challenges answered.
    async fn once(&self, http: &Http, auth: &Auth) -> Result<Response<Incoming>> {
        let mut url = self.url.clone();
        let (mut redirects, mut challenges) = (0, 0);
        loop {
            let home = Origin::of(&url)? == *auth.origin();
            let header = if home { auth.header().await } else { None };
            let answer = http.send(self.request(&url, header.as_ref())?).await?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && home && challenges < MAX_CHALLENGES {
                challenges += 1;
                if let Some(challenge) = challenge(answer.headers()) {
                    // After a redirect within the registry the walk begins anew.
                    auth.answer(http, &challenge, header.as_ref())
                        .await
                        .map_err(|error| error.ctx("authorization failed"))?;
                    url = self.url.clone();
                    continue;
                }
                return Ok(answer);
            }
            let moved = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                return Ok(answer);
            }
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(Error::unknown("registry redirects too often"));
            }
            let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let next = url::join(&url, location.unwrap_or_default())?;
            if Origin::of(&url)?.https && !Origin::of(&next)?.https {
                return Err(Error::permission_denied(format_args!(
                    "refusing a redirect from https to {}",
                    url::shown(&next)
                )));
            }
            url = next;
        }
    }

    fn request(&self, url: &Uri, header: Option<&HeaderValue>) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(url.clone())
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, self.accept.as_str());
        if self.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.from));
        }
        if let Some(header) = header {
            request = request.header(AUTHORIZATION, header);
        }
        let built = request.body(Full::default());
        built.map_err(|error| Error::invalid_argument(format_args!("request: {error}")))
    }

    async fn refused(&self, http: &Http, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        let error = status_error(answer, http.limits().read).await;
        let error = error.ctx(format!("{} {}", self.method, url::shown(&self.url)));
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return error
                .ctx("pull access denied, repository does not exist or may require authorization");
        }
        error
    }
}

/// How long to wait for who wants `wished`: whatever a server says is cut before it is reckoned with.
fn pause(wished: Duration, jitter: f64) -> Duration {
    wished.min(MAX_PAUSE).mul_f64(jitter).min(MAX_PAUSE)
}

/// The server's wish, in seconds.
fn retry_after(answer: &Response<Incoming>) -> Option<Duration> {
    let seconds = answer
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wish_of_a_server_is_too_long() {
        for (wished, want) in [
            (Duration::from_secs(u64::MAX), MAX_PAUSE),
            (Duration::MAX, MAX_PAUSE),
            (Duration::from_secs(2), Duration::from_secs(3)),
            (Duration::ZERO, Duration::ZERO),
        ] {
            assert_eq!(pause(wished, 1.5), want, "{wished:?}");
        }
    }
}
