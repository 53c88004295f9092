//! What hosts files say, and where they are looked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use types::Code;

use super::{Capabilities, HostConfig, KEYS, load, parse, unknown_keys};

const FULL: &str = r#"
server = "https://registry.example.test"
capabilities = ["push"]
ca = "top.crt"

[host."https://z.example.test:8443/mirror"]
  capabilities = ["pull", "Resolve"]
  ca = ["a.crt", "/etc/b.crt"]
  client = [["c.cert", "c.key"], "both.pem"]
  skip_verify = true
  dial_timeout = "1m0.5s"
  token_servers = ["auth.example.test", "http://t.example.test:5001/token"]
  [host."https://z.example.test:8443/mirror".header]
    x-one = "1"
    x-many = ["a", "b"]

[host."a.example.test"]
  client = "one.pem"

[host."http://m.example.test/api/"]
  override_path = true
"#;

fn in_dir(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

#[test]
fn every_field_is_understood_and_the_order_kept() {
    let hosts = parse(FULL, Path::new("/d")).unwrap();
    let roots: Vec<_> = hosts.iter().map(|h| h.root.as_deref().unwrap()).collect();
    assert_eq!(
        roots,
        [
            "https://z.example.test:8443/mirror/v2",
            "https://a.example.test/v2",
            "http://m.example.test/api",
            "https://registry.example.test/v2",
        ]
    );
    let first = &hosts[0];
    assert!(first.capabilities.pull && first.capabilities.resolve);
    assert!(!first.capabilities.push && !first.capabilities.referrers);
    assert_eq!(first.ca, [in_dir("a.crt"), "/etc/b.crt".into()]);
    let pair = (in_dir("c.cert"), Some(in_dir("c.key")));
    assert_eq!(first.client, [pair, (in_dir("both.pem"), None)]);
    assert_eq!(first.skip_verify, Some(true));
    assert_eq!(first.dial_timeout, Some(Duration::from_millis(60_500)));
    assert_eq!(
        first.token_servers,
        [
            "https://auth.example.test:443",
            "http://t.example.test:5001"
        ]
    );
    let many: Vec<_> = first.headers.get_all("x-many").iter().collect();
    assert_eq!(many, ["a", "b"]);
    assert_eq!(first.headers["x-one"], "1");
    assert!(!format!("{first:?}").contains("\"1\""));
    assert_eq!(hosts[1].client, [(in_dir("one.pem"), None)]);
    assert_eq!(hosts[1].capabilities, Capabilities::ALL);
    assert_eq!(hosts[3].ca, [in_dir("top.crt")]);
    assert!(hosts[3].capabilities.push && !hosts[3].capabilities.pull);
}

#[test]
fn without_a_server_the_named_one_is_last() {
    let hosts = parse(
        "skip_verify = false\n[host.\"m.example.test\"]",
        Path::new("/d"),
    )
    .unwrap();
    assert_eq!(hosts.len(), 2);
    assert_eq!(hosts[1].root, None);
    assert_eq!(hosts[1].skip_verify, Some(false));
    assert_eq!(
        parse("unknown = 1", Path::new("/d")).unwrap(),
        [HostConfig::default()]
    );
}

#[test]
fn roots_are_made_clean() {
    for (server, want) in [
        ("r.example.test", "https://r.example.test/v2"),
        ("httpd.example.test", "https://httpd.example.test/v2"),
        ("http://r.example.test:80/", "http://r.example.test:80/v2"),
        ("https://r.example.test/v2/", "https://r.example.test/v2"),
        (
            "https://r.example.test//a/./b",
            "https://r.example.test/a/b/v2",
        ),
        ("https://[::1]:5000", "https://[::1]:5000/v2"),
    ] {
        let hosts = parse(&format!("server = {server:?}"), Path::new("/d")).unwrap();
        assert_eq!(hosts[0].root.as_deref(), Some(want));
    }
}

#[test]
fn mistakes_are_refused_with_their_place() {
    for (text, said) in [
        ("server = 1", "line 1"),
        ("server = \"ftp://x\"", "URL"),
        ("server = \"https://u:p@x\"", "user information"),
        ("server = \"https://x/?a=b\"", "query"),
        ("server = \"https://x/../y\"", ".."),
        ("capabilities = [\"fly\"]", "unknown capability fly"),
        ("ca = 1", "ca"),
        ("client = [[\"a\"]]", "client"),
        ("dial_timeout = \"soon\"", "soon"),
        ("dial_timeout = \"-1s\"", "positive"),
        ("[header]\n\"a b\" = \"x\"", "header name"),
        ("[header]\na = \"x\\n\"", "header a"),
        ("[host.\"m\"]\ncapabilities = [\"x\"]", "host \"m\""),
        ("[[", ""),
    ] {
        let error = parse(text, Path::new("/d")).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{text}: {error}");
        assert!(error.to_string().contains(said), "{text}: {error}");
    }
    let many: String = (0..65).map(|n| format!("[host.\"h{n}\"]\n")).collect();
    let error = parse(&many, Path::new("/d")).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}

#[test]
fn the_first_directory_that_knows_the_host_is_read() {
    let temp = tempfile::tempdir().unwrap();
    let roots = [temp.path().join("one"), temp.path().join("two")];
    let make = |root: usize, name: &str, server: &str| {
        let dir = roots[root].join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), format!("server = {server:?}\n")).unwrap();
    };
    let server = |host: &str| {
        let hosts = load(&roots, host).unwrap()?;
        hosts.last()?.root.clone()
    };
    assert_eq!(load(&roots, "r.example.test:5000").unwrap(), None);
    for (root, name) in [
        (1, "_default"),
        (1, "r.example.test:5000"),
        (0, "_default"),
        (0, "r.example.test:5000"),
        (0, "r.example.test_5000_"),
    ] {
        let mark = format!("m{root}{}", name.len());
        make(root, name, &mark);
        let found = server("r.example.test:5000");
        assert_eq!(found, Some(format!("https://{mark}/v2")), "{name}");
    }
    assert_eq!(
        server("other.example.test").as_deref(),
        Some("https://m08/v2")
    );
    // The way out of the directory is no host.
    make(0, ".", "dot");
    fs::write(temp.path().join("hosts.toml"), "server = \"above\"").unwrap();
    for out in ["..", "."] {
        assert_eq!(server(out).as_deref(), Some("https://m08/v2"));
    }
}

