//! The flags of `ctr run` and `ctr containers create`, and what they make of a spec.

use std::path::{Path, PathBuf};

use client::RuncOptions;
use client::spec::{IdMapping, Limits, Spec, SpecMount, UserSpec, current_capabilities};
use serde_json::Value;
use types::{Any, Error, Platform, Result};

use crate::devices;
use crate::network::container::{Net, NetFlags};
use crate::text;

/// The runtime that runc's flags are for.
const RUNTIME: &str = types::DEFAULT_RUNTIME;
/// Length of a CPU period that `--cpus` counts in, in microseconds.
const CPU_PERIOD: u32 = 100_000;
/// Flags that make the spec, or the snapshot of an image: a spec that is given leaves them nothing
/// to do. The snapshotter is not among them because the environment may name it for all commands.
const OF_THE_SPEC: [&str; 41] = [
    "snapshotter_label",
    "cwd",
    "env",
    "env_file",
    "annotation",
    "mount",
    "net_host",
    "cni",
    "network_namespace",
    "net",
    "ip",
    "port",
    "privileged",
    "privileged_without_host_devices",
    "read_only",
    "with_ns",
    "allow_new_privs",
    "memory_limit",
    "cap_add",
    "cap_drop",
    "seccomp_profile",
    "seccomp",
    "apparmor_profile",
    "rdt_class",
    "hostname",
    "user",
    "rootfs",
    "cpu_quota",
    "cpu_period",
    "rootfs_propagation",
    "device",
    "cgroup",
    "platform",
    "uidmap",
    "gidmap",
    "remap_labels",
    "cpus",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "rlimit_nofile",
];

/// Flags of a container.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ContainerFlags {
    /// Runtime name or absolute path to runtime binary; without it the namespace's, else io.containerd.runc.v2
    #[arg(long, default_value = "", hide_default_value = true)]
    runtime: String,
    /// Runtime config path, for other runtimes than runc's
    #[arg(long)]
    runtime_config_path: Option<String>,
    /// Specify runc-compatible binary
    #[arg(long)]
    runc_binary: Option<String>,
    /// Specify runc-compatible root
    #[arg(long)]
    runc_root: Option<String>,
    /// Start runc with systemd cgroup manager
    #[arg(long, requires = "cgroup")]
    runc_systemd_cgroup: bool,
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    pub(crate) snapshotter: String,
    /// Labels added to the new snapshot for this container
    #[arg(long)]
    pub(crate) snapshotter_label: Vec<String>,
    /// Path to a runtime spec that is used as it is, so that no flag about the spec goes with it
    #[arg(short, long, conflicts_with_all = OF_THE_SPEC)]
    pub(crate) config: Option<PathBuf>,
    /// Working directory of the process
    #[arg(long)]
    cwd: Option<String>,
    /// Environment variables, `FOO=bar`; a bare name unsets
    #[arg(long)]
    env: Vec<String>,
    /// File with environment variables, one a line
    #[arg(long)]
    env_file: Option<PathBuf>,
    /// Labels of the container, `foo=bar`
    #[arg(long)]
    pub(crate) label: Vec<String>,
    /// OCI annotations, `foo=bar`
    #[arg(long)]
    annotation: Vec<String>,
    /// Mounts, `type=bind,src=/tmp,dst=/host,options=rbind:ro`
    #[arg(long)]
    mount: Vec<SpecMount>,
    #[command(flatten)]
    pub(crate) net: NetFlags,
    /// Run privileged container
    #[arg(long)]
    privileged: bool,
    /// Don't pass all host devices to privileged container
    #[arg(long, requires = "privileged")]
    privileged_without_host_devices: bool,
    /// Set the container's file system as readonly
    #[arg(long)]
    read_only: bool,
    /// Create the container in the given sandbox
    #[arg(long, default_value = "")]
    pub(crate) sandbox: String,
    /// Allocate a TTY for the container
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Namespaces to join, `<nstype>:<path>`
    #[arg(long)]
    with_ns: Vec<String>,
    /// Turn off the NoNewPrivileges feature
    #[arg(long)]
    allow_new_privs: bool,
    /// Memory limit in bytes
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    memory_limit: i64,
    /// Add Linux capabilities, with `CAP_` prefix
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities, with `CAP_` prefix
    #[arg(long)]
    cap_drop: Vec<String>,
    /// File with a seccomp profile as the runtime spec has it; needs --seccomp
    #[arg(long, requires = "seccomp")]
    seccomp_profile: Option<PathBuf>,
    /// Confine the container by the seccomp profile
    #[arg(long, requires = "seccomp_profile")]
    seccomp: bool,
    /// AppArmor profile that is loaded already
    #[arg(long)]
    apparmor_profile: Option<String>,
    /// Name of the RDT class of the container
    #[arg(long)]
    rdt_class: Option<String>,
    /// The container's host name
    #[arg(long)]
    hostname: Option<String>,
    /// User, `<name|uid>[:<group|gid>]`
    #[arg(short, long)]
    pub(crate) user: Option<UserSpec>,
    /// Use a root file system directory instead of an image
    #[arg(long, conflicts_with_all = ["snapshotter_label", "platform"])]
    pub(crate) rootfs: bool,
    /// Limit CPU CFS quota
    #[arg(long, allow_hyphen_values = true, conflicts_with = "cpus")]
    cpu_quota: Option<i64>,
    /// Limit CPU CFS period
    #[arg(long, conflicts_with = "cpus")]
    cpu_period: Option<u64>,
    /// Propagation of the container's root file system
    #[arg(long)]
    rootfs_propagation: Option<String>,
    /// Devices to add, files or directory trees
    #[arg(long)]
    device: Vec<PathBuf>,
    /// Cgroup path; empty to leave it to the runtime
    #[arg(long)]
    cgroup: Option<String>,
    /// Use the image for a specific platform
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
    /// User namespace mapping, `container-uid:host-uid:length`
    #[arg(long, value_parser = mapping, requires = "gidmap")]
    uidmap: Vec<IdMapping>,
    /// User namespace mapping, `container-gid:host-gid:length`
    #[arg(long, value_parser = mapping, requires = "uidmap")]
    gidmap: Vec<IdMapping>,
    /// Let the snapshotter do the id mapping, which it does in any case
    #[arg(long, requires = "uidmap")]
    remap_labels: bool,
    /// Set the CFS cpu quota in CPUs
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    cpus: f64,
    /// Set the cpu shares
    #[arg(long, default_value_t = 1024)]
    cpu_shares: u64,
    /// CPUs the container will run on, `1-2,4`
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes the container will use, `1-2,4`
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Limit of open files, `soft[:hard]`
    #[arg(long, value_parser = open_files)]
    rlimit_nofile: Option<(u64, u64)>,
}

