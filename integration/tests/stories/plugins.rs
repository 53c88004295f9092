//! The daemon's parts as clients look for them: by Debian's `ctr` as by ours, with what each client asks.

use grpc::introspection::IntrospectionClient;
use integration::{Host, Program, Whose, bin_dir};
use protos::services::introspection::{Plugin, PluginsRequest};

const NATIVE: &str = "io.containerd.snapshotter.v1.native";
/// A directory that cannot be made.
const BROKEN: &str = "[plugins.\"io.containerd.snapshotter.v1.native\"]\n\
                      root_path = \"/dev/null/native\"\n";

/// The rows that pass a filter, as clients of the API get them.
fn ask(host: &Host, filter: &str) -> Vec<Plugin> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let address = host.address().display().to_string();
    let request = PluginsRequest {
        filters: vec![filter.to_owned()],
        ..PluginsRequest::default()
    };
    runtime.block_on(async {
        let channel = client::connect(&address, std::time::Duration::from_secs(10)).await;
        let mut client = IntrospectionClient::new(channel.expect("connect"));
        let answer = client.plugins(request).await.expect("list");
        answer.into_inner().plugins
    })
}

/// The word that `ctr plugins ls` has for a plugin.
fn status(table: &str, kind: &str, id: &str) -> Option<String> {
    let words = table.lines().map(|line| line.split_whitespace().collect());
    let mut rows = words.filter(|words: &Vec<&str>| words.starts_with(&[kind, id]));
    let row = rows.next()?;
    row.last().map(|word| (*word).to_owned())
}

#[test]
fn clients_find_what_they_look_for() {
    let host = Host::new("plugins");
    // nerdctl, before it sets a policy.
    let restart = ask(&host, "id==restart");
    assert_eq!(restart.len(), 1, "{restart:?}");
    let words = ["no", "always", "on-failure", "unless-stopped"];
    assert_eq!(restart[0].capabilities, words);
    assert_eq!(restart[0].type_, "io.containerd.monitor.container.v1");
    // buildkit takes the platforms of the runtimes.
    let runtimes = ask(&host, "type==io.containerd.runtime.v2");
    assert!(
        runtimes.iter().any(|row| !row.platforms.is_empty()),
        "{runtimes:?}"
    );
    // nerdctl and ctr, before they give a log a URI.
    let schemes = runtimes[0].exports.get("log-uri-schemes");
    let schemes = schemes.map_or("", String::as_str);
    assert!(
        schemes.split(',').any(|scheme| scheme == "binary"),
        "{schemes}"
    );
    // Go's client, before it makes a snapshot; some write a blank.
    for comma in [",", ", "] {
        let filter = format!("type==io.containerd.snapshotter.v1{comma}id==overlayfs");
        let rows = ask(&host, &filter);
        assert_eq!(rows.len(), 1, "{filter}");
        let row = &rows[0];
        assert!(
            row.init_err.is_none() && row.exports.contains_key("root"),
            "{row:?}"
        );
        assert!(
            row.capabilities.iter().any(|word| word == "rebase"),
            "{row:?}"
        );
        assert_eq!(row.platforms[0].os, "linux");
    }
    // What unpacks for a platform by itself.
    for kind in ["io.containerd.differ.v1", "io.containerd.transfer.v1"] {
        let rows = ask(&host, &format!("type=={kind}"));
        assert!(
            rows.iter().any(|row| row.init_err.is_none()),
            "{kind}: {rows:?}"
        );
    }
    host.finish();
}

#[test]
fn what_fails_or_is_skipped_is_listed_and_the_rest_works() {
    let snapshotter = "io.containerd.snapshotter.v1";
    let more = format!("disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\"]\n{BROKEN}");
    // Keys of the top come before the sections.
    let host = Host::configured("plugins-broken", Whose::Ours, &more);
    for table in [
        host.ctr(["plugins", "ls"]).ok(),
        host.go_ctr(["plugins", "ls"]).ok(),
    ] {
        let status = |id| status(&table, snapshotter, id);
        assert_eq!(status("native").as_deref(), Some("error"), "{table}");
        assert_eq!(status("overlayfs").as_deref(), Some("ok"), "{table}");
        assert_eq!(status("blockfile").as_deref(), Some("skip"), "{table}");
        assert_eq!(status("btrfs"), None, "{table}");
    }
    let details = host.go_ctr(["plugins", "ls", "-d", "id==native"]).ok();
    assert!(details.contains("/dev/null/native"), "{details}");
    host.image();
    drop(host.run(&["--rm"], "c", &["true"]).ok());
    host.finish();
}

#[test]
fn what_is_required_and_does_not_work_keeps_the_daemon_from_starting() {
    let dir = tempfile::tempdir().expect("directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (required, more) in [(NATIVE, BROKEN), ("io.containerd.grpc.v1.nothing", "")] {
        let config = format!("version = 2\nrequired_plugins = [\"{required}\"]\n{more}");
        std::fs::write(at("config.toml"), config).expect("write");
        let refused = Program::new(bin_dir().join("containerd"))
            .args(["--root", &at("root"), "--state", &at("state")])
            .args(["--address", &at("c.sock"), "--config", &at("config.toml")])
            .run();
        let text = refused.err();
        let last = text.lines().last().expect("a line");
        assert!(last.contains(required), "{last}");
    }
}
