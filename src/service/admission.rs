//! Admission of uploads: so many at once for a token, so much memory for all.
//!
//! Waits before the first byte of a body is read, so that a queue costs nothing but a connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Result};
use crate::access::TokenId;

/// The memory of all uploads is counted in pieces of this many bytes.
const PIECE_BYTES: u64 = 64 * 1024;

/// Who may upload now.
pub(super) struct Admission {
    memory: Arc<Semaphore>,
    memory_pieces: u32,
    by_token: Mutex<HashMap<TokenId, Arc<Semaphore>>>,
    uploads_per_token: usize,
    wait: Duration,
}

/// Memory for a body that is held whole; dropping it gives it back.
pub struct Room {
    _memory: OwnedSemaphorePermit,
}

/// A place; dropping it gives it back.
pub(super) struct Place {
    _token: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Admission {
    /// `memory_bytes` for all uploads together, `uploads_per_token` at once, each waiting at most `wait`.
    pub fn new(memory_bytes: u64, uploads_per_token: usize, wait: Duration) -> Self {
        let memory_pieces = u32::try_from(memory_bytes / PIECE_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            memory: Arc::new(Semaphore::new(memory_pieces as usize)),
            memory_pieces,
            by_token: Mutex::default(),
            uploads_per_token,
            wait,
        }
    }

    /// Waits for a place for an upload that may cost `bytes` of memory.
    pub async fn enter(&self, token: TokenId, bytes: u64) -> Result<Place> {
        let of_token = self.of_token(token);
        let both = async {
            let token = of_token.acquire_owned().await.map_err(|closed| Error::Internal(closed.into()))?;
            Ok(Place { _token: token, _memory: self.memory(bytes).await? })
        };
        tokio::time::timeout(self.wait, both).await.unwrap_or(Err(Error::Busy))
    }

    /// Waits for memory for a body of at most `bytes` that is held whole. It counts for no token: it is short.
    pub async fn room(&self, bytes: u64) -> Result<Room> {
        match tokio::time::timeout(self.wait, self.memory(bytes)).await {
            Ok(memory) => Ok(Room { _memory: memory? }),
            Err(_) => Err(Error::Busy),
        }
    }

    async fn memory(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        // More than there is would wait for ever: such an upload gets all, and is alone.
        let pieces = u32::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX).min(self.memory_pieces);
        let memory = Arc::clone(&self.memory).acquire_many_owned(pieces).await;
        memory.map_err(|closed| Error::Internal(closed.into()))
    }

    fn of_token(&self, token: TokenId) -> Arc<Semaphore> {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if by_token.len() >= TOKENS_KEPT {
            // Only tokens that nobody uploads with have one owner: this map.
            by_token.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        let fresh = || Arc::new(Semaphore::new(self.uploads_per_token));
        Arc::clone(by_token.entry(token).or_insert_with(fresh))
    }
}

/// Beyond this many tokens, those without an upload are forgotten.
const TOKENS_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn token(byte: u8) -> TokenId {
        TokenId::new(Timestamp(1), [byte; 10])
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_has_so_many_uploads_and_no_more() {
        let admission = Admission::new(1 << 20, 2, Duration::from_secs(120));
        let first = admission.enter(token(1), 1).await.unwrap();
        let _second = admission.enter(token(1), 1).await.unwrap();

        assert!(matches!(admission.enter(token(1), 1).await, Err(Error::Busy)));
        assert!(admission.enter(token(2), 1).await.is_ok());

        drop(first);
        assert!(admission.enter(token(1), 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn all_uploads_share_one_memory() {
        let admission = Admission::new(1 << 20, 8, Duration::from_secs(120));
        let whole = admission.enter(token(1), u64::MAX).await.unwrap();

        assert!(matches!(admission.enter(token(2), 1).await, Err(Error::Busy)));

        assert!(matches!(admission.room(1).await, Err(Error::Busy)));

        drop(whole);
        assert!(admission.enter(token(2), 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_body_needs_memory_but_no_place_of_its_token() {
        let admission = Admission::new(2 * PIECE_BYTES, 1, Duration::from_secs(120));
        let _upload = admission.enter(token(1), PIECE_BYTES).await.unwrap();
        let room = admission.room(PIECE_BYTES).await.unwrap();

        assert!(matches!(admission.room(1).await, Err(Error::Busy)));

        drop(room);
        assert!(admission.room(1).await.is_ok());
    }
}
