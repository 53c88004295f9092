//! Lists of tags, repositories and referrers.

use types::{Code, Digest, media_type as mt};

use super::{opts, repository, with_hosts};
use crate::testsuite::{Reply, Request, Server};

fn page(key: &str, names: &[&str], next: Option<&str>) -> Reply {
    let body = serde_json::json!({ "name": "r", key: names }).to_string();
    let reply = Reply::status(200).body(body);
    match next {
        Some(next) => reply.with("link", format!("<{next}>; rel=\"next\"")),
        None => reply,
    }
}

#[tokio::test]
async fn tags_and_repositories_come_in_pages() {
    let server =
        Server::start(
            |request: &Request| match (request.path.as_str(), request.query.as_str()) {
                ("/v2/r/tags/list", "n=1000") => {
                    page("tags", &["a", "b"], Some("/v2/r/tags/list?last=b"))
                }
                ("/v2/r/tags/list", "last=b") => page("tags", &["c"], None),
                ("/v2/_catalog", _) => page("repositories", &["r", "x/y"], None),
                _ => Reply::status(404),
            },
        )
        .await;
    let repository = repository(&server, "", opts());
    assert_eq!(repository.tags().await.unwrap(), ["a", "b", "c"]);
    assert_eq!(repository.catalog().await.unwrap(), ["r", "x/y"]);
    let none = Server::start(|_| Reply::status(200).body(r#"{"tags":null}"#)).await;
    let none = super::repository(&none, "", opts());
    assert!(none.tags().await.unwrap().is_empty());
}

#[tokio::test]
async fn lists_without_an_end_or_of_others_are_refused() {
    let endless = Server::start(|_| page("tags", &["a"], Some("/v2/r/tags/list?again"))).await;
    let error = repository(&endless, "", opts()).tags().await.unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert!(error.to_string().contains(endless.host()), "{error}");
    assert_eq!(endless.requests().len(), 1000);
    let evil = Server::start(|_| page("tags", &["evil"], None)).await;
    let to = format!("http://{}/v2/r/tags/list", evil.host());
    let server = Server::start(move |_| page("tags", &["a"], Some(&to))).await;
    let error = repository(&server, "", opts()).tags().await.unwrap_err();
    assert!(error.is(Code::PermissionDenied), "{error}");
    assert!(evil.requests().is_empty());
    let large = Server::start(|_| Reply::status(200).body(vec![b' '; (4 << 20) + 1])).await;
    let error = repository(&large, "", opts()).tags().await.unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    let junk = Server::start(|_| Reply::status(200).body("[]")).await;
    let error = repository(&junk, "", opts()).tags().await.unwrap_err();
    assert!(error.to_string().contains(junk.host()), "{error}");
}

/// Hosts that cannot tell by their hosts file are not asked, and nobody is where no host can.
async fn assert_whose_referrers(digest: &Digest, index: &str) {
    let index = index.to_owned();
    let mirror = Server::start(|_| Reply::status(500)).await;
    let server = Server::start(move |_| Reply::status(200).body(index.clone())).await;
    for (capabilities, asked) in [
        (
            "\"pull\", \"resolve\", \"referrers\"",
            "/v2/r/referrers/sha256:",
        ),
        ("\"pull\", \"resolve\"", "/v2/r/manifests/sha256-"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "server = \"http://{}\"\ncapabilities = [{capabilities}]\n\
             [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
            server.host(),
            mirror.host()
        );
        let options = with_hosts(&text, dir.path(), server.host());
        let repository = repository(&server, "", options);
        assert_eq!(repository.referrers(digest, "").await.unwrap().len(), 2);
        let last = server.requests().pop().unwrap();
        assert!(last.path.starts_with(asked), "{}", last.path);
        assert!(mirror.requests().is_empty());
    }
}

#[tokio::test]
async fn referrers_are_found_by_api_or_by_tag() {
    let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[
            {{"mediaType":"{0}","digest":"sha256:{1}","size":3,"artifactType":"sbom","annotations":{{"k":"v"}}}},
            {{"mediaType":"{0}","digest":"sha256:{2}","size":4,"artifactType":"sig"}}]}}"#,
        mt::OCI_MANIFEST,
        "b".repeat(64),
        "c".repeat(64)
    );
    let (api, tag) = (
        format!("/v2/r/referrers/{digest}"),
        format!("/v2/r/manifests/sha256-{}", "a".repeat(64)),
    );
    for place in [api, tag] {
        let (index, at) = (index.clone(), place.clone());
        let server = Server::start(move |request| match request.path == at {
            true => Reply::status(200).body(index.clone()),
            false => Reply::status(404),
        })
        .await;
        let repository = repository(&server, "", opts());
        let all = repository.referrers(&digest, "").await.unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].artifact_type, "sbom");
        assert_eq!(all[0].descriptor.annotations.get("k").unwrap(), "v");
        let one = repository.referrers(&digest, "sig").await.unwrap();
        assert_eq!(one, all[1..]);
    }
    assert_whose_referrers(&digest, &index).await;
    let nothing = Server::start(|_| Reply::status(404)).await;
    let repository = repository(&nothing, "", opts());
    assert!(repository.referrers(&digest, "").await.unwrap().is_empty());
}
