//! A client that is attached to a container all the time, and talks to it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use integration::{Host, bin_dir};

/// Says what it hears, until it hears the end.
pub(crate) const ECHO: &str =
    "while read x; do echo \"heard $x\"; test \"$x\" = end && exit 9; done; exit 8";
/// How that ends.
pub(crate) const ECHO_CODE: i32 = 9;
const PATIENCE: Duration = Duration::from_secs(20);

/// An attached `ctr`.
#[derive(Debug)]
pub(crate) struct Talker {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Talker {
    /// Attaches to a container that runs [`ECHO`].
    pub(crate) fn attach(host: &Host, id: &str) -> Self {
        let mut child = Command::new(bin_dir().join("ctr"))
            .arg("--address")
            .arg(host.address())
            .args(["-n", host.namespace(), "tasks", "attach", id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start ctr");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take().expect("piped"),
            lines,
            child,
        }
    }

    /// Says a word, which the container must have heard.
    pub(crate) fn say(&mut self, word: &str) -> Result<(), String> {
        writeln!(self.stdin, "{word}").map_err(|e| format!("say {word}: {e}"))?;
        let heard = self.lines.recv_timeout(PATIENCE);
        let heard = heard.map_err(|e| format!("{word} was not heard: {e}"))?;
        if heard == format!("heard {word}") {
            Ok(())
        } else {
            Err(format!("{heard:?} instead of {word:?}"))
        }
    }

    /// Says the end; the code with which it ended.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.say("end").expect("the end is heard");
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
