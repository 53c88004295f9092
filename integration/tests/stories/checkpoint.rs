//! Checkpoints: with CRIU where the kernel lets it work, and with its reason where not; and the whole
//! way from a running task to another one and back with a runtime that stands in for both.

mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};

use integration::{Host, IMAGE, Output, Program, need, until};

/// Counts on its standard output.
const COUNTER: [&str; 3] = [
    "sh",
    "-c",
    "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done",
];

/// What `criu check` says: nothing when it can work here, else the reasons.
fn criu() -> Vec<String> {
    let check = Program::new(need("criu")).args(["check"]).run();
    if check.code == 0 {
        return Vec::new();
    }
    let reasons = check.stderr.lines().filter_map(|line| {
        let (_, text) = line.split_once("Error (")?.1.split_once("): ")?;
        Some(text.trim().to_owned())
    });
    let reasons: Vec<String> = reasons.collect();
    assert!(!reasons.is_empty(), "{}", check.stderr);
    reasons
}

/// Numbers that a counter has written.
fn numbers(file: &Path) -> Vec<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn uri(file: &Path) -> String {
    format!("file://{}", file.display())
}

fn counting(host: &Host, id: &str) -> PathBuf {
    let log = host.path(&format!("{id}.log"));
    drop(
        host.run(&["-d", "--log-uri", &uri(&log)], id, &COUNTER)
            .ok(),
    );
    until("it counts", || numbers(&log).len() > 3);
    log
}

/// Neither checkpoints on their way nor CRIU's own files.
fn nothing_on_the_way(host: &Host, id: &str) {
    let entries = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
    until("the checkpoint is taken away", || {
        entries(host.root().join("checkpoints")) == 0
    });
    let tasks = "io.containerd.runtime.v2.task";
    let work = host.root().join(tasks).join(host.namespace()).join(id);
    assert_eq!(entries(work), 0);
    let bundle = host.state().join(tasks).join(host.namespace()).join(id);
    assert!(!bundle.join("criu.conf").exists());
}

/// Makes a container of a checkpoint, and its task.
fn restore(host: &Host, flags: &[&str], id: &str, image: &str) -> Output {
    let ctr = host
        .ctr_program()
        .args(["containers", "restore", "--trust-spec", "--live"]);
    ctr.args(flags).args([id, image]).run()
}

#[test]
fn a_counter_goes_on_from_its_checkpoint_or_criu_says_why() {
    let host = Host::new("checkpoint");
    host.image();
    let log = counting(&host, "a");
    let pid = host.task("a", "RUNNING").expect("running");
    let reasons = criu();
    if reasons.is_empty() {
        goes_on(&host, &log);
    } else {
        says_why(&host, &reasons);
    }
    // In either case it is unharmed.
    assert_eq!(host.task("a", "RUNNING"), Some(pid));
    let count = numbers(&log).len();
    until("it counts on", || numbers(&log).len() > count);
    nothing_on_the_way(&host, "a");
    host.remove("a");
    host.finish();
}

fn says_why(host: &Host, reasons: &[String]) {
    let blobs = host.ctr(["content", "ls", "-q"]).ok();
    let image = host.path("image");
    let image_path = image.to_string_lossy();
    let to_path = ["tasks", "checkpoint", "--image-path", &image_path, "a"];
    for told in [host.ctr(["tasks", "checkpoint", "a"]), host.ctr(to_path)] {
        let told = told.err();
        assert!(told.contains("OCI runtime checkpoint failed"), "{told}");
        // Which of the reasons a dump meets first, and who gives up because of it, differs.
        let known = reasons.iter().any(|reason| told.contains(reason));
        assert!(known, "{reasons:?} in {told}");
    }
    assert!(!image.exists());
    // What the lease held is collected in the background.
    until("only the image's blobs are left", || {
        host.ctr(["content", "ls", "-q"]).ok() == blobs
    });
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok().trim(), IMAGE);
}

fn goes_on(host: &Host, log: &Path) {
    let least = numbers(log).len() as u64;
    let name = host.ctr(["tasks", "checkpoint", "a"]).ok();
    let name = name.trim();
    let restored = host.path("b.log");
    drop(restore(host, &["--rw", "--log-uri", &uri(&restored)], "b", name).ok());
    until("the restored one counts", || numbers(&restored).len() > 3);
    let counted = numbers(&restored);
    assert!(counted[0] > least, "{counted:?}");
    assert!(counted.windows(2).all(|two| two[1] == two[0] + 1));
    nothing_on_the_way(host, "b");
    let image = host.path("image").to_string_lossy().into_owned();
    let exit = ["tasks", "checkpoint", "--exit", "--image-path", &image, "b"];
    drop(host.ctr(exit).ok());
    until("it ends", || host.task("b", "STOPPED").is_some());
    assert!(Path::new(&image).join("inventory.img").exists());
    drop(host.ctr(["tasks", "rm", "b"]).ok());
    drop(host.ctr(["containers", "rm", "b"]).ok());
    drop(host.ctr(["images", "rm", name]).ok());
}
