//! Bundles of busybox.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Driver, process};

/// A container to be: what differs from an own sandbox without limits.
#[derive(Clone, Debug)]
pub struct Bundle {
    script: String,
    terminal: bool,
    group: Option<String>,
    memory: Option<u64>,
    shared_pids: bool,
    binds: Vec<(PathBuf, String)>,
}

impl Bundle {
    /// A container whose init is a shell that runs `script`.
    #[must_use]
    pub fn new(script: &str) -> Self {
        Self {
            script: script.to_owned(),
            terminal: false,
            group: None,
            memory: None,
            shared_pids: false,
            binds: Vec::new(),
        }
    }

    /// With a terminal.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// In a group whose containers share a shim.
    #[must_use]
    pub fn group(mut self, name: &str) -> Self {
        self.group = Some(name.to_owned());
        self
    }

    /// With at most so many bytes of memory.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Without process ids of its own.
    #[must_use]
    pub fn shared_pids(mut self) -> Self {
        self.shared_pids = true;
        self
    }

    /// With a directory of the host, writable.
    #[must_use]
    pub fn bind(mut self, host: &Path, at: &str) -> Self {
        self.binds.push((host.to_owned(), at.to_owned()));
        self
    }

    fn spec(&self, driver: &Driver, id: &str) -> Value {
        let mut namespaces = vec!["mount", "ipc", "uts"];
        if !self.shared_pids {
            namespaces.push("pid");
        }
        let namespaces: Vec<Value> = namespaces.iter().map(|n| json!({"type": n})).collect();
        // The root file system is shared: what the runtime makes in /dev must not be.
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755"]}),
        ];
        mounts.extend(self.binds.iter().map(|(host, at)| {
            json!({"destination": at, "type": "bind", "source": host, "options": ["rbind", "rw"]})
        }));
        let mut process = process(&self.script);
        process["terminal"] = self.terminal.into();
        if self.terminal {
            mounts.push(
                json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755"]}),
            );
            mounts.push(
                json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
            );
        }
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": driver.path("rootfs"), "readonly": true},
            "mounts": mounts,
            "annotations": {},
            "linux": {
                "cgroupsPath": format!("/{}/{id}", driver.namespace()),
                "namespaces": namespaces,
                "resources": {},
            },
        });
        if let Some(group) = &self.group {
            spec["annotations"]["io.containerd.runc.v2.group"] = json!(group);
        }
        if let Some(bytes) = self.memory {
            spec["linux"]["resources"]["memory"] = json!({"limit": bytes, "swap": bytes});
        }
        spec
    }
}

impl Driver {
    /// Writes the bundle of a container as a daemon does; its directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, id: &str, bundle: &Bundle) -> PathBuf {
        let dir = self.bundle(id);
        fs::create_dir_all(&dir).expect("make the bundle");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod");
        let spec = bundle.spec(self, id).to_string();
        fs::write(dir.join("config.json"), spec).expect("write the spec");
        dir
    }
}
