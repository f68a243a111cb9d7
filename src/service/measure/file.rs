//! The uploaded file as it arrives: buffered, counted, cut off at its limit, and hashed.
//!
//! Never reads past a fault: the first one is kept, whatever a decoder above makes of it.

use std::io::{self, BufRead, Read};

use sha2::Digest as _;

use crate::nix::hash::Sha256Digest;

/// Why the file could not be read on.
pub(super) enum FileFault {
    Source(io::Error),
    TooLarge { max: u64 },
}

/// Reads of this size keep hashing and decoding inside the second-level cache.
const BUFFER_LEN: usize = 128 << 10;

pub(super) struct File<R> {
    source: R,
    buffer: Vec<u8>,
    /// What of `buffer` is read but not consumed.
    start: usize,
    end: usize,
    /// Bytes read from the source.
    size: u64,
    size_max: u64,
    hash: Option<sha2::Sha256>,
    ended: bool,
    fault: Option<FileFault>,
}

impl<R> File<R> {
    pub(super) fn new(source: R, size_max: u64) -> Self {
        let buffer = vec![0; BUFFER_LEN];
        Self { source, buffer, start: 0, end: 0, size: 0, size_max, hash: None, ended: false, fault: None }
    }

    /// Hashes everything from the beginning: to be called before anything is consumed.
    pub(super) fn hash_on(&mut self) {
        self.hash = Some(sha2::Sha256::new_with_prefix(&self.buffer[..self.end]));
    }

    /// Bytes read, and their hash if it was switched on.
    pub(super) fn finish(self) -> (u64, Option<Sha256Digest>) {
        (self.size, self.hash.map(|hash| Sha256Digest(hash.finalize().into())))
    }

    pub(super) fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// The first fault, once.
    pub(super) fn fault(&mut self) -> Option<FileFault> {
        self.fault.take()
    }
}

impl<R: Read> File<R> {
    /// The first `length` bytes, fewer only where the file is shorter; consumes nothing.
    pub(super) fn first(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.end < length && !self.ended {
            self.read_more()?;
        }
        Ok(&self.buffer[..self.end.min(length)])
    }

    /// Reads once, behind what is there. The buffer must not be full.
    fn read_more(&mut self) -> io::Result<()> {
        if self.ended || self.fault.is_some() {
            return Ok(());
        }
        let length = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(FileFault::Source(error))),
            }
        };
        if length == 0 {
            self.ended = true;
            return Ok(());
        }
        self.size += length as u64;
        if self.size > self.size_max {
            return Err(self.fail(FileFault::TooLarge { max: self.size_max }));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&self.buffer[self.end..self.end + length]);
        }
        self.end += length;
        Ok(())
    }

    fn fail(&mut self, fault: FileFault) -> io::Error {
        self.fault = Some(fault);
        io::Error::other("the file could not be read on")
    }
}

impl<R: Read> BufRead for File<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.fault.is_some() {
            return Err(io::Error::other("the file could not be read on"));
        }
        if self.start == self.end && !self.ended {
            self.start = 0;
            self.end = 0;
            self.read_more()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, length: usize) {
        self.start = self.end.min(self.start + length);
    }
}

impl<R: Read> Read for File<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(into)?;
        self.consume(length);
        Ok(length)
    }
}
