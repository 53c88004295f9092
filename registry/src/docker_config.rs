//! Docker's `config.json`: credentials in the file, or by helper programs.
//!
//! Invariant: a helper is a program called `docker-credential-NAME` found in `PATH`, NAME being a plain
//! word; it gets the server's name on its input and has a deadline and a bounded answer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sys::process::Spawn;
use types::{Error, Result};

use crate::base64;
use crate::credentials::{Answer, Authenticator, Credentials, Question};

/// Largest file, and largest answer of a helper.
const MAX: u64 = 8 << 20;
/// For a helper to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// What Docker's own registry is called in these files.
const HUB: &str = "https://index.docker.io/v1/";
/// The user name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// The part of the file that is about credentials.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Credentials from Docker's configuration. The file is read anew for each question.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
    helpers: PathBuf,
    patience: Duration,
}

impl DockerConfig {
    /// Those of the file `path`; a file that does not exist knows nobody.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            helpers: PathBuf::new(),
            patience: PATIENCE,
        }
    }

    /// Looks for helpers in `dir` instead of `PATH`.
    #[must_use]
    pub fn helpers_in(mut self, dir: impl Into<PathBuf>) -> Self {
        self.helpers = dir.into();
        self
    }

    /// The user's own file: in `DOCKER_CONFIG` or `~/.docker`; `None` without a home.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = set("DOCKER_CONFIG").map(PathBuf::from);
        let dir = dir.or_else(|| Some(Path::new(&set("HOME")?).join(".docker")))?;
        Some(Self::new(dir.join("config.json")))
    }

    /// The credentials for `host`. Reads files and runs programs: blocks.
    fn find(&self, host: &str) -> Result<Answer> {
        let failed = |error| Error::os(format_args!("read {}", self.path.display()), error);
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(MAX + 1).read_to_end(&mut text).map_err(failed)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Answer::Anonymous),
            Err(error) => return Err(failed(error)),
        };
        let config = parse(&text).map_err(|error| error.ctx(self.path.display().to_string()))?;
        match config.helper(host) {
            Some((helper, server)) => match self.ask(helper, &server)? {
                Answer::Anonymous => config.in_file(host),
                answer => Ok(answer),
            },
            None => config.in_file(host),
        }
    }

    /// Asks a helper. Blocks.
    fn ask(&self, helper: &str, server: &str) -> Result<Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Found {
            username: String,
            secret: String,
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if helper.is_empty() || !helper.chars().all(plain) {
            return Err(Error::invalid_argument(format_args!(
                "credential helper {helper:?} is no plain name"
            )));
        }
        let program = format!("docker-credential-{helper}");
        let limit = usize::try_from(MAX).unwrap_or(usize::MAX);
        let ran = Spawn::new(self.helpers.join(&program)).arg("get").output(
            server.as_bytes(),
            limit,
            self.patience,
        )?;
        if !ran.status.is_success() {
            let said = String::from_utf8_lossy(&ran.text);
            // The one text that all helpers share for "I know nobody".
            if said.contains("credentials not found") {
                return Ok(Answer::Anonymous);
            }
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(Error::unauthenticated(format_args!("{program}: {said}")));
        }
        // What it wrote to its standard error comes with it.
        let start = ran.text.iter().position(|byte| *byte == b'{');
        let json = &ran.text[start.unwrap_or_default()..];
        let first = serde_json::Deserializer::from_slice(json)
            .into_iter::<Found>()
            .next();
        match first {
            Some(Ok(found)) => Ok(who(found.username, found.secret)),
            _ => Err(Error::unauthenticated(format_args!(
                "{program}: answer cannot be read"
            ))),
        }
    }
}

#[async_trait::async_trait]
impl Authenticator for DockerConfig {
    async fn answer(&self, question: &Question) -> Result<Answer> {
        let (this, host) = (self.clone(), question.host.clone());
        tokio::task::spawn_blocking(move || this.find(&host))
            .await
            .map_err(|error| Error::internal(format_args!("credentials: {error}")))?
    }
}

/// Looks credentials for `host` up in the text of a file; helpers are not run.
///
/// # Errors
/// `InvalidArgument` for a text or an entry that cannot be read, without any of its content.
pub fn look_up(text: &[u8], host: &str) -> Result<Answer> {
    parse(text)?.in_file(host)
}

