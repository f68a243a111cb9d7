//! Decompresses on the calling thread and judges the archive on a second one, so that both cores of an upload work.
//!
//! Never lets the decoder run far ahead: [`BUFFERS`] buffers go round, and no more is allocated.

use std::io::{self, Read};
use std::panic;
use std::sync::mpsc;
use std::thread;

use crate::threads::in_place;

/// Buffers that go round between the two threads: what the decoder can be ahead by.
const BUFFERS: usize = 4;

/// Bytes in each: a thread that waits for one has to be woken, which takes as long as decoding some ten thousand bytes.
const BUFFER_LEN: usize = 512 << 10;

/// What an archive of one thread may have at most, in bytes.
const LITTLE_LEN: usize = 128 << 10;

/// What ended a run before its time.
pub(super) enum Stop<E> {
    /// No second thread could be started.
    Thread(io::Error),
    /// The decoder failed.
    Decoder(io::Error),
    /// `take` refused.
    Taker(E),
}

/// Reads `decoder` to its end and hands everything to `take`, in order, on a thread of its own unless that is little: then
/// the caller is held up for less than a millisecond or two, and needs not be where that does no harm.
///
/// Where both fail, the taker's refusal counts: it saw the earlier bytes.
pub(super) fn run<E: Send>(
    mut decoder: impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), E> + Send,
) -> Result<(), Stop<E>> {
    let mut first = vec![0; LITTLE_LEN];
    let (length, result) = fill(&mut decoder, &mut first);
    if length < LITTLE_LEN || result.is_err() {
        // All of it: most archives are small, and a thread costs more than they do.
        if length > 0 {
            take(&first[..length]).map_err(Stop::Taker)?;
        }
        return result.map_err(Stop::Decoder);
    }
    in_place(|| run_on_two(decoder, take, first))
}

/// The same where there is more than `first`, which is full and not handed on yet.
fn run_on_two<E: Send>(
    mut decoder: impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), E> + Send,
    first: Vec<u8>,
) -> Result<(), Stop<E>> {
    let (full, to_take) = mpsc::sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (taken, empty) = mpsc::sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        taken.try_send(vec![0; BUFFER_LEN]).expect("as many as the channel holds");
    }
    thread::scope(|scope| {
        let taker = thread::Builder::new()
            .name("measure".to_owned())
            .spawn_scoped(scope, move || {
                take(&first)?;
                drop(first);
                for (buffer, length) in to_take {
                    take(&buffer[..length])?;
                    // The decoder may have gone: then nobody needs the buffer.
                    let _ = taken.send(buffer);
                }
                Ok(())
            })
            .map_err(Stop::Thread)?;
        let mut decoded = Ok(());
        // Ends early where the taker has refused and its ends of the channels are gone.
        while let Ok(mut buffer) = empty.recv() {
            let (length, result) = fill(&mut decoder, &mut buffer);
            decoded = result.map_err(Stop::Decoder);
            if length == 0 || full.send((buffer, length)).is_err() || decoded.is_err() {
                break;
            }
        }
        drop(full);
        taker.join().unwrap_or_else(|panic| panic::resume_unwind(panic)).map_err(Stop::Taker)?;
        decoded
    })
}

/// Reads until `buffer` is full, the end is there, or an error: then too with what came before it.
fn fill(decoder: &mut impl Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut length = 0;
    while length < buffer.len() {
        match decoder.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Err(error)),
        }
    }
    (length, Ok(()))
}
