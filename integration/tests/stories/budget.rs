//! What a shim may cost while nothing happens. `make bench` measures it at two hundred containers.

use std::fs;

use integration::{Host, parent, until};

/// Written pages of a process that are its own, in KiB: all of it, and its stack's.
fn dirty(pid: u32) -> (u64, u64) {
    // Empty when the process has just ended: then the shim is missed elsewhere.
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut all, mut stack, mut in_stack) = (0, 0, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first.contains('-') {
            in_stack = line.ends_with("[stack]");
        } else if first == "Private_Dirty:" {
            let size: u64 = words.next().expect("a size").parse().expect("a number");
            all += size;
            stack += if in_stack { size } else { 0 };
        }
    }
    (all, stack)
}

#[test]
fn an_idle_shim_is_small() {
    /// Issue 3's bar, in KiB.
    const ALL: u64 = 250;
    /// Half of what starting a container touches.
    const STACK: u64 = 28;
    let host = Host::new("budget");
    host.image();
    host.sleeper("s");
    let shim = parent(host.task("s", "RUNNING").expect("it runs"));
    until("the shim gives memory back", || {
        let (all, stack) = dirty(shim);
        0 < all && all <= ALL && stack <= STACK
    });
    // After work the same.
    let exec = ["tasks", "exec", "--exec-id", "e", "s", "true"];
    drop(host.ctr(exec).ok());
    until("the shim gives memory back again", || {
        let (all, stack) = dirty(shim);
        0 < all && all <= ALL && stack <= STACK
    });
    host.remove("s");
    host.finish();
}
