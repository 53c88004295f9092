//! Through a proxy: to hosts that are nowhere else.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use types::{Code, Descriptor, Result};

use super::secure::{Front, file, front_of};
use super::{image, opts, read};
use crate::testsuite::{Request, Server};
use crate::{Proxies, RegistryOpts, Repository, TlsFiles};

/// A host that only proxies know.
const NAME: &str = "registry.example.test";

/// What a fake proxy does with a connection, and tells of it.
#[derive(Clone)]
enum Does {
    /// HTTP `CONNECT` to this address, whatever is asked for.
    Connect(String),
    /// SOCKS to this address, for who says this, if anything.
    Socks(String, Option<&'static str>),
    /// Sends these bytes, as often as they say, and hangs up or waits.
    Says(Vec<u8>, usize, bool),
}

/// A proxy on the loopback, and what clients said to it.
struct Fake {
    host: String,
    said: Arc<Mutex<Vec<String>>>,
    _connections: JoinSet<()>,
}

impl Fake {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&said);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (does, heard) = (does.clone(), Arc::clone(&heard));
                // A client that goes is its own business.
                all.spawn(async move { serve(stream, &does, &heard).await });
            }
        });
        Self {
            host,
            said,
            _connections: connections,
        }
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, does: &Does, heard: &Mutex<Vec<String>>) -> Option<()> {
    let to = match does {
        Does::Connect(to) => {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.ok()?);
            }
            let head = String::from_utf8(head).unwrap();
            heard.lock().unwrap().push(head);
            let answer = b"HTTP/1.1 200 Established\r\nx-proxy: y\r\n\r\n";
            stream.write_all(answer).await.ok()?;
            to
        }
        Does::Socks(to, user) => {
            let said = socks(&mut stream, *user).await.ok()?;
            heard.lock().unwrap().push(said);
            to
        }
        Does::Says(bytes, times, hangs_up) => {
            for _ in 0..*times {
                stream.write_all(bytes).await.ok()?;
            }
            if !hangs_up {
                std::future::pending::<()>().await;
            }
            return None;
        }
    };
    let mut server = TcpStream::connect(to).await.unwrap();
    copy_bidirectional(&mut stream, &mut server).await.ok()?;
    Some(())
}

