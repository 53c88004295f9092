//! Flags of commands that talk to a registry.

use std::path::PathBuf;
use std::sync::Arc;

use client::Client;
use client::terminal::Terminal;
use registry::{Answer, Authenticator, Credentials, DockerConfig};
use registry::{Question, Reference, RegistryOpts, TlsFiles, Watch};
use types::transfer::{AuthAnswer, AuthRequest, Remote};
use types::{Error, Result};

use crate::out;

/// How to reach a registry
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Flags {
    /// Skip SSL certificate validation
    #[arg(short = 'k', long)]
    skip_verify: bool,
    /// Allow connections using plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Registry user and password, `user[:password]`; a password that is left out is asked for on the
    /// terminal; without the flag Docker's config.json is asked
    #[arg(short, long)]
    user: Option<String>,
    /// Refresh token for the authorization server
    #[arg(long, conflicts_with = "user")]
    refresh: Option<String>,
    /// Directory with a directory for each registry host (hosts.toml, certificates)
    #[arg(long)]
    hosts_dir: Option<PathBuf>,
    /// Certificate authorities that are trusted instead of the system's
    #[arg(long)]
    tlscacert: Option<PathBuf>,
    /// Client certificate
    #[arg(long)]
    tlscert: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long)]
    tlskey: Option<PathBuf>,
    /// Show the heads of requests to registries and of their answers
    #[arg(long)]
    http_dump: bool,
    /// Show how long registries take to answer
    #[arg(long)]
    http_trace: bool,
}

impl Flags {
    /// Options for a registry client in this process.
    pub(crate) fn opts(&self) -> Result<RegistryOpts> {
        let credentials = match self.answer()? {
            AuthAnswer::Password { user, secret } => Some(Credentials { user, secret }),
            AuthAnswer::Refresh(secret) => Some(Credentials {
                user: String::new(),
                secret,
            }),
            AuthAnswer::None | AuthAnswer::Header(_) => None,
        };
        let known = DockerConfig::of_user().filter(|_| credentials.is_none());
        let authenticator = known.map(|known| Arc::new(known) as Arc<dyn Authenticator>);
        Ok(RegistryOpts {
            plain_http: self.plain_http,
            skip_verify: self.skip_verify,
            credentials,
            authenticator,
            host_dirs: self.hosts_dir.iter().cloned().collect(),
            tls: TlsFiles {
                ca: self.tlscacert.clone(),
                cert: self.tlscert.clone(),
                key: self.tlskey.clone(),
            },
            watch: self
                .is_watched()
                .then(|| Watch::new(self.http_dump, self.http_trace, out::note)),
            ..RegistryOpts::default()
        })
    }

    fn is_watched(&self) -> bool {
        self.http_dump || self.http_trace
    }

    /// The registry's end of a transfer in the daemon, which asks for the credentials that the user
    /// has here.
    pub(crate) async fn remote(&self, client: &Client, reference: &str) -> Result<Remote> {
        only_local(&[
            ("skip-verify", self.skip_verify),
            ("tlscacert", self.tlscacert.is_some()),
            ("tlscert", self.tlscert.is_some()),
            ("tlskey", self.tlskey.is_some()),
        ])?;
        let mut remote = Remote {
            reference: reference.to_owned(),
            ..Remote::default()
        };
        if self.plain_http {
            remote.default_scheme = "http".to_owned();
        }
        if let Some(directory) = &self.hosts_dir {
            // The daemon has another working directory.
            let directory = std::path::absolute(directory)
                .map_err(|e| Error::os(format_args!("find {}", directory.display()), e))?;
            remote.host_dir = directory.display().to_string();
        }
        if self.is_watched() {
            (remote.dump, remote.trace) = (self.http_dump, self.http_trace);
            let errors = Box::new(std::io::stderr());
            // It ends with the transfer.
            (remote.logs_stream, _) = client.receive_bytes(errors).await?;
        }
        let answer = self.answer()?;
        let known = DockerConfig::of_user();
        remote.auth_stream = match (answer, known) {
            (AuthAnswer::None, None) => return Ok(remote),
            (AuthAnswer::None, Some(known)) => {
                let told = move |request| told(known.clone(), request);
                client.lend_credentials(told).await?
            }
            (answer, _) => {
                let (of, is_plain) = (reference.parse::<Reference>()?, self.plain_http);
                let told = move |request: AuthRequest| {
                    std::future::ready(given(&answer, &of, is_plain, &request))
                };
                client.lend_credentials(told).await?
            }
        };
        Ok(remote)
    }

