//! Additional processes in a container.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use protos::events::{TaskExecAdded, TaskExecStarted};
use protos::shim::task::ExecProcessRequest;
use serde::Deserialize;
use types::{Context as _, Error, ExecId, Result};

use super::create::{Made, claim};
use super::{Container, startable};
use crate::caught::caught;
use crate::console::{Console, ConsoleSocket, Prepared};
use crate::lifecycle::Input;
use crate::process::{Attached, Process};
use crate::service::Shim;
use crate::stdio::{Owner, Paths, Streams};

impl Container {
    /// Adds the process of a request, to be started later.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad id or spec, `AlreadyExists` for a taken id,
    /// `FailedPrecondition` when the container has ended.
    pub(crate) fn add_exec(&self, shim: &Shim, request: &ExecProcessRequest) -> Result<()> {
        let id: ExecId = request.exec_id.parse()?;
        if self.init.has_ended() {
            return Err(self.not_running());
        }
        self.need_process()?;
        let spec = spec_with_terminal(&request.spec.value, request.terminal)?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mut execs = self.execs();
        if execs.contains_key(id.as_str()) {
            return Err(Error::already_exists(format_args!("id {id}")));
        }
        execs.insert(
            id.to_string(),
            Arc::new(Process::new(id.as_str(), paths, spec)),
        );
        drop(execs);
        let event = TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: id.to_string(),
            ..TaskExecAdded::default()
        };
        shim.publisher.publish("/tasks/exec-added", &event);
        Ok(())
    }

    /// Starts an added process.
    ///
    /// # Errors
    /// `FailedPrecondition` when the container has ended or the process was started before, else the
    /// runtime's text.
    pub(crate) async fn start_exec(self: &Arc<Self>, shim: &Arc<Shim>, exec: &str) -> Result<u32> {
        let process = self.process(exec)?;
        let _gate = process.gate.lock().await;
        startable(&process)?;
        if self.init.has_ended() {
            return Err(self.not_running());
        }
        process.starting();
        let made = match caught(self.make_exec(shim, &process)).await {
            Ok(made) => made,
            Err(error) => {
                process.did_not_start();
                self.settle(shim);
                return Err(error);
            }
        };
        process.has_started(made.pid, made.attached);
        process.step(Input::Start)?;
        let event = TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            pid: made.pid,
            ..TaskExecStarted::default()
        };
        shim.publisher.publish("/tasks/exec-started", &event);
        process.announced();
        self.watch(shim, &process, made.pid, made.ending);
        if self.init.has_ended() {
            // It came too late to die with the others; the init's exit waits for its end.
            drop(self.runtime.reap.signal(made.pid, libc::SIGKILL));
        }
        Ok(made.pid)
    }

    fn not_running(&self) -> Error {
        let id = &self.id;
        Error::failed_precondition(format_args!("container {id} init process is not running"))
    }

    /// Gives `work` up when the container ends: a logger that does not get ready, for one, must not
    /// hold back the init's exit.
    async fn while_it_runs<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.runtime.fate().over() => Err(self.not_running()),
        }
    }

    async fn make_exec(&self, shim: &Arc<Shim>, process: &Process) -> Result<Made> {
        #[cfg(test)]
        crate::caught::fault::point("make exec");
        let files = ExecFiles::new(&self.bundle, &process.exec);
        files.write_spec(&process.spec)?;
        let made = self.run_exec(shim, process, &files).await;
        files.remove();
        made
    }

    async fn run_exec(
        &self,
        shim: &Arc<Shim>,
        process: &Process,
        files: &ExecFiles,
    ) -> Result<Made> {
        let owner = Owner {
            reap: &shim.reap,
            options: self.runtime.options(),
            namespace: shim.namespace.as_str(),
            id: &process.exec,
        };
        let (spec, pid) = (
            files.spec.display().to_string(),
            files.pid.display().to_string(),
        );
        if process.paths.terminal {
            let prepared = Prepared::open(&process.paths, owner);
            let prepared = self.while_it_runs(prepared).await?;
            let socket = ConsoleSocket::bind(&self.bundle, &process.exec)?;
            let hold = shim.reap.hold();
            self.runtime
                .exec(&spec, &pid, &files.log, None, Some(socket.name()))
                .await?;
            let (pid, ending) = claim(shim, &files.pid, hold)?;
            let console = socket
                .receive()
                .and_then(|master| Console::attach(master, prepared))
                // It runs already, and nobody would know of it.
                .inspect_err(|_| drop(shim.reap.signal(pid, libc::SIGKILL)))?;
            Ok(Made {
                pid,
                ending,
                attached: Attached::Console(console),
            })
        } else {
            let opened = Streams::open(&process.paths, owner);
            let (streams, io) = self.while_it_runs(opened).await?;
            let hold = shim.reap.hold();
            self.runtime
                .exec(&spec, &pid, &files.log, Some(io), None)
                .await?;
            let (pid, ending) = claim(shim, &files.pid, hold)?;
            Ok(Made {
                pid,
                ending,
                attached: Attached::Streams(streams),
            })
        }
    }
}

