//! Damaged records that cannot be rebuilt: a snapshotter that knows what is missing is not there.

use std::time::{Duration, Instant};

use integration::{Host, Program, bin_dir};

const RECORDS: &str = "io.containerd.metadata.v1.bolt/metadata.redb";

/// The daemon over the host's files, with this configuration.
fn daemon(host: &Host, config: &str) -> integration::Output {
    std::fs::write(host.path("other.toml"), config).expect("write");
    let daemon = Program::new(bin_dir().join("containerd"));
    host.over(daemon, "other.toml").run()
}

#[test]
fn where_nothing_can_be_done_safely_it_is_said_in_one_line_and_nothing_starts() {
    let mut host = Host::new("no-safe-start");
    host.image();
    let images = host.ctr(["images", "ls", "-q"]).ok();
    host.stop();
    let records = host.root().join(RECORDS);
    let journal = host.root().join(format!("{RECORDS}.journal"));
    let kept = [&records, &journal].map(|path| std::fs::read(path).expect("read"));
    for path in [&records, &journal] {
        std::fs::write(path, "gone").expect("write");
    }
    let disabled = "version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.overlayfs\"]\n";
    // As often as somebody tries.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        let refused = daemon(&host, disabled);
        quickest = quickest.min(begin.elapsed());
        assert_ne!(refused.code, 0, "{}", refused.stderr);
        let last = refused.stderr.lines().last().expect("a line");
        assert!(last.contains(&records.display().to_string()), "{last}");
        assert!(last.contains("overlayfs"), "the remedy: {last}");
        assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
        assert!(!host.address().exists(), "nobody serves");
    }
    // It ends with an error within five seconds. What the disk keeps waiting besides is not the daemon's:
    // the best of them counts.
    assert!(quickest < Duration::from_secs(5), "{quickest:?}");
    // Nothing was begun over the old data.
    for path in [&records, &journal] {
        assert_eq!(std::fs::read(path).expect("read"), b"gone");
    }
    for (path, bytes) in [&records, &journal].into_iter().zip(kept) {
        std::fs::write(path, bytes).expect("write");
    }
    host.start();
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), images);
    host.finish();
}