    fn answer(&self) -> Result<AuthAnswer> {
        if let Some(token) = &self.refresh {
            return Ok(AuthAnswer::Refresh(token.clone()));
        }
        let Some(user) = &self.user else {
            return Ok(AuthAnswer::None);
        };
        let (user, secret) = match user.split_once(':') {
            Some((user, secret)) if !secret.is_empty() => (user, secret.to_owned()),
            Some((user, _)) => (user, asked()?),
            None => (user.as_str(), asked()?),
        };
        Ok(AuthAnswer::Password {
            user: user.to_owned(),
            secret,
        })
    }
}

/// What the user gave, which is for the registry and not for its mirrors.
fn given(answer: &AuthAnswer, of: &Reference, is_plain: bool, request: &AuthRequest) -> AuthAnswer {
    if of.is_served_by(&request.host, is_plain) {
        answer.clone()
    } else {
        AuthAnswer::None
    }
}

/// The password that a person types.
fn asked() -> Result<String> {
    let terminal = Terminal::find();
    let mut terminal =
        terminal.map_err(|_| Error::invalid_argument("--user needs a password: user:password"))?;
    terminal.ask_secretly("Password: ")
}

/// What Docker's configuration has for the registry that asks. The daemon cannot be told of an error:
/// the user is, and nobody is named.
async fn told(known: DockerConfig, request: AuthRequest) -> AuthAnswer {
    let question = Question {
        host: request.host,
        reference: request.reference,
        challenges: request.challenges,
    };
    match known.answer(&question).await {
        Ok(Answer::Anonymous) => AuthAnswer::None,
        Ok(Answer::User(Credentials { user, secret })) => AuthAnswer::Password { user, secret },
        Ok(Answer::Refresh(token)) => AuthAnswer::Refresh(token),
        Ok(Answer::Header(value)) => AuthAnswer::Header(value),
        Err(error) => {
            out::complain(&error);
            AuthAnswer::None
        }
    }
}

/// Refuses flags that a transfer in the daemon cannot follow.
///
/// Parity: cmd/ctr/commands/images/pull.go: the words of the refusal.
pub(crate) fn only_local(flags: &[(&str, bool)]) -> Result<()> {
    match flags.iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(Error::invalid_argument(format_args!(
            "\"--{name}\" requires \"--local\" flag"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_flags() {
        let flags = |user: Option<&str>, refresh: Option<&str>| Flags {
            skip_verify: false,
            plain_http: false,
            user: user.map(str::to_owned),
            refresh: refresh.map(str::to_owned),
            hosts_dir: None,
            tlscacert: None,
            tlscert: None,
            tlskey: None,
            http_dump: false,
            http_trace: false,
        };
        let answer = flags(Some("me:a:b"), None).answer().unwrap();
        let want = AuthAnswer::Password {
            user: "me".into(),
            secret: "a:b".into(),
        };
        assert_eq!(answer, want);
        let token = flags(None, Some("t")).answer().unwrap();
        assert_eq!(token, AuthAnswer::Refresh("t".into()));
        assert_eq!(flags(None, None).answer().unwrap(), AuthAnswer::None);
    }

    #[test]
    fn a_mirror_does_not_get_what_is_for_the_registry() {
        let answer = AuthAnswer::Refresh("t".into());
        let ask = |host: &str| {
            let request = AuthRequest {
                host: host.to_owned(),
                ..AuthRequest::default()
            };
            let reference = "r.test:5000/a".parse().unwrap();
            given(&answer, &reference, false, &request)
        };
        for own in ["r.test:5000", "R.test:5000"] {
            assert_eq!(ask(own), answer, "{own}");
        }
        for other in ["r.test", "m.test:5000", ""] {
            assert_eq!(ask(other), AuthAnswer::None, "{other}");
        }
    }

    #[tokio::test]
    async fn docker_s_configuration_answers_for_each_host() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let ask = async |host: &str| {
            let request = AuthRequest {
                host: host.to_owned(),
                ..AuthRequest::default()
            };
            told(DockerConfig::new(&file), request).await
        };
        assert_eq!(ask("a.test").await, AuthAnswer::None);
        let text = r#"{"auths": {"a.test": {"username": "me", "password": "p"},
            "b.test:5000": {"identitytoken": "t"}, "c.test": {"registrytoken": "r"}}}"#;
        std::fs::write(&file, text).unwrap();
        let want = AuthAnswer::Password {
            user: "me".into(),
            secret: "p".into(),
        };
        assert_eq!(ask("a.test").await, want);
        assert_eq!(ask("b.test:5000").await, AuthAnswer::Refresh("t".into()));
        assert_eq!(ask("c.test").await, AuthAnswer::Header("Bearer r".into()));
        assert_eq!(ask("d.test").await, AuthAnswer::None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(ask("a.test").await, AuthAnswer::None);
    }

    #[test]
    fn what_only_works_here_is_refused() {
        only_local(&[("a", false)]).unwrap();
        let error = only_local(&[("a", false), ("b", true)]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("\"--b\" requires \"--local\" flag")
        );
    }
}
