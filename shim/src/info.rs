//! `-v` and `-info`.

use std::io::Read as _;
use std::time::Duration;

use protos::types::{RuntimeInfo, RuntimeVersion};
use protos::well_known::Any;
use protos::{Message as _, MessageField};
use sys::process::Spawn;
use types::{Error, Result};

use crate::options::Options;

const NAME: &str = "io.containerd.runc.v2";
/// Type of what `runc features` prints.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
const FEATURES_LIMIT: usize = 1 << 20;
const FEATURES_TIME: Duration = Duration::from_secs(10);
const OPTIONS_LIMIT: u64 = 10 << 20;

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
    let given = read_options()?;
    let options = Options::from_any(Some(&given))?;
    let mut info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    };
    if !given.type_url.is_empty() {
        info.options = MessageField::some(given);
    }
    // A runtime without the command has no features to tell.
    let asked =
        Spawn::new(options.binary())
            .arg("features")
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

/// Options on standard input, which callers may leave open without saying anything.
fn read_options() -> Result<Any> {
    let stdin = std::io::stdin();
    if !sys::pipe::is_readable(&stdin) {
        return Ok(Any::new());
    }
    let mut bytes = Vec::new();
    stdin
        .take(OPTIONS_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::os("read stdin", e))?;
    Any::parse_from_bytes(&bytes).map_err(|e| Error::invalid_argument(format_args!("options: {e}")))
}
