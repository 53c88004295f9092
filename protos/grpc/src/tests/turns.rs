//! Calls beside each other, and a server that is stopped while there are some.

use super::*;

/// Routes to one method, which does as its caller's namespace says.
struct Odd(tokio::sync::Semaphore);

#[tonic::async_trait]
impl Version for Odd {
    async fn version(&self, request: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
        match request.metadata().get(crate::NAMESPACE).map(AsRef::as_ref) {
            Some(b"wait") => drop(self.0.acquire().await),
            Some(b"go") => self.0.add_permits(1),
            _ => panic!("outside of any body"),
        }
        Ok(Response::new(VersionResponse::new()))
    }
}

fn odd(namespace: &'static str) -> Request<Empty> {
    let mut request = Request::new(Empty::new());
    request
        .metadata_mut()
        .insert(crate::NAMESPACE, namespace.parse().unwrap());
    request
}
#[tokio::test]
async fn calls_of_one_connection_wait_for_each_other_and_a_panic_ends_one_of_them() {
    let odd_one = Odd(tokio::sync::Semaphore::new(0));
    let serving = serve_routes(
        Routes::of(VersionServer::new(odd_one)),
        std::future::pending(),
    );
    let client = VersionClient::new(connect(serving.dir.path()).await);
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.version(odd("wait")).await })
        })
        .collect();
    let panicked = client.clone().version(odd("panic")).await.unwrap_err();
    assert_eq!(panicked.code(), tonic::Code::Cancelled, "{panicked}");
    for _ in 0..100 {
        client.clone().version(odd("go")).await.unwrap();
    }
    for waited in waiting {
        waited.await.unwrap().unwrap();
    }
}

/// Many calls that each take long: another connection is answered before they all are.
#[tokio::test]
async fn calls_of_one_connection_do_not_keep_another_from_its_turn() {
    struct Slow(std::sync::atomic::AtomicUsize);

    #[tonic::async_trait]
    impl Version for Slow {
        async fn version(&self, _: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
            let count = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let begin = std::time::Instant::now();
            while begin.elapsed() < std::time::Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            Ok(Response::new(VersionResponse {
                version: count.to_string(),
                ..Default::default()
            }))
        }
    }

    const MANY: usize = 200;
    let routes = Routes::of(VersionServer::new(Slow(0.into())));
    let serving = serve_routes(routes, std::future::pending());
    let busy = VersionClient::new(connect(serving.dir.path()).await);
    let other = VersionClient::new(connect(serving.dir.path()).await);
    let calls = (0..MANY).map(|_| {
        let mut client = busy.clone();
        async move { client.version(Empty::new()).await.unwrap() }
    });
    let first = async {
        let mut client = other.clone();
        client.version(Empty::new()).await.unwrap().into_inner()
    };
    let (_, answer) = tokio::join!(futures::future::join_all(calls), first);
    let turn: usize = answer.version.parse().unwrap();
    assert!(turn < MANY / 2, "it was the {turn}th to have its turn");
}

#[tokio::test]
async fn a_server_that_is_stopped_ends_with_its_last_call() {
    let odd_one = Odd(tokio::sync::Semaphore::new(0));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(VersionServer::new(odd_one)), stopped);
    let mut client = VersionClient::new(connect(serving.dir.path()).await);
    // The server has this one before it hears of the end.
    client.version(odd("go")).await.unwrap();
    let waiting = client.version(odd("wait"));
    waiting.await.unwrap();
    stop.send(()).unwrap();
    (&mut serving.task).await.unwrap();
    client.version(odd("go")).await.unwrap_err();
    UnixStream::connect(serving.dir.path().join("sock"))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_server_that_is_stopped_does_not_wait_for_a_stream_without_an_end() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(StreamingServer::new(Daemon)), stopped);
    let mut client = StreamingClient::new(connect(serving.dir.path()).await);
    let (open, items) = tokio::sync::mpsc::channel(1);
    open.send(Any::default()).await.unwrap();
    let items = tokio_stream::wrappers::ReceiverStream::new(items);
    let mut answers = client
        .stream(in_namespace(items))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap();
    stop.send(()).unwrap();
    let end = answers.message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    drop((open, answers));
    (&mut serving.task).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_just_made_when_the_server_stops_gets_its_first_answer() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let mut serving = serve_routes(Routes::of(VersionServer::new(Daemon)), stopped);
    // Taken before the server hears of the end: its last one is.
    let fresh = UnixStream::connect(serving.dir.path().join("sock"))
        .await
        .unwrap();
    let mut other = VersionClient::new(connect(serving.dir.path()).await);
    other.version(Empty::new()).await.unwrap();
    stop.send(()).unwrap();
    tokio::task::yield_now().await;
    let mut fresh = Some(TokioIo::new(fresh));
    let connector = tower::service_fn(move |_: Uri| {
        let fresh = fresh.take();
        async move { fresh.ok_or_else(|| std::io::Error::other("it was lost")) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap();
    let answer = VersionClient::new(channel).version(Empty::new()).await;
    assert_eq!(answer.unwrap().into_inner().version, "v2");
    (&mut serving.task).await.unwrap();
}
