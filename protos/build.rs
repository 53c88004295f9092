//! Compiles `proto/` into messages and ttrpc stubs: no `protoc`, nothing generated is committed.
//!
//! The generator puts every file into one flat module named by the file's stem and refers to
//! other files as `super::<stem>`, so the stems under `proto/` must be unique.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protobuf::reflect::{EnumDescriptor, FileDescriptor, MessageDescriptor};
use protobuf_codegen::{Customize, CustomizeCallback};

/// Packages that nobody looks into by reflection: they get the smaller runtime.
const LITE: [&str; 3] = [
    "containerd.services.",
    "containerd.task.",
    "containerd.runtime.",
];
/// Of these, the package that carries event messages is printed by clients and needs reflection.
const FULL: &str = "containerd.services.images.v1";
/// Files whose services are spoken over ttrpc.
const TTRPC: [&str; 4] = [
    "shim/task_v2.proto",
    "shim/task_v3.proto",
    "shim/shim_events.proto",
    "shim/shim_sandbox.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let files = stems(root)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);

    protobuf_codegen::Codegen::new()
        .pure()
        .out_dir(&out)
        .include(root)
        .inputs(files.values())
        .customize(Customize::default().tokio_bytes(true).gen_mod_rs(false))
        .customize_callback(ByPackage)
        .run()?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include(root)
        .inputs(TTRPC.map(|file| root.join(file)))
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;

    fs::write(out.join("modules.rs"), modules(&files))?;
    fs::write(out.join("names.rs"), names(root, &files)?)?;
    Ok(())
}

/// Chooses the runtime by full name.
struct ByPackage;

impl ByPackage {
    fn choose(name: &str) -> Customize {
        let lite = !name.starts_with(FULL) && LITE.iter().any(|package| name.starts_with(package));
        Customize::default().lite_runtime(lite)
    }
}

impl CustomizeCallback for ByPackage {
    fn file(&self, file: &FileDescriptor) -> Customize {
        Self::choose(file.package())
    }

    fn message(&self, message: &MessageDescriptor) -> Customize {
        Self::choose(message.full_name())
    }

    fn enumeration(&self, enumeration: &EnumDescriptor) -> Customize {
        Self::choose(enumeration.full_name())
    }
}

/// All `.proto` files by stem.
fn stems(root: &Path) -> Result<BTreeMap<String, PathBuf>, Box<dyn Error>> {
    let mut found = BTreeMap::new();
    for dir in fs::read_dir(root)? {
        for file in fs::read_dir(dir?.path())? {
            let path = file?.path();
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
            if let Some(other) = found.insert(stem.unwrap_or_default(), path.clone()) {
                return Err(
                    format!("{} and {}: same stem", path.display(), other.display()).into(),
                );
            }
        }
    }
    Ok(found)
}

/// The list of modules, included by `lib.rs`.
fn modules(files: &BTreeMap<String, PathBuf>) -> String {
    let ttrpc = TTRPC.map(|file| Path::new("proto").join(file));
    let mut text = String::new();
    for (stem, path) in files {
        let _ = writeln!(text, "pub mod {stem};");
        if ttrpc.contains(path) {
            let _ = writeln!(text, "pub mod {stem}_ttrpc;");
        }
    }
    text
}

/// One `Named` impl per top-level message, so that a type URL needs no reflection.
fn names(root: &Path, files: &BTreeMap<String, PathBuf>) -> Result<String, Box<dyn Error>> {
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(root)
        .inputs(files.values())
        .file_descriptor_set()?;
    let mut text = String::new();
    for file in &parsed.file {
        let stem = Path::new(file.name())
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned());
        let stem = stem.unwrap_or_default();
        if !files.contains_key(&stem) || file.name().starts_with("google/protobuf/") {
            continue;
        }
        for message in &file.message_type {
            let (package, name) = (file.package(), message.name());
            writeln!(
                text,
                "impl Named for crate::generated::{stem}::{name} \
                 {{ const FULL_NAME: &'static str = \"{package}.{name}\"; }}"
            )?;
        }
    }
    Ok(text)
}
