//! Through a proxy: to hosts that are nowhere else.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use types::Code;

use super::{image, opts, read};
use crate::testsuite::{Request, Server};
use crate::{Proxies, RegistryOpts, Repository};

#[tokio::test]
async fn plain_requests_name_their_host_to_the_proxy() {
    let (content, manifest, layer, data) = image();
    let proxy = Server::start(move |request| {
        let path = request
            .path
            .strip_prefix("http://registry.example.test")
            .unwrap();
        content.reply(&Request {
            path: path.to_owned(),
            ..request.clone()
        })
    })
    .await;
    let options = RegistryOpts {
        proxies: Some(Proxies {
            http: format!("http://user:pass@{}", proxy.host()),
            ..Proxies::default()
        }),
        ..opts()
    };
    let reference = "registry.example.test/r:latest".parse().unwrap();
    let repository = Repository::new(&reference, options).unwrap();
    assert_eq!(repository.resolve().await.unwrap(), manifest);
    assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
    for request in proxy.requests() {
        assert_eq!(request.header("proxy-authorization"), "Basic dXNlcjpwYXNz");
        assert_eq!(request.header("host"), "registry.example.test");
    }
}

#[tokio::test]
async fn for_tls_a_tunnel_is_asked_for_and_a_refusal_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 403 No Way\r\n\r\n")
            .await
            .unwrap();
        String::from_utf8(head).unwrap()
    });
    let mut options = RegistryOpts {
        plain_http: false,
        proxies: Some(Proxies {
            https: format!("u:p@{proxy}"),
            ..Proxies::default()
        }),
        ..opts()
    };
    options.limits.attempts = 1;
    let reference = "registry.example.test/r:latest".parse().unwrap();
    let error = Repository::new(&reference, options)
        .unwrap()
        .resolve()
        .await;
    let error = error.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    let text = error.to_string();
    for said in [&proxy, "registry.example.test:443", "403 No Way"] {
        assert!(text.contains(said), "{text}");
    }
    let head = serving.await.unwrap();
    let want = "CONNECT registry.example.test:443 HTTP/1.1\r\nHost: registry.example.test:443\r\n";
    assert!(head.starts_with(want), "{head}");
    assert!(
        head.contains("Proxy-Authorization: Basic dTpw\r\n"),
        "{head}"
    );
}
