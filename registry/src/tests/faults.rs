//! Registries that mean harm or are broken: each fault ends with a clear error, soon, and with bounded
//! memory.

use std::time::{Duration, Instant};

use types::{Code, Descriptor, Error, media_type as mt};

use super::{image, opts, read, repository};
use crate::testsuite::{Part, Reply, Server};
use crate::{Credentials, RegistryOpts};

/// A fault is told within this time.
const SOON: Duration = Duration::from_secs(10);

fn told(error: &Error, code: Code, parts: &[&str]) {
    assert!(error.is(code), "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_sends_single_bytes_is_given_up() {
    let (content, _, layer, _) = image();
    let server = Server::start(move |request| Reply {
        drip: Some(Duration::from_millis(50)),
        ..content.reply(request)
    })
    .await;
    let mut options = opts();
    options.limits.read = Duration::from_millis(500);
    options.limits.patience = Duration::from_secs(2);
    let began = Instant::now();
    let error = read(&repository(&server, "", options), &layer, 0)
        .await
        .unwrap_err();
    assert!(began.elapsed() < SOON);
    let digest = layer.digest.as_str();
    told(
        &error,
        Code::Unavailable,
        &[server.host(), digest, "trickles", "read"],
    );
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let layer = image().2;
    for (part, code, said) in [
        (Part::Head, Code::Unavailable, "message head is too large"),
        (Part::Body, Code::FailedPrecondition, "sends more than"),
    ] {
        let server = Server::start(move |_| Reply {
            endless: Some(part),
            ..Reply::status(200)
        })
        .await;
        let began = Instant::now();
        let error = read(&repository(&server, "", opts()), &layer, 0)
            .await
            .unwrap_err();
        assert!(began.elapsed() < SOON);
        told(&error, code, &[server.host(), layer.digest.as_str(), said]);
    }
}

#[tokio::test]
async fn manifests_and_tokens_have_a_limit() {
    let huge = |part| Reply {
        endless: Some(part),
        ..Reply::status(200).with("content-type", mt::OCI_MANIFEST)
    };
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::status(405),
        _ => huge(Part::Body),
    })
    .await;
    let error = repository(&server, ":latest", opts())
        .resolve()
        .await
        .unwrap_err();
    told(
        &error,
        Code::ResourceExhausted,
        &[server.host(), "latest", "4194304"],
    );
    let tokens = Server::start(move |_| huge(Part::Body)).await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server =
        Server::start(move |_| Reply::status(401).with("www-authenticate", challenge.clone()))
            .await;
    let error = repository(&server, ":latest", opts())
        .resolve()
        .await
        .unwrap_err();
    told(
        &error,
        Code::ResourceExhausted,
        &["latest", "fetch token", "1048576"],
    );
}

#[tokio::test]
async fn who_is_refused_again_and_again_gives_up() {
    let challenge = "Basic realm=x";
    let server =
        Server::start(move |_| Reply::status(401).with("www-authenticate", challenge)).await;
    let options = RegistryOpts {
        credentials: Some(Credentials {
            user: "u".into(),
            secret: "hunter2".into(),
        }),
        ..opts()
    };
    let layer: Descriptor = image().2;
    let error = read(&repository(&server, "", options), &layer, 0)
        .await
        .unwrap_err();
    told(
        &error,
        Code::Unauthenticated,
        &[server.host(), layer.digest.as_str()],
    );
    assert!(!error.to_string().contains("hunter2"));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_dropped_read_lets_go_at_once() {
    let server = Server::start(|_| Reply::status(0)).await;
    let repository = repository(&server, ":latest", opts());
    let began = Instant::now();
    let resolving = tokio::spawn(async move { repository.resolve().await });
    while server.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    resolving.abort();
    assert!(resolving.await.unwrap_err().is_cancelled());
    assert!(began.elapsed() < Duration::from_secs(1));
}
