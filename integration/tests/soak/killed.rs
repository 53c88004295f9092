//! Programs that are killed in the middle of what they do, and what is left to wait for after that.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::operations::Ctr;

/// What the daemon goes on with for a client that is gone has so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `ctr` and kills it when it has lived so long, unless it has ended by then.
pub(crate) fn after(ctr: &Ctr, args: &[&str], life: Duration) {
    let (program, base) = ctr.base.split_first().expect("a program");
    let mut child = Command::new(program)
        .args(base)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start ctr");
    std::thread::sleep(life);
    // It may have ended.
    drop(child.kill());
    child.wait().expect("wait");
}

/// Waits until the daemon does nothing any more that was asked of it about `subject`: a call is done to its
/// end, whoever asked.
pub(crate) fn is_over(ctr: &Ctr, subject: &str) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        let table = ctr.list(&["inflight"])?;
        let about = |line: &&String| line.split_whitespace().nth(1) == Some(subject);
        let Some(call) = table.iter().find(about) else {
            return Ok(());
        };
        if begin.elapsed() > PATIENCE {
            return Err(format!("still in flight: {call}"));
        }
    }
}
