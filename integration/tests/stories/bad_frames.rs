//! Bytes on the shim's socket that no client would send: an error or a closed connection for the one
//! who sent them, nothing for everybody else.

use integration::shim::{Driver, Frame, Io, Raw, Task, Usage};
use integration::until;
use protos::Message as _;
use protos::shim::task::{ConnectRequest, StateRequest};
use protos::task::Status;
use ttrpc::Code;

const TASK: &str = "containerd.task.v3.Task";
/// Longest message that the protocol allows.
const LONGEST: u32 = 4 << 20;

/// A container whose shim is spoken to, and how the shim was before.
struct Victim {
    driver: Driver,
    task: Task,
    before: Usage,
}

impl Victim {
    fn new(name: &str) -> Self {
        let driver = Driver::new(name);
        let task = driver.run("c", "sleep 100000");
        // What is made with the first exec and kept is no leak.
        assert_eq!(task.run("first", "exit 7", &Io::null()).expect("exec"), 7);
        let before = task.shim().usage();
        Self {
            driver,
            task,
            before,
        }
    }

    fn raw(&self) -> Raw {
        self.task.raw()
    }

    /// KiB of anonymous memory more than before.
    fn grown(&self) -> u64 {
        let now = self.task.shim().usage().anonymous;
        now.saturating_sub(self.before.anonymous)
    }

    /// The container answers and runs processes, for callers old and new.
    fn serves(&self) {
        assert_eq!(self.task.status().expect("state"), Status::RUNNING);
        let other = self.driver.connect(&self.task.shim(), "c");
        assert_eq!(other.run("e", "exit 7", &Io::null()).expect("exec"), 7);
    }

    /// That, and every descriptor is closed; then the end.
    fn unharmed(self) {
        self.serves();
        let shim = self.task.shim();
        until("the descriptors are closed", || {
            shim.usage().descriptors <= self.before.descriptors
        });
        assert_eq!(self.task.end(), 137);
        self.driver.finish();
    }
}

fn connect_request(stream: u32) -> Vec<u8> {
    let request = ConnectRequest {
        id: "c".into(),
        ..Default::default()
    };
    let body = request.write_to_bytes().expect("encode");
    Raw::request(stream, TASK, "Connect", &body)
}

/// Sends one request; its answer's code.
fn code(raw: &mut Raw, stream: u32, request: &[u8]) -> Code {
    assert!(raw.send(request), "the connection is open");
    let frame = raw.receive().expect("an answer");
    assert_eq!((frame.stream, frame.kind), (stream, 2));
    frame.code()
}

#[test]
fn garbage_is_an_error_or_the_end_of_its_connection() {
    let victim = Victim::new("frames-garbage");
    let texts: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0xff; 64],
        b"\0",
    ];
    for text in texts {
        let mut raw = victim.raw();
        assert!(raw.send(text));
        raw.close_write();
        while let Some(frame) = raw.receive() {
            assert_ne!(frame.code(), Code::OK, "{text:?}");
        }
        victim.serves();
    }
    victim.unharmed();
}

#[test]
fn a_message_that_is_too_long_is_refused_and_skipped() {
    let victim = Victim::new("frames-long");
    let mut raw = victim.raw();
    let refused = code(&mut raw, 1, &Raw::head(LONGEST + 1, 1, 1, 0));
    let classes = [Code::RESOURCE_EXHAUSTED, Code::INVALID_ARGUMENT];
    assert!(classes.contains(&refused), "{refused:?}");
    let mut left = usize::try_from(LONGEST + 1).expect("small");
    while left > 0 {
        let part = left.min(1 << 16);
        assert!(raw.send(&vec![7; part]));
        left -= part;
    }
    // The same connection goes on after it.
    assert_eq!(code(&mut raw, 3, &connect_request(3)), Code::OK);
    let grown = victim.grown();
    assert!(grown < 512, "{grown} KiB are kept of what was refused");
    // The largest that is allowed is read, and is no request.
    let whole = [
        Raw::head(LONGEST, 5, 1, 0),
        vec![0xff; usize::try_from(LONGEST).expect("small")],
    ];
    assert_eq!(code(&mut raw, 5, &whole.concat()), Code::INVALID_ARGUMENT);
    drop(raw);
    victim.unharmed();
}

#[test]
fn half_a_frame_holds_nobody_up() {
    let victim = Victim::new("frames-half");
    let request = connect_request(1);
    let mut hanging = Vec::new();
    for length in [1, 4, 9, 10, 11, request.len() - 1] {
        let mut raw = victim.raw();
        assert!(raw.send(&request[..length]));
        hanging.push(raw);
        let mut closing = victim.raw();
        assert!(closing.send(&request[..length]));
    }
    // A head that promises megabytes which never come.
    for _ in 0..64 {
        let mut raw = victim.raw();
        assert!(raw.send(&Raw::head(LONGEST, 1, 1, 0)));
        hanging.push(raw);
    }
    victim.serves();
    let grown = victim.grown();
    assert!(grown < 2048, "{grown} KiB for messages that did not come");
    // The rest of one of them comes late.
    let mut late = hanging.remove(0);
    assert_eq!(code(&mut late, 1, &request[1..]), Code::OK);
    drop((late, hanging));
    victim.unharmed();
}

