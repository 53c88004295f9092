//! The debug socket: what `ctr inflight`, `ctr why` and a scrape tell, for `curl --unix-socket` on a day when
//! the main socket is busy.

use std::path::Path;

use http::StatusCode;
use tokio::net::UnixStream;
use types::Result;

use crate::config::Config;
use crate::engine::Engine;
use crate::flights::{self, Wanted};
use crate::listen::Socket;
use crate::metrics::Counters;
use crate::web::{self, Answer};

/// What the configuration calls it.
pub(crate) const SERVER: &str = "io.containerd.server.v1.debug";
/// What there is.
const INDEX: &str = "/flights           calls in flight and the last that are over\n\
                     /flights/SUBJECT   those of a container or an image\n\
                     /memory            memory of the daemon\n\
                     /metrics           counters, for Prometheus\n";

/// True when the configuration wants the socket.
pub(crate) fn is_wanted(config: &Config) -> bool {
    !config.debug.address.is_empty() && config.enabled(SERVER)
}

/// Serves it: the one that was passed, or where the configuration says.
///
/// # Errors
/// `Unavailable` when another daemon serves there; the errno of the bind.
pub(crate) fn start(engine: &Engine, config: &Config, passed: Option<&Socket>) -> Result<()> {
    let (incoming, socket) = if let Some(passed) = passed {
        (passed.incoming(anybody)?, None)
    } else if is_wanted(config) {
        let debug = &config.debug;
        let socket = Socket::bind(Path::new(&debug.address), debug.uid, debug.gid)?;
        (socket.incoming(anybody)?, Some(socket))
    } else {
        return Ok(());
    };
    let counters = Counters::new(engine, true);
    tokio::spawn(async move {
        let answer = move |path: String| {
            let counters = counters.clone();
            async move { answer(&counters, &path).await }
        };
        web::serve(incoming, answer).await;
        // Its file goes with it.
        drop(socket);
    });
    Ok(())
}

/// Whoever may connect may look.
fn anybody(_: &UnixStream) -> bool {
    true
}

async fn answer(counters: &Counters, path: &str) -> Answer {
    let subject = match path {
        "/" => return Answer::text(StatusCode::OK, INDEX),
        "/memory" => return Answer::text(StatusCode::OK, memory()),
        "/flights" => "",
        _ => match path.strip_prefix("/flights/") {
            Some(subject) => subject,
            None => return counters.answer(path).await,
        },
    };
    let wanted = Wanted {
        subject: subject.to_owned(),
        finished: true,
        standing: true,
        ..Wanted::default()
    };
    // It reads of every process that is waited for.
    let told = tokio::task::spawn_blocking(move || flights::text(&flights::tell(&wanted))).await;
    match told {
        Ok(text) => Answer::text(StatusCode::OK, text),
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn memory() -> String {
    let heap = sys::limits::heap_in_use();
    match sys::limits::Memory::of_this_process() {
        Ok(memory) => format!(
            "resident {}\nanonymous {}\nheap {heap}\n",
            memory.resident, memory.anonymous
        ),
        Err(error) => format!("heap {heap}\n{error}\n"),
    }
}
