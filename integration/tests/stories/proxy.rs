//! A daemon whose environment names a proxy: registries that only the proxy knows, those that are reached
//! directly, and proxies that are dead.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use integration::{Host, IMAGE, Registry};
use registry::testsuite::{Content, Request, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use types::media_type as mt;

use crate::push::digest;
use crate::registry_secured::{USERS, pem};

/// A name that nobody but the proxy resolves.
const NAME: &str = "registry.example.test";
/// `me:hidden`, as a header has it.
const SECRET: &str = "bWU6aGlkZGVu";
/// A proxy that hangs up or is not there: some tries, which take seconds.
const AFTER_TRIES: Duration = Duration::from_secs(30);
/// One that says nothing is listened to for 30 seconds, twice.
const AFTER_SILENCE: Duration = Duration::from_secs(130);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

/// The environment of a daemon with this proxy for everything but `none`.
fn env<'a>(proxy: &'a str, none: &'a str) -> [(&'static str, &'a str); 3] {
    [
        ("HTTP_PROXY", proxy),
        ("HTTPS_PROXY", proxy),
        ("NO_PROXY", none),
    ]
}

/// A proxy that connects whoever asks to one address, and what it was asked.
struct Tunnels {
    host: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    /// To `to`; without it, it takes connections and says nothing.
    fn start(runtime: &Runtime, to: Option<String>) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("listen");
        let host = listener.local_addr().expect("address").to_string();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&heads);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, heard) = (to.clone(), Arc::clone(&heard));
                tokio::spawn(async move {
                    match to {
                        // A client that goes is its own business.
                        Some(to) => drop(tunnel(client, &to, &heard).await),
                        None => {
                            let _held = client;
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { host, heads }
    }
}

async fn tunnel(
    mut client: TcpStream,
    to: &str,
    heard: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    heard.lock().expect("lock").push(head);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let mut server = TcpStream::connect(to).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[test]
fn images_go_to_a_registry_behind_a_proxy_and_come_from_there() {
    let dir = tempfile::tempdir().expect("directory");
    let users = dir.path().join("users");
    std::fs::write(&users, USERS).expect("write users");
    let registry = Registry::secured(&pem("server.crt"), &pem("server.key"), &users);
    let runtime = runtime();
    let proxy = Tunnels::start(&runtime, Some(registry.host().to_owned()));
    let url = format!("http://me:hidden@{}", proxy.host);
    let host = Host::with_env("proxy", &env(&url, ""));
    host.image();
    let (want, remote) = (digest(&host, IMAGE), format!("{NAME}/demo/busybox:1"));
    // Its certificate is for another name.
    let hosts = format!("server = \"https://{NAME}\"\nskip_verify = true\n");
    let hosts = crate::pull_faults::known_as(&host, NAME, &hosts);
    let flags = [hosts.as_str(), "--user=user:pass"];
    for (n, local) in [None, Some("--local")].into_iter().enumerate() {
        let before = proxy.heads.lock().expect("lock").len();
        let ctr = |verb: &str, rest: &[&str]| {
            let ctr = host.ctr_program().args(["images", verb]).args(local);
            // The client's own, where it does the work itself.
            let ctr = ctr.env("HTTPS_PROXY", url.as_str()).env("NO_PROXY", "");
            drop(ctr.args(flags).args(rest).run().ok());
        };
        let name = remote.replace("demo", &format!("demo{n}"));
        ctr("push", &[&name, IMAGE]);
        ctr("pull", &[&name]);
        assert_eq!(digest(&host, &name), want);
        drop(host.ctr(["images", "rm", "--sync", &name]).ok());
        let heads = proxy.heads.lock().expect("lock").split_off(before);
        assert!(!heads.is_empty(), "{local:?}");
        for head in heads {
            assert!(
                head.starts_with(&format!("CONNECT {NAME}:443 HTTP/1.1\r\n")),
                "{head}"
            );
            assert!(head.contains(SECRET), "{head}");
        }
    }
    let log = host.log();
    assert!(!log.contains("hidden") && !log.contains(SECRET));
    host.finish();
}

/// An image of one small layer, `latest`.
fn image() -> Content {
    let mut content = Content::default();
    let layer = content.add(mt::OCI_LAYER, vec![0; 10_240], &[]);
    crate::pull_faults::tagged(&mut content, &[layer], "latest");
    content
}

#[test]
fn what_is_to_be_reached_directly_is() {
    let runtime = runtime();
    let content = image();
    let direct = content.clone();
    let direct = runtime.block_on(Server::start(move |request| direct.reply(request)));
    let proxy = runtime.block_on(Server::start(move |request| {
        let path = request.path.strip_prefix(&format!("http://{NAME}"));
        content.reply(&Request {
            path: path.unwrap_or_default().to_owned(),
            ..request.clone()
        })
    }));
    let url = format!("http://me:hidden@{}", proxy.host());
    let host = Host::with_env(
        "proxy-none",
        &env(&url, "10.0.0.0/8,.direct.example.test:80"),
    );
    let pull = |reference: &str| host.ctr(["images", "pull", "--plain-http", reference]);
    let through = format!("{NAME}/r:latest");
    drop(pull(&through).ok());
    let asked = proxy.requests();
    assert!(!asked.is_empty());
    for request in &asked {
        assert!(request.header("proxy-authorization").contains(SECRET));
        assert_eq!(request.header("host"), NAME);
    }
    // This machine is never behind a proxy.
    let near = format!("{}/r:latest", direct.host());
    drop(pull(&near).ok());
    assert!(!direct.requests().is_empty());
    for request in direct.requests() {
        assert_eq!(request.header("proxy-authorization"), "");
    }
    // Nobody here knows the name.
    let said = pull("r.direct.example.test/r:latest").err();
    assert!(
        said.contains("r.direct.example.test") && !said.contains("proxy "),
        "{said}"
    );
    assert_eq!(proxy.requests().len(), asked.len());
    // The rule is for another port.
    drop(pull("r.direct.example.test:81/r:latest").err());
    assert!(proxy.requests().len() > asked.len());
    drop(host.ctr(["images", "rm", "--sync", &through, &near]).ok());
    host.finish();
}

#[test]
fn a_proxy_that_is_dead_is_named_in_time() {
    let runtime = runtime();
    let silent = Tunnels::start(&runtime, None);
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.local_addr().expect("address").to_string()
    };
    for (name, scheme, proxy, limit, why) in [
        (
            "proxy-gone",
            "http",
            &gone,
            AFTER_TRIES,
            "Connection refused",
        ),
        (
            "proxy-socks",
            "socks5",
            &gone,
            AFTER_TRIES,
            "Connection refused",
        ),
        (
            "proxy-silent",
            "http",
            &silent.host,
            AFTER_SILENCE,
            "no answer in time",
        ),
    ] {
        let url = format!("{scheme}://me:hidden@{proxy}");
        let host = Host::with_env(name, &env(&url, ""));
        let began = Instant::now();
        let reference = format!("{NAME}/r:latest");
        let pull = host.ctr_program().args(["images", "pull", &reference]);
        let said = pull.limit(2 * AFTER_SILENCE).run().err();
        assert!(began.elapsed() < limit, "{:?}: {said}", began.elapsed());
        for part in [NAME, &format!("proxy {proxy}: "), why] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        let log = host.log();
        for text in [&said, &log] {
            assert!(!text.contains("hidden") && !text.contains(SECRET), "{text}");
        }
        host.finish();
    }
}
