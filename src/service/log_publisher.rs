//! Publishing the signature log: tiles, entry bundles and a signed checkpoint in storage, each second when there is
//! something new, by whichever replica comes first.
//!
//! Tiles are the same bytes whoever writes them, so replicas need no leader. Whatever contradicts what was published
//! before is a fork: nothing is signed any more until an operator has cleared the alarm. Never relies on conditional
//! writes.

mod health;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tokio_util::sync::CancellationToken;

pub(super) use self::health::LogHealth;
pub use self::health::{Fork, SigningStopped};
use super::log::LEAVES_AT_ONCE;
use super::{Error, Result, Service};
use crate::db::log::{self, CheckpointRow};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{DbError, Gate};
use crate::storage::{Folder, ObjectKey, StorageError};
use crate::tlog::bundle;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::edge::Edge;
use crate::tlog::hash::NodeHash;
use crate::tlog::note::{NOTE_SIZE_BYTES_MAX, Note};
use crate::tlog::tile::{TILE_WIDTH, Tile, TileKind, narrowed};
use crate::tlog::tile_hashes::TileHashes;
use crate::tlog::verifier_key::{Algorithm, VerifierKey};
use crate::vault::Purpose;

/// Largest tile or bundle, in bytes: 256 leaves of 16 KiB, each after two bytes.
pub(super) const TILE_SIZE_BYTES_MAX: usize = 256 * (2 + 16 * 1024);

/// How long the publisher rests; a new signature is provable about so much later.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a witness that did not cosign is left alone while nothing new is published.
const WITNESS_PAUSE: Duration = Duration::from_secs(30);

/// Why a round of publishing did not end.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Fork(#[from] Fork),
    #[error(transparent)]
    Service(#[from] Error),
}

impl From<DbError> for PublishError {
    fn from(error: DbError) -> Self {
        Self::Service(error.into())
    }
}

impl From<StorageError> for PublishError {
    fn from(error: StorageError) -> Self {
        Self::Service(error.into())
    }
}

type Publish<T> = std::result::Result<T, PublishError>;

/// What one replica's publisher knows from one round to the next.
#[derive(Default)]
struct Published {
    /// The right edge of the tree under the checkpoint that was seen last.
    edge: Option<Edge>,
    /// The size of the checkpoint that storage has for sure.
    stored: Option<u64>,
    /// When witnesses were asked last.
    witnessed_at: Option<Instant>,
    /// Whether the lists of references of all leaves are published, and not only those of the leaves since they are.
    has_references: bool,
}

