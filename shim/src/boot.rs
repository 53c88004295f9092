//! `start`: what every daemon generation sends and expects, and the server's birth without an exec.
//!
//! ```text
//! start ─ read stdin ─ group ─┬─ its shim answers ──────────────> print its address
//!                             └─ listen ─ fork ─┬─ parent ──────> print the address
//!                                               └─ child: group, log, descriptors ─ serve
//! ```
//! Invariant: the socket listens before the answer is printed; nothing but the answer is printed.

use std::io::Read as _;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use protos::Message as _;
use protos::shim::bootstrap::{BootstrapParams, BootstrapResult};
use protos::well_known::Any;
use sha2::{Digest as _, Sha256};
use sys::cgroup::Cgroup;
use sys::fifo::{End, Fifo};
use sys::process::Fork;
use types::{Code, Context as _, Error, Result, bundle_file};

use crate::config::Config;
use crate::flags::Flags;
use crate::log;
use crate::options::Options;
use crate::serve::{Setup, serve};

/// The most that is read of what a daemon sends, as the Go shim.
const STDIN_LIMIT: u64 = 10 << 20;
/// Where sockets are unless the daemon says otherwise.
const SOCKET_DIR: &str = "/run/containerd/s";
/// The listening socket's number in the server.
const LISTENER: i32 = 3;

/// How the daemon wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The bare address: 1.6 accepts nothing else.
    Plain,
    /// 1.7 to 2.2, which look alike: the first of them knows version 2 only.
    Json,
    /// A bootstrap result.
    Protobuf,
}

/// What the daemon said on standard input.
#[derive(Debug)]
struct Call {
    answer: Answer,
    options: Options,
    socket_dir: PathBuf,
    /// Where events go.
    events: String,
    debug: bool,
}

/// What daemons say in the environment.
#[derive(Debug, Default)]
struct Environment {
    /// Where events go, in the words of the daemon.
    ttrpc: Option<String>,
    /// It says which versions it knows: it is no 1.6.
    max_version: bool,
    /// The container's processes share cores with nobody else.
    sched_core: bool,
}

impl Environment {
    fn read() -> Self {
        let set = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            ttrpc: set("TTRPC_ADDRESS"),
            max_version: set("MAX_SHIM_VERSION").is_some(),
            sched_core: set("SCHED_CORE").is_some(),
        }
    }

    fn events(&self) -> Option<String> {
        self.ttrpc.clone()
    }
}

impl Call {
    fn parse(flags: &Flags, stdin: &[u8], environment: &Environment) -> Result<Self> {
        // Options in an Any parse as parameters too: only matching names make them parameters.
        let params = BootstrapParams::parse_from_bytes(stdin)
            .ok()
            .filter(|p| p.instance_id == flags.id && p.namespace == flags.namespace);
        let below_main = || match flags.address.as_str() {
            "" => String::new(),
            address => format!("{address}.ttrpc"),
        };
        if let Some(params) = params {
            let values = params
                .extensions
                .iter()
                .filter_map(|ext| ext.value.as_ref());
            // Extensions of other types are for others.
            let options = values
                .filter_map(|any| Options::from_any(Some(any)).ok())
                .next();
            let dir = params.socket_dir.filter(|dir| !dir.is_empty());
            let events = Some(params.containerd_ttrpc_address).filter(|a| !a.is_empty());
            return Ok(Self {
                answer: Answer::Protobuf,
                options: options.unwrap_or_default(),
                socket_dir: dir.map_or_else(|| SOCKET_DIR.into(), PathBuf::from),
                events: events.or(environment.events()).unwrap_or_else(below_main),
                debug: flags.debug || params.log_level.value() < 0,
            });
        }
        let any = Any::parse_from_bytes(stdin)
            .map_err(|e| Error::invalid_argument(format_args!("options on stdin: {e}")))?;
        Ok(Self {
            answer: if environment.max_version {
                Answer::Json
            } else {
                Answer::Plain
            },
            options: Options::from_any(Some(&any))?,
            socket_dir: SOCKET_DIR.into(),
            events: environment.events().unwrap_or_else(below_main),
            debug: flags.debug,
        })
    }

    fn answer(&self, address: &str) -> Result<Vec<u8>> {
        match self.answer {
            Answer::Plain => Ok(address.as_bytes().to_vec()),
            Answer::Json => {
                let answer = serde_json::json!({
                    "version": 2,
                    "address": address,
                    "protocol": "ttrpc",
                });
                Ok(answer.to_string().into_bytes())
            }
            Answer::Protobuf => {
                let result = BootstrapResult {
                    version: 3,
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..BootstrapResult::default()
                };
                result.write_to_bytes().map_err(Error::internal)
            }
        }
    }
}

