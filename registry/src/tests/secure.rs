//! TLS: who is trusted, who we are, and what happens where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use types::{Code, Descriptor, Result};

use super::{image, opts, read, with_hosts};
use crate::testsuite::{Reply, Server};
use crate::{Credentials, Limits, RegistryOpts, Repository, TlsFiles};

pub(super) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/tests/tls")
        .join(name)
}

/// TLS in front of a server that speaks none.
pub(super) struct Front {
    pub(super) host: String,
    /// Connections that did not begin with a greeting.
    plain: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

async fn front(server: &Server, cert: &str, wants_client: bool) -> Front {
    front_of(server.host(), cert, wants_client).await
}

pub(super) async fn front_of(to: &str, cert: &str, wants_client: bool) -> Front {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(file("ca.crt")).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_file(file(&format!("{cert}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file(&format!("{cert}.key"))).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let to = to.to_owned();
    let plain = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&plain);
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, to, seen) = (acceptor.clone(), to.clone(), Arc::clone(&seen));
            all.spawn(async move {
                let mut first = [0];
                stream.peek(&mut first).await.unwrap();
                seen.fetch_add(usize::from(first != [22]), Ordering::SeqCst);
                if let Ok(mut tls) = acceptor.accept(stream).await {
                    let mut plain = TcpStream::connect(to).await.unwrap();
                    let _ended = copy_bidirectional(&mut tls, &mut plain).await;
                }
            });
        }
    });
    Front {
        host,
        plain,
        _connections: connections,
    }
}

fn secure() -> RegistryOpts {
    RegistryOpts {
        plain_http: false,
        default_scheme: "https".into(),
        ..opts()
    }
}

async fn resolve(host: &str, options: RegistryOpts) -> Result<Descriptor> {
    let reference = format!("{host}/r:latest").parse().unwrap();
    Repository::new(&reference, options)
        .unwrap()
        .resolve()
        .await
}

fn trusting() -> TlsFiles {
    TlsFiles {
        ca: Some(file("ca.crt")),
        ..TlsFiles::default()
    }
}

#[tokio::test]
async fn only_who_is_trusted_is_talked_to() {
    let (content, manifest, ..) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let (good, other) = (
        front(&server, "server", false).await,
        front(&server, "other", false).await,
    );
    let trusts = RegistryOpts {
        tls: trusting(),
        ..secure()
    };
    let blind = RegistryOpts {
        skip_verify: true,
        ..secure()
    };
    assert_eq!(resolve(&good.host, trusts.clone()).await.unwrap(), manifest);
    assert_eq!(resolve(&other.host, blind).await.unwrap(), manifest);
    let before = server.requests().len();
    for (host, options, said) in [
        (&good.host, secure(), "UnknownIssuer"),
        (&other.host, trusts, "not valid for name"),
    ] {
        let error = resolve(host, options).await.unwrap_err();
        assert!(error.is(Code::Unknown), "{error}");
        let text = error.to_string();
        assert!(text.contains(host) && text.contains("tls: "), "{text}");
        assert!(text.contains(said), "{text}");
    }
    // Not one byte of a request went there, and it was not tried again.
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_its_peer_named() {
    let server = Server::start(|_| Reply::status(404)).await;
    let expired = front(&server, "expired", false).await;
    let options = RegistryOpts {
        tls: TlsFiles {
            ca: Some(file("expired-ca.crt")),
            ..TlsFiles::default()
        },
        ..secure()
    };
    let text = resolve(&expired.host, options)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains(&expired.host) && text.contains("tls: "),
        "{text}"
    );
    assert!(text.contains("expired"), "{text}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn hosts_files_name_authorities_and_our_certificate() {
    let (content, manifest, layer, data) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let guarded = front(&server, "server", true).await;
    let dir = tempfile::tempdir().unwrap();
    let name = "registry.example.test";
    let of_host = dir.path().join(name);
    let pair = format!("[[\"{}\", \"client.key\"]]", file("client.crt").display());
    for (client, fits) in [(pair.as_str(), true), ("\"both.pem\"", true), ("[]", false)] {
        let text = format!(
            "server = \"https://{}\"\nca = {:?}\nclient = {client}",
            guarded.host,
            file("ca.crt")
        );
        let options = with_hosts(&text, dir.path(), name);
        let [cert, key] =
            ["client.crt", "client.key"].map(|n| std::fs::read_to_string(file(n)).unwrap());
        std::fs::write(of_host.join("client.key"), &key).unwrap();
        std::fs::write(of_host.join("both.pem"), cert + &key).unwrap();
        if !fits {
            resolve(name, options).await.unwrap_err();
            continue;
        }
        assert_eq!(resolve(name, options.clone()).await.unwrap(), manifest);
        let reference = format!("{name}/r").parse().unwrap();
        let repository = Repository::new(&reference, options).unwrap();
        assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
    }
    // The operation's own files, and Docker's layout.
    let options = RegistryOpts {
        tls: TlsFiles {
            cert: Some(file("client.crt")),
            key: Some(file("client.key")),
            ..trusting()
        },
        ..secure()
    };
    assert_eq!(resolve(&guarded.host, options).await.unwrap(), manifest);
    let of_host = dir.path().join(&guarded.host);
    std::fs::create_dir_all(&of_host).unwrap();
    for (from, to) in [
        ("ca.crt", "ca.crt"),
        ("client.crt", "us.cert"),
        ("client.key", "us.key"),
    ] {
        std::fs::copy(file(from), of_host.join(to)).unwrap();
    }
    let options = RegistryOpts {
        host_dirs: vec![dir.path().to_owned()],
        ..secure()
    };
    assert_eq!(resolve(&guarded.host, options).await.unwrap(), manifest);
}

#[tokio::test]
async fn files_that_hold_no_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk.pem");
    std::fs::write(&junk, "junk").unwrap();
    let none = dir.path().join("none.pem");
    for (ca, cert) in [
        (Some(&junk), None),
        (Some(&none), None),
        (None, Some(&junk)),
    ] {
        let options = RegistryOpts {
            tls: TlsFiles {
                ca: ca.cloned(),
                cert: cert.cloned(),
                key: None,
            },
            ..secure()
        };
        let error = resolve("127.0.0.1:1", options).await.unwrap_err();
        assert!(!error.is(Code::Unavailable), "{error}");
        let named = ca.or(cert).unwrap().display().to_string();
        assert!(error.to_string().contains(&named), "{error}");
    }
}