fn parse(text: &[u8]) -> Result<Config> {
    if text.len() as u64 > MAX {
        return Err(Error::resource_exhausted(format_args!(
            "more than {MAX} bytes"
        )));
    }
    if text.trim_ascii().is_empty() {
        return Ok(Config::default());
    }
    // The parser's own text may quote a secret.
    serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Error::invalid_argument(format_args!("no JSON at line {line} column {column}"))
    })
}

impl Config {
    /// The helper to ask about `host`, and the name by which it knows it.
    fn helper(&self, host: &str) -> Option<(&str, String)> {
        let own = self.cred_helpers.iter().find(|(key, _)| same(key, host));
        let server = if is_hub(host) { HUB } else { host };
        match own {
            Some((_, helper)) => Some((helper, server.to_owned())),
            None if self.creds_store.is_empty() => None,
            None => Some((&self.creds_store, server.to_owned())),
        }
    }

    fn in_file(&self, host: &str) -> Result<Answer> {
        let exact = self.auths.get(host);
        let found = exact.or_else(|| {
            let mut all: Vec<_> = self
                .auths
                .iter()
                .filter(|(key, _)| same(key, host))
                .collect();
            all.sort_by_key(|(key, _)| key.as_str());
            Some(all.first()?.1)
        });
        match found {
            Some(entry) => entry
                .answer()
                .map_err(|error| error.ctx(format!("credentials of {host}"))),
            None => Ok(Answer::Anonymous),
        }
    }
}

impl Entry {
    fn answer(&self) -> Result<Answer> {
        if !self.registrytoken.is_empty() {
            return Ok(Answer::Header(format!("Bearer {}", self.registrytoken)));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Answer::Refresh(self.identitytoken.clone()));
        }
        let (mut user, mut secret) = (self.username.clone(), self.password.clone());
        if !self.auth.is_empty() {
            let bad = || Error::invalid_argument("\"auth\" is no base64 of user:password");
            let pair = base64::decode(&self.auth).ok_or_else(bad)?;
            let pair = String::from_utf8(pair).map_err(|_| bad())?;
            let (name, password) = pair.split_once(':').ok_or_else(bad)?;
            (user, secret) = (name.to_owned(), password.trim_end_matches('\0').to_owned());
        }
        Ok(who(user, secret))
    }
}

fn who(user: String, secret: String) -> Answer {
    match (user.as_str(), secret.as_str()) {
        ("", _) | (_, "") => Answer::Anonymous,
        (TOKEN_USER, _) => Answer::Refresh(secret),
        _ => Answer::User(Credentials { user, secret }),
    }
}

/// Whether a key of the file means `host`: people write URLs, too.
fn same(key: &str, host: &str) -> bool {
    let name = key.split_once("://").map_or(key, |(_, rest)| rest);
    let name = name.split('/').next().unwrap_or_default();
    name.eq_ignore_ascii_case(host) || (is_hub(name) && is_hub(host))
}

