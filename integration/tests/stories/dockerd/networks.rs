//! Networks: none, that of dockerd, ports on the bridge, names on a network of the user's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use integration::{Docker, until};

use super::{prints, runs, story};

const SERVE: &str = "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w";
const LINKS: &str = "ls /sys/class/net | sort";

#[test]
fn containers_are_reached_and_reach_each_other() {
    story("docker-networks", |docker, _| {
        plain(docker);
        published(docker);
        named(docker);
    });
}

fn plain(docker: &Docker) {
    runs(docker, "--network none", LINKS, "lo\n", 0);
    runs(docker, "", LINKS, "eth0\nlo\n", 0);
    runs(
        docker,
        "--network host",
        "ip -o link | cut -d: -f2",
        " lo\n docker0\n",
        0,
    );
}

/// A page by a port of the network's loopback, and from the container itself.
fn published(docker: &Docker) {
    docker.script("-p 127.0.0.1:8080:80", "web", SERVE);
    prints(docker, &["port", "web"], "80/tcp -> 127.0.0.1:8080\n", 0);
    until("the published port answers", || page("127.0.0.1:8080"));
    let address = docker.inspect("web", "{{.NetworkSettings.IPAddress}}");
    assert!(page(&format!("{address}:80")), "{address}");
    let script = format!("wget -q -O - http://{address}/");
    runs(docker, "", &script, "page\n", 0);
    prints(docker, &["rm", "-f", "web"], "web\n", 0);
    assert!(!page("127.0.0.1:8080"), "the port is still there");
}

/// True when a server tells the page.
fn page(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.ends_with("page\n")
}

fn named(docker: &Docker) {
    assert_eq!(docker.ok("network create together").trim().len(), 64);
    docker.script("--network together", "server", SERVE);
    let script = "until wget -q -O - http://server/; do usleep 20000; done";
    runs(docker, "--network together", script, "page\n", 0);
    prints(
        docker,
        &["network", "disconnect", "together", "server"],
        "",
        0,
    );
    prints(
        docker,
        &["exec", "server", "ls", "/sys/class/net"],
        "lo\n",
        0,
    );
    prints(docker, &["network", "connect", "together", "server"], "", 0);
    runs(docker, "--network together", script, "page\n", 0);
    prints(docker, &["rm", "-f", "server"], "server\n", 0);
    prints(docker, &["network", "rm", "together"], "together\n", 0);
}
