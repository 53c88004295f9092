//! What goes out comes back in.

use super::*;

fn ends() -> Vec<Endpoint> {
    let platform: Platform = "linux/arm64".parse().unwrap();
    let rule = NameRule {
        name: "r.test/a".into(),
        is_prefix: true,
        allow_overwrite: true,
        add_digest: true,
        skip_named_digest: true,
    };
    let flags = [(false, false), (true, false), (false, true), (true, true)];
    let remotes = flags.map(|(dump, trace)| {
        Endpoint::Registry(Remote {
            reference: "r.test/a:1".into(),
            auth_stream: "auth".into(),
            headers: Labels::new().with("A", "b"),
            host_dir: "/d".into(),
            default_scheme: "http".into(),
            dump,
            trace,
            logs_stream: "logs".into(),
        })
    });
    let mut all = remotes.to_vec();
    all.extend([
        Endpoint::Store(Store {
            name: "a".into(),
            labels: Labels::new().with("k", "v"),
            platforms: vec![platform.clone()],
            all_metadata: true,
            manifest_limit: 3,
            references: vec![rule],
            unpacks: vec![Unpack {
                platform: platform.clone(),
                snapshotter: "native".into(),
            }],
        }),
        Endpoint::Import(ImportStream {
            stream: "i".into(),
            media_type: "m".into(),
            force_compress: true,
        }),
        Endpoint::Export(ExportStream {
            stream: "e".into(),
            media_type: "m".into(),
            platforms: vec![platform],
            all_platforms: true,
            skip_compatibility_manifest: true,
            skip_non_distributable: true,
        }),
        Endpoint::Other("a.b.C".into()),
    ]);
    all
}

#[test]
fn ends_round_trip() {
    for end in ends() {
        let any = endpoint_to_any(&end).unwrap();
        assert_eq!(endpoint_from_any(&any).unwrap(), end);
    }
}

#[test]
fn frames_round_trip_and_damaged_ones_are_refused() {
    for frame in [
        Frame::Data(Bytes::from_static(b"abc")),
        Frame::Window(65536),
        Frame::Other("x.Y".into()),
    ] {
        assert_eq!(Frame::from_any(&frame.to_any().unwrap()).unwrap(), frame);
    }
    let back = proto::WindowUpdate {
        update: -1,
        ..Default::default()
    };
    Frame::from_any(&pack(&back).unwrap()).unwrap_err();
    let mut damaged = Frame::Window(1).to_any().unwrap();
    damaged.value = vec![0xff];
    Frame::from_any(&damaged).unwrap_err();
    assert_eq!(
        stream_init_from_any(&stream_init_to_any("s").unwrap()).unwrap(),
        "s"
    );
    assert_eq!(stream_opened().type_url, "google.protobuf.Empty");
}

#[test]
fn progress_and_credentials_round_trip() {
    let event = TransferEvent {
        event: "downloading".into(),
        name: "layer-sha256:0".into(),
        parents: vec!["a".into()],
        progress: 1,
        total: 2,
        descriptor: None,
    };
    assert_eq!(
        event_from_any(&event_to_any(&event).unwrap()).unwrap(),
        event
    );
    let request = AuthRequest {
        host: "h".into(),
        reference: "r".into(),
        challenges: vec!["Basic".into()],
    };
    let any = auth_request_to_any(&request).unwrap();
    assert_eq!(auth_request_from_any(&any).unwrap(), request);
    for answer in [
        AuthAnswer::None,
        AuthAnswer::Password {
            user: "u".into(),
            secret: "s".into(),
        },
        AuthAnswer::Refresh("s".into()),
        AuthAnswer::Header("s".into()),
    ] {
        let any = auth_answer_to_any(&answer).unwrap();
        assert_eq!(auth_answer_from_any(&any).unwrap(), answer);
    }
    let nothing = auth_answer_to_any(&AuthAnswer::Refresh(String::new())).unwrap();
    assert_eq!(auth_answer_from_any(&nothing).unwrap(), AuthAnswer::None);
}
