//! Connections: straight to a host, or through a proxy.
//!
//! ```text
//! http  + proxy: connect to the proxy, full URLs in requests
//! https + proxy: connect to the proxy, CONNECT host:port, TLS inside
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::proxy::{Proxies, Proxy};
use crate::url::Origin;

/// Largest head of a proxy's answer.
const MAX_HEAD: usize = 16 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes TCP connections.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    /// For a proxy to answer.
    patience: Duration,
}

impl Connector {
    pub(crate) fn new(proxies: Arc<Proxies>, patience: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(patience));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self {
            tcp,
            proxies,
            patience,
        }
    }

    async fn connect(mut self, to: Uri) -> Result<Stream, BoxError> {
        let origin = Origin::of(&to)?;
        let Some(proxy) = self.proxies.for_origin(&origin)? else {
            let io = self.tcp.call(to).await?;
            return Ok(Stream { io, proxied: false });
        };
        let through = format!("proxy {}", proxy.authority);
        let failed =
            |error: BoxError| -> BoxError { format!("{through}: {}", chain(&*error)).into() };
        let address: Uri = format!("http://{}/", proxy.authority).parse()?;
        let io = self.tcp.call(address).await.map_err(|e| failed(e.into()))?;
        if !origin.https {
            return Ok(Stream { io, proxied: true });
        }
        let mut tcp = io.into_inner();
        let opened = timeout(self.patience, tunnel(&mut tcp, &origin, &proxy)).await;
        opened
            .map_err(|_| failed("no answer in time".into()))?
            .map_err(|error| failed(error.into()))?;
        Ok(Stream {
            io: TokioIo::new(tcp),
            proxied: false,
        })
    }
}

/// All that an error says: a proxy's failure is not to look like the registry's.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

async fn tunnel(tcp: &mut TcpStream, to: &Origin, proxy: &Proxy) -> io::Result<()> {
    let target = if to.host().contains(':') {
        format!("[{}]:{}", to.host(), to.port())
    } else {
        format!("{}:{}", to.host(), to.port())
    };
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        head += &format!("Proxy-Authorization: {authorization}\r\n");
    }
    head += "\r\n";
    tcp.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_HEAD {
            return Err(io::Error::other("endless answer"));
        }
        answer.push(tcp.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some("200")) => Ok(()),
        _ => {
            let said: String = line.chars().filter(|c| !c.is_control()).take(100).collect();
            Err(io::Error::other(format!(
                "refuses to connect to {target}: {said}"
            )))
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

/// A TCP connection that knows whether requests must name their host in full.
#[derive(Debug)]
pub(crate) struct Stream {
    io: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }
}
