//! Network namespaces of the tests, and what is seen in them from outside.

use crate::{Output, Program, need, until};

/// Runs `work` in a network namespace of its own, with its loopback up, on a thread of its own; what it
/// starts is in there, too. The machine's interfaces and packet filters are out of reach.
///
/// # Panics
/// When `work` does, or without the right to make a network namespace.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        #[expect(deprecated, reason = "sound without FILES, as its successor says")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("unshare");
        let up = Program::new(need("ip")).args(["link", "set", "lo", "up"]);
        drop(up.run().ok());
        work()
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What a program says in the network namespace whose file is at `path`.
///
/// # Panics
/// When it does not end in time.
#[must_use]
pub fn within(path: &str, line: &str) -> Output {
    let net = format!("--net={path}");
    let words = line.split(' ').filter(|word| !word.is_empty());
    let all = std::iter::once(net.as_str()).chain(words);
    Program::new("nsenter").args(all).run()
}

/// Names of the interfaces in the network namespace whose file is at `path`.
///
/// # Panics
/// When they cannot be listed.
#[must_use]
pub fn links(path: &str) -> String {
    let links = within(path, "ip -o link show").ok();
    let mut names: Vec<_> = links.lines().filter_map(|l| l.split(": ").nth(1)).collect();
    names.sort_unstable();
    names.join(" ")
}

/// Packet filters in the network namespace whose file is at `path`.
///
/// # Panics
/// When they cannot be listed.
#[must_use]
pub fn rules(path: &str) -> String {
    within(path, "nft --stateless list ruleset").ok()
}

/// Both.
///
/// # Panics
/// When they cannot be listed.
#[must_use]
pub fn state(path: &str) -> String {
    format!("{} {}", links(path), rules(path))
}

/// Asks a server that answers `hello` until it is there, from the network namespace whose file is at
/// `path`. (A static busybox cannot look up addresses, bash can.)
///
/// # Panics
/// When it does not answer in time.
pub fn fetch(path: &str, address: &str, port: u16) {
    let net = format!("--net={path}");
    let ask = format!(
        "exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    );
    until(&format!("{address} port {port} answers"), || {
        let ask = ["timeout", "5", "bash", "-c", ask.as_str()];
        let told = Program::new("nsenter").args([&net]).args(ask).run();
        told.code == 0 && told.stdout.ends_with("hello\n")
    });
}