#[test]
fn certificates_in_dockers_layout_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("r.example.test");
    fs::create_dir_all(dir.join("d.crt")).unwrap();
    for name in [
        "b.crt", "a.crt", "c.cert", "c.key", "e.cert", "f.key", "readme",
    ] {
        fs::write(dir.join(name), "x").unwrap();
    }
    let roots = [temp.path().to_owned()];
    let want = HostConfig {
        ca: vec![dir.join("a.crt"), dir.join("b.crt")],
        client: vec![
            (dir.join("c.cert"), Some(dir.join("c.key"))),
            (dir.join("e.cert"), None),
        ],
        ..HostConfig::default()
    };
    assert_eq!(
        load(&roots, "r.example.test").unwrap(),
        Some(vec![want.clone()])
    );
    // A file with a mistake is as good as none.
    fs::write(dir.join("hosts.toml"), "server = [").unwrap();
    assert_eq!(load(&roots, "r.example.test").unwrap(), Some(vec![want]));
    fs::write(dir.join("hosts.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = load(&roots, "r.example.test").unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}

proptest! {
    #[test]
    fn parsing_ends_and_never_panics(text in "[a-z\"=\\[\\]./:\n ]{0,120}") {
        drop(parse(&text, Path::new("/d")));
    }
}

#[test]
fn keys_that_mean_nothing_are_named() {
    let text = r#"
        server = "https://r.test"
        servers = "https://s.test"
        skip_verify = true
        [host."https://m.test:5000"]
        capabilites = ["pull"]
        ca = "ca.crt"
        [host."https://m.test:5000".header]
        x-anything = "goes"
        [hosts."https://n.test"]
    "#;
    let mut found = unknown_keys(text);
    found.sort();
    let want = [
        "host.\"https://m.test:5000\".capabilites",
        "hosts",
        "servers",
    ];
    assert_eq!(found, want);
    assert_eq!(unknown_keys("no toml ="), [""; 0]);
    // What is known is a field, and every field is known.
    for key in KEYS {
        assert!(unknown_keys(&format!("{key} = 1")).is_empty(), "{key}");
    }
}
