//! Starting a shim's server without its `start`: the daemon listens, the server inherits the socket.
//!
//! Invariant: what comes out is what `start` would have made: the same socket name, which clients
//! compute, the same files in the bundle, a process in a group of its own. It saves an exec and a
//! round of parsing per container.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use sys::process::{Child, Spawn};
use types::{Any, ContainerId, Error, Namespace, Result};

use crate::client::options::keep_shim_group;
use crate::tasks::Config;

use super::{Address, Target, sockets_of};

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

/// Children whose end nobody watches: who did ended with its runtime, before they did.
static UNWATCHED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A shim's server that was started here.
#[derive(Debug)]
pub(crate) struct Started {
    /// Where it listens.
    pub(crate) address: Address,
    /// The process, when it is a child of this one.
    pub(crate) process: Option<OwnedFd>,
}

/// Starts the server. `None` when somebody listens on its socket already.
///
/// # Errors
/// The errno of the step that failed; nothing is left then.
pub(super) fn launch(target: Target<'_>) -> Result<Option<Started>> {
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
    let socket = match sys::socket::listen(&path, 0o600) {
        Err(error) if error.is_already_exists() => return Ok(None),
        listened => listened?,
    };
    // A socket that is named and is not there says nothing about the shim: the name comes second, and
    // the shim only after that. A daemon that is killed before that leaves a bundle that names none,
    // and whoever removes it knows where the socket would be.
    let started = write_address(target.bundle, &address).and_then(|()| {
        let spawned = command(target).fd(socket.into(), SOCKET).spawn();
        spawned.and_then(watched)
    });
    let process = started.inspect_err(|_| {
        drop(std::fs::remove_file(address_file(target.bundle)));
        drop(std::fs::remove_file(&path));
    })?;
    Ok(Some(Started {
        address,
        process: Some(process),
    }))
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

/// Lets a new child be reaped, and gives out a descriptor of it.
fn watched(child: Child) -> Result<OwnedFd> {
    let process = child.pidfd().try_clone_to_owned();
    let process = process
        .map_err(|e| Error::os("dup", e))
        .inspect_err(|_| end(&child))?;
    reap(child).inspect_err(|_| {
        // It is among those that a later runtime reaps.
        drop(sys::pidfd::send_signal(&process, SIGKILL));
    })?;
    Ok(process)
}

fn end(child: &Child) {
    drop(child.kill(SIGKILL));
    drop(child.wait());
}

/// A child that is reaped when it ends, by this runtime or by a later one.
struct Watched(Option<Child>);

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            unwatched().push(child);
        }
    }
}

fn unwatched() -> MutexGuard<'static, Vec<Child>> {
    UNWATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child of this process wants to be reaped, whenever it ends.
fn reap(child: Child) -> Result<()> {
    let watch = crate::exec::watch(&child);
    let mut watched = Watched(Some(child));
    let watch = watch?;
    tokio::spawn(async move {
        while let Ok(mut ready) = watch.readable().await {
            match watched.0.as_ref().map(Child::try_wait) {
                Some(Ok(None)) => ready.clear_ready(),
                Some(Ok(Some(_)) | Err(_)) | None => {
                    drop(watched.0.take());
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Watches over the children of an earlier runtime of this process: a daemon that goes on after its
/// successor has failed.
pub(crate) fn reap_again() {
    let children = std::mem::take(&mut *unwatched());
    for child in children {
        let pid = child.pid();
        if let Err(error) = reap(child) {
            tracing::warn!(%error, pid, "a shim will not be reaped");
        }
    }
}

fn socket_path(target: Target<'_>) -> PathBuf {
    socket_of(target.config, target.namespace, target.id)
}

/// Where a shim of this task's own listens, or would.
///
/// Parity: shim/util_unix.go SocketAddress hashes the joined path of address, namespace and id.
pub(crate) fn socket_of(config: &Config, namespace: &Namespace, id: &ContainerId) -> PathBuf {
    let joined = Path::new(&config.grpc_address)
        .join(namespace.as_str())
        .join(id.as_str());
    let digest = Sha256::digest(joined.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    sockets_of(&config.state).join(name)
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULT_STATE;
    use super::*;
    use protos::any::pack;
    use protos::runc::Options;
    use std::time::Duration;

    fn config(sched_core: bool) -> Config {
        Config {
            sched_core,
            ..Config::of(Path::new(DEFAULT_STATE))
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

    /// True when somebody waits for the lock on this file.
    fn is_waited_for(file: &std::fs::File) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let inode = format!(":{}", file.metadata().unwrap().ino());
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| {
            let mut words = line.split_whitespace();
            line.contains("->") && words.any(|word| word.ends_with(&inode))
        })
    }

    #[test]
    fn a_bundle_names_no_socket_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(false);
        config.state = dir.path().to_owned();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let (namespace, id) = ("default".parse().unwrap(), "c1".parse().unwrap());
        let target = Target {
            config: &config,
            namespace: &namespace,
            id: &id,
            bundle: &bundle,
            binary: Path::new("/no/such/shim"),
        };
        let socket = socket_path(target);
        std::fs::create_dir(socket.parent().unwrap()).unwrap();
        let lock = PathBuf::from(format!("{}{}", socket.display(), sys::socket::LOCK));
        let held = std::fs::File::create(&lock).unwrap();
        held.lock().unwrap();
        std::thread::scope(|scope| {
            let launching = scope.spawn(|| launch(target));
            while !is_waited_for(&held) {
                assert!(!launching.is_finished(), "it waits for its turn");
                std::thread::yield_now();
            }
            assert!(!address_file(&bundle).exists());
            std::fs::remove_file(&lock).unwrap();
            drop(held);
            launching.join().unwrap().unwrap_err();
        });
        // There is no such shim: nothing is left.
        assert!(!address_file(&bundle).exists() && !socket.exists());
    }

    #[test]
    fn a_child_of_a_runtime_that_has_ended_is_reaped_by_the_next() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
        };
        let child = Spawn::new("sleep").arg("600").spawn().unwrap();
        let pid = child.pid();
        let first = runtime();
        let process = first.block_on(async { watched(child).unwrap() });
        drop(first);
        sys::pidfd::send_signal(&process, SIGKILL).unwrap();
        assert!(sys::pidfd::ends_within(&process, Duration::from_secs(60)).unwrap());
        // A zombie has a beginning yet.
        assert!(sys::process::start_time(pid).is_some());
        runtime().block_on(async {
            reap_again();
            let gone = async {
                while sys::process::start_time(pid).is_some() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), gone)
                .await
                .unwrap();
        });
    }

    #[test]
    fn sockets_are_named_as_clients_compute_them() {
        let path = with(&config(false), socket_path);
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let name = "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        assert_eq!(path, Path::new("/run/containerd/s").join(name));
    }
}
