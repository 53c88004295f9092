//! Pseudo terminals. The other side is opened by ioctl, never by its path.

use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use types::Result;

use crate::error::op;

/// A new pseudo terminal: (master, the side a process gets).
///
/// # Errors
/// The errno of the step that failed.
pub fn open() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).map_err(|e| op("openpt", e))?;
    rustix::pty::unlockpt(&master).map_err(|e| op("unlockpt", e))?;
    let peer =
        rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(|e| op("ioctl TIOCGPTPEER", e))?;
    Ok((master, peer))
}

/// Sets the size of the terminal.
///
/// # Errors
/// The errno of `ioctl`.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).map_err(|e| op("ioctl TIOCSWINSZ", e))
}

/// The size of the terminal: (columns, rows).
///
/// # Errors
/// The errno of `ioctl`.
pub fn size(terminal: impl AsFd) -> Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).map_err(|e| op("ioctl TIOCGWINSZ", e))?;
    Ok((size.ws_col, size.ws_row))
}

/// Makes the terminal pass bytes as they are; returns what it takes to undo that.
///
/// # Errors
/// The errno of `ioctl`: `ENOTTY` when it is no terminal.
pub fn make_raw(terminal: impl AsFd) -> Result<Saved> {
    let before = rustix::termios::tcgetattr(&terminal).map_err(|e| op("tcgetattr", e))?;
    let mut raw = before.clone();
    raw.make_raw();
    set(&terminal, &raw)?;
    Ok(Saved(before))
}

/// The modes of a terminal before it was made raw.
#[derive(Clone, Debug)]
pub struct Saved(rustix::termios::Termios);

impl Saved {
    /// Puts the modes back.
    ///
    /// # Errors
    /// The errno of `ioctl`.
    pub fn restore(&self, terminal: impl AsFd) -> Result<()> {
        set(terminal, &self.0)
    }
}

fn set(terminal: impl AsFd, modes: &rustix::termios::Termios) -> Result<()> {
    let when = rustix::termios::OptionalActions::Now;
    rustix::termios::tcsetattr(terminal, when, modes).map_err(|e| op("tcsetattr", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_modes_are_set_and_restored() {
        let (master, peer) = open().unwrap();
        resize(&master, 132, 43).unwrap();
        assert_eq!(size(&peer).unwrap(), (132, 43));
        let echo = rustix::termios::LocalModes::ECHO;
        let has_echo = || {
            rustix::termios::tcgetattr(&peer)
                .unwrap()
                .local_modes
                .contains(echo)
        };
        assert!(has_echo());
        let saved = make_raw(&peer).unwrap();
        assert!(!has_echo());
        saved.restore(&peer).unwrap();
        assert!(has_echo());
        make_raw(std::fs::File::open("/dev/null").unwrap()).unwrap_err();
    }
}