impl ContainerFlags {
    /// Name of the runtime; empty for the namespace's.
    pub(crate) fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The network, if what is said about it fits together.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn network(&self) -> Result<Net> {
        let joins = self.with_ns.iter().any(|join| join.starts_with("network:"));
        if joins && self.net.is_given() {
            return Err(Error::invalid_argument(
                "--with-ns network:PATH names the network, and so does another flag",
            ));
        }
        self.net.wish()
    }

    /// Options of this runtime, as the container's record keeps them.
    pub(crate) fn runtime_options(&self, runtime: &str) -> Result<Option<Any>> {
        if runtime == RUNTIME {
            if self.runtime_config_path.is_some() {
                return Err(Error::invalid_argument(format_args!(
                    "--runtime-config-path is not for {RUNTIME:?}"
                )));
            }
            let options = RuncOptions {
                binary: self.runc_binary.clone().unwrap_or_default(),
                root: self.runc_root.clone().unwrap_or_default(),
                systemd_cgroup: self.runc_systemd_cgroup,
                ..RuncOptions::default()
            };
            return options.to_any().map(Some);
        }
        if self.runc_binary.is_some() || self.runc_root.is_some() || self.runc_systemd_cgroup {
            return Err(Error::invalid_argument(format_args!(
                "specifying runc-binary, runc-root and runc-systemd-cgroup is only supported for {RUNTIME:?} runtime"
            )));
        }
        self.runtime_config_path
            .as_deref()
            .map(RuncOptions::config_path)
            .transpose()
    }

