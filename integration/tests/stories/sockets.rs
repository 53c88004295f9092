//! What comes in on the daemon's sockets does not end it: connections that only lie there, more of them
//! than there are descriptors, and bytes that are no protocol.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::{Host, Program, Whose, figure, need, net, resident, until};

/// Connections that lie there.
const IDLE: usize = 5000;
/// Most memory of the daemon for one of them.
const KIB_EACH: f64 = 4.0;
/// What has asked something costs more: HTTP/2 keeps the state of both directions.
const KIB_EACH_USED: f64 = 24.0;

/// What every client of HTTP/2 says first, and SETTINGS without any.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn connect(path: &PathBuf) -> UnixStream {
    UnixStream::connect(path).expect("connect")
}

/// The daemon answers, also on a connection of its own for shims.
fn answers(host: &Host) {
    drop(host.ctr(["version"]).ok());
    drop(connect(&shims(host)));
}

/// The socket of shims.
fn shims(host: &Host) -> PathBuf {
    host.path("c.sock.ttrpc")
}

/// Descriptors that a daemon has open for a moment, or keeps once it has them: not of connections.
const OTHERS: usize = 16;

/// Opens many connections and has them answered where the protocol has an answer to `hello`; what each
/// of them costs the daemon, in KiB.
fn cost(host: &Host, path: &PathBuf, hello: &[u8]) -> f64 {
    let open = |count: usize| -> Vec<UnixStream> {
        let one = |_| {
            let mut stream = connect(path);
            stream.write_all(hello).expect("say hello");
            if !hello.is_empty() {
                stream.read_exact(&mut [0; 9]).expect("an answer");
            }
            stream
        };
        (0..count).map(one).collect()
    };
    let (pid, before) = (host.daemon_pid(), host.descriptors());
    let taken = |count: usize| {
        until("the connections are taken", || {
            host.descriptors() + OTHERS >= before + count
        });
    };
    // Tables that grow with the first ones are not of the others.
    let first = open(IDLE / 10);
    taken(first.len());
    let empty = resident(pid);
    let connections = open(IDLE);
    taken(first.len() + IDLE);
    answers(host);
    let each = resident(pid).saturating_sub(empty) as f64 / IDLE as f64;
    drop((first, connections));
    until("the descriptors are closed", || {
        host.descriptors() <= before + OTHERS
    });
    each
}

#[test]
fn thousands_of_idle_connections_cost_little_and_keep_nobody_waiting() {
    // Of this process: the connections are its own as well.
    sys::limits::raise_open_files().expect("descriptors");
    let mut told = Vec::new();
    for (name, hello, most, is_shims) in [
        ("sockets-idle", &b""[..], KIB_EACH, false),
        ("sockets-used", PREFACE, KIB_EACH_USED, false),
        ("sockets-shims", b"", KIB_EACH, true),
    ] {
        let host = Host::new(name);
        let path = if is_shims {
            shims(&host)
        } else {
            host.address()
        };
        let each = cost(&host, &path, hello);
        told.push(format!("{name}: {each:.1} KiB each, {most} may be"));
        if each > most {
            told.push("too much".to_owned());
        }
        host.finish();
    }
    figure(format_args!("{IDLE} connections: {told:?}"));
    assert!(!told.iter().any(|line| line == "too much"), "{told:?}");
}

/// CPU time of a process.
fn cpu(pid: u32) -> Duration {
    /// Of `/proc`, on all machines.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let words: Vec<_> = rest.split_whitespace().collect();
    let ticks = |at: usize| words[at].parse::<u32>().expect("a number");
    TICK * (ticks(11) + ticks(12))
}

