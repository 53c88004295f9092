//! A runtime that does what the driver's does, or what a test tells it to do instead, and keeps the
//! arguments of its calls.

use std::fs;
use std::path::PathBuf;

use super::Driver;
use crate::until;

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

/// The runtime, in a directory of its own.
#[derive(Debug)]
pub struct Script {
    dir: PathBuf,
}

impl Driver {
    /// A script around this driver's runtime.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn script(&self) -> Script {
        let script = Script {
            dir: self.path("runtime"),
        };
        fs::create_dir_all(&script.dir).expect("mkdir");
        let text = SCRIPT.replace("@RUNTIME@", &self.binary().to_string_lossy());
        drop(crate::script(&script.path(), &text));
        script
    }
}

impl Script {
    /// What a shim is told to call.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join("script")
    }

    /// From now on calls with this verb go so.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn on(&self, verb: &str, how: &str) {
        fs::write(self.dir.join(verb), how).expect("write");
    }

    /// They go as usual again.
    ///
    /// # Panics
    /// When they did.
    pub fn off(&self, verb: &str) {
        fs::remove_file(self.dir.join(verb)).expect("remove");
    }

    /// True when a call that hangs has left something in a session of its own.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let text = fs::read_to_string(self.dir.join("left")).unwrap_or_default();
        text.ends_with('\n')
    }

    /// Pid of what a call that hangs left in a session of its own.
    ///
    /// # Panics
    /// When there was no such call.
    #[must_use]
    pub fn left(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join("left")).expect("a call that hung");
        text.trim().parse().expect("a pid")
    }

    /// Blocks until a slow call has begun.
    pub fn begun(&self) {
        until("the slow call begins", || self.dir.join("begun").exists());
    }

    /// The arguments of the calls with this verb.
    #[must_use]
    pub fn calls(&self, verb: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let with = text
            .lines()
            .filter(|line| line.split(' ').any(|word| word == verb));
        with.map(str::to_owned).collect()
    }
}
