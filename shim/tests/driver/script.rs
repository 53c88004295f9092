//! A runtime that does what runc does, or what a test tells it to do instead, and keeps the arguments
//! of its calls.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use protos::runc::Options;

const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
echo "$@" >>"$dir/calls"
verb=
for arg; do
    case $arg in
        create|start|exec|kill|delete|pause|resume|update) verb=$arg; break ;;
    esac
done
case $(cat "$dir/$verb" 2>/dev/null) in
    hang) setsid sleep 1000 & echo $! >"$dir/left"; sleep 1000 ;;
    'hang after') @RUNTIME@ "$@"; sleep 1000 ;;
    'die after') @RUNTIME@ "$@"; kill -KILL $$ ;;
    fail) exit 1 ;;
    slow) echo >"$dir/begun"; sleep 1 ;;
esac
exec @RUNTIME@ "$@"
"#;

/// The runtime in a directory of its own.
pub(crate) struct Script {
    dir: PathBuf,
}

impl Script {
    pub(crate) fn new(dir: &Path, runtime: &str) -> Self {
        let dir = dir.join("runtime");
        std::fs::create_dir_all(&dir).unwrap();
        let script = Self { dir };
        let file = script.path();
        std::fs::write(&file, SCRIPT.replace("@RUNTIME@", runtime)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join("script")
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            binary_name: self.path().display().to_string(),
            ..Options::default()
        }
    }

    /// From now on the calls of this verb go so.
    pub(crate) fn on(&self, verb: &str, how: &str) {
        std::fs::write(self.dir.join(verb), how).unwrap();
    }

    /// They go as usual again.
    pub(crate) fn off(&self, verb: &str) {
        std::fs::remove_file(self.dir.join(verb)).unwrap();
    }

    /// Pid of what a hanging call left in a session of its own.
    pub(crate) fn left(&self) -> u32 {
        let text = std::fs::read_to_string(self.dir.join("left")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Blocks until a slow call has begun.
    pub(crate) async fn begun(&self) {
        while !self.dir.join("begun").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// The arguments of all calls so far, a line each.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