/// Makes the shim of a container, or finds that of its group, and returns what to print.
///
/// # Errors
/// What failed before the shim was there; nothing is left then.
pub(crate) fn start(flags: &Flags) -> Result<Vec<u8>> {
    let mut stdin = Vec::new();
    std::io::stdin()
        .take(STDIN_LIMIT)
        .read_to_end(&mut stdin)
        .map_err(|e| Error::os("read stdin", e))?;
    let call = Call::parse(flags, &stdin, &Environment::read())?;
    let bundle = std::path::absolute(&flags.bundle).map_err(|e| Error::os("bundle", e))?;
    let config = Config::load(&bundle)?;
    let group = config.group().unwrap_or(&flags.id);
    let socket = socket_path(&call.socket_dir, &flags.address, &flags.namespace, group);
    let address = format!("unix://{}", socket.display());
    let listener = match listen(&socket) {
        Ok(listener) => listener,
        // The group's shim answers there: it takes this container too.
        Err(error) if error.is(Code::AlreadyExists) => {
            tell_bundle(&bundle, &call.socket_dir, &address)?;
            return call.answer(&address);
        }
        Err(error) => return Err(error),
    };
    let told = tell_bundle(&bundle, &call.socket_dir, &address);
    let born = told.and_then(|()| sys::process::fork());
    match born {
        Ok(Fork::Parent(_)) => call.answer(&address),
        Ok(Fork::Child) => {
            let result = be_server(flags, &call, &bundle, listener, socket);
            if let Err(error) = &result {
                log::error(format_args!("shim ended: {error}"));
            }
            // The server has nothing to print.
            result.map(|()| Vec::new())
        }
        Err(error) => {
            drop(std::fs::remove_file(&socket));
            Err(error)
        }
    }
}

/// Serves on the socket that came as descriptor 3: the daemon started the server itself.
///
/// # Errors
/// `InvalidArgument` when there is no such socket.
pub(crate) fn serve_inherited(flags: &Flags) -> Result<()> {
    let listener = sys::process::inherited_fd(LISTENER).map_err(|e| {
        e.reclass(Code::InvalidArgument)
            .ctx("no action and no socket")
    })?;
    let call = Call::parse(flags, &[], &Environment::read())?;
    let bundle = std::path::absolute(&flags.bundle).map_err(|e| Error::os("bundle", e))?;
    let listener = UnixListener::from(listener);
    let path = listener
        .local_addr()
        .ok()
        .and_then(|a| a.as_pathname().map(Path::to_owned));
    be_server(flags, &call, &bundle, listener, path.unwrap_or_default())
}

/// Turns this process into the server. Its descriptors afterwards: nothing, nothing, the log, the
/// socket.
fn be_server(
    flags: &Flags,
    call: &Call,
    bundle: &Path,
    listener: UnixListener,
    socket: PathBuf,
) -> Result<()> {
    let listener = isolate(bundle, listener)?;
    if call.debug {
        log::enable_debug();
    }
    prefer_as_victim();
    if Environment::read().sched_core
        && let Err(error) = sys::process::share_no_core()
    {
        // Not every kernel and processor has it; the container matters more.
        log::warn(format_args!("core scheduling: {error}"));
    }
    if !call.options.shim_cgroup.is_empty() {
        let group = &call.options.shim_cgroup;
        Cgroup::at_path(group)
            .and_then(|found| found.add(std::process::id()))
            .ctx_with(|| format!("join control group {group}"))?;
    }
    let socket = (!socket.as_os_str().is_empty()).then_some(socket);
    let setup = Setup {
        namespace: flags.namespace.parse()?,
        events: call.events.clone(),
        socket,
    };
    serve(listener, setup)
}

fn isolate(bundle: &Path, listener: UnixListener) -> Result<UnixListener> {
    sys::process::new_group()?;
    let null = sys::process::null()?;
    let log = open_log(bundle).map_or_else(|_| sys::process::null(), Ok)?;
    for (fd, number) in [(&null, 0), (&null, 1), (&log, 2)] {
        sys::process::redirect(fd, number)?;
    }
    drop((null, log));
    let number = OwnedFd::from(listener).into_raw_fd();
    if number != LISTENER {
        let old = sys::process::inherited_fd(number)?;
        sys::process::redirect(&old, LISTENER)?;
    }
    // Whatever the daemon leaked must not live as long as the container.
    sys::process::close_from(LISTENER.unsigned_abs() + 1)?;
    std::env::set_current_dir("/").map_err(|e| Error::os("chdir /", e))?;
    Ok(sys::process::inherited_fd(LISTENER)?.into())
}

/// The daemon reads the log from a fifo. Both ends are opened: a daemon that goes away is no error.
fn open_log(bundle: &Path) -> Result<OwnedFd> {
    Fifo::find(&bundle.join(bundle_file::LOG))?.open_nonblocking(End::Both)
}

/// One more than the daemon's: when memory runs out, the shim goes before the daemon.
fn prefer_as_victim() {
    let me = std::process::id();
    let raised =
        sys::limits::oom_score(me).and_then(|score| sys::limits::set_oom_score(me, score + 1));
    if let Err(error) = raised {
        log::warn(format_args!("oom score: {error}"));
    }
}