#[test]
fn a_daemon_without_descriptors_waits_for_some_and_goes_on() {
    const LOOK: Duration = Duration::from_secs(1);
    let host = Host::new("sockets-files");
    host.image();
    host.sleeper("stays");
    let pid = host.daemon_pid();
    let limit = host.descriptors() + 20;
    let set = |limit: usize| {
        let prlimit = Program::new(need("prlimit")).args(["--pid", &pid.to_string()]);
        drop(prlimit.args([format!("--nofile={limit}:")]).run().ok());
    };
    // A client that was there before.
    let mut early = connect(&host.address());
    early.write_all(PREFACE).expect("say hello");
    early.read_exact(&mut [0; 9]).expect("an answer");
    set(limit);
    for path in [host.address(), shims(&host)] {
        let connections: Vec<_> = (0..100).map(|_| connect(&path)).collect();
        let told = format!("path={}", path.display());
        until("there are no descriptors", || {
            let log = host.log();
            let mut lines = log.lines();
            lines.any(|line| line.contains("cannot accept") && line.contains(&told))
        });
        let (lines, begun) = (host.log().lines().count(), Instant::now());
        let before = cpu(pid);
        until("it was looked at for a while", || begun.elapsed() >= LOOK);
        let spent = cpu(pid).saturating_sub(before);
        assert!(spent < LOOK / 4, "it spins: {spent:?} in {LOOK:?}");
        let more = host.log().lines().count() - lines;
        assert!(more < 5, "{more} lines more in the log");
        // PING, and its answer.
        let ping = b"\0\0\x08\x06\0\0\0\0\0containr";
        early.write_all(ping).expect("ask");
        let mut heard = Vec::new();
        let mut part = [0; 64];
        while !heard.windows(8).any(|window| window == b"containr") {
            let read = early.read(&mut part).expect("an answer");
            assert!(read > 0, "the connection was closed");
            heard.extend_from_slice(&part[..read]);
        }
        drop(connections);
        answers(&host);
    }
    assert!(host.task("stays", "RUNNING").is_some());
    drop(early);
    set(20_000);
    host.remove("stays");
    host.finish();
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, body].concat()
}

/// What no client of HTTP/2 would send, after the preface.
fn bad_frames() -> Vec<Vec<u8>> {
    const END: u8 = 4;
    let call = |stream| {
        // POST, http, `/`: indexed fields of HPACK's table.
        frame(1, END, stream, &[0x83, 0x86, 0x84])
    };
    let mut made = vec![
        // A length that never comes, and one that is too long.
        vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        vec![0, 0x7f, 0xff, 0, 0, 0, 0, 0, 1, 7],
        // DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION of no stream.
        frame(0, 0, 0, b"x"),
        frame(1, END, 0, b"\x83"),
        frame(2, 0, 0, &[0; 5]),
        frame(3, 0, 0, &[0; 4]),
        frame(9, END, 0, b""),
        // Of streams that are not open, and of the server's.
        frame(0, 0, 7, b"x"),
        frame(3, 0, 7, &[0; 4]),
        frame(9, END, 7, b""),
        call(2),
        // Of a wrong length.
        frame(2, 0, 1, &[0; 4]),
        frame(3, 0, 1, &[0; 3]),
        frame(4, 0, 0, &[0; 5]),
        frame(4, 1, 0, &[0; 6]),
        frame(6, 0, 0, &[0; 7]),
        frame(7, 0, 0, &[0; 3]),
        frame(8, 0, 0, &[0; 3]),
        // SETTINGS with values that cannot be: window, frame size.
        frame(4, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
        frame(4, 0, 0, &[0, 5, 0, 0, 0, 1]),
        // Windows: of nothing, and beyond the end.
        frame(8, 0, 0, &[0; 4]),
        [
            frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ]
        .concat(),
        // Padding longer than its frame, and a stream that depends on itself.
        [call(1), frame(0, 8, 1, &[0xff, 1])].concat(),
        frame(1, END | 0x20, 1, &[0, 0, 0, 1, 0, 0x83]),
        // HPACK: an index that is not there, a number without an end, a table that is too large.
        frame(1, END, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f]),
        frame(1, END, 1, &[0x7f, 0xff, 0xff, 0xff]),
        frame(1, END, 1, &[0x3f, 0xff, 0xff, 0xff, 0x0f]),
        // A head that is continued by something else, and PUSH_PROMISE, which is the server's.
        [frame(1, 0, 1, b"\x83"), frame(6, 0, 0, &[0; 8])].concat(),
        frame(5, END, 1, &[0, 0, 0, 2, 0x83]),
        // Kinds that nobody knows are ignored.
        (10..=255)
            .flat_map(|kind| frame(kind, 0xff, 1, b"?"))
            .collect(),
        frame(7, 0, 0, &[0; 8]),
    ];
    // Floods: of calls that are given up, of heads without an end, of questions, of nothing.
    let given_up =
        (0..20_000).flat_map(|n| [call(2 * n + 1), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat());
    made.push(given_up.collect());
    let continued = (0..2000).flat_map(|_| frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(50)));
    made.push(
        frame(1, 0, 1, b"\x83")
            .into_iter()
            .chain(continued)
            .collect(),
    );
    made.push((0..20_000).flat_map(|_| frame(6, 0, 0, &[0; 8])).collect());
    made.push((0..20_000).flat_map(|_| frame(4, 0, 0, &[])).collect());
    made.push(
        call(1)
            .into_iter()
            .chain((0..20_000).flat_map(|_| frame(0, 0, 1, &[])))
            .collect(),
    );
    made
}