#[tokio::test]
async fn on_this_machine_http_will_do_when_https_does_not() {
    let (content, manifest, layer, data) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let open = || RegistryOpts {
        default_scheme: String::new(),
        ..secure()
    };
    assert_eq!(resolve(server.host(), open()).await.unwrap(), manifest);
    let reference = format!("{}/r", server.host()).parse().unwrap();
    let repository = Repository::new(&reference, open()).unwrap();
    assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
    // Whoever asks for TLS gets it or an error.
    let error = resolve(server.host(), secure()).await.unwrap_err();
    let said = "server gave HTTP response to HTTPS client";
    assert!(error.to_string().contains(said), "{error}");
    // TLS comes first, also with a certificate that nobody can check.
    let tls = front(&server, "other", false).await;
    assert_eq!(resolve(&tls.host, open()).await.unwrap(), manifest);
}

/// Where http would do, a redirect or a token server that speaks none must not take TLS away from the
/// registry, and the password with it.
#[tokio::test]
async fn who_a_registry_sends_us_to_cannot_talk_us_out_of_its_tls() {
    let elsewhere = Server::start(|_| Reply::status(200)).await;
    for by_token in [false, true] {
        let (content, manifest, layer, _) = image();
        let away = elsewhere.host().to_owned();
        let server = Server::start(move |request| {
            let challenge = match by_token {
                true => format!("Bearer realm=\"https://{away}/token\""),
                false => "Basic realm=x".to_owned(),
            };
            match request.header("authorization") {
                "" => Reply::status(401).with("www-authenticate", challenge),
                _ if request.path.contains("/blobs/") => {
                    Reply::status(307).with("location", format!("https://{away}/blob"))
                }
                _ => content.reply(request),
            }
        })
        .await;
        let front = front(&server, "other", false).await;
        let options = RegistryOpts {
            default_scheme: String::new(),
            credentials: Some(Credentials {
                user: "user".into(),
                secret: "pass".into(),
            }),
            ..secure()
        };
        let reference = format!("{}/r:latest", front.host).parse().unwrap();
        let repository = Repository::new(&reference, options).unwrap();
        let error = if by_token {
            repository.resolve().await.unwrap_err()
        } else {
            assert_eq!(repository.resolve().await.unwrap(), manifest);
            let error = read(&repository, &layer, 0).await.unwrap_err();
            assert_eq!(repository.resolve().await.unwrap(), manifest);
            error
        };
        let text = error.to_string();
        assert!(text.contains("HTTP response to HTTPS client"), "{text}");
        assert!(text.contains(elsewhere.host()), "{text}");
        assert_eq!(front.plain.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_on_tls_is_asked_without() {
    let (content, manifest, ..) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let to = server.host().to_owned();
    let mut shy = JoinSet::new();
    shy.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0];
            stream.peek(&mut first).await.unwrap();
            if first == [22] {
                // All of the greeting, or closing would be a reset.
                let _read = stream.read(&mut [0; 4096]).await;
                continue;
            }
            let mut plain = TcpStream::connect(&to).await.unwrap();
            let _ended = copy_bidirectional(&mut stream, &mut plain).await;
        }
    });
    let options = RegistryOpts {
        default_scheme: String::new(),
        limits: Limits {
            attempts: 1,
            ..secure().limits
        },
        ..secure()
    };
    assert_eq!(resolve(&host, options).await.unwrap(), manifest);
}
