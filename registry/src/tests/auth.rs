//! Challenges, tokens and redirects: what credentials are sent to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use types::{Code, Error};

use super::{image, opts, read, repository, with_hosts};
use crate::testsuite::{Content, Reply, Request, Server};
use crate::{Credentials, RegistryOpts};

const TOKEN: &str = "Bearer t0ken";

fn with_user() -> RegistryOpts {
    let credentials = Credentials {
        user: "user".into(),
        secret: "pass".into(),
    };
    RegistryOpts {
        credentials: Some(credentials),
        ..opts()
    }
}

/// A registry that wants [`TOKEN`] and names `realm` as the place to get it.
fn guarded(content: Content, realm: String) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| {
        if request.header("authorization") == TOKEN {
            return content.reply(request);
        }
        let challenge =
            format!(r#"Bearer realm="{realm}",service="s v",scope="repository:r:pull""#);
        Reply::status(401).with("www-authenticate", challenge)
    }
}

async fn token_server() -> Server {
    Server::start(|request| match request.header("authorization") {
        "" | "Basic dXNlcjpwYXNz" => {
            Reply::status(200).body(r#"{"token":"t0ken","expires_in":60}"#)
        }
        _ => Reply::status(401),
    })
    .await
}

#[tokio::test]
async fn tokens_are_fetched_once_and_used() {
    for (options, authorization) in [(opts(), ""), (with_user(), "Basic dXNlcjpwYXNz")] {
        let tokens = token_server().await;
        let (content, manifest, layer, data) = image();
        let realm = format!("http://{}/token", tokens.host());
        let server = Server::start(guarded(content, realm)).await;
        let repository = repository(&server, ":latest", options);
        assert_eq!(repository.resolve().await.unwrap(), manifest);
        let (a, b) = tokio::join!(read(&repository, &layer, 0), read(&repository, &layer, 9));
        assert_eq!(
            (a.unwrap().len(), b.unwrap().len()),
            (data.len(), data.len() - 9)
        );
        let asked = tokens.requests();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].query, "service=s%20v&scope=repository%3Ar%3Apull");
        assert_eq!(asked[0].header("authorization"), authorization);
        // The password itself never went to the registry.
        assert!(
            server
                .requests()
                .iter()
                .all(|r| !r.header("authorization").contains("Basic"))
        );
    }
}