/// What no shim would send.
fn bad_messages() -> Vec<Vec<u8>> {
    let message = |length: u32, stream: u32, kind: u8, body: &[u8]| {
        [
            &length.to_be_bytes()[..],
            &stream.to_be_bytes(),
            &[kind, 0],
            body,
        ]
        .concat()
    };
    let mut made = vec![
        message(u32::MAX, 1, 1, b"x"),
        message((4 << 20) + 1, 1, 1, b"x"),
        message(100, 1, 1, b"cut"),
        message(0, 0, 1, b""),
        message(0, 2, 1, b""),
        message(4, 1, 1, &[0xff; 4]),
        message(2, 1, 1, &[0x0a, 0x7f]),
        // An event without an envelope, and one whose envelope is none.
        message(4, 1, 1, b"\x0a\x02xx"),
    ];
    made.push(
        (0..=255)
            .flat_map(|kind| message(1, 3, kind, b"?"))
            .collect(),
    );
    made.push(
        (0..20_000)
            .flat_map(|n| message(0, 2 * n + 1, 1, b""))
            .collect(),
    );
    made
}

/// What is no protocol at all.
fn bytes() -> Vec<Vec<u8>> {
    let mut state: u64 = 20_261_130;
    let mut roll = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    let mut made = vec![
        Vec::new(),
        vec![0],
        vec![0; 1 << 20],
        vec![0xff; 1 << 20],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /".repeat(100_000),
        [&b"GET / HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(100_000)].concat(),
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    for _ in 0..20 {
        made.push((0..4096).map(|_| roll()).collect());
    }
    made
}

/// How long the daemon may take to close a connection whose client has said all.
const LONG: Duration = Duration::from_secs(20);

/// Sends `bytes`, says that this was all, and waits until the daemon has closed its end, too.
fn send(to: &str, stream: OwnedFd, bytes: &[u8]) {
    // Whichever kind of stream it is: what is used here is the same.
    let stream = UnixStream::from(stream);
    for set in [UnixStream::set_write_timeout, UnixStream::set_read_timeout] {
        set(&stream, Some(LONG)).expect("set a timeout");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It may be closed before all is said, and reset.
            let _cut = (&stream).write_all(bytes);
            let _closed = stream.shutdown(std::net::Shutdown::Write);
        });
        let mut part = [0; 4096];
        loop {
            match (&stream).read(&mut part) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let begin = &bytes[..bytes.len().min(60)];
                    panic!("{to}: the connection stays open after {begin:?}");
                }
                Err(_) => return,
            }
        }
    });
}

#[test]
fn bytes_that_are_no_protocol_end_their_connection_and_nothing_else() {
    // Where nobody else takes the port of the metrics.
    net::apart(bytes_of_no_protocol);
}

fn bytes_of_no_protocol() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let metrics = listener.local_addr().expect("address");
    drop(listener);
    let debug = tempfile::tempdir().expect("make a directory");
    let debug = debug.path().join("debug.sock");
    let sections = format!(
        "[metrics]\naddress = \"{metrics}\"\n[debug]\naddress = \"{}\"\n",
        debug.display()
    );
    let host = Host::configured("sockets-bytes", Whose::Ours, &sections);
    host.image();
    host.sleeper("stays");
    let pid = host.daemon_pid();
    until("the metrics are served", || {
        TcpStream::connect(metrics).is_ok()
    });
    let frames = bad_frames().into_iter().map(|f| [PREFACE, &f].concat());
    let all: Vec<Vec<u8>> = bytes()
        .into_iter()
        .chain(frames)
        .chain(bad_messages())
        .collect();
    for bytes in &all {
        for path in [host.address(), shims(&host), debug.clone()] {
            send(&path.display().to_string(), connect(&path).into(), bytes);
        }
        let stream = TcpStream::connect(metrics).expect("connect");
        send("metrics", stream.into(), bytes);
    }
    answers(&host);
    assert_eq!(host.daemon_pid(), pid);
    let log = host.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(host.task("stays", "RUNNING").is_some());
    host.remove("stays");
    host.finish();
}
