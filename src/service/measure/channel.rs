//! Carries a request's body from the async side to the thread that measures it.
//!
//! Never takes a lost sender for the end of the body: only [`Chunk::End`] is one.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// What the sender puts into the channel.
#[derive(Debug, Clone)]
pub enum Chunk {
    Data(Bytes),
    /// The body was received whole. A sender that cannot say so is dropped, and the reader fails.
    End,
}

/// The receiving end as a blocking reader: for `spawn_blocking`, never inside an async task.
#[derive(Debug)]
pub struct ChanRead {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

impl ChanRead {
    /// Reads what is sent into `receiver`'s channel.
    pub fn new(receiver: mpsc::Receiver<Chunk>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for ChanRead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Chunk::Data(bytes)) => self.current = bytes,
                Some(Chunk::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the sender was gone before the end of the body",
                    ));
                }
            }
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
