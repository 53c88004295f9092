//! Streams that are made as they are taken.
//!
//! Invariant: nothing is made ahead of the client. What a slow one leaves stays where it comes from,
//! and counts there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use types::{Error, Result};

use crate::call::Call;
use crate::stream::ResponseStream;

/// Serves a call of a service that knows no namespaces with a stream whose messages are made one at
/// a time, when there is room for them on the way to the client: nothing is made ahead. The stream is
/// dropped when the client hangs up.
///
/// # Errors
/// None at once. An error in the stream ends it.
pub fn serve_unscoped_pull<Q, R, S>(
    request: Request<Q>,
    stream: impl FnOnce(Q) -> S,
) -> Result<Response<ResponseStream<R>>, Status>
where
    R: Send + 'static,
    S: Stream<Item = Result<R>> + Send + 'static,
{
    let call = Call::of(&request);
    let pulled = Pulled {
        late: Box::pin(call.late()),
        stream: Some(Box::pin(stream(request.into_inner()))),
        call,
    };
    Ok(Response::new(Box::pin(pulled)))
}

/// A stream of a call, until its end, its first error or its deadline.
struct Pulled<R> {
    call: Call,
    stream: Option<Pin<Box<dyn Stream<Item = Result<R>> + Send>>>,
    late: Pin<Box<dyn Future<Output = Error> + Send>>,
}

impl<R> Stream for Pulled<R> {
    type Item = Result<R, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        let next = match stream.as_mut().poll_next(cx) {
            Poll::Pending => Some(Err(ready!(self.late.as_mut().poll(cx)))),
            Poll::Ready(next) => next,
        };
        if !matches!(next, Some(Ok(_))) {
            self.stream = None;
        }
        let answer = |done| self.call.answer(done).map(Response::into_inner);
        Poll::Ready(next.map(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn called(pairs: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (key, value) in pairs {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        request
    }

    #[tokio::test]
    async fn a_pulled_stream_makes_nothing_ahead_and_ends_with_its_error() {
        let (made, counted) = std::sync::mpsc::channel();
        let numbers = tokio_stream::iter(0..9).map(move |n| {
            made.send(n).unwrap();
            if n < 2 {
                Ok(n)
            } else {
                Err(Error::aborted("cut"))
            }
        });
        let mut answer = serve_unscoped_pull(called(&[]), |()| numbers)
            .unwrap()
            .into_inner();
        assert_eq!(answer.next().await.unwrap().unwrap(), 0);
        assert_eq!(counted.try_iter().count(), 1);
        assert_eq!(answer.next().await.unwrap().unwrap(), 1);
        let cut = answer.next().await.unwrap().unwrap_err();
        assert_eq!(cut.message(), "cut: aborted");
        assert!(answer.next().await.is_none());
        assert_eq!(counted.try_iter().count(), 2);
    }

    #[tokio::test]
    async fn a_pulled_stream_ends_with_its_deadline() {
        let request = called(&[("grpc-timeout", "1m")]);
        let answer = serve_unscoped_pull(request, |()| tokio_stream::pending::<Result<()>>());
        let items: Vec<_> = answer.unwrap().into_inner().collect().await;
        assert_eq!(items.len(), 1);
        let status = items[0].as_ref().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
}