#[tokio::test]
async fn a_token_server_elsewhere_gets_a_password_only_where_the_hosts_file_names_it() {
    for (options, names, is_sent) in [
        (opts(), false, true),
        (with_user(), false, false),
        (with_user(), true, true),
    ] {
        let tokens = token_server().await;
        let (content, manifest, ..) = image();
        let elsewhere = tokens.host().replace("127.0.0.1", "localhost");
        let realm = format!("http://{elsewhere}/token");
        let server = Server::start(guarded(content, realm.clone())).await;
        let dir = tempfile::tempdir().unwrap();
        let mut text = format!("server = \"http://{}\"\n", server.host());
        if names {
            text += &format!("token_servers = \"http://{elsewhere}\"\n");
        }
        let options = RegistryOpts {
            credentials: options.credentials,
            ..with_hosts(&text, dir.path(), server.host())
        };
        let resolved = repository(&server, ":latest", options).resolve().await;
        match resolved {
            Ok(resolved) => assert!(is_sent && resolved == manifest),
            Err(error) => {
                assert!(!is_sent && error.is(Code::Unauthenticated), "{error}");
                assert!(error.to_string().contains(&realm), "{error}");
                assert!(tokens.requests().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_token_server_may_send_us_elsewhere_and_the_password_stays_at_home() {
    let basic = "Basic dXNlcjpwYXNz";
    for (is_home, is_loop, sent) in [
        (true, false, vec![basic, basic]),
        (false, false, vec![basic]),
        (true, true, vec![basic; 11]),
    ] {
        let other = token_server().await;
        let target = match is_home {
            true => "/moved?k=v".to_owned(),
            false => format!("http://{}/token?k=v", other.host()),
        };
        let tokens = Server::start(move |request| match request.path.as_str() {
            "/moved" if !is_loop => Reply::status(200).body(r#"{"token":"t0ken"}"#),
            _ => Reply::status(302).with("location", target.clone()),
        })
        .await;
        let (content, manifest, ..) = image();
        let realm = format!("http://{}/token", tokens.host());
        let server = Server::start(guarded(content, realm)).await;
        let repository = repository(&server, ":latest", with_user());
        match repository.resolve().await {
            Ok(found) => assert!(!is_loop && found == manifest),
            Err(error) => {
                let text = error.to_string();
                assert!(is_loop && text.contains("token server redirects"), "{text}");
            }
        }
        let seen = tokens.requests();
        let headers: Vec<_> = seen.iter().map(|r| r.header("authorization")).collect();
        assert_eq!(headers, sent);
        let elsewhere = other.requests();
        assert_eq!(elsewhere.len(), usize::from(!is_home));
        assert!(
            elsewhere
                .iter()
                .all(|r| r.header("authorization").is_empty())
        );
    }
}

#[tokio::test]
async fn a_token_that_ran_out_is_renewed() {
    let tokens = token_server().await;
    let (content, _, layer, data) = image();
    let realm = format!("http://{}/token", tokens.host());
    let (guard, count) = (guarded(content, realm), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        if n == 2 {
            let stale = Request {
                headers: [].into(),
                ..request.clone()
            };
            return guard(&stale);
        }
        let mut reply = guard(request);
        if n == 1 {
            reply.cut = Some(400_000);
        }
        reply
    })
    .await;
    assert_eq!(
        read(&repository(&server, "", opts()), &layer, 0)
            .await
            .unwrap(),
        data
    );
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn refused_credentials_end_the_pull() {
    type Handler = fn(&Request) -> Reply;
    let realms: [(&str, Handler, &str); 4] = [
        ("401", |_| Reply::status(401), "fetch token"),
        (
            "empty",
            |_| Reply::status(200).body(r#"{"token":""}"#),
            "no token",
        ),
        ("junk", |_| Reply::status(200).body("{{{"), "token answer"),
        (
            "useless",
            |_| Reply::status(200).body(r#"{"token":"x"}"#),
            "pull access denied",
        ),
    ];
    for (name, handler, text) in realms {
        let tokens = Server::start(handler).await;
        let (content, ..) = image();
        let realm = format!("http://{}/token", tokens.host());
        let server = Server::start(guarded(content, realm)).await;
        let error = repository(&server, ":latest", with_user())
            .resolve()
            .await
            .unwrap_err();
        assert!(error.is(Code::Unauthenticated), "{name}: {error}");
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert!(tokens.requests().len() <= 2, "{name}");
    }
    let tokens = Server::start(|_| Reply::status(200).body(vec![b' '; 9 << 20])).await;
    let server = Server::start(guarded(
        image().0,
        format!("http://{}/token", tokens.host()),
    ))
    .await;
    let error = repository(&server, ":latest", opts())
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}

#[tokio::test]
async fn basic_credentials_are_used_when_asked_for() {
    let handler = |content: Content| {
        move |request: &Request| match request.header("authorization") {
            "Basic dXNlcjpwYXNz" => content.reply(request),
            _ => Reply::status(401).with("www-authenticate", "Basic realm=x"),
        }
    };
    let (content, manifest, ..) = image();
    let server = Server::start(handler(content)).await;
    assert_eq!(
        repository(&server, ":latest", with_user())
            .resolve()
            .await
            .unwrap(),
        manifest
    );
    assert!(server.requests()[0].header("authorization").is_empty());
    let error = repository(&server, ":latest", opts())
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is(Code::Unauthenticated), "{error}");
}

#[tokio::test]
async fn redirects_to_another_origin_carry_no_authorization() {
    let (content, _, layer, data) = image();
    let blobs = content.clone();
    let other = Arc::new(Server::start(move |request| blobs.reply(request)).await);
    let tokens = token_server().await;
    let target = format!("http://{}", other.host());
    let guard = guarded(content, format!("http://{}/token", tokens.host()));
    let server = Server::start(move |request| {
        let reply = guard(request);
        if reply.status == 200 || reply.status == 206 {
            return Reply::status(307).with("location", format!("{target}{}", request.path));
        }
        reply
    })
    .await;
    let got = read(&repository(&server, "", with_user()), &layer, 3)
        .await
        .unwrap();
    assert_eq!(got, data[3..]);
    let seen = other.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("range"), "bytes=3-");
    assert!(
        seen[0].headers.keys().all(|name| name != "authorization"),
        "{seen:?}"
    );
    assert!(
        server
            .requests()
            .iter()
            .any(|r| r.header("authorization") == TOKEN)
    );
}

/// Where it goes then is the stranger's choice: another repository, or a request that does something.
#[tokio::test]
async fn who_is_sent_back_by_another_origin_has_no_authorization_any_more() {
    let home = Arc::new(std::sync::OnceLock::<String>::new());
    let known = Arc::clone(&home);
    let other = Server::start(move |_| {
        let back = format!("http://{}/v2/secret/blobs/x", known.get().unwrap());
        Reply::status(307).with("location", back)
    })
    .await;
    let away = format!("http://{}/x", other.host());
    let server = Server::start(move |request| {
        let is_known = request.header("authorization") == "Basic dXNlcjpwYXNz";
        match request.path.contains("/secret/") {
            // Asked for a password by itself, with which it begins anew.
            true if is_known => Reply::status(200).body("secret"),
            _ if !is_known => Reply::status(401).with("www-authenticate", "Basic realm=x"),
            _ => Reply::status(307).with("location", away.clone()),
        }
    })
    .await;
    home.set(server.host().to_owned()).unwrap();
    let layer = image().2;
    let read = read(&repository(&server, "", with_user()), &layer, 0).await;
    assert!(read.unwrap_err().is(Code::Unauthenticated));
    let asked = server.requests();
    let of = |part: &str| {
        let of = asked.iter().filter(|request| request.path.contains(part));
        of.map(|request| request.header("authorization").to_owned())
            .collect::<Vec<_>>()
    };
    // Neither that, nor the answer to what it asks for then.
    assert_eq!(of("/secret/"), [""]);
    assert!(of("/v2/r/").contains(&"Basic dXNlcjpwYXNz".to_owned()));
}

#[tokio::test]
async fn a_challenge_from_another_origin_is_not_answered() {
    let evil =
        Server::start(|_| Reply::status(401).with("www-authenticate", r#"Basic realm="give me""#))
            .await;
    let target = format!("http://{}/x", evil.host());
    let server = Server::start(move |_| Reply::status(302).with("location", target.clone())).await;
    let layer = image().2;
    let error = read(&repository(&server, "", with_user()), &layer, 0)
        .await
        .unwrap_err();
    assert!(error.is(Code::Unauthenticated), "{error}");
    assert_eq!(evil.requests().len(), 1);
    assert!(evil.requests()[0].header("authorization").is_empty());
}

#[tokio::test]
async fn redirects_within_the_registry_keep_it_and_loops_end() {
    let (content, _, layer, data) = image();
    let server = Server::start(move |request| {
        let moved = request.path.strip_prefix("/moved");
        if request.header("authorization") != "Basic dXNlcjpwYXNz" {
            return Reply::status(401).with("www-authenticate", "Basic realm=x");
        }
        match moved {
            Some(path) => content.reply(&Request {
                path: path.into(),
                ..request.clone()
            }),
            None => Reply::status(301).with("location", format!("/moved{}", request.path)),
        }
    })
    .await;
    assert_eq!(
        read(&repository(&server, "", with_user()), &layer, 0)
            .await
            .unwrap(),
        data
    );
    let server = Server::start(|_| Reply::status(302).with("location", "/again")).await;
    let error: Error = read(&repository(&server, "", opts()), &layer, 0)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("redirects too often"), "{error}");
    assert_eq!(server.requests().len(), 11);
}
