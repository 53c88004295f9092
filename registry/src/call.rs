//! A request with all that can come between it and its answer: challenges, redirects, retries.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use rand::Rng as _;
use recorder::On;
use time::PrimitiveDateTime;
use time::macros::format_description;
use tokio::time::{Instant, sleep};
use types::{Code, Error, Result};

use crate::auth::AGENT;
use crate::body::{Outgoing, Payload, Sent};
use crate::budget::Budget;
use crate::challenge::challenge;
use crate::host::Host;
use crate::http::{is_no_tls, status_error};
use crate::opts::Limits;
use crate::race::Failure;
use crate::url::{self, Origin};

/// Redirects of one request.
pub(crate) const MAX_REDIRECTS: usize = 10;
/// Challenges of one request: a stale token, then its successor.
const MAX_CHALLENGES: usize = 2;
/// Longest pause between two tries that is our own choice.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What to ask of a host.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) accept: String,
    /// First byte wanted.
    pub(crate) from: u64,
    /// End of the bytes wanted, when that is not the end of all.
    pub(crate) to: Option<u64>,
    /// What the token must allow.
    pub(crate) scopes: Vec<String>,
    /// More headers.
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
}

/// Where a call goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Below the root of the host's API, with a query perhaps.
    Path(String),
    /// Where the host itself sent us.
    Url(Uri),
}

/// Tries without progress of one request, counted; those of all requests are the budget's.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    failed: u32,
    since: Instant,
    budget: Option<Budget>,
}

impl Tries {
    pub(crate) fn new(budget: Option<&Budget>) -> Self {
        Self {
            failed: 0,
            since: Instant::now(),
            budget: budget.cloned(),
        }
    }

    /// There was progress.
    pub(crate) fn renew(&mut self) {
        (self.failed, self.since) = (0, Instant::now());
    }

    /// So much of the time was ours.
    pub(crate) fn excuse(&mut self, time: Duration) {
        self.since += time;
    }

    /// How much time there is for more of them.
    pub(crate) fn left(&self, limits: &Limits) -> Duration {
        limits.patience.saturating_sub(self.since.elapsed())
    }

    /// A host was silent and others are there: goes on, or gives up with `error`. The time counts, the
    /// try does not: however many hosts there are, each gets its turns.
    pub(crate) async fn after_silence(&self, limits: &Limits, error: Error) -> Result<()> {
        let pause = pause(limits.backoff, jitter());
        if self.left(limits) <= pause {
            return Err(error);
        }
        tracing::debug!(%error, "going on with another host");
        self.rest(pause, error).await
    }

    /// Waits before the next try, or gives up with `error`: at once when the server wants to be left
    /// alone for longer than there is time.
    pub(crate) async fn again(
        &mut self,
        limits: &Limits,
        error: Error,
        wish: Option<Duration>,
    ) -> Result<()> {
        self.failed += 1;
        let doubled = limits
            .backoff
            .saturating_mul(1 << self.failed.min(16).saturating_sub(1));
        if !error.is(Code::Unavailable) || self.failed >= limits.attempts {
            return Err(error);
        }
        let left = self.left(limits);
        let pause = match wish {
            Some(wish) if wish > left => {
                return Err(error.ctx(format!("asked to come back after {} s", wish.as_secs())));
            }
            Some(wish) => obeyed(wish, jitter()).min(left),
            None => pause(doubled, jitter()),
        };
        if pause > left {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        self.rest(pause, error).await
    }

    /// Pauses, where the whole that this is a part of may do so once more.
    async fn rest(&self, pause: Duration, error: Error) -> Result<()> {
        let again = |budget: &Budget| budget.again(pause, &error);
        let _counted = match self.budget.as_ref().map(again).transpose() {
            Ok(counted) => counted,
            Err(spent) => return Err(error.ctx(spent)),
        };
        let why = || On::named(error.to_string());
        let _waiting = recorder::stage("pause before the registry is tried again", why);
        sleep(pause).await;
        Ok(())
    }
}

impl Call {
    pub(crate) fn new(method: Method, path: impl Into<String>, scopes: &[String]) -> Self {
        Self {
            method,
            target: Target::Path(path.into()),
            accept: "*/*".to_owned(),
            from: 0,
            to: None,
            scopes: scopes.to_vec(),
            headers: HeaderMap::new(),
            payload: Payload::empty(),
        }
    }

    /// The answer of this host with a status that is no failure.
    pub(crate) async fn run(&self, host: &Host, tries: &mut Tries) -> Result<Response<Incoming>> {
        loop {
            let before = host.auth.thought.taken();
            let (error, wish) = match self.once(host).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            tries.excuse(host.auth.thought.taken() - before);
            tries.again(host.http.limits(), error, wish).await?;
        }
    }

