//! The command line: eight flags and an action, as every daemon generation gives them.

use std::ffi::OsString;
use std::path::PathBuf;

use types::{Error, Identifier, Result};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a shim and print its address.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
    /// Serve on an inherited socket.
    Serve,
    /// Print the version.
    Version,
    /// Print what the runtime can do.
    Info,
}

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) action: Action,
    /// Namespace of the container.
    pub(crate) namespace: String,
    /// Id of the container.
    pub(crate) id: String,
    /// Main socket of the daemon.
    pub(crate) address: String,
    /// Binary that publishes events; used by no daemon that also gives a ttrpc address.
    pub(crate) publish_binary: PathBuf,
    /// Bundle; the working directory when it is not given.
    pub(crate) bundle: PathBuf,
    pub(crate) debug: bool,
}

impl Flags {
    /// Parses arguments (without the program's name). A flag has one dash or two, its value follows
    /// after `=` or as the next argument.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown flag or action, a missing value, a missing or invalid id.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut flags = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: PathBuf::new(),
            bundle: PathBuf::from("."),
            debug: false,
        };
        let mut args = args.into_iter().map(|arg| {
            arg.into_string()
                .map_err(|arg| Error::invalid_argument(format_args!("argument {}", arg.display())))
        });
        let mut special = None;
        while let Some(arg) = args.next() {
            let arg = arg?;
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                flags.action = action(&arg)?;
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => flags.debug = truth(name, value.as_deref())?,
                "v" | "version" => {
                    special = truth(name, value.as_deref())?.then_some(Action::Version);
                }
                "info" => special = truth(name, value.as_deref())?.then_some(Action::Info),
                _ => {
                    let value = match value {
                        Some(value) => value,
                        None => args.next().ok_or_else(|| {
                            Error::invalid_argument(format_args!("flag needs a value: -{name}"))
                        })??,
                    };
                    flags.set(name, value)?;
                }
            }
        }
        match special {
            Some(action) => flags.action = action,
            None => flags.check()?,
        }
        Ok(flags)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "publish-binary" => self.publish_binary = value.into(),
            "bundle" => self.bundle = value.into(),
            // Of the Go shim's way to start itself again; nothing here needs them.
            "socket" | "debug-socket" => {}
            _ => {
                return Err(Error::invalid_argument(format_args!(
                    "flag provided but not defined: -{name}"
                )));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.namespace.is_empty() {
            return Err(Error::invalid_argument("shim namespace cannot be empty"));
        }
        Identifier::check(&self.namespace)?;
        Identifier::check(&self.id)
    }
}

fn action(text: &str) -> Result<Action> {
    match text {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "" => Ok(Action::Serve),
        _ => Err(Error::invalid_argument(format_args!(
            "unknown action {text:?}"
        ))),
    }
}

fn truth(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(Error::invalid_argument(format_args!("-{name}={other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn lines_of_all_daemon_generations_are_understood() {
        let old =
            "-namespace default -address /run/c.sock -publish-binary /bin/containerd -id c1 start";
        let flags = parse(old).unwrap();
        assert_eq!(flags.action, Action::Start);
        assert_eq!(
            (flags.namespace.as_str(), flags.id.as_str()),
            ("default", "c1")
        );
        assert_eq!(flags.address, "/run/c.sock");
        let new = "--namespace=k8s.io --id=c1 --address=/a --bundle /b -debug delete";
        let flags = parse(new).unwrap();
        assert_eq!((flags.action, flags.debug), (Action::Delete, true));
        assert_eq!(flags.bundle, PathBuf::from("/b"));
        let serve = "-namespace n -id i -address /a -socket unix:///s -debug-socket unix:///d";
        assert_eq!(parse(serve).unwrap().action, Action::Serve);
    }

    #[test]
    fn questions_about_the_shim_need_no_id() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("--version").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in [
            "start",
            "-namespace n start",
            "-id i start",
            "-namespace n -id a/b start",
            "-namespace .. -id i start",
            "-namespace n -id i dance",
            "-namespace n -id i -wrong x start",
            "-namespace n -id",
            "-debug=maybe -namespace n -id i start",
        ] {
            assert!(
                parse(line).unwrap_err().is(types::Code::InvalidArgument),
                "{line}"
            );
        }
    }
}
