//! Generates tonic stubs for every gRPC service under `../proto`, over the messages of `protos`.
//!
//! No `protoc`: the pure parser gives descriptors, tonic-build's generic generator the code.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protobuf::descriptor::{FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto};
use tonic_build::manual::{Builder, Method, Service};

/// Directories of `../proto` whose services are spoken over gRPC.
const GRPC: [&str; 2] = ["services", "grpc"];
/// tonic's defaults (4 MiB in, no limit out) and what replaces them: containerd's 16 MiB.
const LIMITS: [(End, &str, &str); 3] = [
    (
        End::Server,
        "max_decoding_message_size: None",
        "max_decoding_message_size: Some(crate::MAX_MESSAGE)",
    ),
    (
        End::Server,
        "max_encoding_message_size: None",
        "max_encoding_message_size: Some(crate::MAX_MESSAGE)",
    ),
    (
        End::Client,
        "tonic::client::Grpc::new(inner)",
        "crate::limited(tonic::client::Grpc::new(inner))",
    ),
];
/// Lists that a server writes straight into the frame.
const WRITTEN: [&str; 2] = [
    ".containerd.services.containers.v1.ListContainersResponse",
    ".containerd.services.images.v1.ListImagesResponse",
];

/// Which end of the wire a stub is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut inputs = Vec::new();
    for dir in GRPC {
        for file in fs::read_dir(root.join(dir))? {
            inputs.push(file?.path());
        }
    }
    inputs.sort();
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(root)
        .inputs(&inputs)
        .parse_and_typecheck()?
        .file_descriptors;
    let paths = rust_paths(&parsed);

    let (mut index, mut meters) = (String::new(), String::new());
    for file in &parsed {
        if GRPC
            .iter()
            .any(|dir| Path::new(file.name()).starts_with(dir))
        {
            write_module(&mut index, &out, file, &paths)?;
            write_meters(&mut meters, file)?;
        }
    }
    fs::write(out.join("services.rs"), index)?;
    let count = meters.lines().count();
    fs::write(
        out.join("meters.rs"),
        format!("static METERS: [Meter; {count}] = [\n{meters}];\n"),
    )?;
    Ok(())
}

/// A meter for each method of the file's services.
fn write_meters(meters: &mut String, file: &FileDescriptorProto) -> Result<(), Box<dyn Error>> {
    for service in &file.service {
        for method in &service.method {
            let kind = match (method.client_streaming(), method.server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            };
            let (package, name) = (file.package(), service.name());
            let path = format!("/{package}.{name}/{}", method.name());
            writeln!(meters, "Meter::new({path:?}, {kind:?}),")?;
        }
    }
    Ok(())
}

/// Rust path of every message by its full name with the leading dot.
fn rust_paths(files: &[FileDescriptorProto]) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    for file in files {
        for message in &file.message_type {
            let name = message.name();
            let path = format!("::protos::generated::{}::{name}", stem(file));
            paths.insert(format!(".{}.{name}", file.package()), path);
        }
    }
    paths
}

fn write_module(
    index: &mut String,
    out: &Path,
    file: &FileDescriptorProto,
    paths: &BTreeMap<String, String>,
) -> Result<(), Box<dyn Error>> {
    writeln!(index, "/// gRPC stubs of `{}`.", file.package())?;
    writeln!(
        index,
        "#[allow(missing_docs, missing_debug_implementations, unreachable_pub, \
         unused_qualifications, elided_lifetimes_in_paths, let_underscore_drop, \
         rustdoc::broken_intra_doc_links, clippy::all, clippy::pedantic, clippy::restriction, \
         reason = \"generated code is checked by its generator\")]"
    )?;
    writeln!(index, "pub mod {} {{", stem(file))?;
    for service in &file.service {
        let name = service.name();
        for (end, dir) in [(End::Client, "client"), (End::Server, "server")] {
            let out = out.join(dir);
            fs::create_dir_all(&out)?;
            Builder::new()
                .build_client(end == End::Client)
                .build_server(end == End::Server)
                .out_dir(&out)
                .compile(&[manual(file, service, paths, end)?]);
            let path = out.join(format!("{}.{name}.rs", file.package()));
            limit(&path, end)?;
            writeln!(index, "include!({:?});", path.display().to_string())?;
        }
        let module = snake(name);
        writeln!(index, "pub use {module}_client::{name}Client;")?;
        writeln!(index, "pub use {module}_server::{{{name}, {name}Server}};")?;
    }
    writeln!(index, "}}")?;
    Ok(())
}

/// The service in the generator's terms.
fn manual(
    file: &FileDescriptorProto,
    service: &ServiceDescriptorProto,
    paths: &BTreeMap<String, String>,
    end: End,
) -> Result<Service, Box<dyn Error>> {
    let mut made = Service::builder()
        .package(file.package())
        .name(service.name());
    for method in &service.method {
        made = made.method(manual_method(method, paths, end)?);
    }
    Ok(made.build())
}

fn manual_method(
    method: &MethodDescriptorProto,
    paths: &BTreeMap<String, String>,
    end: End,
) -> Result<Method, Box<dyn Error>> {
    let path = |name: &str| match name.strip_prefix(".google.protobuf.") {
        Some(known) => Ok(format!("::protos::well_known::{known}")),
        None => paths
            .get(name)
            .cloned()
            .ok_or_else(|| format!("no message {name}")),
    };
    let mut output = path(method.output_type())?;
    if end == End::Server && WRITTEN.contains(&method.output_type()) {
        output = format!("crate::Written<{output}>");
    }
    let mut made = Method::builder()
        .name(snake(method.name()))
        .route_name(method.name())
        .input_type(path(method.input_type())?)
        .output_type(output)
        .codec_path("crate::Codec");
    if method.client_streaming() {
        made = made.client_streaming();
    }
    if method.server_streaming() {
        made = made.server_streaming();
    }
    Ok(made.build())
}

/// Puts containerd's message limits in place of tonic's.
fn limit(path: &Path, end: End) -> Result<(), Box<dyn Error>> {
    let mut text = fs::read_to_string(path)?;
    for (_, old, new) in LIMITS.into_iter().filter(|(of, ..)| *of == end) {
        if !text.contains(old) {
            return Err(
                format!("{}: no {old:?}: has the generator changed?", path.display()).into(),
            );
        }
        text = text.replace(old, new);
    }
    fs::write(path, text)?;
    Ok(())
}

fn stem(file: &FileDescriptorProto) -> String {
    let stem = Path::new(file.name())
        .file_stem()
        .map(|s| s.to_string_lossy().into_owned());
    stem.unwrap_or_default()
}

fn snake(name: &str) -> String {
    let mut made = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            made.push('_');
        }
        made.extend(letter.to_lowercase());
    }
    made
}
