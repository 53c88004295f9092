//! Tests of the configuration: round trip, versions, warnings, refusals.

use std::path::Path;
use std::time::Duration;

use types::Code;

use super::read::parse;
use super::*;

#[test]
fn the_default_prints_and_reads_back_as_itself() {
    let text = Config::default().to_toml().unwrap();
    let loaded = parse(&text).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.config.to_toml().unwrap(), text);
    let scheduler: Scheduler = loaded
        .config
        .section("io.containerd.gc.v1.scheduler")
        .unwrap();
    assert_eq!(scheduler, Scheduler::default());
}

#[test]
fn every_known_version_reads() {
    for (text, version) in [
        ("", 1),
        ("disabled_plugins = [\"cri\"]", 1),
        ("version = 2", 2),
        ("version = 3\n[debug]\nlevel = \"warning\"", 3),
        (
            "version = 4\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/a\"",
            4,
        ),
    ] {
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.config.version, version, "{text}");
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{text}");
    }
    let moved =
        "version = 4\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/a\"\ngid = 7";
    let config = parse(moved).unwrap().config;
    assert_eq!((config.grpc.address.as_str(), config.grpc.gid), ("/a", 7));
    assert_eq!(config.ttrpc_address(), "/a.ttrpc");
    assert!(config.plugins.is_empty());
}

#[test]
fn a_file_that_an_older_dockerd_writes_reads() {
    let text = r#"
        version = 0
        root = "/var/lib/docker/containerd/daemon"
        state = "/var/run/docker/containerd/daemon"
        temp = ""
        plugin_dir = ""
        disabled_plugins = ["cri"]
        oom_score = 0
        [grpc]
          address = "/var/run/docker/containerd/containerd.sock"
          tcp_address = ""
        [ttrpc]
          address = ""
        [debug]
          address = "/var/run/docker/containerd/containerd-debug.sock"
          level = "info"
          format = ""
        [cgroup]
          path = ""
        [plugins]
          [plugins.linux]
            shim = "containerd-shim"
            runtime = "runc"
            runtime_root = "/var/lib/docker/runc"
            no_shim = false
            shim_debug = false
    "#;
    let loaded = parse(text).unwrap();
    assert!(!loaded.config.enabled("io.containerd.grpc.v1.cri"));
    let socket = "/var/run/docker/containerd/containerd.sock";
    assert_eq!(loaded.config.grpc.address, socket);
    // The runtime of that section is not there any more.
    let told: Vec<_> = loaded.warnings.iter().map(String::as_str).collect();
    assert!(
        told.len() <= 1 && told.iter().all(|w| w.contains("linux")),
        "{told:?}"
    );
}

