//! A registry that wants to know who comes: the daemon asks its client.

use integration::{Host, IMAGE, Program, Registry, bin_dir, script};

use crate::push::digest;

#[test]
fn the_client_s_credentials_reach_the_registry_through_the_daemon() {
    let host = Host::new("auth");
    let registry = Registry::with_password("me", "s3:cret");
    host.image();
    let remote = format!("{}/mine/a:1", registry.host());
    for local in [None, Some("--local")] {
        let push = |user: Option<&str>| {
            let push = ["images", "push", "--plain-http"];
            let user = user.map(|user| format!("--user={user}"));
            let push = host.ctr_program().args(push).args(local).args(user);
            push.args([remote.as_str(), IMAGE]).run()
        };
        for user in [None, Some("me:wrong")] {
            let told = push(user).err();
            assert!(told.contains("unauthenticated"), "{user:?}: {told}");
            assert!(!told.contains("wrong"), "{told}");
        }
        drop(push(Some("me:s3:cret")).ok());
        let pull = ["images", "pull", "--plain-http", "--user=me:s3:cret"];
        let pull = host.ctr_program().args(pull).args(local);
        drop(pull.args([&remote]).run().ok());
        assert_eq!(digest(&host, &remote), digest(&host, IMAGE));
        drop(host.ctr(["images", "rm", &remote]).ok());
    }
    assert!(!host.log().contains("s3:cret"));
    host.finish();
}

#[test]
fn a_password_that_is_left_out_is_asked_for_on_the_terminal() {
    let host = Host::new("auth-ask");
    let registry = Registry::with_password("me", "s3:cret");
    host.image();
    let remote = format!("{}/mine/b:1", registry.host());
    let line = |rest: &str| {
        format!(
            "{} --address {} -n {} images {rest}",
            bin_dir().join("ctr").display(),
            host.address().display(),
            host.namespace()
        )
    };
    let ask = |rest: &str, typed: &[u8]| {
        let script = Program::new("script").args(["-qec", &line(rest), "/dev/null"]);
        script.env("DOCKER_CONFIG", host.dir()).input(typed).run()
    };
    let push = format!("push --plain-http -u me {remote} {IMAGE}");
    let told = ask(&push, b"s3:cret\n").ok();
    assert!(told.contains("Password: "), "{told}");
    let told = ask(
        &format!("pull --local --plain-http -u me: {remote}"),
        b"s3:cret\n",
    );
    assert!(told.ok().contains("Password: "));
    assert_eq!(digest(&host, &remote), digest(&host, IMAGE));
    assert_ne!(ask(&push, b"wrong\n").code, 0);
    // Nobody is there to be asked.
    let said = host
        .ctr(["images", "push", "-u", "me", &remote, IMAGE])
        .err();
    assert!(said.contains("user:password"), "{said}");
    host.finish();
}

/// Of the client, wherever the work is done: the daemon asks it, and it asks the helper.
#[test]
fn a_credential_helper_of_the_client_knows_the_password() {
    let host = Host::new("auth-helper");
    let registry = Registry::with_password("me", "s3:cret");
    host.image();
    let remote = format!("{}/mine/d:1", registry.host());
    let (helper, asked) = (host.path("docker-credential-story"), host.path("asked"));
    let answer = r#"{"Username":"me","Secret":"s3:cret"}"#;
    let text = format!("#!/bin/sh\ncat >>{}\necho '{answer}'\n", asked.display());
    drop(script(&helper, &text));
    std::fs::write(host.path("config.json"), r#"{"credsStore":"story"}"#).expect("write");
    let path = std::env::var("PATH").expect("PATH");
    let path = format!("{}:{path}", host.dir().display());
    for local in [None, Some("--local")] {
        let ctr = |verb: &str, rest: &[&str]| {
            let ctr = host.ctr_program().env("DOCKER_CONFIG", host.dir());
            let ctr = ctr.env("PATH", &path).args(["images", verb]).args(local);
            drop(ctr.args(["--plain-http"]).args(rest).run().ok());
        };
        ctr("push", &[&remote, IMAGE]);
        ctr("pull", &[&remote]);
        assert_eq!(digest(&host, &remote), digest(&host, IMAGE));
        drop(host.ctr(["images", "rm", "--sync", &remote]).ok());
        let server = std::fs::read_to_string(&asked).expect("the helper was asked");
        assert!(server.starts_with(registry.host()), "{server}");
        std::fs::remove_file(&asked).expect("remove");
    }
    assert!(!host.log().contains("s3:cret"));
    host.finish();
}

#[test]
fn what_registries_are_asked_is_shown_without_secrets() {
    let host = Host::new("auth-dump");
    let registry = Registry::with_password("me", "s3:cret");
    host.image();
    let remote = format!("{}/mine/c:1", registry.host());
    for local in [None, Some("--local")] {
        for (verb, image) in [("push", Some(IMAGE)), ("pull", None)] {
            let ctr = host.ctr_program().args(["images", verb, "--plain-http"]);
            let ctr = ctr.args(["--user=me:s3:cret", "--http-dump", "--http-trace"]);
            let shown = ctr.args(local).args([remote.as_str()]).args(image).run();
            assert_eq!(shown.code, 0, "{}", shown.stderr);
            let shown = shown.stderr;
            let url = format!("http://{}/v2/mine/c/manifests/1", registry.host());
            let method = if verb == "push" { "PUT" } else { "HEAD" };
            for part in [
                format!("> {method} {url}"),
                format!("{method} {url}: 20"),
                "> authorization: (secret)".to_owned(),
                "< docker-content-digest: sha256:".to_owned(),
            ] {
                assert!(shown.contains(&part), "{verb} {local:?}: {part} in {shown}");
            }
            assert!(
                !shown.contains("s3:cret") && !shown.contains("bWU6"),
                "{shown}"
            );
        }
        drop(host.ctr(["images", "rm", "--sync", &remote]).ok());
    }
    host.finish();
}
