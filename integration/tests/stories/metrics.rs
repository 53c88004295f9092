//! The endpoint for Prometheus: what was called is counted, and what goes on is told.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use integration::{Host, Whose, net, until};

/// A port that was free a moment ago; nobody takes it in a network namespace of its own.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    listener.local_addr().expect("address").port()
}

fn get(port: u16, path: &str) -> Option<String> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect(at).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The value of a sample, by its name and labels as they are written.
fn value(text: &str, sample: &str) -> f64 {
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

fn call(service: &str, method: &str) -> String {
    format!("grpc_type=\"unary\",grpc_service=\"containerd.{service}\",grpc_method=\"{method}\"")
}

/// What a daemon that runs one container and has imported one image tells at least.
const LEAST: &[(&str, f64)] = &[
    ("containerd_tasks{state=\"running\"}", 1.0),
    ("containerd_shims", 1.0),
    (
        "containerd_transfers_total{kind=\"import\",status=\"success\"}",
        1.0,
    ),
    ("containerd_events_published_total", 5.0),
    ("containerd_gc_collections_total{status=\"success\"}", 1.0),
    ("process_resident_memory_bytes", 1e6),
    ("process_open_fds", 5.0),
    ("process_threads", 2.0),
    ("process_start_time_seconds", 1e9),
];

#[test]
fn what_was_called_is_counted_and_what_runs_is_told() {
    net::apart(calls_are_counted);
}

fn calls_are_counted() {
    let port = free_port();
    let section = format!("[metrics]\naddress = \"127.0.0.1:{port}\"\ngrpc_histogram = true\n");
    let host = Host::configured("metrics", Whose::Ours, &section);
    let scrape = || {
        let mut text = String::new();
        until("the metrics are served", || {
            text = get(port, "/v1/metrics").unwrap_or_default();
            text.starts_with("HTTP/1.1 200 OK\r\n")
        });
        text
    };
    host.image();
    host.sleeper("c");
    let before = scrape();
    assert!(
        before.contains("\r\ncontent-type: text/plain; version=0.0.4"),
        "{before}"
    );
    let version = call("services.version.v1.Version", "Version");
    let get_task = call("services.tasks.v1.Tasks", "Get");
    for _ in 0..3 {
        drop(host.ctr(["version"]).ok());
        drop(host.ctr(["tasks", "kill", "nobody"]).err());
    }
    let after = scrape();
    let grown = |sample: &str| value(&after, sample) - value(&before, sample);
    let near = |is: f64, want: f64| (is - want).abs() < 0.1;
    let begun = format!("grpc_server_started_total{{{version}}}");
    assert!(near(grown(&begun), 3.0), "{after}");
    let well = format!("grpc_server_handled_total{{{version},grpc_code=\"OK\"}}");
    assert!(near(grown(&well), 3.0), "{after}");
    let missing = format!("grpc_server_handled_total{{{get_task},grpc_code=\"NotFound\"}}");
    let kill = call("services.containers.v1.Containers", "Get");
    let kill = format!("grpc_server_handled_total{{{kill},grpc_code=\"NotFound\"}}");
    assert!(grown(&missing) + grown(&kill) > 2.9, "{after}");
    let all = format!("grpc_server_handling_seconds_bucket{{{version},le=\"+Inf\"}}");
    assert!(near(value(&after, &all), value(&after, &well)), "{after}");
    let canceled = format!("{version},grpc_code=\"Canceled\"");
    assert!(!after.contains(&canceled), "{after}");
    for (sample, least) in LEAST {
        assert!(value(&after, sample) >= *least, "{sample}: {after}");
    }
    // A list whose body is written piece by piece has ended, too.
    let list = call("services.images.v1.Images", "List");
    drop(host.ctr(["images", "ls"]).ok());
    let listed = scrape();
    let canceled = format!("grpc_server_handled_total{{{list},grpc_code=\"Canceled\"}}");
    assert!(near(value(&listed, &canceled), 0.0), "{listed}");
    let elsewhere = get(port, "/").expect("an answer");
    assert!(elsewhere.starts_with("HTTP/1.1 404 "), "{elsewhere}");
    host.remove("c");
    host.finish();
}

#[test]
fn who_keeps_connections_open_keeps_nobody_from_calling() {
    net::apart(idle_connections);
}

fn idle_connections() {
    let port = free_port();
    let section = format!("[metrics]\naddress = \"127.0.0.1:{port}\"\n");
    let host = Host::configured("metrics-idle", Whose::Ours, &section);
    until("the metrics are served", || get(port, "/metrics").is_some());
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let idle: Vec<_> = (0..20).map(|_| TcpStream::connect(at)).collect();
    assert!(idle.iter().all(Result::is_ok));
    drop(host.ctr(["version"]).ok());
    // They are cut off, and then it is the next one's turn.
    let text = get(port, "/metrics").expect("an answer");
    assert!(text.contains("grpc_server_started_total"), "{text}");
    assert!(!text.contains("grpc_server_handling_seconds"), "{text}");
    drop(idle);
    host.finish();
}

#[test]
fn the_debug_socket_tells_what_goes_on() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("debug.sock");
    let section = format!("[debug]\naddress = \"{}\"\n", socket.display());
    let host = Host::configured("debug-socket", Whose::Ours, &section);
    host.image();
    host.sleeper("c");
    let ask = |path: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connect");
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let flights = ask("/flights/c");
    for part in ["Tasks/Create", "Tasks/Start", "\"c\" took "] {
        assert!(flights.contains(part), "{part}: {flights}");
    }
    assert!(!ask("/flights/nobody").contains("Tasks/"), "another's");
    assert!(ask("/memory").contains("\nresident "), "memory");
    assert!(ask("/metrics").contains("containerd_tasks{state=\"running\"} 1\n"));
    for path in ["/flights", "/"] {
        assert!(ask(path).contains(" 200 OK"), "{path}");
    }
    assert!(ask("/nothing").contains(" 404 "));
    host.remove("c");
    host.finish();
    assert!(!socket.exists(), "it goes with the daemon");
}
