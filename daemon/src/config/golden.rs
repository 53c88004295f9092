//! Files of others: they load, they mean what they mean there, and what of them is not used is told.

use std::path::{Path, PathBuf};

use types::Result;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/config/golden")
        .join(name)
}

fn read(name: &str) -> Result<(Config, Vec<String>)> {
    let loaded = load(Some(&golden(name)), Overrides::default())?;
    let own = format!("{}: ", golden(name).display());
    let bare = |text: &String| text.replace(&own, "");
    Ok((loaded.config, loaded.warnings.iter().map(bare).collect()))
}

/// What the file says in the newest layout, as a table: how it is written is no matter.
fn migrated_table(name: &str) -> toml::Table {
    let (text, _) = migrated(Some(&golden(name))).unwrap();
    toml::from_str(&text).unwrap()
}

#[test]
fn the_default_of_debian_is_ours_but_for_cri_and_its_decoders() {
    let (config, warnings) = read("debian-1.6.20.toml").unwrap();
    assert_eq!(
        warnings,
        ["line 45: this daemon has no CRI yet: its settings are not used"]
    );
    let ours = Config::default();
    assert_eq!((&config.root, &config.state), (&ours.root, &ours.state));
    assert_eq!((&config.grpc, &config.ttrpc), (&ours.grpc, &ours.ttrpc));
    assert_eq!(config.debug, ours.debug);
    assert_eq!(config.stream_processors.len(), 2);
    let mut plugins = plugins::complete(&config.plugins).unwrap();
    let diff = "io.containerd.service.v1.diff-service";
    // Theirs says nothing of it, and ours is to flush.
    assert_eq!(plugins[diff]["sync_fs"].as_bool(), Some(true));
    // It had one differ, and a file that names that one means it.
    let order: toml::Value = vec!["walking", "erofs"].into();
    let section = plugins.get_mut(diff).unwrap();
    let order = section.insert("default".into(), order);
    assert_eq!(order, Some(vec!["walking"].into()));
    let platforms = "io.containerd.runtime.v2.task";
    plugins.insert(platforms.into(), ours.section(platforms).unwrap());
    let mut want = plugins::complete(&ours.plugins).unwrap();
    want.insert(platforms.into(), ours.section(platforms).unwrap());
    assert_eq!(plugins, want);
}

#[test]
fn a_file_of_kubeadm_keeps_what_kubelets_stand_on() {
    let (config, warnings) = read("kubeadm.toml").unwrap();
    let scheduler: Scheduler = config.section("io.containerd.gc.v1.scheduler").unwrap();
    assert_eq!(scheduler.schedule_delay.as_millis(), 10);
    assert_eq!(config.oom_score, -999);
    for told in [
        "line 41: key \"plugins.io.containerd.grpc.v1.cri.containerd.runtimes.nvidia.runtime_root\" \
         has no meaning any more: ignored",
        "line 20: this daemon has no CRI yet: its settings are not used",
    ] {
        assert!(warnings.iter().any(|w| w == told), "{told}: {warnings:#?}");
    }
    assert_eq!(migrated_table("kubeadm.toml"), {
        let text = std::fs::read_to_string(golden("kubeadm.migrated.toml")).unwrap();
        toml::from_str::<toml::Table>(&text).unwrap()
    });
    // What was migrated is at home where it is.
    assert_eq!(
        migrated_table("kubeadm.migrated.toml"),
        migrated_table("kubeadm.toml")
    );
}

#[test]
fn the_file_that_dockerd_manages_means_the_same() {
    let (config, warnings) = read("docker.toml").unwrap();
    let unsupported: Vec<_> = warnings
        .iter()
        .filter(|w| !w.contains("debug.address"))
        .collect();
    assert_eq!(unsupported, Vec::<&String>::new());
    assert_eq!(config.root, Path::new("/var/lib/docker/containerd/daemon"));
    let address = "/var/run/docker/containerd/containerd.sock";
    assert_eq!(config.grpc.address, address);
    assert_eq!(config.ttrpc_address(), format!("{address}.ttrpc"));
    assert_eq!(config.debug.level, Level::Info);
    assert!(!config.enabled("io.containerd.grpc.v1.cri"));
}

#[test]
fn a_file_without_a_version_means_what_it_meant_then() {
    let (config, warnings) = read("version-1.toml").unwrap();
    assert_eq!(
        warnings,
        ["line 5: key \"plugins.io.containerd.runtime.v1.linux\" has no meaning any more: ignored"]
    );
    assert!(!config.enabled("io.containerd.grpc.v1.cri"));
    assert_eq!(
        config.disabled_plugins,
        [
            "io.containerd.grpc.v1.cri",
            "io.containerd.snapshotter.v1.aufs"
        ]
    );
    let overlay: Overlay = config
        .section("io.containerd.snapshotter.v1.overlayfs")
        .unwrap();
    assert_eq!(overlay.root_path, Path::new("/data/snapshots"));
    let scheduler: Scheduler = config.section("io.containerd.gc.v1.scheduler").unwrap();
    assert_eq!(scheduler.startup_delay.as_secs(), 1);
}

#[test]
fn a_file_of_version_four_has_its_sockets_among_the_plugins() {
    let (config, warnings) = read("version-4.toml").unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(
        (&*config.grpc.address, config.grpc.gid),
        ("/run/c/c.sock", 7)
    );
    assert_eq!(config.ttrpc_address(), "/run/c/t.sock");
    assert_eq!(
        (config.debug.level, config.debug.format),
        (Level::Debug, Format::Json)
    );
}

#[test]
fn every_migrated_file_reads_as_the_same_configuration() {
    for name in [
        "debian-1.6.20.toml",
        "kubeadm.toml",
        "docker.toml",
        "version-1.toml",
        "version-4.toml",
    ] {
        let (mut before, _) = read(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("migrated.toml");
        std::fs::write(&file, migrated(Some(&golden(name))).unwrap().0).unwrap();
        let loaded = load(Some(&file), Overrides::default()).unwrap();
        before.version = loaded.config.version;
        assert_eq!(loaded.config, before, "{name}");
        assert_eq!(
            migrated(Some(&file)).unwrap().1.len(),
            loaded.warnings.len(),
            "{name}"
        );
    }
}