/// The server's side of SOCKS: who came, and where to.
async fn socks(stream: &mut TcpStream, user: Option<&str>) -> std::io::Result<String> {
    let text = async |length: usize, stream: &mut TcpStream| {
        let mut text = vec![0; length];
        stream.read_exact(&mut text).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    assert_eq!(stream.read_u8().await?, 5);
    let methods = usize::from(stream.read_u8().await?);
    let offered = text(methods, stream).await?;
    let mut said = String::new();
    if let Some(user) = user {
        assert!(offered.contains('\u{2}'), "{offered:?}");
        stream.write_all(&[5, 2]).await?;
        assert_eq!(stream.read_u8().await?, 1);
        let length = usize::from(stream.read_u8().await?);
        said = text(length, stream).await?;
        let length = usize::from(stream.read_u8().await?);
        said = format!("{said}:{}@", text(length, stream).await?);
        stream.write_all(&[1, u8::from(said != user)]).await?;
    } else {
        stream.write_all(&[5, 0]).await?;
    }
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    assert_eq!(head[..4], [5, 1, 0, 3], "a name is asked for by name");
    said += &text(usize::from(head[4]), stream).await?;
    said = format!("{said}:{}", stream.read_u16().await?);
    // Bound to a name, which nobody needs.
    stream.write_all(&[5, 0, 0, 3, 2, b'm', b'e', 0, 1]).await?;
    Ok(said)
}

/// How to reach `NAME`, without or with TLS, through `proxy`.
fn by(proxy: String, is_https: bool) -> RegistryOpts {
    RegistryOpts {
        plain_http: !is_https,
        // Its certificate is for another name.
        skip_verify: is_https,
        proxies: Some(Proxies {
            http: proxy.clone(),
            https: proxy,
            none: "other.example.test".into(),
        }),
        ..opts()
    }
}

async fn pulled(options: RegistryOpts, layer: &Descriptor) -> Result<Vec<u8>> {
    let reference = format!("{NAME}/r:latest").parse().unwrap();
    let repository = Repository::new(&reference, options)?;
    repository.resolve().await?;
    read(&repository, layer, 0).await
}

/// A registry, in the clear and behind TLS.
async fn registry() -> (Server, Front, Descriptor, Vec<u8>) {
    let (content, _, layer, data) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let secure = front_of(server.host(), "server", false).await;
    (server, secure, layer, data)
}

/// A proxy that takes requests with full URLs.
async fn forward() -> Server {
    let content = image().0;
    Server::start(move |request| {
        let path = request.path.strip_prefix(&format!("http://{NAME}"));
        content.reply(&Request {
            path: path.unwrap().to_owned(),
            ..request.clone()
        })
    })
    .await
}

#[tokio::test]
async fn plain_requests_name_their_host_to_the_proxy() {
    let (_, _, layer, data) = image();
    let proxy = forward().await;
    // The same proxy behind TLS, which is looked at, and where the host's own is not.
    let secure = front_of(proxy.host(), "server", false).await;
    let trusting = TlsFiles {
        ca: Some(file("ca.crt")),
        ..TlsFiles::default()
    };
    for (proxy, tls) in [
        (
            format!("http://user:pass@{}", proxy.host()),
            TlsFiles::default(),
        ),
        (format!("https://user:pass@{}", secure.host), trusting),
    ] {
        let options = RegistryOpts {
            tls,
            default_scheme: "http".into(),
            ..by(proxy, false)
        };
        assert_eq!(pulled(options, &layer).await.unwrap(), data);
    }
    let asked = proxy.requests();
    assert_eq!(asked.len(), 4, "{asked:?}");
    for request in asked {
        assert_eq!(request.header("proxy-authorization"), "Basic dXNlcjpwYXNz");
        assert_eq!(request.header("host"), NAME);
    }
}

#[tokio::test]
async fn for_tls_a_tunnel_is_asked_for_also_of_a_proxy_with_tls() {
    let (server, secure, layer, data) = registry().await;
    let proxy = Fake::start(Does::Connect(secure.host.clone())).await;
    let with_tls = front_of(&proxy.host, "server", false).await;
    for url in [
        format!("http://u:p@{}", proxy.host),
        format!("https://u:p@{}", with_tls.host),
    ] {
        let mut options = by(url, true);
        options.tls.ca = Some(file("ca.crt"));
        assert_eq!(pulled(options, &layer).await.unwrap(), data);
    }
    let want = format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n");
    for head in proxy.said() {
        assert!(head.starts_with(&want), "{head}");
        assert!(
            head.contains("Proxy-Authorization: Basic dTpw\r\n"),
            "{head}"
        );
    }
    let asked = server.requests();
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!(request.header("proxy-authorization"), "");
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_trusted_gets_no_password_whatever_is_passed_over_of_the_host() {
    let (_, secure, layer, _) = registry().await;
    let proxy = Fake::start(Does::Connect(secure.host.clone())).await;
    let (stranger, other) = (
        front_of(&proxy.host, "server", false).await,
        front_of(&proxy.host, "other", false).await,
    );
    let ca = Some(file("ca.crt"));
    for (host, ca, why) in [
        (&stranger.host, None, "UnknownIssuer"),
        (&other.host, ca, "name"),
    ] {
        let mut options = by(format!("https://u:secret@{host}"), true);
        options.tls.ca = ca;
        let error = pulled(options, &layer).await.unwrap_err().to_string();
        assert!(error.contains(host) && error.contains(why), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    assert!(proxy.said().is_empty());
}

#[tokio::test]
async fn socks_connects_by_name_with_and_without_a_password() {
    let (server, secure, layer, data) = registry().await;
    for (scheme, user) in [
        ("socks5", None),
        ("socks5h", None),
        ("socks5", Some("me:p@s@")),
    ] {
        for (is_https, to) in [(false, server.host()), (true, secure.host.as_str())] {
            let proxy = Fake::start(Does::Socks(to.to_owned(), user)).await;
            let shown = user.map_or("", |_| "me:p%40s@");
            let options = by(format!("{scheme}://{shown}{}", proxy.host), is_https);
            assert_eq!(pulled(options, &layer).await.unwrap(), data);
            let port = if is_https { 443 } else { 80 };
            let want = format!("{}{NAME}:{port}", user.unwrap_or_default());
            let said = proxy.said();
            assert!(
                !said.is_empty() && said.iter().all(|said| *said == want),
                "{said:?}"
            );
        }
    }
    // Nobody there reads such a header.
    let asked = server.requests();
    assert!(
        asked
            .iter()
            .all(|r| r.header("proxy-authorization").is_empty())
    );
}

#[tokio::test]
async fn answers_of_proxies_that_are_none_are_told_soon_and_without_the_password() {
    let layer = image().2;
    let says = |bytes: &[u8]| Does::Says(bytes.to_vec(), 1, false);
    let endless = |bytes: &[u8]| Does::Says(bytes.repeat(4096), usize::MAX, false);
    let gone = |bytes: &[u8]| Does::Says(bytes.to_vec(), 1, true);
    let long = [&[5, 0, 5, 0, 0, 3, 255][..], &[b'x'; 100]].concat();
    for (scheme, does, why) in [
        (
            "http",
            says(b"HTTP/1.1 403 No Way\r\n\r\n"),
            "443: HTTP/1.1 403 No Way",
        ),
        ("http", says(b"HTTP/1.1 407 Say Who\r\n\r\n"), "407 Say Who"),
        ("http", says(b"HTTP/2 200 OK\r\n\r\n"), "HTTP/2 200 OK"),
        ("http", endless(b"HTTP/1.1 200 OK "), "endless answer"),
        ("http", says(b"HTTP/1.1 200 OK\r\n"), "no answer in time"),
        ("http", says(b""), "no answer in time"),
        ("http", gone(b""), "hung up"),
        ("https", says(b""), "no answer in time"),
        ("https", says(b"HTTP/1.0 400 Bad\r\n\r\n"), "corrupt"),
        ("https", gone(b""), "hung up"),
        ("socks5", says(b""), "no answer in time"),
        ("socks5", says(&[5]), "no answer in time"),
        ("socks5", gone(&[5, 0, 5, 0, 0, 1]), "hung up"),
        ("socks5", endless(b"HTTP/1.1 "), "no SOCKS 5"),
        ("socks5", says(&[5, 0xff]), "takes neither"),
        ("socks5", says(&[5, 7]), "not offered"),
        ("socks5", says(&[5, 2, 1, 1]), "refuses user and password"),
        (
            "socks5",
            says(&[5, 0, 5, 5, 0, 1]),
            "443: connection refused",
        ),
        (
            "socks5",
            says(&[5, 0, 5, 99, 0, 1]),
            "443: for an unknown reason",
        ),
        ("socks5", says(&[5, 0, 4, 0, 0, 1]), "no SOCKS 5"),
        ("socks5", says(&[5, 0, 5, 0, 0, 9]), "unknown kind"),
        ("socks5", says(&long), "no answer in time"),
    ] {
        let proxy = Fake::start(does).await;
        let mut options = by(format!("{scheme}://u:secret@{}", proxy.host), true);
        options.limits.attempts = 1;
        options.limits.connect = match why {
            "no answer in time" => Duration::from_millis(200),
            _ => Duration::from_secs(60),
        };
        let began = Instant::now();
        let error = pulled(options, &layer).await.unwrap_err();
        // As a proxy that is busy: it may pass.
        assert!(error.is(Code::Unavailable), "{error}");
        let text = error.to_string();
        let named = format!("proxy {}: ", proxy.host);
        assert!(text.contains(&named) && text.contains(why), "{why}: {text}");
        assert!(!text.contains("secret") && text.contains(NAME), "{text}");
        assert!(began.elapsed() < Duration::from_secs(20), "{text}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let layer = image().2;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap().to_string();
    drop(listener);
    for scheme in ["http", "https", "socks5"] {
        let mut options = by(format!("{scheme}://u:secret@{gone}"), true);
        options.limits.attempts = 1;
        let text = pulled(options, &layer).await.unwrap_err().to_string();
        assert!(text.contains(&format!("proxy {gone}: ")), "{text}");
        assert!(
            text.contains("Connection refused") && !text.contains("secret"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn names_and_passwords_that_socks_cannot_say_are_refused() {
    let (server, _, layer, _) = registry().await;
    let proxy = Fake::start(Does::Socks(server.host().to_owned(), Some("never"))).await;
    let secret = "x".repeat(256);
    let mut options = by(format!("socks5://u:{secret}@{}", proxy.host), false);
    options.limits.attempts = 1;
    let text = pulled(options, &layer).await.unwrap_err().to_string();
    assert!(text.contains("more than 255 bytes"), "{text}");
    assert!(!text.contains(&secret), "{text}");
    assert!(server.requests().is_empty());
}