impl Service {
    /// Publishes until `stop`. After a fork it waits until an operator has cleared the alarm.
    pub(super) async fn log_publisher(self, stop: CancellationToken) {
        let mut published = Published::default();
        loop {
            match self.publish_round(&mut published).await {
                Ok(()) => {}
                Err(PublishError::Fork(fork)) => {
                    published = Published::default();
                    self.raise_alarm(&fork, &stop).await;
                }
                Err(PublishError::Service(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the signature log was not published; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// The log's key as verifiers name it.
    pub async fn log_verifier_key(&self) -> Result<VerifierKey> {
        Ok(self.log_key().await?.1)
    }

    /// The newest checkpoint, as it was signed; `None` before the first.
    pub async fn log_checkpoint(&self) -> Result<Option<CheckpointRow>> {
        Ok(log::checkpoint(&mut *self.inner.db.read().await?).await?)
    }

    /// A tile as it was published, cut from the full one where that has come since; `None` where there is none.
    pub async fn log_tile(&self, tile: Tile) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.inner.storage.read(&tile_key(tile)?, TILE_SIZE_BYTES_MAX).await? {
            return Ok(Some(bytes));
        }
        if tile.is_full() {
            return Ok(None);
        }
        let full = self.inner.storage.read(&tile_key(tile.full())?, TILE_SIZE_BYTES_MAX).await?;
        Ok(full.and_then(|full| narrowed(tile, &full)).map(Bytes::from))
    }

    async fn log_key(&self) -> Result<(KeyRow, VerifierKey)> {
        let rows = signing_keys::by_purpose(&mut *self.inner.db.read().await?, Purpose::Log).await?;
        let row = rows.into_iter().find(|row| row.state == KeyState::Active);
        let row = row.ok_or(Error::NotFound("log key"))?;
        let name = row.public_key.name().as_str().parse().map_err(internal)?;
        let key = VerifierKey::new(name, Algorithm::Ed25519, row.public_key.bytes()).map_err(internal)?;
        Ok((row, key))
    }

    /// One round: what is new first, then what was left out before there were lists of references.
    async fn publish_round(&self, published: &mut Published) -> Publish<()> {
        self.publish_new(published).await?;
        if !published.has_references {
            published.has_references = self.complete_references().await?;
        }
        Ok(())
    }

    /// What was published last, what is new, and the checkpoint in storage.
    async fn publish_new(&self, published: &mut Published) -> Publish<()> {
        let (state, row) = {
            let mut connection = self.inner.db.read().await?;
            // The checkpoint first: one that is read after the size could be of more leaves than that.
            let row = log::checkpoint(&mut connection).await?;
            (log::read(&mut connection).await?, row)
        };
        if let Some(what) = &state.forked {
            published.edge = None;
            self.inner.log_health.alarm(what);
            return Ok(());
        }
        self.inner.log_health.all_clear();
        let size = u64::try_from(state.size).map_err(internal)?;
        let (key_row, key) = self.log_key().await?;
        let standing = row.as_ref().map(|row| opened(&row.note, &key)).transpose()?;
        let standing_size = standing.as_ref().map_or(0, |standing| standing.size);
        let waiting_since = self.waiting_since(standing_size, size).await?;
        self.inner.log_health.seen(size, standing_size, waiting_since);
        if standing_size > size {
            return Err(Fork::Older { place: "the database", published: standing_size, leaves: size }.into());
        }
        if published.stored == Some(standing_size) && standing_size == size {
            return match (row, standing) {
                (Some(row), Some(standing)) => {
                    self.ask_witnesses_again(published, row, &standing, &key).await
                }
                _ => Ok(()),
            };
        }
        if published.stored != Some(standing_size) {
            self.store_checkpoint(published, row.map(|row| row.note), &key).await?;
            if published.stored.is_some_and(|stored| stored > standing_size) {
                // A newer one was found: the next round goes on from there.
                return Ok(());
            }
        }
        let edge = self.edge_at(published.edge.take(), standing.as_ref()).await?;
        published.edge = Some(edge.clone());
        if standing_size == size || !self.inner.keyring.is_open() {
            return Ok(());
        }

        // The row was read before: whatever it is sealed with is known from here on.
        self.catch_up_keks().await?;
        let mut next = edge;
        self.extend(&mut next, size, true).await?;
        let checkpoint =
            Checkpoint { origin: key.name().to_string(), size, root: next.root(), extensions: Vec::new() };
        let text = checkpoint.encode().map_err(internal)?;
        let signed = Note::sign(text, &key, |text| self.inner.keyring.sign_note(&key_row.key, text))
            .map_err(internal)?;
        published.witnessed_at = Some(Instant::now());
        let signed = self.with_cosignatures(signed, &checkpoint).await;
        let new =
            CheckpointRow { size: state.size, note: signed.encode(), signed_at: self.inner.clock.now() };
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        let old_size = i64::try_from(standing_size).map_err(internal)?;
        if !log::replace_checkpoint(&mut tx, old_size, &new).await? {
            // Another replica was quicker; the next round looks at what it signed.
            return Ok(());
        }
        self.commit_log(tx).await?;
        published.edge = Some(next);
        self.inner.log_health.seen(size, size, None);
        self.store_checkpoint(published, Some(new.note), &key).await?;
        if let Err(error) = self.remove_partial_tiles(standing_size, size).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "partial tiles of the signature log were left behind");
        }
        Ok(())
    }

    /// Removes the partial tiles of those that have become full since the tree of `old` leaves. Who still wants one gets
    /// it out of the full one: c2sp.org/tlog-tiles has every reader try that.
    async fn remove_partial_tiles(&self, old: u64, size: u64) -> Result<()> {
        for tile in Tile::partial(old) {
            if Tile::in_tree(tile.kind(), tile.index(), size).is_none_or(|now| !now.is_full()) {
                continue;
            }
            let path = tile.to_string();
            let Some((folder, _)) = path.rsplit_once('/') else { continue };
            let folder = Folder::LogPart(folder.parse().map_err(internal)?);
            let partial: Vec<_> = self.inner.storage.list(&folder).try_collect().await?;
            for entry in partial {
                if let Some(key) = entry.key() {
                    self.delete_log(&key).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks those witnesses once more who have not cosigned the checkpoint that stands: with nothing new to publish,
    /// they would not be asked again.
    async fn ask_witnesses_again(
        &self,
        published: &mut Published,
        row: CheckpointRow,
        standing: &Checkpoint,
        key: &VerifierKey,
    ) -> Publish<()> {
        let note = Note::parse(row.note.as_bytes()).map_err(internal)?;
        let is_due = published.witnessed_at.is_none_or(|asked| asked.elapsed() >= WITNESS_PAUSE);
        if !is_due || self.inner.watch.missing(&note) == 0 {
            return Ok(());
        }
        published.witnessed_at = Some(Instant::now());
        let note = self.with_cosignatures(note, standing).await.encode();
        if note == row.note {
            return Ok(());
        }
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        let new = CheckpointRow { note: note.clone(), ..row };
        if log::replace_checkpoint(&mut tx, new.size, &new).await? {
            self.commit_log(tx).await?;
            self.store_checkpoint(published, Some(note), key).await?;
        }
        Ok(())
    }

    /// Brings the checkpoint in storage up to the one in the row, or the row up to a newer one of the same leaves, and
    /// refuses any other.
    async fn store_checkpoint(
        &self,
        published: &mut Published,
        mut note: Option<String>,
        key: &VerifierKey,
    ) -> Publish<()> {
        loop {
            let object = checkpoint_key()?;
            let there = self.checkpoint_object().await?;
            let stored = there.as_deref().map(|bytes| open_in_storage(bytes, key)).transpose()?;
            let standing = note.as_deref().map(|note| opened(note, key)).transpose()?;
            let size = standing.as_ref().map_or(0, |standing| standing.size);
            // Signed by another replica since the row was read, or before the row was restored from a backup.
            if let (Some(stored), Some(bytes)) = (&stored, &there)
                && stored.size > size
            {
                note = match self.log_checkpoint().await? {
                    Some(row) if u64::try_from(row.size).is_ok_and(|size| size >= stored.size) => {
                        Some(row.note)
                    }
                    older => Some(self.take_stored(stored, bytes, older, key).await?),
                };
                continue;
            }
            let (Some(standing), Some(text)) = (standing, &note) else { return Ok(()) };
            if let Some(stored) = &stored
                && stored.size == size
                && stored.root != standing.root
            {
                return Err(Fork::Root { size }.into());
            }
            if there.as_deref() != Some(text.as_bytes()) {
                self.write_log(&object, Bytes::from(text.clone())).await?;
            }
            published.stored = Some(size);
            // Two replicas may write in the wrong order: whoever wrote looks once more.
            let newer = self.log_checkpoint().await?;
            match newer {
                Some(newer) if newer.note != *text => note = Some(newer.note),
                _ => return Ok(()),
            }
        }
    }

    /// Takes the checkpoint in storage for the newest one, and gives its note: the row is older where the backup was made
    /// between a leaf and its publication. Refuses one that is not of the leaves here.
    async fn take_stored(
        &self,
        stored: &Checkpoint,
        bytes: &Bytes,
        row: Option<CheckpointRow>,
        key: &VerifierKey,
    ) -> Publish<String> {
        let state = log::read(&mut *self.inner.db.read().await?).await?;
        let leaves = u64::try_from(state.size).map_err(internal)?;
        if leaves < stored.size {
            return Err(Fork::Older { place: "storage", published: stored.size, leaves }.into());
        }
        if !self.has_tree_of(stored, &state, row.as_ref(), key).await? {
            return Err(Fork::Root { size: stored.size }.into());
        }
        let note = String::from_utf8(bytes.to_vec()).map_err(internal)?;
        let size = i64::try_from(stored.size).map_err(internal)?;
        let new = CheckpointRow { size, note: note.clone(), signed_at: self.inner.clock.now() };
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        // Where another replica is quicker, the caller looks at its row next.
        if log::replace_checkpoint(&mut tx, row.map_or(0, |row| row.size), &new).await? {
            self.commit_log(tx).await?;
        }
        Ok(note)
    }

    /// The right edge of the tree under `standing`: the one of the last round moved on, or read from the tiles that
    /// were published with it, or all made anew.
    async fn edge_at(&self, known: Option<Edge>, standing: Option<&Checkpoint>) -> Publish<Edge> {
        let Some(standing) = standing else { return Ok(Edge::new()) };
        let size = standing.size;
        if let Some(mut edge) = known.filter(|edge| edge.size() <= size) {
            self.extend(&mut edge, size, false).await?;
            return if edge.root() == standing.root { Ok(edge) } else { Err(Fork::Root { size }.into()) };
        }
        if let Some(edge) = self.stored_edge(size).await?
            && edge.root() == standing.root
        {
            return Ok(edge);
        }
        tracing::warn!(size, "the published signature log is not whole; writing it anew from the database");
        let mut edge = Edge::new();
        self.extend(&mut edge, size, true).await?;
        if edge.root() == standing.root { Ok(edge) } else { Err(Fork::Root { size }.into()) }
    }

    /// The edge as storage has it; `None` where a tile is missing or not one.
    async fn stored_edge(&self, size: u64) -> Result<Option<Edge>> {
        let mut tiles = Vec::new();
        for tile in Tile::edge(size) {
            let Some(bytes) = self.log_tile(tile).await? else { return Ok(None) };
            let Ok(hashes) = TileHashes::decode(tile, &bytes) else { return Ok(None) };
            tiles.push(hashes);
        }
        let mut tiles = tiles.into_iter();
        Ok(Edge::read(size, |_| tiles.next().ok_or(())).ok())
    }

    /// Appends the leaves up to `size` to an edge, and publishes what becomes of it if `write`.
    async fn extend(&self, edge: &mut Edge, size: u64, write: bool) -> Publish<()> {
        let width = u64::from(TILE_WIDTH);
        // The bundle that the first new leaf belongs to is written whole.
        let mut index = edge.size() - edge.size() % width;
        let mut texts: Vec<String> = Vec::new();
        while index < size {
            for text in self.leaves_from(index, size).await? {
                if index >= edge.size() {
                    if write {
                        self.publish_references(&text).await?;
                    }
                    let full = edge.push(NodeHash::leaf(text.as_bytes()));
                    for hashes in full.iter().filter(|_| write) {
                        self.publish_tile(hashes.tile(), hashes.encode()).await?;
                    }
                }
                texts.push(text);
                index += 1;
                if index.is_multiple_of(width) {
                    self.publish_bundle(index - width, index, &texts, write).await?;
                    texts.clear();
                }
            }
        }
        self.publish_bundle(index - texts.len() as u64, index, &texts, write).await?;
        for hashes in edge.partial_tiles().iter().filter(|_| write) {
            self.publish_tile(hashes.tile(), hashes.encode()).await?;
        }
        Ok(())
    }

    async fn publish_bundle(&self, first: u64, end: u64, texts: &[String], write: bool) -> Publish<()> {
        let index = first / u64::from(TILE_WIDTH);
        match Tile::in_tree(TileKind::Entries, index, end) {
            Some(tile) if write && !texts.is_empty() => {
                self.publish_tile(tile, bundle::encode(texts).map_err(internal)?).await
            }
            _ => Ok(()),
        }
    }

    /// Writes a tile, unless it is there; other bytes in its place are a fork.
    async fn publish_tile(&self, tile: Tile, bytes: Vec<u8>) -> Publish<()> {
        let key = tile_key(tile)?;
        match self.inner.storage.read(&key, TILE_SIZE_BYTES_MAX).await {
            Ok(Some(there)) if there == bytes => Ok(()),
            Ok(Some(_)) | Err(StorageError::Damaged(_)) => Err(Fork::Tile { tile }.into()),
            Ok(None) => Ok(self.write_log(&key, bytes.into()).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// What lies in the place of the checkpoint. What is too large to be a note comes as nothing that anybody signed.
    pub(super) async fn checkpoint_object(&self) -> Result<Option<Bytes>> {
        match self.inner.storage.read(&checkpoint_key()?, NOTE_SIZE_BYTES_MAX).await {
            Err(StorageError::Damaged(_)) => Ok(Some(Bytes::new())),
            read => Ok(read?),
        }
    }

    /// The next leaves from `first` on, below `end`; at least one.
    async fn leaves_from(&self, first: u64, end: u64) -> Result<Vec<String>> {
        let limit = (end - first).min(LEAVES_AT_ONCE.unsigned_abs());
        let (start, limit) =
            (i64::try_from(first).map_err(internal)?, i64::try_from(limit).map_err(internal)?);
        let leaves = log::leaves(&mut *self.inner.db.read().await?, start, limit).await?;
        let gapless = leaves.iter().zip(start..).all(|((index, _), expected)| *index == expected);
        if leaves.is_empty() || !gapless {
            return Err(super::log::damaged(format!("leaf {first} or one after it is missing")));
        }
        Ok(leaves.into_iter().map(|(_, leaf)| leaf).collect())
    }
}

/// The checkpoint that a row holds.
fn opened(note: &str, key: &VerifierKey) -> std::result::Result<Checkpoint, Fork> {
    let opened = Checkpoint::open(note.as_bytes(), key);
    opened.map(|(checkpoint, _)| checkpoint).map_err(|_| Fork::Checkpoint { place: "the database" })
}

/// The checkpoint that storage holds.
fn open_in_storage(bytes: &[u8], key: &VerifierKey) -> std::result::Result<Checkpoint, Fork> {
    let opened = Checkpoint::open(bytes, key);
    opened.map(|(checkpoint, _)| checkpoint).map_err(|_| Fork::Checkpoint { place: "storage" })
}

/// Where the newest checkpoint lies.
pub(super) fn checkpoint_key() -> Result<ObjectKey> {
    Ok(ObjectKey::Log("checkpoint".parse().map_err(internal)?))
}

/// Where a tile lies.
pub(super) fn tile_key(tile: Tile) -> Result<ObjectKey> {
    Ok(ObjectKey::Log(tile.to_string().parse().map_err(internal)?))
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}

#[cfg(test)]
mod tests;
