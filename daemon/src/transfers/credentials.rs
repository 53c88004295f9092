//! How a registry is reached, and who we are there: the client is asked over its stream, when a
//! registry wants to know.

use std::io::{LineWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use async_trait::async_trait;
use client::ByteWriter;
use client::stream::Duplex;
use http::{HeaderMap, HeaderName, HeaderValue};
use protos::wire::transfer::{auth_answer_from_any, auth_request_to_any};
use registry::{Answer, Authenticator, Credentials, Question, RegistryOpts, Watch};
use tokio::sync::{Mutex, oneshot};
use types::transfer::{AuthAnswer, AuthRequest, Remote};
use types::{Context as _, Error, Labels, Result, Scope};

use super::Shared;
use crate::streams::Held;

/// Lines about requests that wait for the client.
const LINES: usize = 256;
/// How long the last of them may take.
const LAST: Duration = Duration::from_secs(2);

impl Shared {
    /// How to talk to the registry of `remote`. The streams to the client stay open with the second
    /// value.
    ///
    /// # Errors
    /// `NotFound` for the stream; `InvalidArgument` for a bad scheme or header; `NotImplemented` for
    /// what cannot be had here.
    pub(super) fn registry(&self, scope: &Scope, remote: &Remote) -> Result<(RegistryOpts, Talk)> {
        if !matches!(remote.default_scheme.as_str(), "" | "http" | "https") {
            return Err(Error::invalid_argument(format_args!(
                "scheme {:?} of a registry",
                remote.default_scheme
            )));
        }
        let mut opts = RegistryOpts {
            host_dirs: if remote.host_dir.is_empty() {
                self.live().host_dirs
            } else {
                vec![PathBuf::from(&remote.host_dir)]
            },
            headers: headers(&remote.headers)?,
            default_scheme: remote.default_scheme.clone(),
            ..RegistryOpts::default()
        };
        let mut talk = Talk::default();
        if remote.dump || remote.trace {
            let (watch, logs) = self.watch(scope, remote)?;
            opts.watch = Some(watch);
            talk.logs = logs;
        }
        if !remote.auth_stream.is_empty() {
            let (stream, held) = self.streams.take(&scope.namespace, &remote.auth_stream)?;
            // Not longer than the registry waits for it.
            let patience = opts.limits.credentials;
            opts.authenticator = Some(Arc::new(Client::new(stream, patience)));
            talk.auth = Some(held);
        }
        Ok((opts, talk))
    }

    /// Tells of requests on the client's stream, or else in the daemon's log.
    fn watch(&self, scope: &Scope, remote: &Remote) -> Result<(Watch, Option<Logs>)> {
        if remote.logs_stream.is_empty() {
            let tell = |text: String| tracing::info!("{text}");
            return Ok((Watch::new(remote.dump, remote.trace, tell), None));
        }
        let (stream, held) = self.streams.take(&scope.namespace, &remote.logs_stream)?;
        let (lines, waiting) = sync_channel::<String>(LINES);
        let (ended, written) = oneshot::channel();
        let write = move || {
            let mut writer = LineWriter::new(ByteWriter::new(stream));
            // A client that does not read misses lines, and nothing else.
            while let Ok(line) = waiting.recv()
                && writeln!(writer, "{line}").is_ok()
            {}
            let _told = ended.send(writer.flush());
        };
        let thread = std::thread::Builder::new().name("registry-logs".into());
        let started = thread.spawn(write);
        drop(started.map_err(|e| Error::os("start a thread", e))?);
        let tell = move |text| {
            if lines.try_send(text).is_err() {
                tracing::debug!("what a registry is asked is not read any more");
            }
        };
        let watch = Watch::new(remote.dump, remote.trace, tell);
        Ok((watch, Some(Logs { written, held })))
    }
}

/// The streams of a transfer to its client.
#[derive(Default)]
pub(super) struct Talk {
    auth: Option<Held>,
    logs: Option<Logs>,
}

/// What is told of requests.
struct Logs {
    written: oneshot::Receiver<std::io::Result<()>>,
    held: Held,
}

impl Talk {
    /// Ends them; nobody may tell anything any more.
    pub(super) async fn finish(self) {
        drop(self.auth);
        if let Some(Logs { written, held }) = self.logs {
            let last = async {
                // A client that is gone has no use for the rest.
                let _written = written.await;
                held.close().await;
            };
            if tokio::time::timeout(LAST, last).await.is_err() {
                tracing::debug!("the last lines about a registry were not read");
            }
        }
    }
}

fn headers(labels: &Labels) -> Result<HeaderMap> {
    let mut made = HeaderMap::new();
    for (name, value) in labels.iter() {
        let bad = || Error::invalid_argument(format_args!("header field {name:?} of a registry"));
        let field = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        made.insert(field, HeaderValue::from_str(value).map_err(|_| bad())?);
    }
    Ok(made)
}

/// A client that knows credentials. It is asked one thing at a time, and answers are in the order of the
/// questions: each is waited for, also when who asked has gone, or it would be taken for the next one's.
/// `None` once an answer did not come.
#[derive(Debug)]
struct Client {
    stream: Arc<Mutex<Option<Duplex>>>,
    /// How long the client may think.
    patience: Duration,
}

impl Client {
    fn new(stream: Duplex, patience: Duration) -> Self {
        Self {
            stream: Arc::new(Mutex::new(Some(stream))),
            patience,
        }
    }
}

/// Asks one thing and waits for its answer.
async fn exchange(
    client: Arc<Mutex<Option<Duplex>>>,
    request: AuthRequest,
    patience: Duration,
) -> Result<AuthAnswer> {
    let mut held = client.lock().await;
    let silent = || Error::unauthenticated("the client has left a question unanswered");
    let stream = held.as_mut().ok_or_else(silent)?;
    let asked = async {
        stream.send(auth_request_to_any(&request)?).await?;
        let answer = stream.receive().await?;
        let nobody = || Error::unauthenticated("the client gives no credentials");
        auth_answer_from_any(&answer.ok_or_else(nobody)?)
    };
    match tokio::time::timeout(patience, asked).await {
        Ok(answer) => answer,
        Err(_) => {
            *held = None;
            Err(Error::deadline_exceeded(""))
        }
    }
}

#[async_trait]
impl Authenticator for Client {
    async fn answer(&self, question: &Question) -> Result<Answer> {
        let request = AuthRequest {
            host: question.host.clone(),
            reference: question.reference.clone(),
            challenges: question.challenges.clone(),
        };
        let stream = Arc::clone(&self.stream);
        let asked = tokio::spawn(exchange(stream, request, self.patience)).await;
        let answer = asked.unwrap_or_else(|e| Err(Error::internal(e)));
        let answer = answer.ctx_with(|| format!("ask for credentials for {}", question.host))?;
        Ok(match answer {
            AuthAnswer::None => Answer::Anonymous,
            AuthAnswer::Password { user, secret } => Answer::User(Credentials { user, secret }),
            AuthAnswer::Refresh(secret) => Answer::Refresh(secret),
            AuthAnswer::Header(value) => Answer::Header(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use client::stream::pair;
    use protos::wire::transfer::{auth_answer_to_any, auth_request_from_any};
    use types::Code;

    use super::*;

    fn question() -> Question {
        Question {
            host: "r.test".into(),
            reference: "r.test/a:1".into(),
            challenges: vec!["Basic".into()],
        }
    }

    #[tokio::test]
    async fn the_client_is_asked_what_the_registry_asks() {
        let (near, mut far) = pair();
        let client = Client::new(near, Duration::from_secs(30));
        let asking = tokio::spawn(async move { client.answer(&question()).await });
        let request = far.receiver.recv().await.unwrap();
        let request = auth_request_from_any(&request).unwrap();
        assert_eq!(request.host, "r.test");
        assert_eq!(request.challenges, ["Basic"]);
        let answer = AuthAnswer::Password {
            user: "u".into(),
            secret: "s".into(),
        };
        assert!(far.sink.send(auth_answer_to_any(&answer)).await);
        let want = Answer::User(Credentials {
            user: "u".into(),
            secret: "s".into(),
        });
        assert_eq!(asking.await.unwrap().unwrap(), want);
    }

    /// Who asked for one host gave up before the answer: it is not the answer for the next host.
    #[tokio::test]
    async fn an_answer_belongs_to_its_question() {
        let (near, mut far) = pair();
        let client = Arc::new(Client::new(near, Duration::from_secs(30)));
        let asking = Arc::clone(&client);
        let asked = tokio::spawn(async move { asking.answer(&question()).await });
        far.receiver.recv().await.unwrap();
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        let other = Question {
            host: "other.test".into(),
            ..question()
        };
        let asked = tokio::spawn(async move { client.answer(&other).await });
        let header = |value: &str| auth_answer_to_any(&AuthAnswer::Header(value.into()));
        assert!(far.sink.send(header("of r.test")).await);
        let request = far.receiver.recv().await.unwrap();
        assert_eq!(auth_request_from_any(&request).unwrap().host, "other.test");
        assert!(far.sink.send(header("of other.test")).await);
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer, Answer::Header("of other.test".into()));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_an_error() {
        let (near, far) = pair();
        far.sink.finish();
        drop(far.receiver);
        let error = Client::new(near, Duration::from_secs(30))
            .answer(&question())
            .await;
        let error = error.unwrap_err();
        assert!(error.is(Code::Cancelled), "{error}");
        assert!(error.to_string().contains("r.test"), "{error}");
    }

    #[test]
    fn header_fields_are_checked() {
        assert_eq!(
            headers(&Labels::new().with("X-A", "b")).unwrap()["x-a"],
            "b"
        );
        for (name, value) in [("a b", "c"), ("a", "b\n")] {
            let error = headers(&Labels::new().with(name, value)).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
        }
    }
}
