//! SIGHUP: what the configuration says of the collector and of registries is so at once, and a log in JSON
//! is one.

use std::fs;

use integration::{Host, Registry, Whose, until};

use crate::push::digest;

const SIGHUP: i32 = 1;
/// It does not collect when it begins, nor however much is changed.
const NEVER: &str = "[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"0s\"\n\
                     deletion_threshold = 0\nmutation_threshold = 1000000\n";

/// Puts a text in the place of another one into the configuration, and has it read again.
fn reload(host: &Host, old: &str, new: &str, key: &str) {
    let file = host.path("config.toml");
    let text = fs::read_to_string(&file).expect("read");
    assert!(text.contains(old), "{text}");
    fs::write(&file, text.replace(old, new)).expect("write");
    let before = host.log().len();
    host.signal(SIGHUP);
    until("the configuration is read again", || {
        let log = host.log();
        let mut lines = log[before..].lines();
        lines.any(|line| line.contains("configuration reloaded") && line.contains(key))
    });
}

#[test]
fn a_reload_changes_when_garbage_is_collected() {
    let host = Host::configured("reload-gc", Whose::Ours, NEVER);
    let ingest = host.ctr_program().args(["content", "ingest"]);
    let ingest = ingest.args(["--expected-size", "4", "key"]);
    drop(ingest.input(b"data").run().ok());
    let blobs = || host.ctr(["content", "ls", "-q"]).ok();
    let change = |lease: &str| drop(host.ctr(["leases", "create", "--id", lease]).ok());
    // Nothing names the blob, and nothing is deleted: only the number of changes can be a reason.
    change("before");
    assert!(!blobs().is_empty(), "nobody has collected");
    let key = "mutation_threshold";
    let [old, new] = ["1000000", "1"].map(|number| format!("{key} = {number}"));
    reload(&host, &old, &new, key);
    change("after");
    until("what nothing names is collected", || blobs().is_empty());
    for lease in ["before", "after"] {
        drop(host.ctr(["leases", "rm", lease]).ok());
    }
    host.finish();
}

#[test]
fn a_reload_changes_where_registries_are() {
    let registry = Registry::start();
    let host = Host::configured("reload-hosts", Whose::Ours, NEVER);
    let certs = host.path("certs.d");
    let name = "registry.example.test";
    fs::create_dir_all(certs.join(name)).expect("mkdir");
    let text = format!("server = \"http://{}\"\n", registry.host());
    fs::write(certs.join(name).join("hosts.toml"), text).expect("write");
    let section = format!(
        "{NEVER}[plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = {:?}\n",
        certs.display().to_string()
    );
    reload(&host, NEVER, &section, "config_path");
    let remote = format!("{name}/demo/busybox:1");
    drop(host.ctr(["images", "pull", &remote]).ok());
    assert!(!digest(&host, &remote).is_empty());
    host.finish();
}

#[test]
fn each_line_of_a_log_in_json_is_a_value_with_time_level_and_message() {
    let host = Host::configured("log-json", Whose::Ours, "[debug]\nformat = \"json\"\n");
    host.image();
    // Text that needs care.
    let told = host.ctr(["tasks", "kill", "nobody\"\\"]);
    assert_ne!(told.code, 0);
    host.signal(SIGHUP);
    until("the reload is told", || {
        host.log().contains("configuration reloaded")
    });
    let log = host.log();
    assert!(log.lines().count() > 2, "{log}");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        let fields = value.as_object().expect(line);
        for key in ["timestamp", "level", "message"] {
            assert!(
                fields.get(key).is_some_and(serde_json::Value::is_string),
                "{key}: {line}"
            );
        }
    }
    host.finish();
}
