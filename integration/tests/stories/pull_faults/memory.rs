//! All of the faults on one daemon: what they cost it.

use integration::{Host, figure, forget_peak, peak, resident};
use registry::testsuite::Server;

use super::{
    AFTER_SILENCE, Case, Fault, answers, bytes, documents, elsewhere, finish, image, runtime,
};

/// What all of them together may take, in KiB.
const GROWTH: u64 = 32 << 10;

fn all() -> Vec<Fault> {
    let mut all = bytes::faults();
    all.extend(documents::faults());
    all.extend(answers::faults());
    all
}

fn cases() -> impl Iterator<Item = Case> {
    let all = bytes::CASES.into_iter().chain(documents::CASES);
    all.chain(elsewhere::CASES)
}

/// Pulls and removes an image, so that the daemon has read in what a pull needs of its program.
fn warm(host: &Host, runtime: &tokio::runtime::Runtime) {
    let (content, _) = image("good");
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let reference = format!("{}/r:latest", server.host());
    let pull = ["images", "pull", "--plain-http", "--user=me:secret"];
    drop(host.ctr_program().args(pull).args([&reference]).run().ok());
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
}

#[test]
fn all_faults_together_cost_the_daemon_a_bounded_amount() {
    let runtime = runtime();
    let host = Host::new("faults-all");
    warm(&host, &runtime);
    let pid = host.daemon_pid();
    let before = resident(pid);
    forget_peak(pid);
    let faults = all();
    let servers: Vec<Server> = faults.iter().map(|fault| fault.serve(&runtime)).collect();
    std::thread::scope(|scope| {
        for (fault, server) in faults.iter().zip(&servers) {
            let host = &host;
            let pull = move || {
                let (said, _) = fault.pull(host, server);
                fault.is_told(server, &said);
            };
            // Those that take long stay beside all of the others.
            if fault.limit == AFTER_SILENCE {
                drop(scope.spawn(pull));
            } else {
                pull();
            }
        }
    });
    // They look at what else is there.
    for case in cases() {
        case(&host);
    }
    let grown = peak(pid).saturating_sub(before);
    let count = faults.len() + cases().count();
    figure(format_args!("{count} faults cost {grown} KiB"));
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    drop(servers);
    assert!(
        grown <= GROWTH,
        "{count} faults cost {grown} KiB, {GROWTH} may be"
    );
    let stay: Vec<_> = faults
        .iter()
        .filter_map(|fault| fault.stays.clone())
        .collect();
    finish(host, &stay);
}
