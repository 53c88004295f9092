//! The api files against the contract recorded from Go (`testdata/contract.txt`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use protobuf::descriptor::field_descriptor_proto::{Label, Type};
use protobuf::descriptor::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};
use protobuf::descriptor::{FileDescriptorProto, ServiceDescriptorProto};

/// Not in Go's containerd: the health protocol, and what is ours alone.
const FOREIGN: [&str; 6] = [
    "grpc.health.v1",
    "containerd.runtime.stdio.v1",
    "containerd.services.attach.v1",
    "containerd.services.flight.v1",
    "containerd.services.network.v1",
    "containerd.events.network.v1",
];

/// Fields from this number on are additions of ours: Go has no number near it, and skips them.
const OURS: i32 = 1000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parsed() -> Vec<FileDescriptorProto> {
    let mut inputs: Vec<PathBuf> = Vec::new();
    for dir in fs::read_dir(root().join("proto")).unwrap() {
        let files = fs::read_dir(dir.unwrap().path()).unwrap();
        inputs.extend(files.map(|file| file.unwrap().path()));
    }
    let mut parser = protobuf_parse::Parser::new();
    parser.pure().include(root().join("proto")).inputs(&inputs);
    parser.file_descriptor_set().unwrap().file
}

fn join(parts: Vec<(i32, String)>) -> String {
    let mut parts = parts;
    parts.sort();
    let texts: Vec<String> = parts
        .into_iter()
        .map(|(number, text)| format!("{number} {text}"))
        .collect();
    texts.join(", ")
}

fn field(field: &FieldDescriptorProto) -> (i32, String) {
    let kind = format!("{:?}", field.type_())
        .trim_start_matches("TYPE_")
        .to_lowercase();
    let of = match field.type_() {
        Type::TYPE_MESSAGE | Type::TYPE_ENUM => format!(" {}", &field.type_name()[1..]),
        _ => String::new(),
    };
    let repeated = if field.label() == Label::LABEL_REPEATED {
        "repeated "
    } else {
        ""
    };
    let optional = if field.proto3_optional() {
        "optional "
    } else {
        ""
    };
    (
        field.number(),
        format!("{repeated}{optional}{kind}{of} {}", field.name()),
    )
}

fn message(lines: &mut BTreeSet<String>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    let theirs = message.field.iter().filter(|field| field.number() < OURS);
    let fields = join(theirs.map(field).collect());
    lines.insert(format!("message {name}: {fields}").trim_end().to_owned());
    for nested in &message.nested_type {
        self::message(lines, &name, nested);
    }
    for nested in &message.enum_type {
        enumeration(lines, &name, nested);
    }
}

fn enumeration(lines: &mut BTreeSet<String>, scope: &str, made: &EnumDescriptorProto) {
    let values = made
        .value
        .iter()
        .map(|v| (v.number(), v.name().to_owned()))
        .collect();
    lines.insert(format!("enum {scope}.{}: {}", made.name(), join(values)));
}

fn service(lines: &mut BTreeSet<String>, scope: &str, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let stream = |yes: bool| if yes { "stream " } else { "" };
        lines.insert(format!(
            "rpc /{scope}.{}/{}: {}{} -> {}{}",
            service.name(),
            method.name(),
            stream(method.client_streaming()),
            &method.input_type()[1..],
            stream(method.server_streaming()),
            &method.output_type()[1..],
        ));
    }
}

#[test]
fn names_numbers_and_types_are_those_of_go() {
    let recorded = fs::read_to_string(root().join("testdata/contract.txt")).unwrap();
    let recorded: BTreeSet<String> = recorded
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let mut ours = BTreeSet::new();
    for file in parsed() {
        let package = file.package();
        if FOREIGN.contains(&package) {
            continue;
        }
        file.message_type
            .iter()
            .for_each(|m| message(&mut ours, package, m));
        file.enum_type
            .iter()
            .for_each(|e| enumeration(&mut ours, package, e));
        file.service
            .iter()
            .for_each(|s| service(&mut ours, package, s));
    }
    let missing: Vec<_> = recorded.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&recorded).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:#?}, extra {extra:#?}"
    );
    assert!(
        recorded.len() > 400,
        "the record is cut: {}",
        recorded.len()
    );
}
