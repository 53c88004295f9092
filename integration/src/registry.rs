//! Debian's docker-registry on a loopback port, with a data directory of its own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::host::archive;
use crate::{Program, need, until};

/// A running registry that holds the test image as `demo/busybox:1`.
#[derive(Debug)]
pub struct Registry {
    _dir: tempfile::TempDir,
    host: String,
    child: Child,
}

impl Registry {
    /// Starts it and pushes the test image with skopeo.
    ///
    /// # Panics
    /// When the registry does not serve or skopeo fails.
    #[must_use]
    pub fn start() -> Self {
        Self::serve("", &[])
    }

    /// The same for one user only.
    ///
    /// # Panics
    /// When the registry does not serve or skopeo fails.
    #[must_use]
    pub fn with_password(user: &str, secret: &str) -> Self {
        // The C library knows the hash that the registry wants.
        let script = r"print crypt($ARGV[0], '$2y$05$abcdefghijklmnopqrstuu')";
        let hash = Program::new(need("perl")).args(["-e", script, secret]);
        let line = format!("{user}:{}\n", hash.run().ok());
        let credentials = format!("--dest-creds={user}:{secret}");
        Self::serve(&line, &[credentials])
    }

    fn serve(passwords: &str, more: &[String]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ctd-registry-")
            .tempdir()
            .expect("directory");
        if !passwords.is_empty() {
            std::fs::write(dir.path().join("htpasswd"), passwords).expect("write passwords");
        }
        let (port, child) = (0..5)
            .find_map(|_| Self::try_start(dir.path()))
            .expect("a free port for the registry");
        let made = Self {
            _dir: dir,
            host: format!("127.0.0.1:{port}"),
            child,
        };
        let archive = archive();
        let from = format!("oci-archive:{}", archive.display());
        let to = format!("docker://{}", made.reference());
        let flags = ["--insecure-policy", "copy", "--dest-tls-verify=false", "-q"];
        drop(
            Program::new(need("skopeo"))
                .args(flags)
                .args(more)
                .args([from, to])
                .run()
                .ok(),
        );
        made
    }

    /// Another process may take the port between the probe and the start: the caller tries again.
    fn try_start(dir: &std::path::Path) -> Option<(u16, Child)> {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = probe.local_addr().expect("address").port();
        drop(probe);
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.join("data").display()
        );
        let passwords = dir.join("htpasswd");
        let auth = if passwords.exists() {
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                passwords.display()
            )
        } else {
            String::new()
        };
        std::fs::write(&config, text + &auth).expect("write the registry's config");
        let mut child = Command::new(need("docker-registry"))
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry");
        let mut ended = false;
        until("the registry serves", || {
            ended = child.try_wait().expect("wait").is_some();
            ended || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        (!ended).then_some((port, child))
    }

    /// Reference of the test image in this registry.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}/demo/busybox:1", self.host)
    }

    /// Address and port of this registry.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
