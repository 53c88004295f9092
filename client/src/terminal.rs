//! The terminal of this process: raw while a container's terminal is shown on it.

use std::fs::File;
use std::io::IsTerminal as _;
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

    /// Columns and rows.
    ///
    /// # Errors
    /// The errno.
    pub fn size(&self) -> Result<(u16, u16)> {
        sys::pty::size(&self.file)
    }
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
