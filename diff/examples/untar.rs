//! Unpacks an archive into a directory and tells how long that took: by hand, against `tar`.
//!
//! ```text
//! cargo run --release -p diff --example untar -- layer.tar /dev/shm/to
//! ```

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use diff::{Root, TreeOpts, apply_tar};
use types::{Error, Result};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(archive), Some(to)) = (args.next(), args.next()) else {
        return Err(Error::invalid_argument("usage: untar ARCHIVE DIRECTORY"));
    };
    let os = |e| Error::os("untar", e);
    let stream = BufReader::with_capacity(256 * 1024, File::open(archive).map_err(os)?);
    let root = Root::open(&to)?;
    let begin = Instant::now();
    apply_tar(stream, &root, &TreeOpts::default())?;
    writeln!(std::io::stdout(), "{:?}", begin.elapsed()).map_err(os)
}