#[test]
fn frames_that_are_no_requests_are_refused_or_ignored() {
    let victim = Victim::new("frames-kinds");
    let mut raw = victim.raw();
    // Responses, data and kinds to come have nobody to go to.
    for kind in [0, 2, 3, 9, 255] {
        assert!(raw.send(&Raw::head(0, 1, kind, 0)));
        assert!(raw.send(&[Raw::head(3, 1, kind, 0xff), vec![1, 2, 3]].concat()));
    }
    assert!(raw.send(&connect_request(101)));
    let mut answers = std::iter::from_fn(|| raw.receive());
    let answer: Frame = answers.find(|f| f.stream == 101).expect("an answer");
    assert_eq!(answer.code(), Code::OK);
    let cases = [
        // An empty message names no service.
        (103, Raw::head(0, 103, 1, 0), Code::UNIMPLEMENTED),
        (
            105,
            Raw::request(105, "no.such.Service", "Create", b""),
            Code::UNIMPLEMENTED,
        ),
        (
            107,
            Raw::request(107, TASK, "Dance", b""),
            Code::UNIMPLEMENTED,
        ),
        (
            109,
            Raw::request(109, TASK, "State", b"\xff\xff"),
            Code::INVALID_ARGUMENT,
        ),
        // Even numbers are the server's.
        (110, connect_request(110), Code::INVALID_ARGUMENT),
        // A number that was used before, and the last that there is.
        (103, connect_request(103), Code::OK),
        (u32::MAX, connect_request(u32::MAX), Code::OK),
    ];
    for (stream, request, want) in cases {
        assert_eq!(code(&mut raw, stream, &request), want, "stream {stream}");
    }
    drop(raw);
    victim.unharmed();
}

#[test]
fn every_method_of_both_versions_survives_damaged_messages() {
    let victim = Victim::new("frames-methods");
    let methods = [
        "State",
        "Create",
        "Start",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Checkpoint",
        "Kill",
        "Exec",
        "ResizePty",
        "CloseIO",
        "Update",
        "Wait",
        "Stats",
        "Connect",
        "Shutdown",
    ];
    let mut raw = victim.raw();
    let mut stream = 1;
    for service in [TASK, "containerd.task.v2.Task"] {
        for method in methods {
            // A cut varint, a group without an end, a length beyond the end, text that is none.
            for body in [&b"\x08\xff"[..], b"\x0b", b"\x0a\x7fx", b"\x0a\x02\xff\xfe"] {
                let request = Raw::request(stream, service, method, body);
                let got = code(&mut raw, stream, &request);
                assert_eq!(got, Code::INVALID_ARGUMENT, "{service} {method} {body:?}");
                stream += 2;
            }
        }
    }
    drop(raw);
    victim.unharmed();
}

#[test]
fn random_frames_do_no_harm() {
    let victim = Victim::new("frames-random");
    let seed = std::env::var("SEED").ok();
    let mut state: u64 = seed.map_or(20_261_125, |text| text.parse().expect("SEED is a number"));
    let mut roll = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 33).expect("31 bits")
    };
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while bytes.len() < 64 << 10 {
            let length = roll() % 300;
            let kind = u8::try_from(roll() % 4).expect("small");
            bytes.extend(Raw::head(length, roll() % 64, kind, 0));
            bytes.extend((0..length).map(|_| roll().to_le_bytes()[0]));
        }
        let mut raw = victim.raw();
        assert!(raw.send(&bytes));
        // Whole frames, so that the connection is still good.
        assert!(raw.send(&connect_request(1001)));
        let mut answers = std::iter::from_fn(|| raw.receive());
        let answer = answers.find(|f| f.stream == 1001).expect("an answer");
        assert_eq!(answer.code(), Code::OK);
    }
    victim.unharmed();
}

#[test]
fn idle_connections_and_callers_that_hang_up_cost_nothing_for_good() {
    let victim = Victim::new("frames-idle");
    let idle: Vec<Raw> = (0..200).map(|_| victim.raw()).collect();
    victim.serves();
    let request = StateRequest {
        id: "c".into(),
        ..Default::default()
    };
    let body = request.write_to_bytes().expect("encode");
    for mut raw in idle {
        // Calls without an end, and answers that nobody reads.
        for n in 0..16 {
            assert!(raw.send(&Raw::request(2 * n + 1, TASK, "Wait", &body)));
            assert!(raw.send(&Raw::request(2 * n + 101, TASK, "State", &body)));
        }
    }
    victim.serves();
    let mut silent = victim.raw();
    let flood = (0..2000).flat_map(|n| Raw::request(2 * n + 1, TASK, "State", &body));
    assert!(silent.send(&flood.collect::<Vec<u8>>()));
    victim.serves();
    drop(silent);
    victim.unharmed();
}
