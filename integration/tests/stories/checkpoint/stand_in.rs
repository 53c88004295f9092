//! The whole way from a running task to another one and back, with a runtime that stands in for CRIU.

use std::fs;
use std::path::{Path, PathBuf};

use integration::{Host, IMAGE, need, until};

use super::{nothing_on_the_way, restore, uri};

/// Takes a checkpoint of a container with all that there is of it.
const ALL_OF_A: [&str; 7] = [
    "containers",
    "checkpoint",
    "--rw",
    "--image",
    "--task",
    "a",
    "saved",
];

/// A runtime that does what CRIU would do as far as others can see: its image says of whom it is, and
/// a restore that finds one runs the container's command through the real runtime.
const STAND_IN: &str = r#"#!/bin/sh
want() { # the value of a flag
    flag=$1; shift
    while [ $# -gt 0 ]; do [ "$1" = "$flag" ] && echo "$2" && return; shift; done
}
fail() { # CRIU's log, and the runtime's
    echo "(00.1) 1: Error (criu/stand-in.c:1): $2" >"$work/$1"
    printf '{"level":"error","msg":"criu failed: type NOTIFY\\nlog file: %s"}\n' "$work/$1" >>"$log"
    exit 1
}
for word; do
    case $word in checkpoint|restore) verb=$word ;; esac
    id=$word
done
[ -n "$verb" ] || exec RUNC "$@"
image=$(want --image-path "$@"); work=$(want --work-path "$@")
root=$(want --root "$@"); log=$(want --log "$@")
if [ "$verb" = checkpoint ]; then
    mkdir -p "$image"
    [ -e "$0.refuse" ] && fail dump.log "it is not to be"
    echo "image of $id" >"$image/inventory.img"
    head -c 3000000 /dev/zero >"$image/pages-1.img"
    case " $* " in *" --leave-running "*) exit 0 ;; esac
    RUNC --root "$root" kill "$id" KILL
    [ ! -e "$0.stumble" ] || fail dump.log "too late"
    exit 0
fi
[ -e "$0.refuse" ] && fail restore.log "it is not to be"
[ "$(stat -c %s "$image/pages-1.img")" = 3000000 ] || fail restore.log "no pages"
read -r text <"$image/inventory.img"
echo "$text" >"$0.restored"
socket=$(want --console-socket "$@")
RUNC --root "$root" --log "$log" --log-format json create --bundle "$(want --bundle "$@")" \
    --pid-file "$(want --pid-file "$@")" ${socket:+--console-socket "$socket"} "$id" &&
    exec RUNC --root "$root" --log "$log" --log-format json start "$id"
"#;

/// Puts the stand-in into the host's directory, under the name of what it stands for.
fn stand_in(host: &Host) -> PathBuf {
    let dir = host.path("bin");
    fs::create_dir(&dir).expect("make a directory");
    let path = dir.join("runc");
    let text = STAND_IN.replace("RUNC", &need("runc").to_string_lossy());
    drop(integration::script(&path, &text));
    path
}

/// A container that waits for a file of the test, tells what it has written itself, and ends with 7.
fn waiting(host: &Host, runtime: &Path, id: &str, flags: &[&str]) {
    let gate = host.path("gate");
    fs::create_dir_all(&gate).expect("make the gate");
    let mount = format!(
        "type=bind,src={},dst=/gate,options=rbind:rw",
        gate.display()
    );
    let script = "test -e /mark || echo mark of $WHICH >/mark; \
                  until test -e /gate/open; do usleep 5000; done; cat /mark; \
                  test -z \"$ASK\" || { read -r line; echo $line; }; exit 7";
    let runtime = runtime.to_string_lossy();
    let mut all = vec!["-d", "--runc-binary", &runtime, "--mount", &mount];
    all.extend(["--env", "WHICH=first"]);
    all.extend(flags);
    drop(host.run(&all, id, &["sh", "-c", script]).ok());
    let mark = ["tasks", "exec", "--exec-id", "m", id, "cat", "/mark"];
    until("it has written", || host.ctr(mark).stdout.contains("first"));
}

fn ends_with_7(host: &Host, id: &str) {
    ends_with(host, id, 7);
}

fn ends_with(host: &Host, id: &str, code: u8) {
    until("it ends", || host.task(id, "STOPPED").is_some());
    let told = host.ctr(["tasks", "rm", id]).stderr;
    let text = format!("code {code}");
    assert!(told.trim_end().ends_with(&text), "{told}");
    drop(host.ctr(["containers", "rm", id]).ok());
}

