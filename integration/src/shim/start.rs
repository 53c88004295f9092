//! Starting a shim, as daemons of all generations do, and reading its answer, as they do.

use std::fs;

use protos::Message as _;
use protos::shim::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use protos::shim::task::{ConnectRequest, ConnectResponse};
use protos::well_known::Any;
use serde_json::Value;

use super::{Driver, Shim, Task};

/// How a daemon starts a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// 1.6: options on standard input, a bare address as answer.
    Plain,
    /// 1.7 to 2.2: it also says which version it knows, and takes JSON too.
    Versioned,
    /// 2.3: parameters on standard input, a message as answer.
    Bootstrap,
    /// Ours: no `start`, the server inherits the listening socket as descriptor 3.
    Direct,
}

/// How an answer was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A bare address.
    Plain,
    /// An object.
    Json,
    /// A bootstrap result.
    Message,
}

/// What a daemon understood of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it was written.
    pub form: Form,
    /// Version of the Task service; 2 for a bare address.
    pub version: i32,
    /// Where the shim serves.
    pub address: String,
    /// `ttrpc` for a bare address.
    pub protocol: String,
}

impl Answer {
    /// Reads an answer as the newest daemon does: a message, else JSON, else an address.
    ///
    /// # Panics
    /// When it is none of these.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        if let Ok(result) = BootstrapResult::parse_from_bytes(bytes)
            && result.address.contains("://")
        {
            return Self {
                form: Form::Message,
                version: result.version,
                address: result.address,
                protocol: result.protocol,
            };
        }
        let text = String::from_utf8(bytes.to_vec()).expect("an answer in text");
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let word = |key: &str| value[key].as_str().expect("a string").to_owned();
            let version = value["version"].as_i64().expect("a version");
            return Self {
                form: Form::Json,
                version: i32::try_from(version).expect("a small version"),
                address: word("address"),
                protocol: word("protocol"),
            };
        }
        assert!(text.starts_with("unix://"), "not an address: {text:?}");
        Self {
            form: Form::Plain,
            version: 2,
            address: text,
            protocol: "ttrpc".to_owned(),
        }
    }
}

impl Driver {
    /// Options of every container: the runtime's binary.
    #[must_use]
    pub fn options(&self) -> Any {
        self.options_with(&self.binary().to_string_lossy())
    }

    /// Options that name another runtime.
    ///
    /// # Panics
    /// Never: the message is small.
    #[must_use]
    pub fn options_with(&self, binary: &str) -> Any {
        let options = protos::runc::Options {
            binary_name: binary.to_owned(),
            ..Default::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.write_to_bytes().expect("encode"),
            ..Default::default()
        }
    }

    /// Starts the shim of a container whose bundle is written.
    ///
    /// # Panics
    /// When it does not start, or its answer is not the generation's.
    #[must_use]
    pub fn start(&self, id: &str, contract: Contract) -> Shim {
        self.start_with(id, contract, &self.options())
    }

    /// As [`Driver::start`], with these options where the contract has any.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(&self, id: &str, contract: Contract, options: &Any) -> Shim {
        let address = if contract == Contract::Direct {
            self.launch(id)
        } else {
            self.ask_with(id, contract, options).address
        };
        let task = self.try_connect(&address, id).expect("connect");
        let shim = Shim {
            address,
            pid: task.shim,
        };
        let mut shims = self.lock_shims();
        if !shims.contains(&shim) {
            shims.push(shim.clone());
        }
        shim
    }

    /// The action `start`, with its answer.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ask(&self, id: &str, contract: Contract) -> Answer {
        self.ask_with(id, contract, &self.options())
    }

    fn ask_with(&self, id: &str, contract: Contract, options: &Any) -> Answer {
        let input = if contract == Contract::Bootstrap {
            self.params(id, options)
        } else {
            options.write_to_bytes().expect("encode the options")
        };
        // Parity: core/runtime/v2/binary.go: the bundle is where it is started, no flag names it.
        let mut spawn = self.command(id).cwd(self.bundle(id)).arg("start");
        if contract == Contract::Versioned {
            spawn = spawn
                .env("MAX_SHIM_VERSION", "2")
                .env("GRPC_ADDRESS", self.path("c.sock"))
                .env("NAMESPACE", self.namespace());
        }
        let output = spawn.output(&input, 1 << 20, super::LONG);
        let output = output.expect("run the shim's binary");
        let text = String::from_utf8_lossy(&output.text);
        assert!(output.status.is_success(), "start of {id}: {text}");
        Answer::parse(&output.text)
    }

    /// Parameters as a daemon of version 2.3 sends them.
    fn params(&self, id: &str, options: &Any) -> Vec<u8> {
        let extension = Extension {
            value: Some(options.clone()).into(),
            ..Default::default()
        };
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: self.namespace().to_owned(),
            containerd_grpc_address: self.path("c.sock").display().to_string(),
            containerd_ttrpc_address: self.path("c.sock.ttrpc").display().to_string(),
            socket_dir: Some(self.path("state/s").display().to_string()),
            extensions: vec![extension],
            ..Default::default()
        };
        params.write_to_bytes().expect("encode the parameters")
    }

    fn launch(&self, id: &str) -> String {
        let dir = self.path("state/s");
        fs::create_dir_all(&dir).expect("make the sockets' directory");
        let path = dir.join(id);
        let listener = sys::socket::listen(&path, 0o600).expect("listen");
        let address = format!("unix://{}", path.display());
        fs::write(self.bundle(id).join("address"), &address).expect("write the address");
        let child = self.in_bundle(id).fd(listener.into(), 3).spawn();
        let child = child.expect("start the server");
        let mut children = self
            .children
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        children.push(child);
        address
    }

    /// A connection of its own for a container.
    ///
    /// # Panics
    /// When the shim does not answer.
    #[must_use]
    pub fn connect(&self, shim: &Shim, id: &str) -> Task {
        self.try_connect(&shim.address, id).expect("connect")
    }

    pub(super) fn try_connect(&self, address: &str, id: &str) -> Option<Task> {
        let mut task = Task::open(self, address, id)?;
        let request = ConnectRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let answer: ConnectResponse = task.call("Connect", &request).ok()?;
        task.shim = answer.shim_pid;
        Some(task)
    }
}
