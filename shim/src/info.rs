//! `-v` and `-info`.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use protos::types::{RuntimeInfo, RuntimeVersion};
use protos::well_known::Any;
use protos::{Message as _, MessageField};
use sys::process::Spawn;
use types::{Error, Result};

use crate::options::Options;

const NAME: &str = "io.containerd.runc.v2";
/// Revision of the sources, when the build knew it.
const REVISION: &str = match option_env!("CONTAINERD_REVISION") {
    Some(revision) => revision,
    None => "",
};
/// Type of what `runc features` prints.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
const FEATURES_LIMIT: usize = 1 << 20;
const FEATURES_TIME: Duration = Duration::from_secs(10);
const OPTIONS_LIMIT: u64 = 10 << 20;
/// How long an open standard input may be silent before it is taken for nobody's: daemons write, or
/// close, right after the spawn, which takes a while on a busy machine.
const SILENCE: Duration = Duration::from_secs(2);

/// The version, as `-v` prints it. The last line tells our daemon that it may start the server itself,
/// with the listening socket as descriptor 3.
pub(crate) fn version() -> String {
    format!(
        "containerd-shim-runc-v2:\n  Version:  {}\n  Socket:   inherited\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// What the runtime can do, as a message.
///
/// # Errors
/// `InvalidArgument` for options that cannot be read.
pub(crate) fn info() -> Result<Vec<u8>> {
    let given = read_options(std::io::stdin(), SILENCE)?;
    let options = Options::from_any(Some(&given))?;
    let mut info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: REVISION.to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    };
    if !given.type_url.is_empty() {
        info.options = MessageField::some(given);
    }
    // A runtime without the command has no features to tell.
    let asked = Spawn::new(options.binary())
        .arg("features")
        .unmanaged()
        .output(b"", FEATURES_LIMIT, FEATURES_TIME);
    if let Ok(said) = asked
        && said.status.is_success()
        && said.text.starts_with(b"{")
    {
        info.features = MessageField::some(Any {
            type_url: FEATURES.to_owned(),
            value: said.text,
            ..Any::default()
        });
    }
    info.write_to_bytes().map_err(Error::internal)
}

/// Options on standard input, up to its end. People leave it open without saying anything: a
/// terminal is not read at all, and anything else only once something came, in `silence`.
fn read_options(stdin: impl AsFd + IsTerminal + Read, silence: Duration) -> Result<Any> {
    if stdin.is_terminal() || !sys::pipe::is_readable_within(&stdin, silence) {
        return Ok(Any::new());
    }
    let mut bytes = Vec::new();
    stdin
        .take(OPTIONS_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::os("read stdin", e))?;
    Any::parse_from_bytes(&bytes).map_err(|e| Error::invalid_argument(format_args!("options: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    #[test]
    fn options_may_come_late_and_in_parts_or_not_at_all() {
        let pipe = || {
            let (read, write) = sys::pipe::new().unwrap();
            (File::from(read), File::from(write))
        };
        let options = Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: vec![0; 8192],
            ..Any::default()
        };
        let bytes = options.write_to_bytes().unwrap();
        let (read, mut write) = pipe();
        let late = std::thread::spawn(move || {
            for part in bytes.chunks(5000) {
                std::thread::sleep(Duration::from_millis(50));
                write.write_all(part).unwrap();
            }
        });
        let given = read_options(read, Duration::from_secs(20)).unwrap();
        late.join().unwrap();
        assert_eq!(given, options);

        let (read, write) = pipe();
        drop(write);
        assert_eq!(read_options(read, SILENCE).unwrap(), Any::new());
        let (read, _open) = pipe();
        let silent = read_options(read, Duration::from_millis(10));
        assert_eq!(silent.unwrap(), Any::new());
        let (_main, terminal) = sys::pty::open().unwrap();
        let asked = read_options(File::from(terminal), Duration::MAX);
        assert_eq!(asked.unwrap(), Any::new());
    }
}
