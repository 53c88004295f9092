//! The terminal of this process: raw while a container's terminal is shown on it.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write as _};
use std::os::fd::AsFd as _;

use sys::pty::Saved;
use types::{Error, Result};

/// Our terminal, found among standard input, output and error. Raw until this is dropped.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    saved: Option<Saved>,
}

impl Terminal {
    /// Finds the terminal and leaves it as it is.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is none.
    pub fn find() -> Result<Self> {
        let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let found = if input.is_terminal() {
            input.as_fd().try_clone_to_owned()
        } else if output.is_terminal() {
            output.as_fd().try_clone_to_owned()
        } else if errors.is_terminal() {
            errors.as_fd().try_clone_to_owned()
        } else {
            return Err(Error::failed_precondition("provided file is not a console"));
        };
        let file = found.map_err(|e| Error::os("dup terminal", e))?.into();
        Ok(Self { file, saved: None })
    }

    /// Passes bytes as they are from now on.
    ///
    /// # Errors
    /// The errno.
    pub fn make_raw(&mut self) -> Result<()> {
        self.saved = Some(sys::pty::make_raw(&self.file)?);
        Ok(())
    }

    /// Asks a person for a line that is not shown.
    ///
    /// # Errors
    /// `Cancelled` when they give up, by control C or at the end of input; the errno.
    pub fn ask_secretly(&mut self, prompt: &str) -> Result<String> {
        let failed = |e| Error::os("ask on the terminal", e);
        self.file.write_all(prompt.as_bytes()).map_err(failed)?;
        let saved = sys::pty::make_raw(&self.file)?;
        let line = secret(&mut self.file);
        saved.restore(&self.file)?;
        self.file.write_all(b"\n").map_err(failed)?;
        line
    }

    /// Columns and rows.
    ///
    /// # Errors
    /// The errno.
    pub fn size(&self) -> Result<(u16, u16)> {
        sys::pty::size(&self.file)
    }
}

/// Longest line that is asked for.
const MAX_LINE: usize = 4096;

/// A line as keys make it on a raw terminal.
fn secret(keys: &mut impl Read) -> Result<String> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const KILL_LINE: u8 = 21;
    let mut line = Vec::new();
    loop {
        let mut key = [0];
        match keys.read(&mut key) {
            Ok(0) => key = [END],
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::os("read the terminal", e)),
        }
        match key[0] {
            b'\r' | b'\n' => break,
            INTERRUPT | END => return Err(Error::cancelled("interrupted")),
            // Backspace, or delete: what it sends depends on the terminal.
            8 | 127 => drop(line.pop()),
            KILL_LINE => line.clear(),
            key if line.len() < MAX_LINE => line.push(key),
            _ => return Err(Error::invalid_argument("this line is too long")),
        }
    }
    String::from_utf8(line).map_err(|_| Error::invalid_argument("this is no UTF-8"))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved
            && let Err(error) = saved.restore(&self.file)
        {
            tracing::warn!(%error, "cannot restore the terminal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn a_secret_is_what_the_keys_leave() {
        for (keys, want) in [
            (&b"pass\r"[..], "pass"),
            (b"pax\x7fss\nmore", "pass"),
            (b"\x08wrong\x15pass\r", "pass"),
            (b"\r", ""),
        ] {
            assert_eq!(secret(&mut { keys }).unwrap(), want);
        }
        for keys in [&b"pa\x03"[..], b"pa\x04", b"pa"] {
            assert!(secret(&mut { keys }).unwrap_err().is(Code::Cancelled));
        }
        let long = vec![b'x'; MAX_LINE + 1];
        assert!(secret(&mut &*long).unwrap_err().is(Code::InvalidArgument));
    }
}
