//! Single changes to a spec, one per flag of `ctr run`.

use std::path::Path;

use serde_json::{Value, json};
use types::{ContainerId, Error, Namespace, Result};

use super::Spec;

/// A mount in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecMount {
    /// Type, empty for a bind mount that its options name.
    pub kind: String,
    /// Source on the host.
    pub source: String,
    /// Destination in the container.
    pub destination: String,
    /// Options.
    pub options: Vec<String>,
}

impl std::str::FromStr for SpecMount {
    type Err = Error;

    /// `type=bind,src=/a,dst=/b,options=rbind:ro`.
    fn from_str(text: &str) -> Result<Self> {
        let mut made = Self::default();
        for field in text.split(',') {
            let Some((key, value)) = field.split_once('=') else {
                return Err(Error::invalid_argument(
                    "invalid mount specification: expected key=val",
                ));
            };
            match key {
                "type" => made.kind = value.to_owned(),
                "source" | "src" => made.source = value.to_owned(),
                "destination" | "dst" => made.destination = value.to_owned(),
                "options" => made.options = value.split(':').map(str::to_owned).collect(),
                _ => {
                    return Err(Error::invalid_argument(format_args!(
                        "mount option {key:?} not supported"
                    )));
                }
            }
        }
        if !made.destination.starts_with('/') {
            return Err(Error::invalid_argument(format_args!(
                "mount {text:?} needs an absolute destination"
            )));
        }
        Ok(made)
    }
}

/// A range of ids inside and outside of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// First id in the container.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// Resource limits; what is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<i64>,
    /// Relative CPU weight.
    pub cpu_shares: Option<u64>,
    /// CPU time per period, in microseconds.
    pub cpu_quota: Option<i64>,
    /// Length of a period, in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs that may be used.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used.
    pub cpuset_mems: Option<String>,
}

impl Spec {
    /// Sets environment variables; a bare name removes the variable.
    pub fn env(&mut self, pairs: &[String]) {
        let name =
            |pair: &Value| -> Option<String> { Some(pair.as_str()?.split('=').next()?.to_owned()) };
        self.edit_list(&["process", "env"], |all| {
            for pair in pairs {
                let (key, value) = pair
                    .split_once('=')
                    .map_or((pair.as_str(), None), |(k, v)| (k, Some(v)));
                let at = all.iter().position(|old| name(old).as_deref() == Some(key));
                match (at, value) {
                    (Some(at), Some(_)) => all[at] = json!(pair),
                    (Some(at), None) => drop(all.remove(at)),
                    (None, Some(_)) => all.push(json!(pair)),
                    (None, None) => {}
                }
            }
        });
    }

