//! Proofs for others: that the signature of a path is in the log, in one file that needs no server.
//!
//! Never signs anything: the checkpoint is the one that was published last.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::{Call, Conflict, Error, Result, Service};
use crate::access::CacheName;
use crate::db::log;
use crate::db::paths::{self, PathState};
use crate::db::{Connection, DbError};
use crate::nix::signature::KeyName;
use crate::nix::store_path::StorePathHash;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::leaf::{ClaimLines, Covered as _, Disclosed, Event, Leaf, References};
use crate::tlog::note::Note;
use crate::tlog::proof::Inclusion;
use crate::tlog::proof_file::ProofFile;
use crate::tlog::shown_leaf::ShownLeaf;
use crate::tlog::tile::Tile;
use crate::tlog::tile_reader::TileReader;
use crate::tlog::tree::Node;

impl Service {
    /// The proof file (c2sp.org/tlog-proof) of a published path's signature: by `key`, or by the key that signed
    /// last. Its extra data is the leaf with all that it leaves out: for who may pull from the cache.
    pub async fn path_proof(
        &self,
        call: &Call,
        cache: &CacheName,
        hash: StorePathHash,
        key: Option<&KeyName>,
    ) -> Result<String> {
        let cache = self.cache_to_pull(call, cache).await?;
        let (index, shown, row) = {
            let mut connection = self.inner.db.read().await?;
            let path = paths::find(&mut connection, cache.id, hash).await?;
            let path = path.filter(|path| path.state == PathState::Published);
            let path = path.ok_or(Error::NotFound("published path"))?;
            let signatures = paths::signatures(&mut connection, &path.claim_id).await?;
            let own = signatures.iter().filter(|row| key.is_none_or(|key| row.signature.name == *key));
            let index = own.filter_map(|row| row.leaf).max().ok_or(Error::NotFound("signature of ours"))?;
            let shown = shown_leaf(&mut connection, index).await?;
            (index, shown, log::checkpoint(&mut connection).await?)
        };
        let index = u64::try_from(index).map_err(internal)?;
        let row = row.ok_or(NOT_PUBLISHED)?;
        let note = Note::parse(row.note.as_bytes()).map_err(internal)?;
        let checkpoint = Checkpoint::of(&note, &self.log_verifier_key().await?).map_err(internal)?;
        if index >= checkpoint.size {
            return Err(NOT_PUBLISHED.into());
        }
        let hashes = self.inclusion(index, &checkpoint).await?;
        let extra = Some(shown.encode().into_bytes());
        Ok(ProofFile { extra, index, hashes, checkpoint: note }.encode())
    }

    /// The hashes from a leaf up to the root, out of the published tiles, each checked against it.
    async fn inclusion(
        &self,
        index: u64,
        checkpoint: &Checkpoint,
    ) -> Result<Vec<crate::tlog::hash::NodeHash>> {
        let nodes = Inclusion::new(index, checkpoint.size).map_err(internal)?.nodes();
        self.tile_reader(&nodes, checkpoint).await?.inclusion(index).map_err(internal)
    }

    /// Reads `nodes` of the tree under `checkpoint` out of the published tiles, each checked against its root.
    pub(super) async fn tile_reader(
        &self,
        nodes: &[Node],
        checkpoint: &Checkpoint,
    ) -> Result<TileReader<impl FnMut(Tile) -> std::result::Result<Vec<u8>, NotNeeded> + use<>>> {
        let tiles = Tile::needed(nodes, checkpoint.size);
        let fetched = tiles.into_iter().map(async |tile| {
            let bytes = self.log_tile(tile).await?;
            Ok::<(Tile, Bytes), Error>((tile, bytes.ok_or(Error::NotFound("published tile of the log"))?))
        });
        let tiles: BTreeMap<Tile, Bytes> = try_join_all(fetched).await?.into_iter().collect();
        let fetch = move |tile: Tile| tiles.get(&tile).map(|bytes| bytes.to_vec()).ok_or(NotNeeded);
        TileReader::open(checkpoint.size, checkpoint.root, fetch).map_err(internal)
    }
}

/// A tile that the proof was not expected to need.
#[derive(Debug, thiserror::Error)]
#[error("tile was not read")]
pub(super) struct NotNeeded;

/// A leaf with what it leaves out, as far as that was not erased.
async fn shown_leaf(connection: &mut Connection, index: i64) -> Result<ShownLeaf> {
    let corrupt = |column| DbError::Corrupt { table: "log_leaves", column, row: index.to_string() };
    let leaves = log::leaves(connection, index, 1).await?;
    let (_, leaf) = leaves.into_iter().find(|(found, _)| *found == index).ok_or_else(|| corrupt("idx"))?;
    let private = log::opening(connection, index, "private").await?;
    let parsed = Leaf::parse(leaf.as_bytes()).map_err(|_| corrupt("leaf"))?;
    let references = match references(&parsed, private.as_ref().map(|(_, lines)| lines.as_str())) {
        Some(References::Digest(digest)) => log::references(connection, &digest).await?,
        _ => None,
    };
    Ok(ShownLeaf { leaf, references, private })
}

/// What stands for the references in a leaf, or in the lines that it hides.
fn references(leaf: &Leaf, private: Option<&str>) -> Option<References> {
    let (Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed)) = &leaf.event else {
        return None;
    };
    match (&signed.claim, private) {
        (Disclosed::Open(claim), _) => Some(claim.references.clone()),
        (Disclosed::Private(_), Some(lines)) => Some(ClaimLines::parse(lines).ok()?.references),
        (Disclosed::Private(_), None) => None,
    }
}

/// The publisher needs a second or two.
const NOT_PUBLISHED: Conflict =
    Conflict::State("the signature is not in the published log yet; ask again in a few seconds");

pub(super) fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}
