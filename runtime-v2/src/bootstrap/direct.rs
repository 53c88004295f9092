//! Starting a shim's server without its `start`: the daemon listens, the server inherits the socket.
//!
//! Invariant: what comes out is what `start` would have made: the same socket name, which clients
//! compute, the same files in the bundle, a process in a group of its own. It saves an exec and a
//! round of parsing per container.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use sys::process::{Child, Spawn};
use types::{Any, Error, Result};

use crate::client::options::keep_shim_group;

use super::{Address, DEFAULT_STATE, Target, socket_dir};

/// Annotations that put several containers into one shim: that is for `start` to sort out.
const GROUPS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
/// Number under which the server looks for its socket.
const SOCKET: i32 = 3;
const SIGKILL: i32 = 9;

/// True when nothing is asked for that only `start` does.
pub(super) fn fits(target: Target<'_>, spec: &[u8], options: Option<&Any>) -> bool {
    let mentions = |key: &str| spec.windows(key.len()).any(|part| part == key.as_bytes());
    options.is_none_or(keep_shim_group)
        && !target.config.sched_core
        && !GROUPS.iter().any(|key| mentions(key))
}

/// Starts the server. `None` when somebody listens on its socket already.
///
/// # Errors
/// The errno of the step that failed; nothing is left then.
pub(super) fn launch(target: Target<'_>) -> Result<Option<Address>> {
    let path = socket_path(target);
    let Some(text) = path.to_str() else {
        return Ok(None);
    };
    if let Some(dir) = path.parent() {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(|e| Error::os(format_args!("mkdir {}", dir.display()), e))?;
    }
    let address = Address {
        version: 3,
        address: format!("unix://{text}"),
        protocol: "ttrpc".to_owned(),
    };
    // Before there is a socket: a daemon that is killed in between leaves a bundle that says what else
    // there is to remove.
    write_address(target.bundle, &address)?;
    let listened = sys::socket::listen(&path, 0o600);
    let is_taken = listened.as_ref().is_err_and(Error::is_already_exists);
    let started = listened.and_then(|socket| {
        let spawned = command(target).fd(socket.into(), SOCKET).spawn();
        spawned.and_then(reap).inspect_err(|_| {
            drop(std::fs::remove_file(&path));
        })
    });
    match started {
        Ok(()) => Ok(Some(address)),
        Err(error) => {
            drop(std::fs::remove_file(address_file(target.bundle)));
            if is_taken { Ok(None) } else { Err(error) }
        }
    }
}

fn command(target: Target<'_>) -> Spawn {
    let config = target.config;
    let spawn = Spawn::new(target.binary)
        .args(["-namespace", target.namespace.as_str()])
        .args(["-address", &config.grpc_address])
        .args(["-id", target.id.as_str(), "-bundle"])
        .arg(target.bundle)
        .env("TTRPC_ADDRESS", &config.ttrpc_address)
        .unmanaged()
        .cwd(target.bundle)
        .new_group();
    if config.debug {
        spawn.arg("-debug")
    } else {
        spawn
    }
}

fn write_address(bundle: &Path, address: &Address) -> Result<()> {
    let text = address.address.as_bytes();
    sys::fs::write_atomic_with(&address_file(bundle), text, 0o644, sys::fs::Flush::Volatile)
}

fn address_file(bundle: &Path) -> PathBuf {
    bundle.join(types::bundle_file::ADDRESS)
}

/// A child of this process wants to be reaped, whenever it ends.
fn reap(child: Child) -> Result<()> {
    let watch = crate::exec::watch(&child).inspect_err(|_| {
        drop(child.kill(SIGKILL));
        drop(child.wait());
    })?;
    tokio::spawn(async move {
        while let Ok(mut ready) = watch.readable().await {
            match child.try_wait() {
                Ok(None) => ready.clear_ready(),
                Ok(Some(_)) | Err(_) => break,
            }
        }
    });
    Ok(())
}

/// Parity: shim/util_unix.go SocketAddress hashes the joined path of address, namespace and id.
fn socket_path(target: Target<'_>) -> PathBuf {
    let joined = Path::new(&target.config.grpc_address)
        .join(target.namespace.as_str())
        .join(target.id.as_str());
    let digest = Sha256::digest(joined.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = socket_dir(&target.config.state);
    let dir = dir.map_or_else(|| Path::new(DEFAULT_STATE).join("s"), PathBuf::from);
    dir.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Config;
    use protos::any::pack;
    use protos::runc::Options;
    use std::sync::Arc;

    fn config(sched_core: bool) -> Config {
        Config {
            root: "/r".into(),
            state: DEFAULT_STATE.into(),
            grpc_address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: String::new(),
            containerd_binary: PathBuf::new(),
            default_runtime: String::new(),
            debug: false,
            sched_core,
            publisher: Arc::new(|_, _| {}),
            runtime_of: Arc::new(|_, _| None),
        }
    }

    fn with<T>(config: &Config, see: impl FnOnce(Target<'_>) -> T) -> T {
        see(Target {
            config,
            namespace: &"default".parse().unwrap(),
            id: &"c1".parse().unwrap(),
            bundle: Path::new("/b"),
            binary: Path::new("/bin/shim"),
        })
    }

    #[test]
    fn what_only_start_does_is_left_to_start() {
        let options = |cgroup: &str| Options {
            shim_cgroup: cgroup.into(),
            ..Options::default()
        };
        let any = |cgroup: &str| pack(&options(cgroup)).unwrap();
        let other = Any {
            type_url: "x.Options".into(),
            value: Vec::new(),
        };
        let grouped = br#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p"}}"#;
        for (core, spec, options, fit) in [
            (false, &b"{}"[..], None, true),
            (false, b"{}", Some(any("")), true),
            (false, b"{}", Some(any("/shims")), false),
            (false, b"{}", Some(other), false),
            (false, grouped, None, false),
            (true, b"{}", None, false),
        ] {
            let config = config(core);
            let found = with(&config, |target| fits(target, spec, options.as_ref()));
            assert_eq!(found, fit, "{options:?}");
        }
    }

    #[test]
    fn sockets_are_named_as_clients_compute_them() {
        let path = with(&config(false), socket_path);
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let name = "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        assert_eq!(path, Path::new("/run/containerd/s").join(name));
    }
}
