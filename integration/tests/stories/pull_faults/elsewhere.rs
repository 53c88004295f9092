//! Registries that send us to other hosts, and hosts that are not who they say.

use std::path::Path;
use std::sync::Arc;

use integration::{Host, Registry};
use registry::testsuite::{Reply, Request, Server};

use super::{AT_ONCE, Case, alone, image, known_as, names, runtime};

pub(super) const CASES: [Case; 4] = [sent_away, asked_elsewhere, another_name, mirror_asks];

/// `me` with the password `secret`, as a header.
const BASIC: &str = "Basic bWU6c2VjcmV0";

/// A registry for `me` only, which keeps its blobs at the host `blobs`.
fn sending_away(blobs: &str) -> impl Fn(&Request) -> Reply + Send + Sync + use<> {
    let (content, _) = image("away");
    let blobs = blobs.to_owned();
    move |request| {
        if request.header("authorization") != BASIC {
            return Reply::status(401).with("www-authenticate", "Basic realm=x");
        }
        if request.path.contains("/blobs/") {
            let away = format!("http://{blobs}{}?signature=s", request.path);
            return Reply::status(307).with("location", away);
        }
        content.reply(request)
    }
}

#[test]
fn no_credential_goes_to_the_host_that_a_registry_sends_us_to() {
    alone("faults-away", sent_away);
}

fn sent_away(host: &Host) {
    let runtime = runtime();
    let (content, layer) = image("away");
    let away = runtime.block_on(Server::start(move |request| content.reply(request)));
    let server = runtime.block_on(Server::start(sending_away(away.host())));
    let reference = format!("{}/r:latest", server.host());
    for local in [None, Some("--local")] {
        let pull = ["images", "pull", "--plain-http", "--user=me:secret"];
        let ctr = host.ctr_program().args(pull).args(local);
        drop(ctr.args([&reference]).run().ok());
        drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    }
    let at_home = server.requests();
    assert!(at_home.iter().any(|r| r.header("authorization") == BASIC));
    let asked = away.requests();
    let of_layer = |r: &&Request| r.path.ends_with(layer.digest.as_str());
    assert_eq!(asked.iter().filter(of_layer).count(), 2, "{asked:?}");
    for request in &asked {
        let all = format!("{request:?}");
        for secret in ["authorization", "bWU6c2VjcmV0", "secret", "cookie"] {
            assert!(
                !all.to_lowercase().contains(&secret.to_lowercase()),
                "{all}"
            );
        }
    }
    assert!(!host.log().contains("bWU6c2VjcmV0"));
}

#[test]
fn a_host_elsewhere_that_wants_credentials_gets_none_and_is_named() {
    alone("faults-asking", asked_elsewhere);
}

fn asked_elsewhere(host: &Host) {
    let runtime = runtime();
    let away = runtime.block_on(Server::start(|_| {
        Reply::status(401).with("www-authenticate", "Basic realm=x")
    }));
    let server = runtime.block_on(Server::start(sending_away(away.host())));
    let reference = format!("{}/r:latest", server.host());
    let pull = ["images", "pull", "--plain-http", "--user=me:secret"];
    let began = std::time::Instant::now();
    let said = host.ctr_program().args(pull).args([&reference]).run().err();
    assert!(began.elapsed() < AT_ONCE, "{said}");
    names(&said, &[server.host(), "sha256:", "401"]);
    let asked = away.requests();
    assert!(!asked.is_empty() && asked.len() <= 2, "{asked:?}");
    let is_clean = |r: &Request| r.header("authorization").is_empty();
    assert!(asked.iter().all(is_clean), "{asked:?}");
}

fn pem(name: &str) -> std::path::PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    top.join("registry/src/tests/tls").join(name)
}

#[test]
fn a_certificate_of_another_name_is_refused_before_anything_is_said() {
    alone("faults-name", another_name);
}

fn another_name(host: &Host) {
    let dir = tempfile::tempdir().expect("directory");
    let users = dir.path().join("users");
    std::fs::write(&users, "").expect("write users");
    let registry = Registry::secured(&pem("other.crt"), &pem("other.key"), &users);
    let hosts = format!(
        "server = \"https://{}\"\nca = {:?}\n",
        registry.host(),
        pem("ca.crt")
    );
    let flag = known_as(host, "registry.example.test", &hosts);
    let reference = "registry.example.test/r:latest";
    let pull = ["images", "pull", &flag, "--user=me:secret", reference];
    let began = std::time::Instant::now();
    let said = host.ctr(pull).err();
    assert!(began.elapsed() < AT_ONCE, "{said}");
    names(
        &said,
        &["latest", registry.host(), "tls: ", "not valid for name"],
    );
}

#[test]
fn a_mirror_s_credentials_are_its_own() {
    alone("faults-mine", mirror_asks);
}

fn mirror_asks(host: &Host) {
    let runtime = runtime();
    let wanting =
        Arc::new(|_: &Request| Reply::status(401).with("www-authenticate", "Basic realm=mirror"));
    let mirror = runtime.block_on(Server::start(move |request| wanting(request)));
    let (content, _) = image("away");
    let server = runtime.block_on(Server::start(move |request| {
        if request.header("authorization") == BASIC {
            return content.reply(request);
        }
        Reply::status(401).with("www-authenticate", "Basic realm=x")
    }));
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    );
    let flag = known_as(host, "registry.example.test", &hosts);
    // Only the registry's own.
    let known = format!(
        r#"{{"auths": {{"http://{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#,
        server.host()
    );
    std::fs::write(host.path("config.json"), known).expect("write config.json");
    let reference = "registry.example.test/r:latest";
    drop(host.ctr(["images", "pull", &flag, reference]).ok());
    let asked = mirror.requests();
    assert!(!asked.is_empty());
    let is_clean = |r: &Request| r.header("authorization").is_empty();
    assert!(asked.iter().all(is_clean), "{asked:?}");
    drop(host.ctr(["images", "rm", "--sync", reference]).ok());
}
