//! Answers that are no answers: refusals, illness, silence, and heads and tokens without an end.

use registry::testsuite::{Part, Reply, Request};
use types::media_type as mt;

use super::{AFTER_SILENCE, AFTER_TRIES, AT_ONCE, Fault, image};

pub(super) fn faults() -> Vec<Fault> {
    let mut all = vec![
        endless_head(),
        endless_error(),
        endless_token(),
        refusing_token(),
        refused_again_and_again(),
        silent(),
        circle(),
    ];
    all.extend(statuses());
    all
}

fn statuses() -> Vec<Fault> {
    let fault = |name, status, limit, part| {
        Fault::new(name, limit, &["latest", part], move |_| {
            Reply::status(status).with("www-authenticate", "Unknown x=y")
        })
    };
    vec![
        fault("status-401", 401, AT_ONCE, "pull access denied"),
        fault("status-403", 403, AT_ONCE, "pull access denied"),
        fault("status-429", 429, AFTER_TRIES, "429"),
        fault("status-503", 503, AFTER_TRIES, "503"),
    ]
}

fn endless_head() -> Fault {
    Fault::new("head", AFTER_TRIES, &["latest", "too large"], |_| Reply {
        endless: Some(Part::Head),
        ..Reply::status(200)
    })
}

fn endless_error() -> Fault {
    Fault::new("error", AFTER_TRIES, &["latest", "500"], |_| Reply {
        endless: Some(Part::Body),
        ..Reply::status(500)
    })
}

/// Wants a token from a server of its own, for which `token` answers.
fn guarded(
    name: &'static str,
    says: &[&str],
    token: impl Fn() -> Reply + Send + Sync + 'static,
) -> Fault {
    Fault::new(name, AFTER_TRIES, says, move |request: &Request| {
        if request.path == "/token" {
            return token();
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        Reply::status(401).with("www-authenticate", realm)
    })
}

fn endless_token() -> Fault {
    guarded("token", &["latest", "fetch token", "larger than"], || {
        Reply {
            endless: Some(Part::Body),
            ..Reply::status(200)
        }
    })
}

fn refusing_token() -> Fault {
    let says = ["latest", "fetch token", "401", "unauthenticated"];
    guarded("tokens", &says, || Reply::status(401))
}

/// Each token is as bad as the one before.
fn refused_again_and_again() -> Fault {
    guarded("loop", &["latest", "pull access denied"], || {
        Reply::status(200).body(r#"{"token":"t"}"#)
    })
}

/// Takes connections and says nothing.
fn silent() -> Fault {
    Fault::new("silence", AFTER_SILENCE, &["latest", "in time"], |_| {
        Reply::status(0)
    })
}

/// The layer is always somewhere else.
fn circle() -> Fault {
    let (content, layer) = image("circle");
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let says = [layer.digest.as_str(), "redirects", "read"];
    Fault::new("circle", AT_ONCE, &says, move |request| {
        if request.path == path {
            return Reply::status(307).with("location", path.clone());
        }
        content.reply(request)
    })
}

#[test]
fn a_registry_that_refuses_or_is_ill_is_named() {
    for fault in statuses() {
        drop(fault.happens());
    }
}

#[test]
fn endless_headers_are_cut() {
    drop(endless_head().happens());
}

#[test]
fn an_error_without_an_end_is_cut() {
    drop(endless_error().happens());
}

#[test]
fn a_token_without_an_end_is_cut() {
    drop(endless_token().happens());
}

#[test]
fn a_token_server_that_refuses_ends_the_pull() {
    drop(refusing_token().happens());
}

#[test]
fn who_is_refused_again_and_again_gives_up() {
    let asked = refused_again_and_again().happens();
    assert!(asked.len() <= 6, "{} requests", asked.len());
}

#[test]
fn a_registry_that_says_nothing_is_given_up() {
    drop(silent().happens());
}

#[test]
fn redirects_in_a_circle_end() {
    let asked = circle().happens();
    assert!(asked.len() <= 20, "{} requests", asked.len());
    let of_manifest = |r: &&Request| r.header("accept").contains(mt::OCI_MANIFEST);
    assert!(asked.iter().filter(of_manifest).count() <= 2);
}
