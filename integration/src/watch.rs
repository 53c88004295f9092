//! A client that prints events, read line by line.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::Host;

/// A running `ctr events`.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// Starts `ctr events` of the given client, with stderr in the host's file `watch.stderr`, and
    /// returns once it receives. A subscription says
    /// nothing before its first event, so some are made until one is seen.
    ///
    /// # Panics
    /// When the client cannot be started or prints something else.
    #[must_use]
    pub fn start(host: &Host, ctr: &Path) -> Self {
        let complaints = File::create(host.path("watch.stderr")).expect("make a file");
        let mut child = Command::new(ctr)
            .arg("--address")
            .arg(host.address())
            .args(["-n", host.namespace(), "events"])
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .expect("start ctr events");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut made = 0;
        std::thread::scope(|scope| {
            let first = scope.spawn(|| lines.next().expect("a line").expect("text"));
            while !first.is_finished() {
                made += 1;
                drop(
                    host.ctr(["namespaces", "create", &format!("probe{made}")])
                        .ok(),
                );
            }
            let first = first.join().expect("reader");
            assert!(first.contains("/namespaces/create"), "{first}");
        });
        for n in 1..=made {
            drop(host.ctr(["namespaces", "rm", &format!("probe{n}")]).ok());
        }
        Self { child, lines }
    }

    /// The topics of all further events up to the first `last`, those of namespaces left out.
    ///
    /// # Panics
    /// When the client ends before.
    pub fn topics_until(&mut self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        loop {
            let line = self.lines.next().expect("a line").expect("text");
            let topic = line
                .split_whitespace()
                .find(|w| w.starts_with('/'))
                .expect("a topic");
            if !topic.starts_with("/namespaces/") {
                topics.push(topic.to_owned());
            }
            if topic == last {
                return topics;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
