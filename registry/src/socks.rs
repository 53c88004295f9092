//! A connection through a SOCKS 5 proxy (RFC 1928), with user and password where it wants them
//! (RFC 1929).
//!
//! Invariant: no more is read than the proxy's answer has, which is less than 300 bytes, and names are
//! resolved by the proxy. Called by the connector, which sets the time.

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const VERSION: u8 = 5;
/// Version of the exchange of user and password.
const LOGIN: u8 = 1;
const NOBODY: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_OF_THEM: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Connects to `host` and `port`, as `user` with a password where the proxy asks.
pub(crate) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    (host, port): (&str, u16),
    user: Option<&(String, String)>,
) -> io::Result<()> {
    greet(stream, user).await?;
    let mut request = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(IPV4);
            request.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(IPV6);
            request.extend(address.octets());
        }
        Err(_) => {
            request.push(NAME);
            text(&mut request, host)?;
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let [version, reply, _, kind] = read(stream).await?;
    is_socks(version)?;
    if reply != 0 {
        let why = reason(reply);
        return failed(&format!("refuses to connect to {host}:{port}: {why}"));
    }
    // Where it has connected from, which is of no use here; what follows is the server's.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(stream.read_u8().await?),
        _ => return failed("answers with an address of an unknown kind"),
    };
    let mut address = vec![0; length + size_of_val(&port)];
    stream.read_exact(&mut address).await.map(drop)
}

/// Agrees on how we say who we are, and says it.
async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    user: Option<&(String, String)>,
) -> io::Result<()> {
    let offer: &[u8] = match user {
        Some(_) => &[VERSION, 2, NOBODY, PASSWORD],
        None => &[VERSION, 1, NOBODY],
    };
    stream.write_all(offer).await?;
    let [version, chosen] = read(stream).await?;
    is_socks(version)?;
    match (chosen, user) {
        (NOBODY, _) => Ok(()),
        (PASSWORD, Some((name, secret))) => {
            let mut login = vec![LOGIN];
            text(&mut login, name)?;
            text(&mut login, secret)?;
            stream.write_all(&login).await?;
            match read(stream).await? {
                [_, 0] => Ok(()),
                _ => failed("refuses user and password"),
            }
        }
        (NONE_OF_THEM, Some(_)) => failed("takes neither user and password nor nobody"),
        (NONE_OF_THEM, None) => failed("wants to know who we are"),
        _ => failed("wants something that was not offered"),
    }
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut answer = [0; N];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Adds a text with its length, which has one byte.
fn text(message: &mut Vec<u8>, text: &str) -> io::Result<()> {
    let Ok(length) = u8::try_from(text.len()) else {
        return failed("a name or a password has more than 255 bytes");
    };
    message.push(length);
    message.extend(text.bytes());
    Ok(())
}

fn is_socks(version: u8) -> io::Result<()> {
    match version {
        VERSION => Ok(()),
        _ => failed("speaks no SOCKS 5"),
    }
}

fn failed<T>(why: &str) -> io::Result<T> {
    Err(io::Error::other(why.to_owned()))
}

/// What a reply that is no success means.
fn reason(reply: u8) -> &'static str {
    match reply {
        1 => "it failed",
        2 => "its rules do not allow it",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "it took too long",
        7 => "it does not connect for others",
        8 => "it knows no such address",
        _ => "for an unknown reason",
    }
}
