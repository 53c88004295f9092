//! Random histories of publishing, reading, dropping and coming back, against a plain list of all
//! that was published: everyone gets all that concerns them, once and in order, or is told of a gap.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use proptest::prelude::*;
use types::{Any, Code, Filter, Topic};

use super::{codec, namespace};
use crate::{Envelope, Exchange, Limits, Position, Step, Subscription};

const QUEUE: Limits = Limits {
    count: 8,
    bytes: 6000,
};
const REPLAY: Limits = Limits {
    count: 6,
    bytes: 3000,
};
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
/// The last one is more than is ever held.
const SIZES: [usize; 4] = [0, 100, 900, 4000];
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    Publish {
        namespace: usize,
        size: usize,
    },
    /// Subscribes anew to one namespace or, beyond the last, to all.
    Subscribe {
        client: usize,
        namespace: usize,
    },
    Read {
        client: usize,
        most: usize,
    },
    Drop {
        client: usize,
    },
    Resume {
        client: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let client = || 0..CLIENTS;
    prop_oneof![
        6 => (0..NAMESPACES.len(), 0..SIZES.len())
            .prop_map(|(namespace, size)| Action::Publish { namespace, size }),
        1 => (client(), 0..=NAMESPACES.len())
            .prop_map(|(client, namespace)| Action::Subscribe { client, namespace }),
        3 => (client(), 1..12_usize).prop_map(|(client, most)| Action::Read { client, most }),
        1 => client().prop_map(|client| Action::Drop { client }),
        2 => client().prop_map(|client| Action::Resume { client }),
    ]
}

/// One that was published.
struct Past {
    namespace: usize,
    weight: usize,
}

struct Client {
    namespace: usize,
    position: Position,
    live: Option<Subscription>,
}

impl Client {
    fn filter(&self) -> Filter {
        let texts = NAMESPACES.get(self.namespace);
        let texts: Vec<_> = texts
            .map(|n| format!("namespace=={n}"))
            .into_iter()
            .collect();
        Filter::parse(&texts).unwrap()
    }

    fn wants(&self, past: &Past) -> bool {
        self.namespace == NAMESPACES.len() || self.namespace == past.namespace
    }

    /// Number of the first one after `number` that it wants.
    fn next(&self, log: &[Past], number: u64) -> Option<u64> {
        let numbered = (1..).zip(log).skip(usize::try_from(number).unwrap());
        let mut wanted = numbered.filter(|(_, past)| self.wants(past));
        wanted.next().map(|(number, _)| number)
    }
}

/// What the future gives at once.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Number of the newest that is not held any more.
fn gone(log: &[Past]) -> u64 {
    let (mut count, mut bytes) = (0, 0);
    for past in log.iter().rev() {
        count += 1;
        bytes += past.weight;
        if count > REPLAY.count || bytes > REPLAY.bytes {
            return (log.len() + 1 - count) as u64;
        }
    }
    0
}

/// Checks one step against the list.
fn check(client: &mut Client, step: &Step, log: &[Past]) -> Result<(), TestCaseError> {
    let next = client.next(log, client.position.sequence);
    prop_assert!(step.position.sequence > client.position.sequence);
    if let Some(envelope) = &step.envelope {
        prop_assert_eq!(Some(step.position.sequence), next);
        prop_assert_eq!(
            &envelope.event.type_url,
            &step.position.sequence.to_string()
        );
    } else {
        prop_assert!(next.is_none_or(|next| next > step.position.sequence));
    }
    client.position = step.position;
    Ok(())
}

fn read(client: &mut Client, most: usize, log: &[Past]) -> Result<(), TestCaseError> {
    for _ in 0..most {
        let Some(subscription) = &mut client.live else {
            return Ok(());
        };
        match now(subscription.step()) {
            Some(Ok(step)) => check(client, &step, log)?,
            Some(Err(error)) => {
                prop_assert!(error.is(Code::ResourceExhausted), "{}", error);
                client.live = None;
            }
            None => {
                // All was handed out, so going on from here is always possible.
                prop_assert_eq!(client.next(log, client.position.sequence), None);
                prop_assert!(client.position.sequence >= gone(log));
                return Ok(());
            }
        }
    }
    Ok(())
}

fn resume(exchange: &Exchange, client: &mut Client, log: &[Past]) -> Result<(), TestCaseError> {
    let gone = gone(log);
    let at = client.position.sequence;
    match exchange.resume(client.filter(), client.position) {
        Ok(subscription) => {
            prop_assert!(at >= gone, "{} is gone after {}", gone, at);
            client.live = Some(subscription);
        }
        Err(gap) => {
            prop_assert_eq!(gap.missed, gone.checked_sub(at));
            prop_assert!(at < gone && gap.from.sequence == gone);
            client.position = gap.from;
            client.live = Some(exchange.resume(client.filter(), gap.from).unwrap());
        }
    }
    Ok(())
}

fn play(actions: Vec<Action>) -> Result<(), TestCaseError> {
    let exchange = Exchange::with_limits(codec(), QUEUE, REPLAY);
    let mut log: Vec<Past> = Vec::new();
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|namespace| {
            let position = exchange.follow(Filter::default()).start();
            Client {
                namespace,
                position,
                live: None,
            }
        })
        .collect();
    for action in actions {
        match action {
            Action::Publish { namespace: n, size } => {
                let event = Any {
                    type_url: (log.len() + 1).to_string(),
                    value: vec![0; SIZES[size]],
                };
                let envelope = Envelope {
                    timestamp: SystemTime::now(),
                    namespace: namespace(NAMESPACES[n]),
                    topic: Topic::try_from("/t".to_owned()).unwrap(),
                    event,
                };
                log.push(Past {
                    namespace: n,
                    weight: envelope.weight(),
                });
                exchange.forward(envelope).unwrap();
            }
            Action::Subscribe { client, namespace } => {
                let client = &mut clients[client];
                client.namespace = namespace;
                let subscription = exchange.follow(client.filter());
                client.position = subscription.start();
                prop_assert_eq!(client.position.sequence, log.len() as u64);
                client.live = Some(subscription);
            }
            Action::Read { client, most } => read(&mut clients[client], most, &log)?,
            Action::Drop { client } => clients[client].live = None,
            Action::Resume { client } => resume(&exchange, &mut clients[client], &log)?,
        }
    }
    for client in &mut clients {
        read(client, usize::MAX, &log)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn everyone_gets_everything_once_and_in_order_or_hears_of_a_gap(
        actions in prop::collection::vec(action(), 0..80)
    ) {
        play(actions)?;
    }
}
