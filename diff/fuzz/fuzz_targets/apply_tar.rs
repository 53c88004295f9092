//! Any bytes as a layer: onto a plain tree, into an upper directory over a small lower layer, and into one
//! of which nobody knows yet what is below.
//!
//! Invariant under test: no panic, every refusal has a class that blames the archive or a limit, and
//! a canary beside the tree stays as it was. Run as root on a tmpfs.

#![no_main]

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use diff::{Limits, Root, Target, TreeOpts, apply_tar};
use libfuzzer_sys::fuzz_target;
use types::Code;

fn facts(path: &Path) -> (u32, u64, i64, i64) {
    let facts = std::fs::symlink_metadata(path).expect("canary is gone");
    (facts.mode(), facts.nlink(), facts.ctime_nsec(), facts.mtime_nsec())
}

fuzz_target!(|data: &[u8]| {
    for way in 0..3 {
        let temp = tempfile::tempdir().expect("tempdir");
        let [root, outside, lower] = ["root", "outside", "lower"].map(|name| {
            let path = temp.path().join(name);
            std::fs::create_dir(&path).expect("mkdir");
            path
        });
        std::fs::create_dir(lower.join("d")).expect("mkdir");
        std::fs::write(lower.join("d/f"), "lower").expect("write");
        std::fs::write(outside.join("canary"), "alive").expect("write");
        let all = || [facts(&outside), facts(&outside.join("canary")), facts(&lower), facts(&lower.join("d/f"))];
        let before = all();
        let target = match way {
            0 => Target::Merged,
            1 => Target::Upper { lowers: vec![lower.clone()], userxattr: false },
            _ => Target::Detached,
        };
        let limits = Limits { bytes: 64 << 20, entries: 4096, ..Limits::default() };
        let opts = TreeOpts { target, limits, skip_devices: false, ..TreeOpts::default() };
        let root = Root::open(&root).expect("open");
        if let Err(error) = apply_tar(data, &root, &opts) {
            let fine = [Code::InvalidArgument, Code::ResourceExhausted, Code::Unknown];
            assert!(fine.contains(&error.code()), "{error}");
        }
        assert_eq!(all(), before, "something outside was touched");
    }
});
