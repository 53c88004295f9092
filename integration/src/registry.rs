//! Debian's docker-registry on a loopback port, with a data directory of its own.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::host::archive;
use crate::{Program, need, until};

/// A socket's state that listens, in the kernel's table.
const LISTENS: &str = "0A";
/// How long a push of a few hundred MB may take on a busy machine.
const PUSH: Duration = Duration::from_secs(120);

/// A running registry that holds the test image as `demo/busybox:1`.
#[derive(Debug)]
pub struct Registry {
    _dir: tempfile::TempDir,
    /// Who may, when not everybody.
    users: Option<tempfile::NamedTempFile>,
    host: String,
    port: u16,
    child: Child,
}

impl Registry {
    /// Starts it and pushes the test image with skopeo.
    ///
    /// # Panics
    /// When the registry does not serve or skopeo fails.
    #[must_use]
    pub fn start() -> Self {
        Self::serve("", "").filled(&[])
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
        let users = tempfile::NamedTempFile::new().expect("a file");
        let line = format!("{user}:{}\n", hash.run().ok());
        std::fs::write(users.path(), line).expect("write passwords");
        let mut made = Self::serve("", &only(users.path()));
        // Looked at again with each request.
        made.users = Some(users);
        made.filled(&[format!("--dest-creds={user}:{secret}")])
    }

    /// Pushes the test image.
    fn filled(self, more: &[String]) -> Self {
        self.push(
            &format!("oci-archive:{}", archive().display()),
            &self.reference(),
            more,
        );
        self
    }

    /// Starts an empty one that speaks TLS with the certificate `cert` and its key, and serves only the
    /// users of the file `users` (as `htpasswd -B` makes it).
    ///
    /// # Panics
    /// When the registry does not serve.
    #[must_use]
    pub fn secured(cert: &Path, key: &Path, users: &Path) -> Self {
        let (cert, key) = (cert.display(), key.display());
        Self::serve(
            &format!(", tls: {{certificate: \"{cert}\", key: \"{key}\"}}"),
            &only(users),
        )
    }

    /// Starts an empty one that speaks TLS with the certificate `cert` and its key, and serves only who has
    /// a certificate of the authority `ca`.
    ///
    /// # Panics
    /// When the registry does not serve.
    #[must_use]
    pub fn of_members(cert: &Path, key: &Path, ca: &Path) -> Self {
        let (cert, key, ca) = (cert.display(), key.display(), ca.display());
        let files = format!("certificate: \"{cert}\", key: \"{key}\", clientcas: [\"{ca}\"]");
        Self::serve(&format!(", tls: {{{files}}}"), "")
    }

    fn serve(http: &str, more: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ctd-registry-")
            .tempdir()
            .expect("directory");
        let (port, child) = (0..5)
            .find_map(|_| Self::try_start(dir.path(), http, more))
            .expect("a free port for the registry");
        Self {
            _dir: dir,
            users: None,
            host: format!("127.0.0.1:{port}"),
            port,
            child,
        }
    }

    /// Pushes the image `from`, in skopeo's words, as `name` with the tag `1`; its reference.
    ///
    /// # Panics
    /// When skopeo fails.
    #[must_use]
    pub fn add(&self, from: &str, name: &str) -> String {
        let reference = format!("{}/{name}:1", self.host);
        self.push(from, &reference, &[]);
        reference
    }

    fn push(&self, from: &str, reference: &str, more: &[String]) {
        let to = format!("docker://{reference}");
        let flags = ["--insecure-policy", "copy", "--dest-tls-verify=false", "-q"];
        let copied = Program::new(need("skopeo"))
            .args(flags)
            .args(more)
            .args([from, &to])
            .limit(PUSH)
            .run();
        drop(copied.ok());
    }

    /// Another process may take the port between the probe and the start: the caller tries again.
    fn try_start(dir: &Path, http: &str, more: &str) -> Option<(u16, Child)> {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = probe.local_addr().expect("address").port();
        drop(probe);
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"{http}}}\n{more}",
            dir.join("data").display()
        );
        std::fs::write(&config, text).expect("write the registry's config");
        let mut child = Command::new(need("docker-registry"))
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry");
        let mut ended = false;
        // Not that somebody serves there: it may be who took the port.
        until("the registry serves", || {
            ended = child.try_wait().expect("wait").is_some();
            ended || listens(child.id(), port)
        });
        (!ended).then_some((port, child))
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
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

/// Whether this process listens on that port.
fn listens(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let end = format!(":{port:04X}");
    let sockets = table.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[_, address, _, state, _, _, _, _, _, inode, ..] = words.as_slice() else {
            return None;
        };
        let is_it = address.ends_with(&end) && state == LISTENS;
        is_it.then(|| format!("socket:[{inode}]"))
    });
    let sockets: Vec<_> = sockets.collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut open = open.into_iter().flatten().flatten();
    open.any(|fd| {
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        sockets
            .iter()
            .any(|socket| target.as_os_str() == socket.as_str())
    })
}

/// Serves only the users of this file.
fn only(users: &Path) -> String {
    let users = users.display();
    format!("auth: {{htpasswd: {{realm: test, path: \"{users}\"}}}}\n")
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
