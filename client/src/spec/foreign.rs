//! What a spec asks for beyond what a container has by default: whoever runs one that somebody else has
//! written gives all of it away.
//!
//! Invariant: nothing is let through because it is not known. Fields are listed by their exact names (Go
//! reads `Hooks` as `hooks`), kinds of mounts too; what is no list or object where there should be one is
//! told as well.

use serde_json::{Map, Value};
use types::{ContainerId, Namespace};

use super::Spec;
use super::default::{CAPABILITIES, DEVICES, MASKED, READ_ONLY};

/// What a document may say at its top.
const TOP: [&str; 7] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "annotations",
];
const PROCESS: [&str; 12] = [
    "terminal",
    "consoleSize",
    "user",
    "args",
    "env",
    "cwd",
    "rlimits",
    "noNewPrivileges",
    "apparmorProfile",
    "oomScoreAdj",
    "selinuxLabel",
    "capabilities",
];
const LINUX: [&str; 13] = [
    "uidMappings",
    "gidMappings",
    "sysctl",
    "resources",
    "cgroupsPath",
    "namespaces",
    "devices",
    "seccomp",
    "rootfsPropagation",
    "maskedPaths",
    "readonlyPaths",
    "mountLabel",
    "personality",
];
/// Not `unified`, by which any file of a cgroup is written, `cgroup.procs` too.
const RESOURCES: [&str; 8] = [
    "devices",
    "memory",
    "cpu",
    "pids",
    "blockIO",
    "hugepageLimits",
    "network",
    "rdma",
];
const MEMORY: [&str; 9] = [
    "limit",
    "reservation",
    "swap",
    "kernel",
    "kernelTCP",
    "swappiness",
    "disableOOMKiller",
    "useHierarchy",
    "checkBeforeUpdate",
];
const SECCOMP: [&str; 5] = [
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "syscalls",
];
const MOUNT: [&str; 4] = ["destination", "type", "source", "options"];
/// Where file systems of the kernel may be seen: at another place, none of their files would be masked.
const PLACES: [(&str, &str, bool); 4] = [
    ("proc", "/proc", false),
    ("sysfs", "/sys", true),
    ("cgroup", "/sys/fs/cgroup", true),
    ("cgroup2", "/sys/fs/cgroup", true),
];
/// Options of those: what clients write by default. Runtimes know others that undo `ro`, as `rrw` does.
const PLAIN: [&str; 8] = [
    "ro",
    "nosuid",
    "nodev",
    "noexec",
    "relatime",
    "strictatime",
    "private",
    "rprivate",
];
/// Kinds of mounts that have nothing of the host.
const OWN: [&str; 3] = ["tmpfs", "devpts", "mqueue"];
/// Namespaces without which a container is on the host.
const APART: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];
/// What the clients that write such documents mask in each version.
const NEWER: [&str; 2] = ["/proc/timer_stats", "/sys/devices/virtual/powercap"];
/// Annotations by which runtimes are told to run programs, read files or change units of systemd, and shims
/// whose containers theirs belongs to.
const HEEDED: [&str; 7] = [
    "org.criu.",
    "org.systemd.",
    "run.oci.",
    "io.katacontainers.",
    "dev.gvisor.",
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
/// The device of tunnels: some clients allow it to everybody, to whom it is of no use without a capability.
const TUNNELS: (u64, Option<u64>) = (10, Some(200));
/// So much of a text is told.
const SHOWN: usize = 80;

/// What was found.
#[derive(Debug, Default)]
struct Found(Vec<String>);

impl Found {
    fn note(&mut self, what: &str, value: &str) {
        let cut: String = value.chars().take(SHOWN).collect();
        self.0.push(format!("{what} {cut:?}"));
    }

    /// Fields that are none of these.
    fn fields(&mut self, object: &Map<String, Value>, place: &str, known: &[&str]) {
        for (key, value) in object {
            if !known.contains(&key.as_str()) && !is_nothing(value) {
                self.note("field", &format!("{place}{key}"));
            }
        }
    }

    /// The object at `key`, with no other fields than these.
    fn object<'a>(
        &mut self,
        of: &'a Map<String, Value>,
        place: &str,
        key: &str,
        known: &[&str],
    ) -> Option<&'a Map<String, Value>> {
        let value = of.get(key).filter(|value| !is_nothing(value))?;
        let found = value.as_object();
        match found {
            Some(object) => self.fields(object, &format!("{place}{key}."), known),
            None => self.note("no object as", key),
        }
        found
    }

    fn list<'a>(&mut self, of: &'a Map<String, Value>, key: &str) -> &'a [Value] {
        match of.get(key) {
            Some(Value::Array(list)) => list,
            None | Some(Value::Null) => &[],
            Some(_) => {
                self.note("no list as", key);
                &[]
            }
        }
    }

    fn top(&mut self, spec: &Map<String, Value>, cgroup: &str) {
        let known = [&TOP[..], &["hooks", "linux"]].concat();
        self.fields(spec, "", &known);
        if let Some(hooks) = spec.get("hooks").filter(|hooks| !is_nothing(hooks)) {
            match hooks.as_object() {
                Some(hooks) => hooks.keys().for_each(|name| self.note("hook", name)),
                None => self.note("hook", "?"),
            }
        }
        match self.object(spec, "", "root", &["path", "readonly"]) {
            // Where the snapshot is mounted, and nothing else.
            Some(root) if root.get("path").is_some_and(|path| path == "rootfs") => {}
            Some(root) => self.note("root file system at", &shown(root.get("path"))),
            None => self.note("root file system at", ""),
        }
        for mount in self.list(spec, "mounts") {
            self.mount(mount);
        }
        if let Some(Value::Object(all)) = spec.get("annotations") {
            let heeded = all
                .keys()
                .filter(|key| HEEDED.iter().any(|known| key.starts_with(known)));
            heeded.for_each(|key| self.note("annotation", key));
        }
        self.process(spec);
        match spec.get("linux").and_then(Value::as_object) {
            Some(linux) => self.linux(linux, cgroup),
            None => self.note("field", "linux: absent"),
        }
    }

    fn mount(&mut self, mount: &Value) {
        let Some(mount) = mount.as_object() else {
            return self.note("mount", &mount.to_string());
        };
        self.fields(mount, "mounts.", &MOUNT);
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, place) = (text("type"), text("destination"));
        let options = self.list(mount, "options");
        let has = |wanted: &str| options.iter().any(|option| option == wanted);
        let is_bind = kind == "bind" || has("bind") || has("rbind");
        let is_fine = OWN.contains(&kind)
            || PLACES.iter().any(|(known, at, must_be_read_only)| {
                let is_open = *must_be_read_only && !has("ro");
                let is_plain = |option: &Value| PLAIN.iter().any(|plain| option == plain);
                kind == *known && place == *at && !is_open && options.iter().all(is_plain)
            });
        if is_bind {
            self.note("bind mount of", text("source"));
        } else if !is_fine || has("remount") {
            // One that changes another would make that writable.
            self.note("mount of", &format!("{kind} at {place}"));
        }
    }

    fn process(&mut self, spec: &Map<String, Value>) {
        let Some(process) = self.object(spec, "", "process", &PROCESS) else {
            return self.note("field", "process: absent");
        };
        if process.get("noNewPrivileges") != Some(&Value::Bool(true)) {
            self.note("field", "process.noNewPrivileges: not true");
        }
        let score = process.get("oomScoreAdj").filter(|score| !score.is_null());
        // Others are killed instead of it.
        if let Some(score) = score
            && score.as_f64().is_none_or(|score| score < 0.0)
        {
            self.note("field", &format!("process.oomScoreAdj: {score}"));
        }
        let Some(sets) = process.get("capabilities").filter(|sets| !is_nothing(sets)) else {
            return;
        };
        let Some(sets) = sets.as_object() else {
            return self.note("no object as", "capabilities");
        };
        // Whatever they are named: all of them only add.
        let mut told = Vec::new();
        for name in sets.keys() {
            for capability in self.list(sets, name) {
                let is_usual = CAPABILITIES.iter().any(|usual| capability == usual);
                if !is_usual && !told.contains(&capability) {
                    told.push(capability);
                    self.note("capability", &shown(Some(capability)));
                }
            }
        }
    }

    fn linux(&mut self, linux: &Map<String, Value>, cgroup: &str) {
        self.fields(linux, "linux.", &LINUX);
        let mut kinds = Vec::new();
        for namespace in self.list(linux, "namespaces") {
            if let Some(namespace) = namespace.as_object() {
                self.fields(namespace, "linux.namespaces.", &["type", "path"]);
            }
            let kind = namespace["type"].as_str().unwrap_or_default();
            if !is_nothing(&namespace["path"]) {
                self.note("namespace at", &shown(namespace.get("path")));
            }
            kinds.push(kind);
        }
        for kind in APART.iter().filter(|kind| !kinds.contains(kind)) {
            self.note("the host's namespace", kind);
        }
        for device in self.list(linux, "devices") {
            self.note("device", &shown(device.get("path")));
        }
        let nothing = Map::new();
        let resources = self.object(linux, "linux.", "resources", &RESOURCES);
        self.resources(resources.unwrap_or(&nothing));
        self.object(linux, "linux.", "seccomp", &SECCOMP);
        for (key, usual) in [("maskedPaths", &MASKED[..]), ("readonlyPaths", &READ_ONLY)] {
            let list = self.list(linux, key);
            let bare = usual.iter().filter(|path| !NEWER.contains(path));
            for path in bare.filter(|path| !list.iter().any(|have| have == **path)) {
                self.note("access to", path);
            }
        }
        match linux.get("cgroupsPath") {
            None | Some(Value::Null) => {}
            Some(Value::String(path)) if path.is_empty() || path == cgroup => {}
            other => self.note("cgroup", &shown(other)),
        }
        match linux.get("rootfsPropagation") {
            Some(mode) if shown(Some(mode)).contains("shared") => {
                self.note("propagation", &shown(Some(mode)));
            }
            _ => {}
        }
    }

    fn resources(&mut self, resources: &Map<String, Value>) {
        let rules = self.list(resources, "devices");
        // Where nothing is denied, all is allowed.
        if !rules.first().is_some_and(denies_all) {
            self.note("right to devices", "that the first rule does not deny");
        }
        for rule in rules {
            self.rule(rule);
        }
        let memory = self.object(resources, "linux.resources.", "memory", &MEMORY);
        let endures = memory.and_then(|memory| memory.get("disableOOMKiller"));
        if let Some(endures) = endures
            && *endures != false
            && !endures.is_null()
        {
            self.note("field", "linux.resources.memory.disableOOMKiller");
        }
    }

    /// A rule for devices.
    fn rule(&mut self, rule: &Value) {
        let known = ["allow", "type", "major", "minor", "access"];
        if let Some(rule) = rule.as_object() {
            self.fields(rule, "linux.resources.devices.", &known);
        }
        if rule["allow"] == false {
            return;
        }
        let number = |key: &str| rule[key].as_u64();
        let is_usual = rule["type"] == "c"
            && number("major").is_some_and(|major| {
                let fits = |(one, two): &(u32, Option<u32>)| {
                    u64::from(*one) == major
                        && two.is_none_or(|two| number("minor") == Some(two.into()))
                };
                DEVICES.iter().any(fits) || (major, number("minor")) == TUNNELS
            });
        if !is_usual {
            self.note("right to devices", &rule.to_string());
        }
    }
}

/// True for the rule that denies every device.
fn denies_all(rule: &Value) -> bool {
    let kind = &rule["type"];
    let is_all = is_nothing(kind) || kind == "a";
    let has_number = !rule["major"].is_null() || !rule["minor"].is_null();
    rule["allow"] == false && is_all && !has_number && rule["access"] == "rwm"
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// True for what says nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

impl Spec {
    /// What the container would have of the host that one with the default spec, and the name `id`, has
    /// not: hooks, bind mounts, namespaces, devices, capabilities, …; in words.
    #[must_use]
    pub fn beyond_default(&self, namespace: &Namespace, id: &ContainerId) -> Vec<String> {
        let mut found = Found::default();
        match self.value().as_object() {
            Some(spec) => found.top(spec, &format!("/{namespace}/{id}")),
            None => found.note("no object as", "spec"),
        }
        found.0
    }
}

#[cfg(test)]
mod tests;