#[test]
fn a_container_is_made_from_the_checkpoint_of_another() {
    let mut host = Host::new("checkpoint-way");
    host.image();
    let runtime = stand_in(&host);
    waiting(&host, &runtime, "a", &["--null-io"]);
    drop(host.ctr(ALL_OF_A).ok());
    assert!(host.task("a", "RUNNING").is_some());
    nothing_on_the_way(&host, "a");
    let taken = host.ctr(ALL_OF_A).err();
    assert!(taken.contains("already exists"), "{taken}");

    let log = host.path("b.log");
    let flags = ["--rw", "--log-uri", &uri(&log)];
    drop(restore(&host, &flags, "b", "saved").ok());
    let restored = fs::read_to_string(runtime.with_extension("restored")).expect("restored");
    assert_eq!(restored, "image of a\n");
    let pid = host.task("b", "RUNNING").expect("running");
    assert_ne!(Some(pid), host.task("a", "RUNNING"));
    nothing_on_the_way(&host, "b");
    // It is a task like any other: execs, signals, a daemon that goes and comes.
    let exec = ["tasks", "exec", "--exec-id", "e", "b", "echo", "in"];
    assert_eq!(host.ctr(exec).ok(), "in\n");
    host.kill();
    host.start();
    until("recovered", || host.task("b", "RUNNING") == Some(pid));
    fs::write(host.path("gate/open"), "").expect("open the gate");
    ends_with_7(&host, "b");
    // The layer came along.
    let told = fs::read_to_string(&log).expect("log");
    assert_eq!(told, "mark of first\n");
    ends_with_7(&host, "a");
    drop(host.ctr(["images", "rm", "saved"]).ok());
    host.finish();
}

#[test]
fn a_task_checkpoint_goes_to_a_directory_or_an_image_and_may_end_the_task() {
    let host = Host::new("checkpoint-task");
    host.image();
    let runtime = stand_in(&host);
    waiting(&host, &runtime, "a", &["--null-io", "--env", "ASK=1"]);
    let image = host.path("image");
    let image_path = image.to_string_lossy();
    let to_path = ["tasks", "checkpoint", "--image-path", &image_path, "a"];
    assert_eq!(host.ctr(to_path).ok(), "");
    assert!(image.join("inventory.img").exists());
    // Where there is no checkpoint, nothing is restored and nothing is made.
    let none = host
        .ctr(["containers", "restore", "--live", "b", IMAGE])
        .err();
    assert!(none.contains("has no task"), "{none}");
    let absent = host.ctr(["containers", "restore", "b", "absent"]).err();
    assert!(absent.contains("not found"), "{absent}");

    let name = host.ctr(["tasks", "checkpoint", "--exit", "a"]).ok();
    let name = name.trim();
    assert!(name.starts_with("containerd.io/checkpoint/a:"), "{name}");
    until("it ends", || host.task("a", "STOPPED").is_some());
    let gone = host.ctr(["tasks", "checkpoint", "a"]).err();
    assert!(gone.contains("process already finished"), "{gone}");
    let told = host.ctr(["tasks", "rm", "a"]);
    assert!(told.stderr.contains("code 137"), "{}", told.stderr);
    drop(host.ctr(["containers", "rm", "a"]).ok());

    // Under the same name, with streams that the shim keeps for who attaches.
    let flags = ["--rw", "--log-uri", "attach://"];
    drop(restore(&host, &flags, "a", name).ok());
    fs::write(host.path("gate/open"), "").expect("open the gate");
    let attach = host.ctr_program().args(["tasks", "attach", "a"]);
    let attached = attach.input(b"hello\n").run();
    let told = (attached.code, attached.stdout.as_str());
    assert_eq!(told, (7, "mark of first\nhello\n"), "{}", attached.stderr);
    drop(host.ctr(["containers", "rm", "a"]).ok());
    drop(host.ctr(["images", "rm", name]).ok());
    host.finish();
}

#[test]
fn a_checkpoint_that_ends_the_task_is_refused_before_or_saved_as_far_as_it_goes() {
    let host = Host::new("checkpoint-exit");
    host.image();
    let runtime = stand_in(&host);
    waiting(&host, &runtime, "a", &["--null-io"]);
    let pid = host.task("a", "RUNNING").expect("running");
    // What stands in its way is found before the dump.
    drop(host.ctr(["images", "rm", IMAGE]).ok());
    let exit = ["tasks", "checkpoint", "--exit", "a"];
    let told = host.ctr(exit).err();
    assert!(told.contains("not found"), "{told}");
    assert_eq!(host.task("a", "RUNNING"), Some(pid));
    host.image();
    // What goes wrong after it does not take the rest along.
    drop(host.ctr(["snapshots", "rm", "a"]).ok());
    let told = host.ctr(exit).err();
    assert!(told.contains("saved without the rw layer"), "{told}");
    ends_with(&host, "a", 137);
    let images = host.ctr(["images", "ls", "-q"]).ok();
    let saved = images.lines().find(|name| name.contains("/checkpoint/"));
    let saved = saved.expect("an image").to_owned();
    let log = uri(&host.path("b.log"));
    drop(restore(&host, &["--log-uri", &log], "b", &saved).ok());
    fs::write(host.path("gate/open"), "").expect("open the gate");
    ends_with_7(&host, "b");
    drop(host.ctr(["images", "rm", &saved]).ok());
    host.finish();
}

