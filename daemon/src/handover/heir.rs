//! The new daemon's side: what it was given, and when it may begin.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use events::History;
use types::{Context as _, Error, Result};

use super::{Estate, FAILED, GO, GO_AFTER, Given, MESSAGE, PREPARED, READY, VARIABLE};
use super::{history, receive, receive_now, unexpected};
use crate::config::Config;
use crate::lock::Locks;
use crate::passed::Passed;

/// How long the old one may take to go when it was told that this one serves.
const FAREWELL: Duration = Duration::from_secs(5);

/// The conversation with the daemon that started this one.
#[derive(Debug)]
pub(crate) struct Heir {
    control: OwnedFd,
    /// The sockets that it was given.
    sockets: Vec<Given>,
}

impl Heir {
    /// Takes the conversation up when there is one. Called once, before there is a second thread.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn take() -> Result<Option<Self>> {
        let Ok(number) = std::env::var(VARIABLE) else {
            return Ok(None);
        };
        sys::process::forget_env(&[VARIABLE])?;
        let number = number.parse().map_err(|_| {
            Error::invalid_argument(format_args!("{VARIABLE} is {number:?} and no descriptor"))
        })?;
        let control = sys::process::inherited_fd(number)?;
        sys::fs::set_nonblocking(&control, false)?;
        Ok(Some(Self {
            control,
            sockets: Vec::new(),
        }))
    }

    /// Says that this daemon will not come to be, and why.
    pub(crate) fn fail(&self, error: &Error) {
        let mut text = format!("{FAILED}{error}");
        text.truncate(text.floor_char_boundary(MESSAGE));
        // The old one sees the end in any case.
        let _told = sys::socket::send_fds(&self.control, text.as_bytes(), &[]);
    }

    /// Takes the sockets, says that all is prepared, and waits until the stores are free. Blocks.
    ///
    /// # Errors
    /// `FailedPrecondition` when root or state have moved; `Unavailable` when the old daemon changes its
    /// mind.
    pub(crate) fn inherit(
        &mut self,
        config: &Config,
        passed: &mut Passed,
    ) -> Result<(Locks, Option<History>)> {
        let (text, fds) = self.hear()?;
        let estate: Estate = toml::from_str(&text).map_err(Error::internal)?;
        if (&estate.root, &estate.state) != (&config.root, &config.state) {
            return Err(Error::failed_precondition(
                "root or state have changed: that needs a restart",
            ));
        }
        let mut fds = fds.into_iter();
        let (Some(root), Some(state)) = (fds.next(), fds.next()) else {
            return Err(Error::internal("hand-over without locks"));
        };
        for (given, fd) in estate.sockets.iter().zip(fds) {
            passed.add(given.name.clone(), fd);
        }
        self.sockets = estate.sockets;
        self.say(PREPARED)?;
        let (text, fds) = self.hear()?;
        if text == GO_AFTER {
            // There is nothing more to hear but the end.
            while receive_now(&self.control).is_ok_and(|more| more.is_some()) {}
        } else if text != GO {
            return Err(unexpected(Some((text, fds))));
        }
        let locks = Locks::adopt(config, root, state)?;
        Ok((locks, fds.into_iter().next().and_then(past)))
    }

    /// Whether the file of a socket goes over with it.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let mut given = self.sockets.iter();
        given.any(|given| given.owned && given.name == name)
    }

    /// Says that this daemon serves, and waits until the old one is gone.
    pub(crate) async fn ready(self) {
        let gone = async {
            sys::fs::set_nonblocking(&self.control, true)?;
            self.say(READY)?;
            while receive(&self.control).await?.is_some() {}
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(FAREWELL, gone).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the old daemon did not hear"),
            Err(_) => tracing::warn!("the old daemon does not end"),
        }
    }

    fn say(&self, word: &str) -> Result<()> {
        sys::socket::send_fds(&self.control, word.as_bytes(), &[]).ctx("hand-over")
    }

    fn hear(&self) -> Result<(String, Vec<OwnedFd>)> {
        let message = receive_now(&self.control).map_err(|e| Error::os("hand-over", e))?;
        message.ok_or_else(|| Error::unavailable("the running daemon has gone on by itself"))
    }
}

/// The events of the old daemon. Without them subscribers are told that they miss some.
fn past(file: OwnedFd) -> Option<History> {
    let read = history::read(File::from(file));
    if let Err(error) = &read {
        tracing::warn!(%error, "the events of the old daemon are lost");
    }
    read.ok()
}
