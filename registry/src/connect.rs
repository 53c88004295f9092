//! Connections: straight to a host, or through a proxy.
//!
//! ```text
//! http  + http proxy:  connect to the proxy, full URLs in requests
//! https + http proxy:  connect to the proxy, CONNECT host:port, TLS inside
//! any   + https proxy: the same inside of TLS to the proxy
//! any   + socks proxy: connect to the proxy, a connection to host:port, as if there were no proxy
//! ```
//!
//! What a proxy says about itself never looks like the registry's: nobody gives TLS up for it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::proxy::{Kind, Proxies, Proxy};
use crate::socks;
use crate::tls::{self, Trust};
use crate::url::Origin;

/// Largest head of a proxy's answer.
const MAX_HEAD: usize = 16 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection, whatever it is made of.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Duplex for T {}

/// Makes TCP connections.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    /// For a connection, also one to a proxy and on from there.
    patience: Duration,
    /// Who proxies with TLS have to be.
    trust: Arc<Trust>,
    /// The same, read in.
    tls: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Connector {
    pub(crate) fn new(proxies: Arc<Proxies>, patience: Duration, trust: &Trust) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(patience));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self {
            tcp,
            proxies,
            patience,
            trust: Arc::new(trust.of_proxies()),
            tls: Arc::default(),
        }
    }

    async fn connect(mut self, to: Uri) -> Result<Stream, BoxError> {
        let origin = Origin::of(&to)?;
        let Some(proxy) = self.proxies.for_origin(&origin)? else {
            let io = self.tcp.call(to).await?;
            return Ok(Stream::new(io.into_inner(), false));
        };
        let opened = timeout(self.patience, self.through(&proxy, &origin)).await;
        let opened = opened.unwrap_or_else(|_| Err("no answer in time".into()));
        opened.map_err(|error| format!("proxy {}: {}", proxy.authority, chain(&*error)).into())
    }

    async fn through(&mut self, proxy: &Proxy, to: &Origin) -> Result<Stream, BoxError> {
        let address: Uri = format!("http://{}/", proxy.authority).parse()?;
        let tcp = self.tcp.call(address).await?.into_inner();
        if proxy.kind != Kind::Https {
            return enter(tcp, proxy, to).await;
        }
        let connector = TlsConnector::from(self.tls()?);
        let name = ServerName::try_from(proxy.name().to_owned())?;
        let tls = connector.connect(name, tcp).await.map_err(hung_up)?;
        enter(tls, proxy, to).await
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, BoxError> {
        if self.tls.get().is_none() {
            // Another connection may have been first.
            let _kept = self.tls.set(Arc::new(tls::config(&self.trust)?));
        }
        let config = self.tls.get().map(Arc::clone);
        config.ok_or_else(|| "no TLS client".into())
    }
}

/// Makes a connection to a proxy one to `to`, where it is to be one.
async fn enter(
    mut io: impl Duplex + 'static,
    proxy: &Proxy,
    to: &Origin,
) -> Result<Stream, BoxError> {
    let entered = match (proxy.kind, to.https) {
        (Kind::Socks, _) => {
            socks::connect(&mut io, (to.host(), to.port()), proxy.user.as_ref()).await
        }
        (Kind::Http | Kind::Https, true) => tunnel(&mut io, to, proxy).await,
        (Kind::Http | Kind::Https, false) => return Ok(Stream::new(io, true)),
    };
    entered.map_err(hung_up)?;
    Ok(Stream::new(io, false))
}

/// Says in plain words that a proxy closed the connection.
fn hung_up(error: io::Error) -> BoxError {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => {
            "it hung up without an answer".into()
        }
        _ => error.into(),
    }
}

/// All that an error says: a proxy's failure is not to look like the registry's.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Asks an HTTP proxy for a connection to `to`.
async fn tunnel(io: &mut impl Duplex, to: &Origin, proxy: &Proxy) -> io::Result<()> {
    let target = if to.host().contains(':') {
        format!("[{}]:{}", to.host(), to.port())
    } else {
        format!("{}:{}", to.host(), to.port())
    };
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = proxy.authorization() {
        head += &format!("Proxy-Authorization: {authorization}\r\n");
    }
    head += "\r\n";
    io.write_all(head.as_bytes()).await?;
    io.flush().await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_HEAD {
            return Err(io::Error::other("endless answer"));
        }
        answer.push(io.read_u8().await?);
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

/// A connection that knows whether requests must name their host in full.
#[derive(Debug)]
pub(crate) struct Stream {
    io: TokioIo<Box<dyn Duplex>>,
    proxied: bool,
}

impl Stream {
    fn new(io: impl Duplex + 'static, proxied: bool) -> Self {
        Self {
            io: TokioIo::new(Box::new(io)),
            proxied,
        }
    }
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
