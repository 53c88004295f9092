//! Credentials that are asked for: when, by whom, and what becomes of the answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use types::{Code, Error, Result};

use super::{image, opts, read, with_hosts};
use crate::testsuite::{Reply, Server};
use crate::{Answer, Authenticator, Credentials, Question, RegistryOpts, Repository};

/// Gives its answers in turn, the last one for ever, and notes the questions.
#[derive(Debug)]
struct Known {
    answers: Vec<Answer>,
    asked: Mutex<Vec<Question>>,
}

impl Known {
    fn new(answers: &[Answer]) -> Arc<Self> {
        Arc::new(Self {
            answers: answers.to_vec(),
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Authenticator for Known {
    async fn answer(&self, question: &Question) -> Result<Answer> {
        let mut asked = self.asked.lock().unwrap();
        asked.push(question.clone());
        let at = asked.len().min(self.answers.len());
        match at.checked_sub(1) {
            Some(at) => Ok(self.answers[at].clone()),
            None => Err(Error::unavailable("nobody is at home")),
        }
    }
}

fn user(secret: &str) -> Answer {
    Answer::User(Credentials {
        user: "user".into(),
        secret: secret.into(),
    })
}

fn repository(host: &str, known: &Arc<Known>) -> Repository {
    let options = RegistryOpts {
        authenticator: Some(Arc::clone(known) as Arc<dyn Authenticator>),
        ..opts()
    };
    let reference = format!("{host}/r:latest").parse().unwrap();
    Repository::new(&reference, options).unwrap()
}

/// A registry that wants `wanted` in the header.
async fn wanting(wanted: &'static str, challenge: String) -> Server {
    let (content, ..) = image();
    Server::start(
        move |request| match request.header("authorization") == wanted {
            true => content.reply(request),
            false => Reply::status(401).with("www-authenticate", challenge.clone()),
        },
    )
    .await
}

/// A person at a keyboard.
#[derive(Debug)]
struct Slow;

impl Slow {
    const TAKES: Duration = Duration::from_secs(8);
}

#[async_trait::async_trait]
impl Authenticator for Slow {
    async fn answer(&self, _: &Question) -> Result<Answer> {
        tokio::time::sleep(Self::TAKES).await;
        Ok(user("pass"))
    }
}

#[tokio::test]
async fn credentials_may_take_longer_than_a_server_and_not_for_ever() {
    let server = wanting("Basic dXNlcjpwYXNz", "Basic realm=x".into()).await;
    for (credentials, is_enough) in [(60_000, true), (20, false)] {
        let mut options = opts();
        options.authenticator = Some(Arc::new(Slow));
        options.limits.answer = Slow::TAKES / 4;
        options.limits.credentials = Duration::from_millis(credentials);
        let reference = format!("{}/r:latest", server.host()).parse().unwrap();
        let repository = Repository::new(&reference, options).unwrap();
        match (repository.resolve().await, is_enough) {
            (Ok(_), true) => {}
            (Err(error), false) => {
                assert!(
                    error.to_string().contains("no credentials in time"),
                    "{error}"
                );
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_mirror_that_waits_for_a_password_is_not_taken_for_a_silent_one() {
    let mirror = wanting("Basic dXNlcjpwYXNz", "Basic realm=x".into()).await;
    let server = wanting("nothing", "Basic realm=x".into()).await;
    let (dir, name) = (tempfile::tempdir().unwrap(), "registry.example.test");
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    );
    let mut options = with_hosts(&text, dir.path(), name);
    options.authenticator = Some(Arc::new(Slow));
    options.limits.hedge = Slow::TAKES / 4;
    let reference = format!("{name}/r:latest").parse().unwrap();
    let repository = Repository::new(&reference, options).unwrap();
    repository.resolve().await.unwrap();
    assert!(server.requests().is_empty(), "{:?}", server.requests());
    let url = format!("http://{}/", mirror.host()).parse().unwrap();
    let origin = crate::url::Origin::of(&url).unwrap();
    assert!(!repository.shared.health.is_ill(&origin));
}

#[tokio::test]
async fn the_question_says_who_asks_for_what() {
    let server = wanting("Basic dXNlcjpwYXNz", "Basic realm=x".into()).await;
    let known = Known::new(&[user("pass")]);
    let repository = repository(server.host(), &known);
    repository.resolve().await.unwrap();
    read(&repository, &image().2, 0).await.unwrap();
    let want = Question {
        host: server.host().into(),
        reference: format!("{}/r:latest", server.host()),
        challenges: vec!["Basic realm=x".into()],
    };
    assert_eq!(known.asked(), [want]);
}

#[tokio::test]
async fn each_kind_of_answer_is_used_as_what_it_is() {
    let tokens = Server::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let basic = request.header("authorization");
        let good = match request.method.as_str() {
            "POST" => body.contains("refresh_token=id") && basic.is_empty(),
            _ => basic == "Basic dXNlcjpwYXNz",
        };
        match good {
            true => Reply::status(200).body(r#"{"access_token":"t"}"#),
            false => Reply::status(403),
        }
    })
    .await;
    let bearer = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    for (answer, challenge, wanted) in [
        (user("pass"), bearer.clone(), "Bearer t"),
        (Answer::Refresh("id".into()), bearer.clone(), "Bearer t"),
        (
            Answer::Header("Custom x".into()),
            bearer.clone(),
            "Custom x",
        ),
        (
            Answer::Header("Custom x".into()),
            "Basic realm=x".into(),
            "Custom x",
        ),
    ] {
        let server = wanting(wanted, challenge).await;
        let known = Known::new(&[answer]);
        repository(server.host(), &known).resolve().await.unwrap();
    }
}

#[tokio::test]
async fn answers_that_do_not_help_end_the_request() {
    let tokens = Server::start(|_| Reply::status(403)).await;
    let bearer = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let anonymous = Answer::User(Credentials {
        user: String::new(),
        secret: String::new(),
    });
    for (answers, code, said) in [
        (
            vec![Answer::Anonymous],
            Code::PermissionDenied,
            "fetch token",
        ),
        (vec![anonymous], Code::PermissionDenied, "fetch token"),
        (
            vec![Answer::Header("a\nb".into())],
            Code::Unauthenticated,
            "header",
        ),
        (vec![], Code::Unavailable, "nobody is at home"),
    ] {
        let server = wanting("nothing", bearer.clone()).await;
        let known = Known::new(&answers);
        let error = repository(server.host(), &known)
            .resolve()
            .await
            .unwrap_err();
        assert!(error.is(code), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn credentials_that_are_refused_are_asked_for_anew() {
    let server = wanting("Basic dXNlcjpwYXNz", "Basic realm=x".into()).await;
    let known = Known::new(&[user("old"), user("pass")]);
    repository(server.host(), &known).resolve().await.unwrap();
    assert_eq!(known.asked().len(), 2);
    let known = Known::new(&[user("wrong")]);
    let error = repository(server.host(), &known)
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is(Code::Unauthenticated), "{error}");
    assert_eq!(known.asked().len(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_runs_out() {
    let count = AtomicUsize::new(0);
    let tokens = Server::start(move |_| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        // The first runs out soon, but lasts for a request.
        let life = if n == 0 { 3 } else { 3600 };
        Reply::status(200).body(format!(r#"{{"token":"t{n}","expires_in":{life}}}"#))
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let (content, manifest, ..) = image();
    let server = Server::start(move |request| match request.header("authorization") {
        "" => Reply::status(401).with("www-authenticate", challenge.clone()),
        _ => content.reply(request),
    })
    .await;
    let known = Known::new(&[Answer::Anonymous]);
    let repository = repository(server.host(), &known);
    let began = std::time::Instant::now();
    loop {
        assert_eq!(repository.resolve().await.unwrap(), manifest);
        if tokens.requests().len() == 2 {
            break;
        }
        assert!(began.elapsed().as_secs() < 30, "the token is used for ever");
    }
    let said = |request: &crate::testsuite::Request| request.header("authorization").to_owned();
    let all: Vec<String> = server.requests().iter().map(said).collect();
    assert_eq!(all[..2], ["", "Bearer t0"]);
    assert_eq!(all.last().unwrap(), "Bearer t1");
    // The registry never had to refuse a stale one.
    assert_eq!(all.iter().filter(|header| header.is_empty()).count(), 1);
}

#[tokio::test]
async fn a_mirror_is_known_by_its_own_name() {
    let mirror = wanting("Basic dXNlcjpwYXNz", "Basic realm=x".into()).await;
    let dir = tempfile::tempdir().unwrap();
    let name = "registry.example.test";
    let text = format!("server = \"http://{}\"", mirror.host());
    let known = Known::new(&[user("pass")]);
    let options = RegistryOpts {
        authenticator: Some(Arc::clone(&known) as Arc<dyn Authenticator>),
        credentials: Some(Credentials {
            user: "never".into(),
            secret: "sent".into(),
        }),
        ..with_hosts(&text, dir.path(), name)
    };
    let reference = format!("{name}/r:latest").parse().unwrap();
    let repository = Repository::new(&reference, options).unwrap();
    repository.resolve().await.unwrap();
    assert_eq!(known.asked()[0].host, mirror.host());
    assert_eq!(known.asked()[0].reference, format!("{name}/r:latest"));
}
