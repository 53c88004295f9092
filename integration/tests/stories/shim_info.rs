//! What the shim's binary says of itself and of the runtime, asked as daemons ask.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use integration::{bin_dir, need};
use protos::Message as _;
use protos::runc::Options;
use protos::types::RuntimeInfo;
use protos::well_known::Any;
use serde_json::Value;

/// Starts `-info` and writes its standard input only `late` after that.
fn ask(input: &[u8], late: Duration) -> RuntimeInfo {
    let mut child = Command::new(bin_dir().join("containerd-shim-runc-v2"))
        .arg("-info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start -info");
    std::thread::sleep(late);
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).expect("write the options");
    drop(stdin);
    let mut answer = Vec::new();
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_to_end(&mut answer).expect("read the answer");
    assert!(child.wait().expect("wait").success());
    RuntimeInfo::parse_from_bytes(&answer).expect("an answer")
}

fn options(binary: &str) -> Any {
    let options = Options {
        binary_name: binary.to_owned(),
        ..Options::default()
    };
    Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes().expect("encode"),
        ..Any::default()
    }
}

#[test]
fn the_features_are_those_of_the_runtime_in_the_options_however_late_they_come() {
    // What the runtime itself says; of the old ones nothing.
    let says = |binary: &str| {
        let said = Command::new(need(binary)).arg("features").output();
        let said = said.expect("run it");
        let text = said.status.success().then_some(said.stdout)?;
        Some(serde_json::from_slice::<Value>(&text).expect("JSON"))
    };
    assert!(says("runc").is_some(), "runc has no features");
    for binary in ["runc", "crun"] {
        for late in [Duration::ZERO, Duration::from_millis(50)] {
            let given = options(&need(binary).to_string_lossy());
            let info = ask(&given.write_to_bytes().expect("encode"), late);
            assert_eq!(info.name, "io.containerd.runc.v2");
            assert!(!info.version.version.is_empty());
            assert_eq!(info.options.as_ref(), Some(&given), "{binary} {late:?}");
            let features = info.features.as_ref().map(|any| {
                let url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
                assert_eq!(any.type_url, url);
                serde_json::from_slice::<Value>(&any.value).expect("JSON")
            });
            assert_eq!(features, says(binary), "{binary} {late:?}");
        }
    }
    // Without options it is runc's.
    let info = ask(b"", Duration::ZERO);
    assert!(info.options.is_none() && info.features.is_some());
}