    /// Labels that tell the snapshotter about id mappings.
    pub(crate) fn mapping_labels(&self) -> impl Iterator<Item = (&'static str, String)> {
        let text = |maps: &[IdMapping]| -> Option<String> {
            let all: Vec<String> = maps
                .iter()
                .map(|m| format!("{}:{}:{}", m.container, m.host, m.size))
                .collect();
            (!all.is_empty()).then(|| all.join(","))
        };
        [
            ("containerd.io/snapshot/uidmapping", text(&self.uidmap)),
            ("containerd.io/snapshot/gidmapping", text(&self.gidmap)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }

    /// Environment of flags and file, to be set before the image's.
    pub(crate) fn environment(&self, spec: &mut Spec) -> Result<()> {
        if let Some(path) = &self.env_file {
            let file = read(path)?;
            let lines = String::from_utf8_lossy(&file);
            let pairs: Vec<String> = lines
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned)
                .collect();
            spec.env(&pairs);
        }
        spec.env(&self.env);
        Ok(())
    }

    /// Everything else that the flags say, after the image's config.
    pub(crate) fn apply(&self, spec: &mut Spec, command: &[String]) -> Result<()> {
        spec.mounts(&self.mount);
        if self.read_only {
            spec.read_only();
        }
        if !command.is_empty() {
            spec.args(command.to_vec());
        }
        if let Some(cwd) = &self.cwd {
            spec.cwd(cwd);
        }
        if self.tty {
            spec.set_terminal(true);
            spec.env(&["TERM=xterm".to_owned()]);
        }
        self.privileges(spec)?;
        if self.network()? == Net::Host {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_err(|e| Error::os("get hostname", e))?;
            spec.host_network(name.trim());
        }
        spec.annotations(pairs(&self.annotation)?);
        for join in &self.with_ns {
            let (kind, path) = join.split_once(':').ok_or_else(|| {
                Error::invalid_argument(
                    "joining a Linux namespace using --with-ns requires the format 'nstype:path'",
                )
            })?;
            spec.join_namespace(kind, path)?;
        }
        if !self.uidmap.is_empty() {
            spec.user_namespace(&self.uidmap, &self.gidmap);
        }
        if let Some(cgroup) = &self.cgroup {
            spec.cgroup(cgroup);
        }
        spec.limits(&self.limits()?);
        if let Some((soft, hard)) = self.rlimit_nofile {
            spec.open_files(soft, hard);
        }
        if let Some(mode) = &self.rootfs_propagation {
            spec.root_propagation(mode);
        }
        if let Some(class) = &self.rdt_class {
            spec.rdt_class(class);
        }
        if let Some(name) = &self.hostname {
            spec.hostname(name);
        }
        Ok(())
    }

    /// Parity: cmd/ctr/commands/run/run_unix.go: labels become annotations as well.
    pub(crate) fn annotate_labels(&self, spec: &mut Spec) {
        spec.annotations(text::parse_labels(&self.label));
    }

    fn privileges(&self, spec: &mut Spec) -> Result<()> {
        if self.privileged {
            let devices = if self.privileged_without_host_devices {
                Vec::new()
            } else {
                devices::all(Path::new("/dev"))?
            };
            spec.privileged(&current_capabilities()?, &devices);
        }
        spec.capabilities(&self.cap_add, &self.cap_drop)?;
        if self.allow_new_privs {
            spec.new_privileges();
        }
        if let Some(path) = &self.seccomp_profile {
            let profile: Value = serde_json::from_slice(&read(path)?).map_err(|e| {
                Error::invalid_argument(format_args!("seccomp profile {}: {e}", path.display()))
            })?;
            spec.seccomp(profile);
        }
        if let Some(profile) = &self.apparmor_profile {
            spec.apparmor(profile);
        }
        for path in &self.device {
            for device in devices::at(path)? {
                spec.device(&device);
            }
        }
        Ok(())
    }

    fn limits(&self) -> Result<Limits> {
        if !self.cpus.is_finite() || self.cpus < 0.0 || self.cpus > 65_536.0 {
            return Err(Error::invalid_argument(format_args!(
                "cpus {} out of range",
                self.cpus
            )));
        }
        let mut limits = Limits {
            memory: Some(self.memory_limit).filter(|limit| *limit != 0),
            cpu_shares: Some(self.cpu_shares).filter(|shares| *shares != 0),
            cpu_quota: self.cpu_quota,
            cpu_period: self.cpu_period,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
        };
        if self.cpus > 0.0 {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked to be far below 2^53"
            )]
            let quota = (self.cpus * f64::from(CPU_PERIOD)) as i64;
            limits.cpu_quota = Some(quota);
            limits.cpu_period = Some(CPU_PERIOD.into());
        }
        Ok(limits)
    }
}

/// Reads a file that a flag names.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::os(format_args!("read {}", path.display()), e))
}

fn pairs(flags: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |flag: &String| match flag.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Error::invalid_argument(format_args!(
            "invalid key=value format annotation: {flag}"
        ))),
    };
    flags.iter().map(pair).collect()
}

fn mapping(text: &str) -> Result<IdMapping> {
    let parts: Vec<Option<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(container), Some(host), Some(size)] => Ok(IdMapping {
            container,
            host,
            size,
        }),
        _ => Err(Error::invalid_argument(
            "user namespace mappings require the format `container-id:host-id:size`",
        )),
    }
}

fn open_files(text: &str) -> Result<(u64, u64)> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    match (soft.parse(), hard.parse()) {
        (Ok(soft), Ok(hard)) if soft <= hard => Ok((soft, hard)),
        _ => Err(Error::invalid_argument(format_args!(
            "failed to parse rlimit-nofile {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests;
