//! Registries that mean harm or are broken: each fault ends with a clear error, soon, and with bounded
//! memory.

use std::time::{Duration, Instant};

use types::{Code, Descriptor, Error, media_type as mt};

use super::{image, opts, read, repository};
use crate::testsuite::{Part, Reply, Server};
use crate::{Budget, Credentials, RegistryOpts};

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
    options.limits.read = Duration::from_secs(1);
    options.limits.patience = Duration::from_secs(3);
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
async fn a_server_without_ranges_that_never_comes_further_is_given_up() {
    let (content, _, layer, _) = image();
    let server = Server::start(move |request| {
        let mut request = request.clone();
        request.headers.remove("range");
        Reply {
            cut: Some(400_000),
            ..content.reply(&request)
        }
    })
    .await;
    let repository = repository(&server, "", opts());
    let error = tokio::time::timeout(SOON, read(&repository, &layer, 0)).await;
    let error = error.expect("it is asked without end").unwrap_err();
    let said = [server.host(), layer.digest.as_str(), "at byte 400000"];
    told(&error, Code::Unavailable, &said);
    // What came first is progress; then each try counts.
    assert!(server.requests().len() <= 1 + opts().limits.attempts as usize);
}

#[tokio::test]
async fn bytes_passed_over_are_progress_once() {
    let (content, _, layer, _) = image();
    // Half a second to each cut, four where there is none: longer than the budget without progress.
    for (cut, rate, budget) in [(Some(400_000), 800_000, 800), (None, 200_000, 3000)] {
        let content = content.clone();
        let server = Server::start(move |request| {
            let mut request = request.clone();
            request.headers.remove("range");
            Reply {
                cut,
                rate: Some(rate),
                ..content.reply(&request)
            }
        })
        .await;
        let mut options = opts();
        options.limits.attempts = 100;
        options.budget = Some(Budget::new(Duration::from_millis(budget), None));
        let repository = repository(&server, "", options);
        let read = read(&repository, &layer, layer.size - 1);
        let read = tokio::time::timeout(2 * SOON, read).await.expect("it ends");
        match cut {
            None => assert_eq!(read.unwrap().len(), 1),
            Some(_) => told(&read.unwrap_err(), Code::DeadlineExceeded, &["read"]),
        }
    }
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
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn what_breaks_off_again_and_again_ends_with_the_budget_of_all_requests() {
    let (content, _, layer, data) = image();
    // Each answer comes further, so that no request is without progress.
    let server = Server::start(move |request| Reply {
        cut: Some(10_000),
        ..content.reply(request)
    })
    .await;
    let alone = read(&repository(&server, "", opts()), &layer, 0).await;
    assert_eq!(alone.unwrap(), data);
    let before = server.requests().len();
    // Together it is less than what pays for a try.
    let mut options = opts();
    let budget = Budget::new(Duration::from_secs(60), None);
    options.budget = Some(budget.with_tries(3, Duration::from_secs(60)));
    let repository = repository(&server, "", options);
    let both = tokio::join!(read(&repository, &layer, 0), read(&repository, &layer, 9));
    let digest = layer.digest.as_str();
    for error in [both.0.unwrap_err(), both.1.unwrap_err()] {
        let said = [
            server.host(),
            digest,
            "at byte",
            "tried again 3 times in all",
        ];
        told(&error, Code::Unavailable, &said);
    }
    assert_eq!(server.requests().len() - before, 2 + 3);
}

#[tokio::test]
async fn pauses_that_hosts_ask_for_end_with_the_budget_of_all_requests() {
    let server = Server::start(|_| Reply::status(429).with("retry-after", "20")).await;
    let mut options = opts();
    let budget = Budget::new(Duration::from_secs(60), None);
    options.budget = Some(budget.with_tries(5, Duration::from_secs(19)));
    let began = Instant::now();
    let error = repository(&server, ":latest", options).resolve().await;
    assert!(began.elapsed() < SOON);
    let said = [server.host(), "latest", "paused for 19 s in all", "429"];
    told(&error.unwrap_err(), Code::Unavailable, &said);
}
