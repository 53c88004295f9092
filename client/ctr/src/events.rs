//! `events`: what happens in the daemon, as it happens.

use std::time::Duration;

use client::{Envelope, Heard};
use types::{Filter, Result};

use crate::context::Context;
use crate::{out, text};

/// How long a daemon may be away before this ends: its restart is no reason to.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only events that pass one of these filters.
    filters: Vec<String>,
}

/// Prints events until the daemon or the reader goes. What is missed is told on stderr.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let filter = Filter::parse(&args.filters)?;
    let client = ctx.client().await?;
    let mut events = client.events().follow(filter, PATIENCE);
    loop {
        match events.next().await? {
            Heard::Event(envelope) => {
                if let Some(line) = line(&envelope) {
                    out::line(&line)?;
                }
            }
            Heard::Gap(error) => out::complain(error.ctx("events are missed")),
        }
    }
}

/// Time, namespace, topic and the event as JSON; `None` for an event of an unknown type.
fn line(envelope: &Envelope) -> Option<String> {
    let json = match (&envelope.event, envelope.json()) {
        (None, _) => String::new(),
        (Some(_), Some(json)) => out::go_escapes(json.to_string()),
        (Some(event), None) => {
            tracing::warn!(kind = %event.type_url, "cannot read an event");
            return None;
        }
    };
    let time = text::go_time(envelope.timestamp);
    let (namespace, topic) = (&envelope.namespace, &envelope.topic);
    Some(format!("{time} {namespace} {topic} {json}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};
    use types::Any;

    #[test]
    fn a_line_has_four_columns() {
        let mut envelope = Envelope {
            timestamp: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            namespace: "moby".into(),
            topic: "/tasks/paused".into(),
            event: Some(Any {
                type_url: "containerd.events.TaskPaused".into(),
                value: b"\x0a\x01c".to_vec(),
            }),
        };
        assert_eq!(
            line(&envelope).unwrap(),
            r#"1970-01-01 00:00:01.5 +0000 UTC moby /tasks/paused {"container_id":"c"}"#
        );
        envelope.event = Some(Any {
            type_url: "example.test/Unknown".into(),
            value: Vec::new(),
        });
        assert_eq!(line(&envelope), None);
    }
}