/// Files of one exec in the bundle, there only while it is being started.
struct ExecFiles {
    spec: PathBuf,
    pid: PathBuf,
    /// Its own: several execs may start at once.
    log: String,
    log_path: PathBuf,
}

impl ExecFiles {
    fn new(bundle: &std::path::Path, exec: &str) -> Self {
        // The prefix keeps an exec that is called `init` away from the init's files.
        let log = format!("exec-{exec}-log.json");
        Self {
            spec: bundle.join(format!("exec-{exec}-process.json")),
            pid: bundle.join(format!("exec-{exec}.pid")),
            log_path: bundle.join(&log),
            log,
        }
    }

    /// Nobody reads it before the runtime is started: it need not be atomic.
    fn write_spec(&self, spec: &[u8]) -> Result<()> {
        let mut options = std::fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&self.spec);
        file.and_then(|mut file| file.write_all(spec))
            .map_err(|e| Error::os(format_args!("write {}", self.spec.display()), e))
    }

    fn remove(&self) {
        for file in [&self.spec, &self.pid, &self.log_path] {
            // Not all of them were made.
            drop(std::fs::remove_file(file));
        }
    }
}

/// What the request decides too.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    terminal: bool,
}

/// The process's spec with the request's word on the terminal.
fn spec_with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::invalid_argument(format_args!("process spec: {e}"));
    let is_object = spec.trim_ascii_start().starts_with(b"{");
    if is_object && serde_json::from_slice::<Head>(spec).map_err(bad)?.terminal == terminal {
        return Ok(spec.to_vec());
    }
    let mut value: serde_json::Value = serde_json::from_slice(spec).map_err(bad)?;
    let object = value.as_object_mut();
    let object = object.ok_or_else(|| Error::invalid_argument("process spec is no object"))?;
    object.insert("terminal".to_owned(), terminal.into());
    serde_json::to_vec(&value).map_err(bad).ctx("encode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::bundle_file;

    #[test]
    fn no_exec_has_the_files_of_the_init() {
        let bundle = std::path::Path::new("/b");
        let files = ExecFiles::new(bundle, "init");
        let taken = [bundle_file::INIT_PID, "log.json", bundle_file::EXIT];
        for file in [&files.spec, &files.pid, &files.log_path] {
            assert!(!taken.iter().any(|name| *file == bundle.join(name)));
        }
    }

    #[test]
    fn the_terminal_is_as_requested_and_the_rest_untouched() {
        let got = spec_with_terminal(br#"{"args":["a"],"terminal":true,"x":{"y":1}}"#, false);
        assert_eq!(
            got.unwrap(),
            br#"{"args":["a"],"terminal":false,"x":{"y":1}}"#
        );
        // As it came, to the last space.
        let same = br#" {"args":["a"], "x":{"terminal":true}}"#;
        assert_eq!(spec_with_terminal(same, false).unwrap(), same);
        let set = spec_with_terminal(br#"{"args":["a"]}"#, true).unwrap();
        assert_eq!(set, br#"{"args":["a"],"terminal":true}"#);
        for bad in [
            &b"[]"[..],
            b"[false]",
            b"",
            b"{",
            b"{}x",
            br#"{"terminal":3}"#,
        ] {
            assert!(
                spec_with_terminal(bad, true)
                    .unwrap_err()
                    .is(types::Code::InvalidArgument)
            );
        }
    }
}
