//! Telling systemd how far we are (sd_notify(3)): a datagram to the socket that it names.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use types::{Error, Result};

/// The daemon serves.
pub(crate) const READY: &str = "READY=1";
/// The daemon is about to end.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Names the socket of the service manager.
const SOCKET: &str = "NOTIFY_SOCKET";
/// The daemon is alive.
const ALIVE: &str = "WATCHDOG=1";

/// How often the service manager wants to hear that the daemon is alive, at least.
fn patience() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let of = variable("WATCHDOG_PID");
    limit(
        variable("WATCHDOG_USEC")?.as_str(),
        of.as_deref(),
        std::process::id(),
    )
}

fn limit(micros: &str, pid: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let micros = micros.parse().ok().filter(|micros| *micros > 0 && is_ours);
    micros.map(Duration::from_micros)
}

/// Says for ever that the daemon is alive, as long as its threads take work. Without a service manager
/// that listens it does nothing.
pub(crate) async fn keep_alive() {
    let Some(limit) = patience() else {
        return std::future::pending().await;
    };
    // Twice in each period, as sd_watchdog_enabled(3) asks for.
    let mut beat = tokio::time::interval(limit / 2);
    loop {
        beat.tick().await;
        // On the threads that serve, not on this one: when they hang, nobody answers here.
        if tokio::spawn(async {}).await.is_ok() {
            alive();
        }
    }
}

/// The daemon is alive, whoever serves: for the time in which [`keep_alive`] is not at work.
pub(crate) fn alive() {
    if patience().is_some() {
        notify(ALIVE);
    }
}

/// Another process is the daemon from now on. False when a service manager that there is does not hear.
pub(crate) fn successor(pid: u32) -> bool {
    let is_told = notify(&format!("MAINPID={pid}\n{READY}"));
    alive();
    is_told
}

/// True when a service manager wants to hear of the daemon.
pub(crate) fn is_heard() -> bool {
    std::env::var_os(SOCKET).is_some()
}

/// The daemon reads its configuration again; `READY=1` follows.
pub(crate) fn reloading() {
    let now = sys::clock::monotonic().as_micros();
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
}

/// Sends `state` to the service manager; nothing when there is none. False when it cannot be sent.
pub(crate) fn notify(state: &str) -> bool {
    let Some(path) = std::env::var_os(SOCKET) else {
        return true;
    };
    let sent = send(Path::new(&path), state);
    if let Err(error) = &sent {
        tracing::warn!(%error, state, "cannot notify the service manager");
    }
    sent.is_ok()
}

/// Sends to a path or, when it begins with `@`, to an abstract name.
fn send(path: &Path, state: &str) -> Result<()> {
    let fail = |e| Error::os("notify", e);
    let address = match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().map_err(fail)?;
    socket
        .send_to_addr(state.as_bytes(), &address.map_err(fail)?)
        .map_err(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_of_the_process_that_it_names() {
        for (micros, pid, want) in [
            ("3000000", None, Some(3)),
            ("3000000", Some("7"), Some(3)),
            ("3000000", Some("8"), None),
            ("0", None, None),
            ("soon", None, None),
        ] {
            assert_eq!(
                limit(micros, pid, 7),
                want.map(Duration::from_secs),
                "{micros} {pid:?}"
            );
        }
    }

    #[test]
    fn the_state_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("containerd-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, target) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            send(&target, READY).unwrap();
            let mut text = [0; 32];
            let read = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..read], READY.as_bytes());
        }
        let said = send(&dir.path().join("none"), READY)
            .unwrap_err()
            .to_string();
        assert_eq!(said, "notify: no such file or directory");
    }
}