    /// One try: the answer, or why there is none and when the server wants to be asked again.
    pub(crate) async fn once(&self, host: &Host) -> Result<Response<Incoming>, Failure> {
        let walked = loop {
            // Boxed: this future is a part of many others, which would all be as large.
            if let Some(walked) = Box::pin(self.walk(host)).await.transpose() {
                break walked;
            }
            // Once at most: a host without TLS cannot lose it again.
        };
        match walked {
            Ok(answer) if answer.status().is_success() => Ok(answer),
            Ok(answer) => {
                let wish = retry_after(&answer);
                Err((self.refused(host, answer).await, wish))
            }
            Err(error) if error.to_string().contains(host.root()) => Err((error, None)),
            Err(error) => Err((error.ctx(host.root().to_owned()), None)),
        }
    }

    /// Redirects followed, challenges answered; `None` when the host has just been found to speak no
    /// TLS. Only the host itself can show that, not who it sends us to. Credentials and the host's own
    /// headers go as far as the host itself sends us to itself.
    async fn walk(&self, host: &Host) -> Result<Option<Response<Incoming>>> {
        let start = self.url(host)?;
        // Taken from the URL: the host may turn out to speak no TLS at any moment.
        let origin = &match &self.target {
            Target::Path(_) => Origin::of(&start)?,
            Target::Url(_) => host.origin().clone(),
        };
        let mut url = start.clone();
        let (mut redirects, mut challenges, mut strayed) = (0, 0, false);
        loop {
            // Where a stranger sends us is its choice, also when it is back: no word of ours goes with it.
            strayed |= Origin::of(&url)? != *origin;
            let home = !strayed;
            let header = if home {
                let header = host.auth.header(&host.http, origin, &self.scopes).await;
                header.map_err(|error| error.ctx("authorization failed"))?
            } else {
                None
            };
            let (request, sent) = self.request(home.then_some(host), &url, header.as_ref())?;
            let answer = match host.http.send_watched(request, &sent).await {
                Err(error) if home && is_no_tls(&error) && host.become_plain() => return Ok(None),
                answer => answer?,
            };
            if home {
                host.answered(origin);
            }
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && home && challenges < MAX_CHALLENGES {
                challenges += 1;
                if let Some(challenged) = challenge(answer.headers()) {
                    // After a redirect within the registry the walk begins anew.
                    let (auth, http) = (&host.auth, &host.http);
                    auth.answer(http, origin, challenged, &self.scopes, header.as_ref())
                        .await
                        .map_err(|error| error.ctx("authorization failed"))?;
                    url = start.clone();
                    continue;
                }
                return Ok(Some(answer));
            }
            // The others would turn a request with a body into another one.
            let is_followed = match self.method {
                Method::GET | Method::HEAD => is_redirect(status),
                _ => matches!(status.as_u16(), 307 | 308),
            };
            if !is_followed {
                return Ok(Some(answer));
            }
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(Error::unknown("registry redirects too often"));
            }
            url = redirected(&url, &answer)?;
        }
    }

    fn url(&self, host: &Host) -> Result<Uri> {
        match &self.target {
            Target::Path(path) => host.url(path),
            Target::Url(url) => Ok(url.clone()),
        }
    }

    fn request(
        &self,
        home: Option<&Host>,
        url: &Uri,
        header: Option<&HeaderValue>,
    ) -> Result<(Request<Outgoing>, Arc<Sent>)> {
        let (body, sent) = self.payload.body();
        let built = Request::builder()
            .method(self.method.clone())
            .uri(url.clone())
            .body(body);
        let mut request =
            built.map_err(|error| Error::invalid_argument(format_args!("request: {error}")))?;
        let headers = request.headers_mut();
        if let Some(host) = home {
            headers.extend(host.headers.clone());
        }
        headers.extend(self.headers.clone());
        headers.entry(USER_AGENT).or_insert(AGENT);
        let accept = HeaderValue::from_str(&self.accept)
            .map_err(|_| Error::invalid_argument(format_args!("media type {:?}", self.accept)))?;
        headers.insert(ACCEPT, accept);
        let bodyless = matches!(self.method, Method::GET | Method::HEAD);
        if !bodyless && matches!(&self.payload, Payload::Whole(bytes) if bytes.is_empty()) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if self.from > 0 || self.to.is_some() {
            let last = self
                .to
                .map_or(String::new(), |to| to.saturating_sub(1).to_string());
            let range = HeaderValue::from_str(&format!("bytes={}-{last}", self.from));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header.clone());
        }
        Ok((request, sent))
    }

    async fn refused(&self, host: &Host, answer: Response<Incoming>) -> Error {
        let status = answer.status();
        let error = status_error(answer, host.http.limits().read).await;
        let shown = self
            .url(host)
            .map_or_else(|_| host.root().to_owned(), |url| url::shown(&url));
        let error = error.ctx(format!("{} {shown}", self.method));
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let what = if self.scopes.iter().any(|scope| scope.ends_with("push")) {
                "push"
            } else {
                "pull"
            };
            return error.ctx(format!(
                "{what} access denied, repository does not exist or may require authorization"
            ));
        }
        error
    }
}

