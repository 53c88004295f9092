//! The new daemon's side: what it was given, and when it may begin.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::{Duration, Instant};

use events::History;
use futures::FutureExt as _;
use types::{Context as _, Error, Result};

use super::{BEAT, history, receive, receive_now, unexpected};
use super::{
    Estate, FAILED, GO, GO_AFTER, Given, KNOWN, MESSAGE, PREPARED, READY, RELOAD, VARIABLE,
};
use crate::config::Config;
use crate::lock::Locks;
use crate::notify;
use crate::passed::Passed;

/// How long the old one may take to go when it was told that this one serves, before that is told.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often it is told that the end of the old one is waited for.
const TELL: Duration = Duration::from_secs(10);

/// The conversation with the daemon that started this one.
#[derive(Debug)]
pub(crate) struct Heir {
    control: OwnedFd,
    /// The sockets that it was given.
    sockets: Vec<Given>,
    /// What the old one has said at its end, if that came first.
    pub(super) parting: Parting,
}

/// The last words of the old daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parting {
    /// The service manager was told of this daemon. Without that it takes the end of the old one for
    /// that of the service, and starts a third one, which finds root and state taken.
    pub(crate) is_known: bool,
    /// The configuration is to be read again: who asked for that did so when this daemon had read it.
    pub(crate) reload: bool,
}

impl Parting {
    fn note(&mut self, word: &str) {
        self.is_known |= word == KNOWN;
        self.reload |= word == RELOAD;
    }
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
        Ok(Some(Self::of(control)))
    }

    /// The side of the new daemon in a conversation.
    pub(super) fn of(control: OwnedFd) -> Self {
        Self {
            control,
            sockets: Vec::new(),
            parting: Parting::default(),
        }
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
            // There is nothing more to hear but the last words and the end.
            self.outlive();
        } else if text != GO {
            return Err(unexpected(Some((text, fds))));
        }
        let locks = Locks::adopt(config, root, state)?;
        Ok((locks, fds.into_iter().next().and_then(past)))
    }

    /// Waits for the end of the old daemon, which closes the conversation with its last thread. Blocks.
    pub(super) fn outlive(&mut self) {
        let begun = Instant::now();
        let mut told = Duration::ZERO;
        loop {
            if sys::fs::readable_within(&self.control, BEAT).is_ok_and(|heard| !heard) {
                // The service manager may take this one for the daemon already.
                notify::alive();
                let waited = begun.elapsed();
                if waited >= told + TELL {
                    told = waited;
                    let process = sys::socket::peer(&self.control).map_or(0, |peer| peer.pid);
                    let seconds = waited.as_secs();
                    tracing::warn!(
                        process,
                        seconds,
                        "waiting for the end of the old daemon, which has root and state open"
                    );
                }
                continue;
            }
            match receive_now(&self.control) {
                Ok(Some((word, _))) => self.parting.note(&word),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Whether the file of a socket goes over with it.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let mut given = self.sockets.iter();
        given.any(|given| given.owned && given.name == name)
    }

    /// Says that this daemon serves, and waits until the old one is gone; its last words.
    pub(crate) async fn ready(mut self) -> Parting {
        if let Err(error) = self.say_ready() {
            tracing::debug!(%error, "the old daemon did not hear");
            return self.parting;
        }
        let mut late = pin!(tokio::time::sleep(FAREWELL).fuse());
        loop {
            let heard = tokio::select! {
                heard = receive(&self.control) => heard,
                () = &mut late => {
                    tracing::warn!("the old daemon does not end");
                    continue;
                }
            };
            match heard {
                Ok(Some((word, _))) => self.parting.note(&word),
                Ok(None) => return self.parting,
                Err(error) => {
                    tracing::debug!(%error, "the old daemon is not heard any more");
                    return self.parting;
                }
            }
        }
    }

    fn say_ready(&self) -> Result<()> {
        sys::fs::set_nonblocking(&self.control, true)?;
        self.say(READY)
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