fn is_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;
    use types::Code;

    use super::*;

    fn user(user: &str, secret: &str) -> Answer {
        Answer::User(Credentials {
            user: user.into(),
            secret: secret.into(),
        })
    }

    #[test]
    fn entries_of_the_file_are_found_by_all_their_names() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "r.example.test:5000": {"username": "u", "password": "p:q"},
            "https://url.example.test/v2/": {"auth": "dTpwOnE="},
            "id.example.test": {"auth": "eDp5", "identitytoken": "tok"},
            "reg.example.test": {"registrytoken": "rt"},
            "<token>.example.test": {"username": "<token>", "password": "t"},
            "empty.example.test": {}
        }, "HttpHeaders": {"a": "b"}, "credsStore": ""}"#;
        for (host, want) in [
            ("registry-1.docker.io", user("hub", "p")),
            ("docker.io", user("hub", "p")),
            ("r.example.test:5000", user("u", "p:q")),
            ("r.example.test", Answer::Anonymous),
            ("url.example.test", user("u", "p:q")),
            ("URL.example.test", user("u", "p:q")),
            ("id.example.test", Answer::Refresh("tok".into())),
            ("reg.example.test", Answer::Header("Bearer rt".into())),
            ("<token>.example.test", Answer::Refresh("t".into())),
            ("empty.example.test", Answer::Anonymous),
            ("unknown.example.test", Answer::Anonymous),
        ] {
            assert_eq!(look_up(text, host).unwrap(), want, "{host}");
        }
        assert_eq!(look_up(b" \n", "x").unwrap(), Answer::Anonymous);
        for bad in [
            r#"{"auths": {"x": {"auth": "secret!"}}}"#,
            r#"{"auths": {"x": {"auth": "c2VjcmV0"}}}"#,
            r#"{"auths": {"x": "secret"}}"#,
            "secret",
        ] {
            let error = look_up(bad.as_bytes(), "x").unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_helper_of_a_host_comes_before_the_store() {
        let text = r#"{"credsStore": "all", "credHelpers": {"r.example.test": "one"}}"#;
        let config = parse(text.as_bytes()).unwrap();
        let helper = |host| config.helper(host).unwrap();
        assert_eq!(helper("r.example.test"), ("one", "r.example.test".into()));
        assert_eq!(helper("x.example.test"), ("all", "x.example.test".into()));
        assert_eq!(helper("docker.io"), ("all", HUB.into()));
        assert!(parse(b"{}").unwrap().helper("x").is_none());
    }

    /// A configuration whose store is this shell script.
    fn with_helper(dir: &Path, script: &str) -> DockerConfig {
        let path = dir.join("docker-credential-test");
        let text = format!("#!/bin/sh\n{script}\n");
        // By another process: whatever is forked here meanwhile would hold our descriptor for a moment, and
        // what is open for writing cannot be run.
        let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
        let write = Spawn::new("/bin/sh").args(write).arg(&path);
        let written = write.output(text.as_bytes(), 1 << 10, Duration::from_secs(20));
        assert!(written.unwrap().status.is_success());
        let file = dir.join("config.json");
        let text = r#"{"credsStore": "test", "auths": {"f.example.test": {"auth": "dTpw"}}}"#;
        std::fs::write(&file, text).unwrap();
        DockerConfig::new(file).helpers_in(dir)
    }

    #[test]
    fn helpers_are_asked_and_may_know_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let says = r#"[ "$1" = get ] && read -r s; echo warning >&2
            case $s in
            u.*) echo '{"ServerURL":"x","Username":"u","Secret":"s"}';;
            t.*) echo '{"ServerURL":"x","Username":"<token>","Secret":"s"}';;
            *) echo 'credentials not found in native keychain'; exit 1;;
            esac"#;
        let config = with_helper(dir.path(), says);
        for (host, want) in [
            ("u.example.test", user("u", "s")),
            ("t.example.test", Answer::Refresh("s".into())),
            ("f.example.test", user("u", "p")),
            ("x.example.test", Answer::Anonymous),
        ] {
            assert_eq!(config.find(host).unwrap(), want, "{host}");
        }
        let none = DockerConfig::new(dir.path().join("none"));
        assert_eq!(none.find("f.example.test").unwrap(), Answer::Anonymous);
    }

    #[test]
    fn helpers_that_misbehave_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (script, code, said) in [
            ("echo boom; exit 3", Code::Unauthenticated, "boom"),
            ("echo nothing", Code::Unauthenticated, "cannot be read"),
            (
                "exec sleep 60",
                Code::DeadlineExceeded,
                "docker-credential-test",
            ),
            (
                "exec head -c 9000000 /dev/zero",
                Code::ResourceExhausted,
                "output of more than",
            ),
        ] {
            let mut config = with_helper(dir.path(), script);
            config.patience = Duration::from_secs(if script.contains("sleep") { 1 } else { 20 });
            let error = config.find("u.example.test").unwrap_err();
            assert!(error.is(code), "{script}: {error}");
            assert!(error.to_string().contains(said), "{script}: {error}");
        }
        let text = r#"{"credsStore": "../evil"}"#;
        let file = dir.path().join("other.json");
        std::fs::write(&file, text).unwrap();
        let error = DockerConfig::new(file).find("x").unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    }

    proptest! {
        #[test]
        fn looking_up_ends_and_never_panics(text in "[a-z\":{}\\[\\], ]{0,80}", host in "[a-z.]{0,8}") {
            drop(look_up(text.as_bytes(), &host));
        }
    }
}