#[test]
fn a_file_of_dockerd_reads() {
    let text = r#"
        version = 2
        root = "/var/lib/docker/containerd/daemon"
        state = "/var/run/docker/containerd/daemon"
        disabled_plugins = ["io.containerd.grpc.v1.cri"]
        oom_score = -500
        [grpc]
          address = "/var/run/docker/containerd/containerd.sock"
          uid = 0
          gid = 0
          max_recv_message_size = 16777216
          max_send_message_size = 16777216
        [debug]
          level = ""
    "#;
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert!(!loaded.config.enabled("io.containerd.grpc.v1.cri"));
    assert!(loaded.config.enabled("io.containerd.grpc.v1.tasks"));
    assert_eq!(loaded.config.debug.level, Level::Info);
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (text, part) in [
        ("version = 2\nroot = 5", "line 2: root: invalid type"),
        ("a = 1\nversion = 9", "line 2: unsupported config version 9"),
        (
            "version = \"2\"",
            "line 1: version must be a number, not string",
        ),
        ("root = \"/a", "line 1: "),
        (
            "[debug]\nlevel = \"loud\"",
            "line 2: level: unknown variant `loud`",
        ),
        (
            "[debug]\nformat = \"xml\"",
            "line 2: format: unknown variant `xml`",
        ),
        ("[grpc]\nmax_recv_message_size = -1", "line 2: "),
        (
            "[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"soon\"",
            "line 2: plugin \"io.containerd.gc.v1.scheduler\": invalid duration \"soon\"",
        ),
        (
            "[plugins.\"io.containerd.server.v1.grpc\"]\nuid = \"me\"",
            "line 2: uid: invalid type",
        ),
        (
            "[plugins.\"io.containerd.runtime.v2.task\"]\nsched_core = true\n\
             platforms = [\"linux/amd64\", \"a/b/c/d/e\"]",
            "line 3: plugin \"io.containerd.runtime.v2.task\": platforms: ",
        ),
        (
            "[plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"\"\n\
             [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
             platform = \"a/b/c/d/e\"\nsnapshotter = \"native\"",
            "line 3: plugin \"io.containerd.transfer.v1.local\": unpack_config[0]: ",
        ),
        (
            "[plugins.\"io.containerd.transfer.v1.local\"]\n\
             unpack_config = [{platform = \"linux/amd64\"}]",
            "line 2: plugin \"io.containerd.transfer.v1.local\": unpack_config[0]: no snapshotter",
        ),
        (
            "[plugins.\"io.containerd.snapshotter.v1.erofs\"]\nset_immutable = true\n\
             dmverity_mode = \"maybe\"",
            "line 3: plugin \"io.containerd.snapshotter.v1.erofs\": dmverity_mode: \"maybe\"",
        ),
        (
            "[plugins.\"io.containerd.differ.v1.erofs\"]\ntake_images = true\n\
             mkfs_options = 5",
            "line 3: plugin \"io.containerd.differ.v1.erofs\": invalid type",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{text}");
        let said = error.to_string();
        assert!(said.contains(part), "{text}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn what_only_the_whole_shows_is_refused_with_the_place_that_had_the_last_word() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let file = dir.path().join("config.toml");
    let long = "x".repeat(200);
    for (first, second, part) in [
        (
            "oom_score = 2000",
            "",
            "config.toml: line 3: oom_score 2000",
        ),
        (
            "oom_score = 5",
            "\noom_score = 1001",
            "more.toml: line 2: oom_score 1001",
        ),
        (
            "",
            "root = '/run/containerd'",
            "root and state must be different paths",
        ),
        (
            "[grpc]\nmax_recv_message_size = 0",
            "",
            "line 4: max_recv_message_size",
        ),
        (
            "[proxy_plugins.p]\ntype = 'diff'\naddress = 'tcp://x'",
            "",
            "config.toml: line 5: proxy plugin",
        ),
        (
            &format!("[ttrpc]\naddress = '/{long}'"),
            "",
            "line 4: ttrpc address",
        ),
        (
            &format!("[debug]\nlevel = 'info'\naddress = '/{long}'"),
            "",
            "config.toml: line 5: debug address",
        ),
        (
            // The path of the other one is longer, and nobody has written it.
            &format!("[grpc]\nuid = 0\naddress = '/{}'", &long[..100]),
            "",
            "config.toml: line 5: ttrpc address",
        ),
        (
            &format!("[proxy_plugins.p]\ntype = 'diff'\naddress = '/{long}'"),
            "",
            "config.toml: line 5: proxy plugin \"p\": address",
        ),
        (
            "[grpc]\naddress = '/run/c.sock'",
            "[debug]\naddress = 'unix:///run/c.sock.ttrpc'",
            "more.toml: line 2: ttrpc and debug address must differ",
        ),
    ] {
        write(
            "config.toml",
            &format!("version = 3\nimports = ['more.toml']\n{first}"),
        );
        write("more.toml", second);
        let error = load(Some(&file), Overrides::default()).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
        let said = error.to_string();
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn flags_beat_the_file_and_the_whole_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "version = 2\nroot = \"/file\"\nstate = \"/state\"").unwrap();
    let flags = Overrides {
        root: Some("/flag".into()),
        address: Some("unix:///sock".into()),
        level: Some(Level::Debug),
        ..Overrides::default()
    };
    let config = load(Some(&file), flags).unwrap().config;
    assert_eq!(config.root, Path::new("/flag"));
    assert_eq!(config.state, Path::new("/state"));
    assert_eq!(config.grpc.address, "/sock");
    assert_eq!(config.debug.level, Level::Debug);

    for (root, state, part) in [
        ("/same", "/same", "root and state must be different paths"),
        ("same", "./same", "root and state must be different paths"),
        ("", "/x", "root and state must not be empty"),
    ] {
        let flags = Overrides {
            root: Some(root.into()),
            state: Some(state.into()),
            ..Overrides::default()
        };
        let said = load(Some(&file), flags).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn only_a_file_that_was_named_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    let error = load(Some(&missing), Overrides::default()).unwrap_err();
    assert!(
        error.to_string().contains("no such file or directory"),
        "{error}"
    );
}

#[test]
fn plugins_are_named_by_uri_or_by_short_name() {
    let list = ["io.containerd.grpc.v1.tasks".to_owned(), "cri".to_owned()];
    for (uri, found) in [
        ("io.containerd.grpc.v1.tasks", true),
        ("io.containerd.grpc.v1.cri", true),
        ("io.containerd.grpc.v1.content", false),
        ("io.containerd.service.v1.tasks-service", false),
    ] {
        assert_eq!(names(&list, uri), found, "{uri}");
    }
}

#[test]
fn imports_are_merged_in_order_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "config.toml",
        "version = 3\nimports = ['conf/*.toml', 'none/*.toml']\nroot = '/0'\n[grpc]\nuid = 5",
    );
    std::fs::create_dir(dir.path().join("conf")).unwrap();
    write(
        "conf/a.toml",
        "version = 2\nroot = '/a'\nimports = ['../config.toml']",
    );
    write(
        "conf/b.toml",
        "version = 2\nroot = '/b'\n[grpc]\ngid = 6\nnews = 1",
    );
    let loaded = load(Some(&file), Overrides::default()).unwrap();
    let config = loaded.config;
    assert_eq!(
        (config.version, config.root.as_path()),
        (3, Path::new("/b"))
    );
    assert_eq!((config.grpc.uid, config.grpc.gid), (5, 6));
    assert_eq!(
        loaded.warnings,
        [format!(
            "{}: line 5: unknown key \"grpc.news\" ignored",
            dir.path().join("conf/b.toml").display()
        )]
    );

    write("conf/c.toml", "root = 5");
    let said = load(Some(&file), Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("conf/c.toml: line 1: root: invalid type"),
        "{said}"
    );
}

#[test]
fn a_required_plugin_must_be_there() {
    let working = ["io.containerd.grpc.v1.tasks".to_owned()];
    for (required, fits) in [
        (vec![], true),
        (vec!["io.containerd.grpc.v1.tasks".to_owned()], true),
        (vec!["tasks".to_owned()], true),
        (vec!["io.containerd.grpc.v1.cri".to_owned()], false),
    ] {
        let config = Config {
            required_plugins: required,
            ..Config::default()
        };
        let checked = config.check_required(&working);
        assert_eq!(checked.is_ok(), fits, "{:?}", config.required_plugins);
    }
}

#[test]
fn stream_processors_are_read() {
    let text = r#"
        version = 2
        [stream_processors."example.v1"]
          accepts = ["a/b", "a/c"]
          returns = "application/vnd.oci.image.layer.v1.tar"
          path = "/bin/decoder"
          args = ["-x"]
          env = ["A=b"]
          speed = "high"
    "#;
    let parsed = parse(text).unwrap();
    assert_eq!(
        parsed.warnings,
        ["line 9: unknown key \"stream_processors.example.v1.speed\" ignored"]
    );
    let [one] = &parsed.config.processors()[..] else {
        panic!("{:?}", parsed.config.stream_processors);
    };
    assert_eq!((&*one.id, &*one.accepts[1]), ("example.v1", "a/c"));
    assert_eq!(
        (one.path.to_str(), &*one.args),
        (Some("/bin/decoder"), &["-x".to_owned()][..])
    );
}

#[test]
fn proxy_plugins_are_read_and_what_cannot_be_one_is_refused() {
    let text = |lines: &str| format!("version = 2\n[proxy_plugins.far]\n{lines}");
    let good = text(
        "type = \"snapshot\"\naddress = \"/run/far.sock\"\nplatform = \"linux/amd64\"\n\
         capabilities = [\"rebase\"]\ntempo = 3\n[proxy_plugins.far.exports]\nroot = \"/r\"",
    );
    let loaded = parse(&good).unwrap();
    let unknown = "line 7: unknown key \"proxy_plugins.far.tempo\" ignored";
    assert_eq!(loaded.warnings, [unknown]);
    let far = &loaded.config.proxy_plugins["far"];
    assert_eq!(
        (far.kind, &*far.address),
        (ProxyKind::Snapshot, "/run/far.sock")
    );
    assert_eq!(far.exports["root"], "/r");
    loaded.config.validate().unwrap();
    // What is printed reads back.
    let printed = loaded.config.to_toml().unwrap();
    assert_eq!(
        parse(&printed).unwrap().config.proxy_plugins,
        loaded.config.proxy_plugins
    );
    // One that has no place here is no reason not to start.
    let sandbox = text("type = \"sandbox\"\naddress = \"vsock://3:4\"");
    parse(&sandbox).unwrap().config.validate().unwrap();
    for (lines, want) in [
        ("type = \"snapshots\"\naddress = \"/s\"", "snapshots"),
        ("type = \"diff\"", "address"),
        ("type = \"content\"\naddress = \"tcp://1.2.3.4:5\"", "far"),
        (
            "type = \"content\"\naddress = \"/s\"\nplatform = \"a/b/c/d\"",
            "far",
        ),
    ] {
        let refused = parse(&text(lines)).and_then(|loaded| {
            let checked = loaded.config.validate();
            checked.map_err(|Bad(_, error)| error)
        });
        let error = refused.unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{lines}: {error}");
        assert!(error.to_string().contains(want), "{lines}: {error}");
    }
}

#[test]
fn the_networks_of_programs_have_a_section() {
    let cni = |line: &str| {
        let head = "version = 2\n[plugins.\"io.containerd.network.v1.cni\"]\n";
        parse(&format!("{head}{line}"))
    };
    let loaded = cni("timeout = \"7s\"").unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let section: Cni = loaded
        .config
        .section("io.containerd.network.v1.cni")
        .unwrap();
    assert_eq!(section.timeout, Duration::from_secs(7));
    let printed = loaded.config.to_toml().unwrap();
    assert!(
        printed.contains("conf_dir = \"/etc/cni/net.d\""),
        "{printed}"
    );
    let refused = cni("bin_dirs = 3").unwrap_err().to_string();
    assert!(
        refused.contains("line 3") && refused.contains("io.containerd.network.v1.cni"),
        "{refused}"
    );
}
