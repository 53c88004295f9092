//! `info`: the identity of the daemon.

use client::ServerInfo;
use serde_json::{Map, Value, json};
use types::Result;

use crate::context::Context;
use crate::out;

/// Arguments: none.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Prints what the daemon says about itself.
pub(crate) async fn run(ctx: &Context, _: Args) -> Result<u8> {
    let server = ctx.client().await?.introspection().server().await?;
    out::json(&json!({ "server": document(&server) }))?;
    Ok(0)
}

/// As Go has it: what is empty is left out.
fn document(server: &ServerInfo) -> Value {
    let mut made = Map::new();
    made.insert("uuid".to_owned(), json!(server.uuid));
    for (name, number) in [("pid", server.pid), ("pidns", server.pidns)] {
        if number != 0 {
            made.insert(name.to_owned(), json!(number));
        }
    }
    let deprecation = |(id, message): &(String, String)| json!({"id": id, "message": message});
    let deprecations: Vec<_> = server.deprecations.iter().map(deprecation).collect();
    if !deprecations.is_empty() {
        made.insert("deprecations".to_owned(), Value::Array(deprecations));
    }
    Value::Object(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_left_out() {
        let mut server = ServerInfo {
            uuid: "u".into(),
            pid: 0,
            pidns: 0,
            deprecations: Vec::new(),
        };
        assert_eq!(document(&server).to_string(), r#"{"uuid":"u"}"#);
        server.pid = 7;
        server.deprecations.push(("a".into(), "b".into()));
        assert_eq!(
            document(&server).to_string(),
            r#"{"uuid":"u","pid":7,"deprecations":[{"id":"a","message":"b"}]}"#
        );
    }
}
