//! Reaping takes every child of the process, so these scenarios run in processes of their own: a
//! test forks nothing itself, it runs this same test binary again with a variable set.

use super::*;
use crate::process::Spawn;
use std::io::Read as _;

/// Runs `scenario` in a process of its own.
fn alone(name: &str, scenario: fn()) {
    crate::testing::alone(&format!("reaper::tests::{name}"), scenario);
}

/// A grandchild that ends at once with code 7, and its pid.
fn orphan() -> u32 {
    let (read, write) = crate::pipe::new().unwrap();
    let child = Spawn::new("/bin/sh")
        .args(["-c", "(sh -c 'echo $PPID; exit 0' >&3; exit 7) & exit 0"])
        .fd(write, 3)
        .spawn()
        .unwrap();
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().is_success());
    text.trim().parse().unwrap()
}

/// Blocks until there is a zombie to see, without reaping it.
fn until_a_child_ended() {
    let seen = wait_for(Which::Any, libc::WEXITED | libc::WNOWAIT).unwrap();
    assert!(seen.is_some());
}

#[test]
fn an_exit_before_the_claim_is_not_lost() {
    alone("an_exit_before_the_claim_is_not_lost", || {
        become_subreaper().unwrap();
        let mut reaper = Reaper::default();
        reaper.hold();
        let pid = orphan();
        until_a_child_ended();
        assert!(reaper.reap().is_empty());
        reaper.claim(pid).unwrap();
        assert_eq!(reaper.reap(), [(pid, Status::Exited(7))]);
        reaper.release();
        assert!(reaper.reap().is_empty());
        assert!(reaper.claim(pid).unwrap_err().is_not_found());
    });
}

#[test]
fn unknown_orphans_are_reaped_and_claimed_ones_told() {
    alone("unknown_orphans_are_reaped_and_claimed_ones_told", || {
        become_subreaper().unwrap();
        let mut reaper = Reaper::default();
        let known = Spawn::new("/bin/sh")
            .args(["-c", "exit 3"])
            .spawn()
            .unwrap();
        let pid = known.pid();
        reaper.adopt(known);
        assert!(reaper.pidfd(pid).is_some());
        orphan();
        let mut told = Vec::new();
        while wait_for(Which::Any, libc::WEXITED | libc::WNOWAIT)
            .unwrap()
            .is_some()
        {
            told.extend(reaper.reap());
        }
        assert_eq!(told, [(pid, Status::Exited(3))]);
        assert!(reaper.pidfd(pid).is_none());
    });
}
