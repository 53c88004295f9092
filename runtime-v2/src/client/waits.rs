//! One `Wait` per process and connection, however many wait for it.
//!
//! ttrpc has no way to take a call back: the shim would keep one for every client that lost patience,
//! until it takes no more. So a `Wait` is sent once, and who comes later waits for the same answer.
//!
//! Invariant: an answer is handed out only for the process that it was asked of: what makes or deletes
//! a process of the same name forgets it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use protos::frame::Response;
use tokio::sync::Mutex;
use types::{Error, ExecId, Result};

use super::Failure;
use super::connection::Waiter;

/// From how many on answers that came when nobody waited any more are looked for.
const MANY: usize = 64;

/// None when the connection ended before.
type Outcome = Option<Arc<Result<Response>>>;
type Answer = Shared<BoxFuture<'static, Outcome>>;

/// The waits under way.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// By exec, none for init. Held while a wait is sent, so that there is one.
    running: Mutex<HashMap<Option<ExecId>, Answer>>,
}

impl Waits {
    /// Waits for the answer of the call that is under way, or of what `begin` begins. Safe to cancel.
    ///
    /// # Errors
    /// Of `begin`; `Lost` when the connection ends, `Answer` for what cannot be read.
    pub(super) async fn wait(
        &self,
        exec: Option<&ExecId>,
        begin: impl Future<Output = Result<Waiter, Failure>>,
    ) -> Result<Response, Failure> {
        let answer = self.under_way(exec, begin).await?;
        let outcome = answer.clone().await;
        self.forget_if(exec, |running| running.ptr_eq(&answer))
            .await;
        match outcome.as_deref() {
            Some(Ok(response)) => Ok(response.clone()),
            Some(Err(error)) => Err(Failure::Answer(Error::internal(error))),
            None => Err(Failure::Lost),
        }
    }

    async fn under_way(
        &self,
        exec: Option<&ExecId>,
        begin: impl Future<Output = Result<Waiter, Failure>>,
    ) -> Result<Answer, Failure> {
        let mut running = self.running.lock().await;
        let key = exec.cloned();
        if let Some(answer) = running.get(&key) {
            return Ok(answer.clone());
        }
        if running.len() >= MANY && running.len().is_power_of_two() {
            running.retain(|_, answer| answer.clone().now_or_never().is_none());
        }
        let waiter = begin.await?;
        let answer = async { waiter.answer().await.map(Arc::new) };
        let answer = answer.boxed().shared();
        running.insert(key, answer.clone());
        Ok(answer)
    }

    /// Another process has the name now, or none.
    pub(super) async fn forget(&self, exec: Option<&ExecId>) {
        self.forget_if(exec, |_| true).await;
    }

    async fn forget_if(&self, exec: Option<&ExecId>, it_is: impl FnOnce(&Answer) -> bool) {
        let mut running = self.running.lock().await;
        let key = exec.cloned();
        if running.get(&key).is_some_and(it_is) {
            running.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::Connection;
    use super::*;
    use protobuf::Message as _;
    use protos::frame::{self, Frame, Frames, Kind, Request};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    fn request(of: &str) -> Request {
        Request {
            method: of.into(),
            ..Request::default()
        }
    }

    /// The calls that have come: stream and method.
    async fn came(peer: &mut UnixStream, frames: &mut Frames) -> (u32, String) {
        loop {
            if let Some(Frame::Message(id, body)) = frames.take() {
                return (id, Request::parse_from_bytes(&body).unwrap().method);
            }
            peer.read_buf(frames.buffer()).await.unwrap();
        }
    }

    async fn answer(peer: &mut UnixStream, id: u32, payload: &[u8]) {
        let response = Response {
            payload: payload.to_vec(),
            ..Response::default()
        };
        let frame = frame::encode(id, Kind::Response, &response).unwrap();
        peer.write_all(&frame).await.unwrap();
    }

    #[tokio::test]
    async fn callers_that_come_and_go_share_one_call() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let (connection, waits) = (Connection::new(ours), Waits::default());
        let mut frames = Frames::of(Kind::Request);
        let (init, exec) = (request("init"), request("exec"));
        let id: ExecId = "e".parse().unwrap();
        let moment = Duration::from_millis(2);
        for _ in 0..20 {
            let given_up = timeout(moment, waits.wait(None, connection.begin(&init)));
            given_up.await.unwrap_err();
        }
        let other = timeout(moment, waits.wait(Some(&id), connection.begin(&exec)));
        other.await.unwrap_err();
        let (first, second) = (
            came(&mut peer, &mut frames).await,
            came(&mut peer, &mut frames).await,
        );
        // Nothing in between.
        assert_eq!(first, (1, "init".into()));
        assert_eq!(second, (3, "exec".into()));

        let (one, two, ()) = tokio::join!(
            waits.wait(None, connection.begin(&init)),
            waits.wait(None, connection.begin(&init)),
            answer(&mut peer, 1, b"end"),
        );
        assert_eq!(one.unwrap().payload, b"end");
        assert_eq!(two.unwrap().payload, b"end");

        // Its answer is of the process that had the name before: the next one is asked for anew.
        answer(&mut peer, 3, b"before").await;
        waits.forget(Some(&id)).await;
        let serve = async {
            let (stream, method) = came(&mut peer, &mut frames).await;
            assert_eq!(method, "exec");
            answer(&mut peer, stream, b"after").await;
        };
        let (after, ()) = tokio::join!(waits.wait(Some(&id), connection.begin(&exec)), serve);
        assert_eq!(after.unwrap().payload, b"after");
        assert!(waits.running.lock().await.is_empty());
    }

    #[tokio::test]
    async fn answers_that_nobody_took_do_not_pile_up() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let (connection, waits) = (Connection::new(ours), Waits::default());
        let mut frames = Frames::of(Kind::Request);
        let call = request("w");
        for n in 0..4 * MANY {
            let id: ExecId = format!("e{n}").parse().unwrap();
            let waiting = waits.under_way(Some(&id), connection.begin(&call)).await;
            let (stream, _) = came(&mut peer, &mut frames).await;
            answer(&mut peer, stream, b"").await;
            // It has arrived, and is not looked at.
            waiting.unwrap().await.unwrap();
            assert!(waits.running.lock().await.len() <= MANY);
        }
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_all_waits() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let (connection, waits) = (Connection::new(ours), Waits::default());
        let call = request("w");
        let hang_up = async { drop(peer) };
        let wait = || waits.wait(None, connection.begin(&call));
        let (one, two, ()) = tokio::join!(wait(), wait(), hang_up);
        for lost in [one, two] {
            assert!(matches!(lost, Err(Failure::Lost)), "{lost:?}");
        }
    }
}
