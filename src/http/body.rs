//! The body of a request: a stream with a known limit, and what becomes of it when it is refused.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};

use super::error::Refusal;
use crate::service::Error;

/// A request's body, polled by nobody until its sender's right was checked: the first poll is what makes
/// the server answer `Expect: 100-continue`.
pub(super) struct RequestBody {
    stream: BodyDataStream,
    stated_size: Option<u64>,
    /// The client waits for a word before it sends: a refusal is that word, and nothing has to be read.
    expects: bool,
    polled: bool,
}

impl RequestBody {
    pub fn new(headers: &HeaderMap, body: Body) -> Self {
        let stated_size =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let expects = headers.contains_key(header::EXPECT);
        Self { stream: body.into_data_stream(), stated_size, expects, polled: false }
    }

    /// `Content-Length`, if there was one.
    pub fn stated_size(&self) -> Option<u64> {
        self.stated_size
    }

    /// How much of a body with this limit there may be, as far as is known before it is read. `what` names it in
    /// the refusal.
    pub fn size_at_most(&self, max: u64, what: &'static str) -> Result<u64, Refusal> {
        match self.stated_size {
            Some(size) if size > max => Err(Error::TooLarge { what, max }.into()),
            stated => Ok(stated.unwrap_or(max)),
        }
    }

    /// Reads a small body whole. `what` names it in the refusal.
    pub async fn read(&mut self, max: u64, what: &'static str) -> Result<Bytes, Refusal> {
        self.size_at_most(max, what)?;
        let mut whole = BytesMut::new();
        let reading = async {
            while let Some(piece) = self.next().await {
                let piece = piece.map_err(|_| Error::Aborted)?;
                if (whole.len() + piece.len()) as u64 > max {
                    return Err(Error::TooLarge { what, max });
                }
                whole.extend_from_slice(&piece);
            }
            Ok(())
        };
        match tokio::time::timeout(SMALL_BODY_TIME_MAX, reading).await {
            Ok(result) => result?,
            Err(_) => return Err(Error::TooSlow { bytes_per_second_min: 1024 }.into()),
        }
        Ok(whole.freeze())
    }

    /// Reads and drops what a refused client still sends, within bounds: closing at once would cut the
    /// connection before the client has read why. The answer does not wait for this.
    pub fn drop_politely(mut self) {
        let nothing_comes = self.stated_size == Some(0) || (self.expects && !self.polled);
        if nothing_comes {
            return;
        }
        tokio::spawn(async move {
            let reading = async {
                let mut read = 0;
                while let Some(Ok(piece)) = self.stream.next().await {
                    read += piece.len();
                    if read > DROPPED_BYTES_MAX {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(DROPPED_TIME_MAX, reading).await;
        });
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polled = true;
        self.stream.poll_next_unpin(context)
    }
}

/// A narinfo or a log at the slowest accepted pace.
const SMALL_BODY_TIME_MAX: Duration = Duration::from_secs(120);

const DROPPED_BYTES_MAX: usize = 64 << 20;
const DROPPED_TIME_MAX: Duration = Duration::from_secs(10);