/// The socket of a group: clients compute the same name.
fn socket_path(dir: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    // Parity: shim/util_unix.go SocketAddress hashes the joined path.
    let joined = Path::new(address).join(namespace).join(group);
    let digest = Sha256::digest(joined.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(name)
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::os(format_args!("mkdir {}", dir.display()), e))?;
    }
    // Looked for first: removing the file of a shim that is just starting must not happen.
    if UnixStream::connect(socket).is_ok() {
        return Err(Error::already_exists(format_args!(
            "shim at {}",
            socket.display()
        )));
    }
    sys::socket::listen(socket, 0o600)
}

/// Leaves in the bundle where the shim is. The link is for who cleans up sockets of a directory that was
/// configured meanwhile.
fn tell_bundle(bundle: &Path, socket_dir: &Path, address: &str) -> Result<()> {
    let link = bundle.join(bundle_file::SOCKET_DIR);
    // Left by an attempt that was killed.
    drop(std::fs::remove_file(&link));
    std::os::unix::fs::symlink(socket_dir, &link)
        .map_err(|e| Error::os(format_args!("link {}", link.display()), e))?;
    let file = bundle.join(bundle_file::ADDRESS);
    sys::fs::write_atomic_with(&file, address.as_bytes(), 0o644, sys::fs::Flush::Volatile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::any::pack;
    use protos::runc::Options as WireOptions;
    use protos::shim::bootstrap::Extension;
    use protos::wire::Wire as _;

    fn flags() -> Flags {
        let line = [
            "-namespace",
            "ns",
            "-id",
            "c1",
            "-address",
            "/run/c.sock",
            "start",
        ];
        Flags::parse(line.map(Into::into)).unwrap()
    }

    fn options() -> Any {
        let wire = WireOptions {
            binary_name: "crun".into(),
            ..WireOptions::default()
        };
        pack(&wire).unwrap().to_wire()
    }

    #[test]
    fn sockets_are_named_as_clients_compute_them() {
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let path = socket_path(
            Path::new("/s"),
            "/run/containerd/containerd.sock",
            "default",
            "c1",
        );
        let digest = Sha256::digest(b"/run/containerd/containerd.sock/default/c1");
        let want: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(path, Path::new("/s").join(&want));
        assert_eq!(want.len(), 64);
    }

    #[test]
    fn old_daemons_send_options_and_get_a_plain_address() {
        let told = Environment {
            ttrpc: Some("/ttrpc".into()),
            ..Environment::default()
        };
        for stdin in [Vec::new(), options().write_to_bytes().unwrap()] {
            let call = Call::parse(&flags(), &stdin, &told).unwrap();
            let binary = if stdin.is_empty() { "runc" } else { "crun" };
            assert_eq!(
                (call.answer, call.options.binary()),
                (Answer::Plain, binary)
            );
            assert_eq!(call.events, "/ttrpc");
            assert_eq!(call.answer("unix:///s").unwrap(), b"unix:///s");
        }
        let call = Call::parse(&flags(), &[], &Environment::default()).unwrap();
        assert_eq!(call.events, "/run/c.sock.ttrpc");
    }

    #[test]
    fn daemons_that_tell_their_version_get_json_that_the_oldest_of_them_takes() {
        let told = Environment {
            max_version: true,
            ..Environment::default()
        };
        let call = Call::parse(&flags(), &options().write_to_bytes().unwrap(), &told).unwrap();
        let answer = call.answer("unix:///s").unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let want = serde_json::json!({
            "version": 2, "address": "unix:///s", "protocol": "ttrpc",
        });
        assert_eq!(answer, want);
    }

    #[test]
    fn new_daemons_send_parameters_and_get_a_result() {
        let extension = Extension {
            value: Some(options()).into(),
            ..Extension::default()
        };
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "ns".into(),
            containerd_ttrpc_address: "/run/t".into(),
            socket_dir: Some("/run/x/s".into()),
            extensions: vec![extension],
            ..BootstrapParams::default()
        };
        let call = Call::parse(
            &flags(),
            &params.write_to_bytes().unwrap(),
            &Environment::default(),
        )
        .unwrap();
        assert_eq!(call.options.binary(), "crun");
        assert_eq!(call.socket_dir, Path::new("/run/x/s"));
        assert_eq!(call.events, "/run/t");
        let result = BootstrapResult::parse_from_bytes(&call.answer("unix:///s").unwrap()).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, "unix:///s");
    }

    #[test]
    fn parameters_for_somebody_else_are_no_parameters() {
        let params = BootstrapParams {
            instance_id: "other".into(),
            ..BootstrapParams::default()
        };
        let call = Call::parse(
            &flags(),
            &params.write_to_bytes().unwrap(),
            &Environment::default(),
        );
        // Read as options of an unknown type.
        call.unwrap_err();
        Call::parse(&flags(), b"\xff\xff garbage", &Environment::default()).unwrap_err();
    }
}