    /// The environment variables, `NAME=value`.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        let all = self
            .value()
            .pointer("/process/env")
            .and_then(Value::as_array);
        let all = all.into_iter().flatten();
        all.filter_map(|pair| pair.as_str().map(str::to_owned))
            .collect()
    }

    /// Sets the command.
    pub fn args(&mut self, args: Vec<String>) {
        self.set(&["process", "args"], args);
    }

    /// True when there is a command.
    #[must_use]
    pub fn has_args(&self) -> bool {
        self.value()
            .pointer("/process/args")
            .and_then(Value::as_array)
            .is_some_and(|a| !a.is_empty())
    }

    /// Sets the working directory.
    pub fn cwd(&mut self, path: &str) {
        self.set(&["process", "cwd"], path);
    }

    /// Gives the process a terminal, or none.
    pub fn set_terminal(&mut self, on: bool) {
        if on {
            self.set(&["process", "terminal"], true);
        } else if let Some(process) = self.slot(&["process"]).as_object_mut() {
            process.shift_remove("terminal");
        }
    }

    /// Puts the root file system at `path`.
    pub fn root_path(&mut self, path: &Path) {
        self.set(&["root", "path"], path.to_string_lossy().into_owned());
    }

    /// Makes the root file system read-only.
    pub fn read_only(&mut self) {
        self.set(&["root", "readonly"], true);
    }

    /// Sets the host name.
    pub fn hostname(&mut self, name: &str) {
        self.set(&["hostname"], name);
    }

    /// Adds mounts; one at the same place takes the place of the default.
    pub fn mounts(&mut self, mounts: &[SpecMount]) {
        self.edit_list(&["mounts"], |all| {
            all.retain(|old| {
                let place = old["destination"].as_str().unwrap_or_default();
                !mounts.iter().any(|new| new.destination == place)
            });
            all.extend(mounts.iter().map(|mount| {
                json!({
                    "destination": mount.destination,
                    "type": mount.kind,
                    "source": mount.source,
                    "options": mount.options,
                })
            }));
        });
    }

    /// Sets annotations.
    pub fn annotations(&mut self, pairs: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in pairs {
            self.set(&["annotations", &key], value);
        }
    }

    /// Joins the existing namespace at `path`, or makes a new one when it is empty.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown kind of namespace.
    pub fn join_namespace(&mut self, kind: &str, path: &str) -> Result<()> {
        const KINDS: [&str; 7] = ["pid", "network", "uts", "mount", "user", "ipc", "cgroup"];
        if !KINDS.contains(&kind) {
            return Err(Error::invalid_argument(format_args!(
                "the Linux namespace type specified in --with-ns is not valid: {kind}"
            )));
        }
        self.leave_namespace(kind);
        let entry = if path.is_empty() {
            json!({ "type": kind })
        } else {
            json!({ "type": kind, "path": path })
        };
        self.extend(&["linux", "namespaces"], [entry]);
        Ok(())
    }

    /// Uses the host's namespace of this kind.
    pub fn leave_namespace(&mut self, kind: &str) {
        self.edit_list(&["linux", "namespaces"], |all| {
            all.retain(|entry| entry["type"] != kind);
        });
    }

    /// The host's network, with its host names and name servers.
    pub fn host_network(&mut self, hostname: &str) {
        self.leave_namespace("network");
        let bind = |path: &str| SpecMount {
            kind: "bind".into(),
            source: path.into(),
            destination: path.into(),
            options: vec!["rbind".into(), "ro".into()],
        };
        self.mounts(&[bind("/etc/hosts"), bind("/etc/resolv.conf")]);
        self.env(&[format!("HOSTNAME={hostname}")]);
    }

    /// Runs in a user namespace with these mappings.
    pub fn user_namespace(&mut self, uids: &[IdMapping], gids: &[IdMapping]) {
        self.leave_namespace("user");
        self.extend(&["linux", "namespaces"], [json!({ "type": "user" })]);
        let entry = |map: &IdMapping| json!({ "containerID": map.container, "hostID": map.host, "size": map.size });
        self.extend(&["linux", "uidMappings"], uids.iter().map(entry));
        self.extend(&["linux", "gidMappings"], gids.iter().map(entry));
    }

    /// Everything that the host's root may do: the given capabilities, no masked or read-only
    /// paths, writable sysfs and cgroups. `devices`: and all of the host's devices.
    pub fn privileged(&mut self, capabilities: &[String], devices: &[Value]) {
        for set in ["bounding", "effective", "permitted"] {
            self.set(&["process", "capabilities", set], capabilities);
        }
        self.set(&["linux", "maskedPaths"], json!([]));
        self.set(&["linux", "readonlyPaths"], json!([]));
        self.edit_list(&["mounts"], |all| all.iter_mut().for_each(make_writable));
        self.new_privileges();
        if devices.is_empty() {
            return;
        }
        self.extend(&["linux", "devices"], devices.iter().cloned());
        let any = json!([{ "allow": true, "access": "rwm" }]);
        self.set(&["linux", "resources", "devices"], any);
    }

    /// Gives the container the device `device` and the right to use it.
    pub fn device(&mut self, device: &Value) {
        let rule = json!({
            "allow": true,
            "type": device["type"],
            "major": device["major"],
            "minor": device["minor"],
            "access": "rwm",
        });
        self.extend(&["linux", "devices"], [device.clone()]);
        self.extend(&["linux", "resources", "devices"], [rule]);
    }

    /// Lets the process gain privileges by set-uid programs.
    pub fn new_privileges(&mut self) {
        self.set(&["process", "noNewPrivileges"], false);
    }

    /// Adds and drops capabilities.
    ///
    /// # Errors
    /// `InvalidArgument` for a name without its `CAP_` prefix.
    pub fn capabilities(&mut self, add: &[String], drop: &[String]) -> Result<()> {
        if add.iter().chain(drop).any(|name| !name.starts_with("CAP_")) {
            return Err(Error::invalid_argument(
                "capabilities must be specified with 'CAP_' prefix",
            ));
        }
        for set in ["bounding", "effective", "permitted"] {
            self.edit_list(&["process", "capabilities", set], |list| {
                for name in add {
                    if !list.iter().any(|old| old == name.as_str()) {
                        list.push(json!(name));
                    }
                }
                list.retain(|old| !drop.iter().any(|name| old == name.as_str()));
            });
        }
        Ok(())
    }

    /// Sets the cgroup; the empty path leaves it to the runtime.
    pub fn cgroup(&mut self, path: &str) {
        self.set(&["linux", "cgroupsPath"], path);
    }

    /// Gives the container `id` the cgroup that it would have been made with, where the spec has such a
    /// one of another container: two must not share it.
    pub fn move_cgroup(&mut self, namespace: &Namespace, id: &ContainerId) {
        let now = self.0.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        let parent = format!("/{namespace}/");
        let of_another = now.and_then(|now| now.strip_prefix(&parent));
        if of_another.is_some_and(|name| !name.is_empty() && !name.contains('/')) {
            self.cgroup(&format!("{parent}{id}"));
        }
    }

    /// Sets resource limits.
    pub fn limits(&mut self, limits: &Limits) {
        let mut put = |path: [&str; 2], value: Option<Value>| {
            if let Some(value) = value {
                self.set(&["linux", "resources", path[0], path[1]], value);
            }
        };
        put(["memory", "limit"], limits.memory.map(Value::from));
        put(["cpu", "shares"], limits.cpu_shares.map(Value::from));
        put(["cpu", "quota"], limits.cpu_quota.map(Value::from));
        put(["cpu", "period"], limits.cpu_period.map(Value::from));
        put(["cpu", "cpus"], limits.cpuset_cpus.clone().map(Value::from));
        put(["cpu", "mems"], limits.cpuset_mems.clone().map(Value::from));
    }

    /// Sets the limit of open files.
    pub fn open_files(&mut self, soft: u64, hard: u64) {
        self.edit_list(&["process", "rlimits"], |all| {
            all.retain(|limit| limit["type"] != "RLIMIT_NOFILE");
            all.push(json!({ "type": "RLIMIT_NOFILE", "hard": hard, "soft": soft }));
        });
    }

    /// Sets the propagation of mounts between host and container.
    pub fn root_propagation(&mut self, mode: &str) {
        self.set(&["linux", "rootfsPropagation"], mode);
    }

    /// Confines the process by an AppArmor profile that is loaded already.
    pub fn apparmor(&mut self, profile: &str) {
        self.set(&["process", "apparmorProfile"], profile);
    }

    /// Sets the seccomp profile, a JSON object as the runtime spec has it.
    pub fn seccomp(&mut self, profile: Value) {
        self.set(&["linux", "seccomp"], profile);
    }

    /// Puts the container into a class of service.
    pub fn rdt_class(&mut self, class: &str) {
        self.set(&["linux", "intelRdt", "closID"], class);
    }
}

/// Takes `ro` from a mount of the kernel's own settings.
fn make_writable(mount: &mut Value) {
    if matches!(mount["type"].as_str(), Some("sysfs" | "cgroup"))
        && let Some(options) = mount["options"].as_array_mut()
    {
        for option in options.iter_mut().filter(|o| **o == "ro") {
            *option = json!("rw");
        }
    }
}
