//! Tests of what routes are made of; those of calls are the crate's.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};

use super::*;

/// Notes that an error was told.
#[derive(Clone, Default)]
struct Told(Arc<AtomicBool>);

impl tracing::Subscriber for Told {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::ERROR {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A service by its name alone.
#[derive(Clone)]
struct Known;

impl NamedService for Known {
    const NAME: &'static str = "containerd.services.version.v1.Version";
}

/// One of which nothing was generated.
#[derive(Clone)]
struct Unknown;

impl NamedService for Unknown {
    const NAME: &'static str = "no.such.v1.Service";
}

macro_rules! service {
    ($($name:ty),*) => {$(
        impl Service<Request<Asked>> for $name {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Running;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: Request<Asked>) -> Running {
                Box::pin(ready(Ok(Status::unimplemented("").into_http())))
            }
        }
    )*};
}
service!(Known, Unknown);

#[test]
fn a_service_that_cannot_be_served_is_told() {
    let is_told = |make: fn() -> Routes| {
        let told = Told::default();
        let routes = tracing::subscriber::with_default(told.clone(), make);
        (told.0.load(Ordering::SeqCst), routes.0.len())
    };
    assert_eq!(is_told(|| Routes::of(Known)), (false, 1));
    assert_eq!(is_told(|| Routes::of(Unknown)), (true, 0));
}