#[test]
fn a_dump_that_fails_after_the_end_keeps_its_image() {
    let mut host = Host::new("checkpoint-late");
    host.image();
    let runtime = stand_in(&host);
    fs::write(runtime.with_extension("stumble"), "").expect("stumble");
    waiting(&host, &runtime, "a", &["--null-io"]);
    let image = host.path("image");
    let path = image.to_string_lossy();
    let told = host
        .ctr(["tasks", "checkpoint", "--exit", "--image-path", &path, "a"])
        .err();
    assert!(told.contains("too late"), "{told}");
    assert!(image.join("inventory.img").exists());
    ends_with(&host, "a", 137);
    // On its way into the content store, too.
    waiting(&host, &runtime, "b", &["--null-io"]);
    let told = host.ctr(["tasks", "checkpoint", "--exit", "b"]).err();
    assert!(told.contains("too late"), "{told}");
    let kept = told.split("its checkpoint is in ").nth(1).expect(&told);
    let kept = Path::new(kept.split(": ").next().expect("a path"));
    assert!(kept.join("inventory.img").exists(), "{told}");
    ends_with(&host, "b", 137);
    host.kill();
    host.start();
    assert!(kept.join("inventory.img").exists(), "{told}");
    fs::remove_dir_all(kept.parent().expect("a directory")).expect("remove");
    host.finish();
}

#[test]
fn a_refused_dump_or_restore_says_why_and_leaves_nothing() {
    let host = Host::new("checkpoint-no");
    host.image();
    let runtime = stand_in(&host);
    waiting(&host, &runtime, "a", &["--null-io"]);
    let save = ["containers", "checkpoint", "--task", "a", "saved"];
    drop(host.ctr(save).ok());
    let refuse = runtime.with_extension("refuse");
    fs::write(&refuse, "").expect("refuse");
    let image = host.path("image");
    let image_path = image.to_string_lossy();
    let dumps = [
        host.ctr(["tasks", "checkpoint", "a"]),
        host.ctr(["tasks", "checkpoint", "--image-path", &image_path, "a"]),
    ];
    for told in dumps {
        let told = told.err();
        assert!(
            told.contains("criu failed: type NOTIFY: it is not to be"),
            "{told}"
        );
    }
    assert!(!image.exists() && host.task("a", "RUNNING").is_some());
    let told = restore(&host, &[], "b", "saved").err();
    assert!(
        told.contains("OCI runtime restore failed: criu failed"),
        "{told}"
    );
    assert!(told.contains("it is not to be"), "{told}");
    assert_eq!(host.ctr(["containers", "ls", "-q"]).ok().trim(), "a");
    assert!(host.ctr(["snapshots", "info", "b"]).code != 0);
    nothing_on_the_way(&host, "b");
    // The same checkpoint serves once nothing stands in its way.
    fs::remove_file(&refuse).expect("relent");
    let log = uri(&host.path("b.log"));
    drop(restore(&host, &["--log-uri", &log], "b", "saved").ok());
    fs::write(host.path("gate/open"), "").expect("open the gate");
    ends_with_7(&host, "b");
    ends_with_7(&host, "a");
    drop(host.ctr(["images", "rm", "saved"]).ok());
    host.finish();
}

#[test]
fn debians_client_checkpoints_and_restores() {
    let host = Host::new("checkpoint-go");
    host.image();
    let runtime = stand_in(&host);
    waiting(&host, &runtime, "a", &["--null-io"]);
    drop(host.go_ctr(ALL_OF_A).ok());
    drop(
        host.go_ctr(["containers", "restore", "--rw", "--live", "b", "saved"])
            .ok(),
    );
    assert!(host.task("b", "RUNNING").is_some());
    // Either client restores what the other has saved.
    let log = uri(&host.path("c.log"));
    drop(restore(&host, &["--rw", "--log-uri", &log], "c", "saved").ok());
    drop(
        host.ctr(["containers", "checkpoint", "--image", "--task", "a", "ours"])
            .ok(),
    );
    drop(
        host.go_ctr(["containers", "restore", "--live", "d", "ours"])
            .ok(),
    );
    assert!(host.task("d", "RUNNING").is_some());
    fs::write(host.path("gate/open"), "").expect("open the gate");
    for id in ["a", "b", "c", "d"] {
        ends_with_7(&host, id);
    }
    drop(host.ctr(["images", "rm", "saved", "ours"]).ok());
    host.finish();
}
