//! Tests of the driver with plugins that are scripts, and with those of Debian.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use sys::netns::NetNs;
use types::network::{NetRequest, TenantId};
use types::{Code, Error};

use super::{Cni, CniOpts};
use crate::NetworkDriver as _;
use crate::testing::until;

mod broken;
mod chains;
mod debian;
mod records;
mod texts;
mod theirs;

/// The network namespace of the tests, which ends with them: scripts do not look at it.
pub(super) fn netns() -> PathBuf {
    static MADE: OnceLock<(NetNs, PathBuf)> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("netns");
        let made = sys::netns::create(&at, || Ok(())).unwrap();
        sys::netns::unpin(&at).unwrap();
        let path = format!("/proc/self/fd/{}", made.as_fd().as_raw_fd()).into();
        (made, path)
    };
    MADE.get_or_init(make).1.clone()
}

/// Answers every `ADD` with one address and hands a chain's result on.
pub(super) const FINE: &str = r#"case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/n"}],
"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0}],
"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.1.0.1"]}}' ;;
esac"#;

/// A driver with directories of its own.
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
    pub(super) cni: Cni,
}

impl Place {
    pub(super) fn new() -> Self {
        Self::with(Duration::from_secs(60))
    }

    pub(super) fn with(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let cni = Cni::new(Self::opts(dir.path(), patience));
        Self { dir, cni }
    }

    pub(super) fn opts(dir: &Path, patience: Duration) -> CniOpts {
        CniOpts {
            networks: dir.join("net.d"),
            plugins: vec![dir.join("bin")],
            records: dir.join("records"),
            patience,
        }
    }

    /// A plugin that does what a script says.
    pub(super) fn plugin(&self, name: &str, script: &str) {
        let at = self.dir.path().join("bin").join(name);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plugin");
        if !at.exists() {
            symlink(program, &at).unwrap();
        }
        std::fs::write(at.with_extension("sh"), script).unwrap();
    }

    /// A file among the configurations.
    pub(super) fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("net.d").join(name), text).unwrap();
    }

    /// A network with these plugins, in version 1.0.0.
    pub(super) fn network(&self, name: &str, plugins: &[&str]) {
        self.network_of("1.0.0", name, plugins);
    }

    pub(super) fn network_of(&self, version: &str, name: &str, plugins: &[&str]) {
        let plugins: Vec<_> = plugins.iter().map(|name| json!({"type": name})).collect();
        let list = json!({"cniVersion": version, "name": name, "plugins": plugins});
        self.file(&format!("{name}.conflist"), &list.to_string());
    }

    /// What plugins were asked, in order: `ADD name`.
    pub(super) fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.dir.path().join("bin/calls"));
        let calls = calls.unwrap_or_default();
        let words = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        calls.lines().map(words).collect()
    }

    /// What a plugin was last told at a command.
    pub(super) fn told(&self, plugin: &str, command: &str) -> Value {
        let at = self.dir.path().join(format!("bin/{plugin}.{command}.json"));
        serde_json::from_slice(&std::fs::read(at).unwrap()).unwrap()
    }

    /// True when no record is left, not even a directory.
    pub(super) fn is_clean(&self) -> bool {
        let left = std::fs::read_dir(self.dir.path().join("records"));
        left.map_or(0, Iterator::count) == 0
    }

    pub(super) async fn setup_fails(&self, request: &NetRequest) -> Error {
        self.cni.setup(request).await.unwrap_err()
    }

    pub(super) async fn teardown(&self, request: &NetRequest) {
        self.cni.teardown(request).await.unwrap();
    }
}

pub(super) fn request() -> NetRequest {
    NetRequest {
        id: TenantId {
            namespace: "default".parse().unwrap(),
            container: "c1".parse().unwrap(),
        },
        netns: netns(),
        interface: "eth0".parse().unwrap(),
        networks: Vec::new(),
        addresses: Vec::new(),
        mac: None,
        mtu: None,
        routes: Vec::new(),
        ports: Vec::new(),
        args: [].into(),
        capabilities: [].into(),
    }
}

pub(super) fn assert_says(error: &Error, code: Code, texts: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{error}: no {text:?}");
    }
}