/// Whether a request without a body is sent elsewhere.
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads, when it may be followed.
pub(crate) fn redirected(from: &Uri, answer: &Response<Incoming>) -> Result<Uri> {
    let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let to = url::join(from, location.unwrap_or_default())?;
    if Origin::of(from)?.https && !Origin::of(&to)?.https {
        return Err(Error::permission_denied(format_args!(
            "refusing a redirect from https to {}",
            url::shown(&to)
        )));
    }
    Ok(to)
}

/// Up to half more, so that many clients do not come back in step.
fn jitter() -> f64 {
    rand::rng().random_range(1.0..1.5)
}

/// How long to wait where nobody says.
fn pause(usual: Duration, jitter: f64) -> Duration {
    usual.min(MAX_PAUSE).mul_f64(jitter).min(MAX_PAUSE)
}

/// How long to wait for a server that wants `wished`: never less.
fn obeyed(wished: Duration, jitter: f64) -> Duration {
    wished.saturating_add(wished.min(MAX_PAUSE).mul_f64(jitter - 1.0))
}

/// The server's wish, in seconds or as a date.
fn retry_after(answer: &Response<Incoming>) -> Option<Duration> {
    let wish = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    wished(wish, SystemTime::now())
}

/// How long to wait at `now` for who wants this. A date that has passed is no wish to wait.
fn wished(wish: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = wish.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // The one form that servers are to send; the zone is always the same.
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = PrimitiveDateTime::parse(wish, form).ok()?.assume_utc();
    let left = SystemTime::from(date).duration_since(now);
    Some(left.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_wishes_in_seconds_or_by_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (wish, want) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("Sun, 06 Nov 9999 08:49:36 CET", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(wished(wish, now), want.map(Duration::from_secs), "{wish}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_left_alone_for_as_long_as_it_wants_or_given_up_at_once() {
        let limits = Limits::default();
        let (second, most) = (Duration::from_secs(1), limits.patience);
        for (wish, is_kept) in [
            (Duration::ZERO, true),
            (second, true),
            (most / 2, true),
            (most, true),
            (most + second, false),
            (Duration::from_secs(u64::MAX), false),
            (Duration::MAX, false),
        ] {
            let (mut tries, began) = (Tries::new(None), Instant::now());
            let error = Error::unavailable("429 Too Many Requests");
            let again = tries.again(&limits, error, Some(wish)).await;
            let took = began.elapsed();
            match again {
                Ok(()) => assert!(
                    is_kept && took >= wish && took < most + second,
                    "{wish:?}: {took:?}"
                ),
                Err(error) => {
                    assert!(!is_kept && took.is_zero(), "{wish:?}: {took:?}");
                    let said = format!("after {} s: 429 Too", wish.as_secs());
                    assert!(error.to_string().contains(&said), "{error}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_server_s_wish_is_what_is_left() {
        let limits = Limits::default();
        let (mut tries, wish) = (Tries::new(None), limits.patience * 2 / 3);
        let error = || Error::unavailable("x");
        tries.again(&limits, error(), Some(wish)).await.unwrap();
        let again = tries.again(&limits, error(), Some(wish)).await;
        assert!(again.unwrap_err().to_string().contains("30 s"));
    }

    #[test]
    fn pauses_differ_and_have_a_bound() {
        for (usual, pauses, obeys) in [
            (Duration::MAX, MAX_PAUSE, Duration::MAX),
            (MAX_PAUSE * 3, MAX_PAUSE, MAX_PAUSE * 7 / 2),
            (MAX_PAUSE / 5, MAX_PAUSE * 3 / 10, MAX_PAUSE * 3 / 10),
            (Duration::ZERO, Duration::ZERO, Duration::ZERO),
        ] {
            assert_eq!(pause(usual, 1.5), pauses, "{usual:?}");
            assert_eq!(obeyed(usual, 1.5), obeys, "{usual:?}");
        }
    }
}
