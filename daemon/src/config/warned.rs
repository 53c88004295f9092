//! What is told of a configuration that is taken: keys that nobody reads, wishes that cannot be fulfilled.

use types::Code;

use super::read::parse;
use super::*;

#[test]
fn unknown_keys_warn_by_name() {
    let text = r#"
        version = 2
        tempo = "x"
        [grpc]
          tcp_address = "127.0.0.1:1"
        [plugins."io.containerd.grpc.v1.cri"]
          sandbox_image = "pause"
        [plugins."io.containerd.snapshotter.v1.overlayfs"]
          rootpath = "/x"
    "#;
    let mut warnings = parse(text).unwrap().warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "line 3: unknown key \"tempo\" ignored",
            "line 5: key \"grpc.tcp_address\" is not supported here: ignored",
            "line 6: this daemon has no CRI yet: its settings are not used",
            "line 9: unknown key \"rootpath\" of plugin \"io.containerd.snapshotter.v1.overlayfs\" ignored",
        ]
    );
}

/// A slip is one whatever is behind it.
#[test]
fn unknown_keys_that_ask_for_nothing_warn_as_well() {
    let text = r#"
        version = 3
        tempo = ""
        [grpc]
          uidd = 0
          tcp_address = ""
        [plugins."io.containerd.snapshotter.v1.overlayfs"]
          sync_remov = false
        [plugins."io.containerd.snapshotter.v1.zfs"]
          root_path = ""
          rootpath = ""
        [plugins."io.containerd.snapshoter.v1.native"]
        [stream_processors.one]
          arg = []
        [plugins."io.containerd.cri.v1.images"]
          nonsense = false
    "#;
    let mut warnings = parse(text).unwrap().warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "line 11: unknown key \"rootpath\" of plugin \"io.containerd.snapshotter.v1.zfs\" ignored",
            "line 12: section of unknown plugin \"io.containerd.snapshoter.v1.native\" ignored",
            "line 14: unknown key \"stream_processors.one.arg\" ignored",
            "line 3: unknown key \"tempo\" ignored",
            "line 5: unknown key \"grpc.uidd\" ignored",
            "line 8: unknown key \"sync_remov\" of plugin \"io.containerd.snapshotter.v1.overlayfs\" ignored",
        ]
    );
}

#[test]
fn what_a_plugin_cannot_do_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let told = |text: &str| {
        std::fs::write(&file, format!("version = 3\n{text}")).unwrap();
        let loaded = load(Some(&file), Overrides::default()).unwrap();
        let own = format!("{}: ", file.display());
        let bare = |text: &String| text.replace(&own, "");
        loaded.warnings.iter().map(bare).collect::<Vec<_>>()
    };
    let snapshotter = "[plugins.'io.containerd.snapshotter.v1.erofs']\n";
    let differ = "[plugins.'io.containerd.differ.v1.erofs']\n";
    let transfer = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
                    platform = 'linux/amd64'\n";
    for (head, line, want) in [
        (
            snapshotter,
            "enable_fsverity = true",
            "line 3: plugin \"io.containerd.snapshotter.v1.erofs\" will not work: enable_fsverity",
        ),
        (snapshotter, "default_size = '10GiB'", "line 3: "),
        (snapshotter, "dmverity_mode = 'on'", "line 3: "),
        (
            differ,
            "enable_dmverity = true",
            "line 3: plugin \"io.containerd.differ.v1.erofs\" will not work: enable_dmverity",
        ),
        (
            transfer,
            "snapshotter = 'overlay'",
            "line 2: plugin \"io.containerd.transfer.v1.local\" will not work: unpack_config: \
             there is no snapshotter \"overlay\"",
        ),
        (
            transfer,
            "snapshotter = 'native'\ndiffer = 'far'",
            "unpack_config: there is no differ \"far\"",
        ),
    ] {
        let warnings = told(&format!("{head}{line}"));
        assert_eq!(warnings.len(), 1, "{line}: {warnings:?}");
        assert!(warnings[0].contains(want), "{line}: {warnings:?}");
    }
    // Nobody misses what may be missing, what is not wanted, and what somebody else serves.
    for text in [
        format!("{transfer}snapshotter = 'overlay'\noptional = true"),
        format!(
            "disabled_plugins = ['io.containerd.differ.v1.erofs']\n{differ}enable_dmverity = true"
        ),
        format!(
            "{transfer}snapshotter = 'far'\n[proxy_plugins.far]\ntype = 'snapshot'\n\
             address = '/run/far.sock'"
        ),
    ] {
        assert_eq!(told(&text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_key_without_a_value_is_no_news() {
    let text = r#"
        version = 2
        plugin_dir = ""
        [cgroup]
          path = ""
        [debug]
          address = ""
          gid = 0
        [proxy_plugins]
        [plugins."io.containerd.snapshotter.v1.zfs"]
          root_path = ""
        [timeouts]
          "io.containerd.timeout.task.state" = "2s"
          "io.containerd.timeout.shim.load" = "50s"
    "#;
    assert_eq!(
        parse(text).unwrap().warnings,
        [
            "line 14: key \"timeouts.io.containerd.timeout.shim.load\" is not supported here: ignored"
        ]
    );
}

#[test]
fn what_the_erofs_snapshotter_cannot_do_is_refused_and_not_ignored() {
    let erofs = |lines: &str| -> Result<()> {
        let text =
            format!("version = 2\n[plugins.\"io.containerd.snapshotter.v1.erofs\"]\n{lines}");
        let loaded = parse(&text)?;
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{lines}");
        let section: Erofs = loaded
            .config
            .section("io.containerd.snapshotter.v1.erofs")?;
        section.check_supported()
    };
    for good in ["", "dmverity_mode = \"off\"", "set_immutable = false"] {
        erofs(good).unwrap();
    }
    for bad in [
        "enable_fsverity = true",
        "default_size = \"10GiB\"",
        "dmverity_mode = \"on\"",
    ] {
        let error = erofs(bad).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
        let key = bad.split(' ').next().unwrap();
        assert!(error.to_string().contains(key), "{error}");
    }
}
