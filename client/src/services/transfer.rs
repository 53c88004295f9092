//! Transfers inside the daemon, and the streams that they need.

use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

use grpc::transfer::TransferClient;
use protos::MessageField;
use protos::services::transfer as wire;
use protos::wire::Wire as _;
use protos::wire::transfer::{
    auth_answer_to_any, auth_request_from_any, endpoint_to_any, event_from_any,
};
use tokio::sync::oneshot;
use types::transfer::{AuthAnswer, AuthRequest, Endpoint, TransferEvent};
use types::{Error, Result};

use crate::bytes::{ByteReader, ByteWriter};
use crate::call::done;
use crate::client::Client;
use crate::stream::Duplex;

/// How long the last progress may come after the answer.
const LAST: Duration = Duration::from_secs(10);
/// Bytes copied at a time.
const COPY: usize = 256 * 1024;

impl Client {
    /// Has the daemon move `source` to `destination` and tells `on` of its progress, to the end. As
    /// long as that takes; dropping the future cancels the transfer.
    ///
    /// # Errors
    /// Those of the transfer; `NotImplemented` of a daemon without transfers.
    pub async fn transfer(
        &self,
        source: &Endpoint,
        destination: &Endpoint,
        mut on: impl FnMut(TransferEvent),
    ) -> Result<()> {
        let id = stream_id("progress");
        let mut progress = self.stream(&id).await?;
        let options = wire::TransferOptions {
            progress_stream: id,
            ..Default::default()
        };
        let message = wire::TransferRequest {
            source: MessageField::some(endpoint_to_any(source)?.to_wire()),
            destination: MessageField::some(endpoint_to_any(destination)?.to_wire()),
            options: MessageField::some(options),
            ..Default::default()
        };
        let mut stub = TransferClient::new(self.caller().channel());
        let request = self.caller().endless(message)?;
        let call = async { done(stub.transfer(request).await) };
        let mut call = std::pin::pin!(call);
        let answer = tokio::select! {
            answer = &mut call => answer,
            () = listen(&mut progress, &mut on) => call.await,
        };
        let rest = listen(&mut progress, &mut on);
        if tokio::time::timeout(LAST, rest).await.is_err() {
            tracing::debug!("the progress of a transfer has no end");
        }
        answer.map(drop)
    }

    /// Opens a stream on which the daemon asks for credentials, and lets `answer` tell them, one at a
    /// time. The value is the stream's name; it ends with the transfer.
    ///
    /// # Errors
    /// Of opening the stream.
    pub async fn lend_credentials<F>(
        &self,
        answer: impl Fn(AuthRequest) -> F + Send + 'static,
    ) -> Result<String>
    where
        F: Future<Output = AuthAnswer> + Send,
    {
        let id = stream_id("creds");
        let mut stream = self.stream(&id).await?;
        tokio::spawn(async move {
            while let Ok(Some(frame)) = stream.receive().await {
                let answered = match auth_request_from_any(&frame) {
                    Ok(request) => auth_answer_to_any(&answer(request).await),
                    Err(error) => Err(error),
                };
                let sent = match answered {
                    Ok(frame) => stream.send(frame).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "credentials are not asked for any more");
                    return;
                }
            }
        });
        Ok(id)
    }

    /// Opens a stream and sends what `reader` has, on a thread of its own. The value is the stream's
    /// name, and how the sending ended.
    ///
    /// # Errors
    /// Of opening the stream and of starting the thread.
    pub async fn send_bytes(
        &self,
        reader: Box<dyn Read + Send>,
    ) -> Result<(String, oneshot::Receiver<io::Result<()>>)> {
        let id = stream_id("import");
        let stream = self.stream(&id).await?;
        let mut writer = io::BufWriter::with_capacity(COPY, ByteWriter::new(stream));
        let sent = thread("send", move || {
            let mut reader = reader;
            io::copy(&mut reader, &mut writer)?;
            writer.flush()
        })?;
        Ok((id, sent))
    }

    /// Opens a stream and writes what comes to `writer`, on a thread of its own. The value is the
    /// stream's name, and how the writing ended.
    ///
    /// # Errors
    /// Of opening the stream and of starting the thread.
    pub async fn receive_bytes(
        &self,
        writer: Box<dyn Write + Send>,
    ) -> Result<(String, oneshot::Receiver<io::Result<()>>)> {
        let id = stream_id("export");
        let stream = self.stream(&id).await?;
        let mut reader = io::BufReader::with_capacity(COPY, ByteReader::new(stream));
        let written = thread("receive", move || {
            let mut writer = writer;
            io::copy(&mut reader, &mut writer)?;
            writer.flush()
        })?;
        Ok((id, written))
    }
}

/// Tells of what comes, until the end.
async fn listen(progress: &mut Duplex, on: &mut impl FnMut(TransferEvent)) {
    while let Ok(Some(frame)) = progress.receive().await {
        match event_from_any(&frame) {
            Ok(event) => on(event),
            Err(error) => tracing::debug!(%error, "progress that cannot be read"),
        }
    }
}

/// Not one of the runtime's threads: a reader or writer on a pipe may block for good, and must not
/// hold up the end of the process.
fn thread(
    name: &str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<oneshot::Receiver<io::Result<()>>> {
    let (ended, end) = oneshot::channel();
    let work = move || {
        // Who does not wait does not want to know.
        let _told = ended.send(work());
    };
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map_err(|e| Error::os(format_args!("start {name} thread"), e))?;
    Ok(end)
}

/// A name that no other stream has.
fn stream_id(kind: &str) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let random: u64 = rand::random();
    format!("{kind}-{}-{random:016x}", now.subsec_nanos())
}
