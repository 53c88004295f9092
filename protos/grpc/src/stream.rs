//! Response streams: pages of a list, single items, or whatever a task sends.

use std::fmt;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use types::{Error, Result};

/// Items per message of a paged list.
pub const PAGE: usize = 100;

/// The stream type of every streaming method.
pub type ResponseStream<R> =
    Pin<Box<dyn Stream<Item = std::result::Result<R, Status>> + Send + 'static>>;

/// A list in messages of [`PAGE`] items; no message at all for an empty list. Each message is made when the
/// client has taken what came before it.
pub fn pages<T, R, F>(list: Vec<T>, mut message: F) -> ResponseStream<R>
where
    T: Send + 'static,
    R: 'static,
    F: FnMut(Vec<T>) -> R + Send + 'static,
{
    let mut list = list.into_iter();
    items(std::iter::from_fn(move || {
        let page: Vec<T> = list.by_ref().take(PAGE).collect();
        (!page.is_empty()).then(|| message(page))
    }))
}

/// One message per item.
pub fn items<R, I>(messages: I) -> ResponseStream<R>
where
    I: IntoIterator<Item = R>,
    I::IntoIter: Send + 'static,
    R: 'static,
{
    Box::pin(tokio_stream::iter(messages).map(Ok))
}

/// The sending end of a response stream. Bounded: a slow client slows its own sender only.
pub struct Sender<R>(pub(crate) mpsc::Sender<std::result::Result<R, Status>>);

impl<R> Sender<R> {
    /// Sends one message, waiting for room.
    ///
    /// # Errors
    /// `Cancelled` when the client is gone.
    pub async fn send(&self, message: R) -> Result<()> {
        self.0
            .send(Ok(message))
            .await
            .map_err(|_| Error::cancelled(""))
    }

    /// Completes when all that was sent is on its way, or the client is gone.
    pub async fn drained(&self) {
        // Room for everything is an empty queue.
        drop(self.0.reserve_many(self.0.max_capacity()).await);
    }

    /// Waits for room for one message: who gives up waiting has no message in its hands.
    ///
    /// # Errors
    /// `Cancelled` when the client is gone.
    pub async fn room(&self) -> Result<Room<'_, R>> {
        let room = self.0.reserve().await;
        room.map(Room).map_err(|_| Error::cancelled(""))
    }

    /// Completes when the client is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a, R>(mpsc::Permit<'a, std::result::Result<R, Status>>);

impl<R> Room<'_, R> {
    /// Sends it.
    pub fn send(self, message: R) {
        self.0.send(Ok(message));
    }
}

impl<R> fmt::Debug for Sender<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("closed", &self.0.is_closed())
            .finish()
    }
}

/// A channel whose far end is a response stream.
pub(crate) fn channel<R: Send + 'static>(capacity: usize) -> (Sender<R>, ResponseStream<R>) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Sender(sender), Box::pin(ReceiverStream::new(receiver)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn lists_travel_in_pages_of_100() {
        for (count, want) in [
            (0, vec![]),
            (1, vec![1]),
            (100, vec![100]),
            (250, vec![100, 100, 50]),
        ] {
            let stream = pages((0..count).collect(), |page: Vec<i32>| page.len());
            let sizes: Vec<usize> = stream.map(|page| page.unwrap()).collect().await;
            assert_eq!(sizes, want);
        }
    }

    #[tokio::test]
    async fn a_page_is_made_when_it_is_asked_for() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let mut stream = pages(vec![(); 1000], move |page| {
            counted.fetch_add(page.len(), Ordering::Relaxed);
        });
        stream.next().await.unwrap().unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 100);
    }

    #[tokio::test]
    async fn a_sender_learns_that_its_queue_is_empty() {
        let (sender, mut stream) = channel::<u8>(2);
        sender.send(1).await.unwrap();
        let mut drained = Box::pin(sender.drained());
        let mut unheard = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(drained.as_mut().poll(&mut unheard).is_pending());
        stream.next().await.unwrap().unwrap();
        drained.await;
    }

    #[tokio::test]
    async fn a_sender_learns_that_the_client_is_gone() {
        let (sender, stream) = channel::<u8>(1);
        sender.send(1).await.unwrap();
        drop(stream);
        assert!(sender.send(2).await.unwrap_err().is(types::Code::Cancelled));
        sender.closed().await;
    }
}
