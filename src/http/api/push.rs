//! Pushing by a client of our own: many NARs in one call, many narinfos in one.
//!
//! Never lets one refused thing sink the others: each has a result, which says what a call of its own would have said.

use axum::Json;
use axum::extract::State;
use futures_util::{Stream, StreamExt as _, stream};

use super::extract::{Holder, Named, Result, Unread};
use super::refusals::{Sealed, ToSome, Unknown, WithBatch, WithBody, WithLargeBody, WithNarinfos};
use super::tokens::parse;
use crate::access::CacheName;
use crate::api::frames::{FrameError, FrameReader, Piece};
use crate::api::{
    BATCH_MEDIA_TYPE, BATCH_SIZE_BYTES_MAX, NarStored, NarsStored, PUBLISH_PATHS_MAX, PUBLISH_SIZE_BYTES_MAX,
    PathPublished, PublishAnswer, PublishOutcome, PublishRequest, StoredAnswer, StoredNar, StoredRequest,
};
use crate::http::App;
use crate::http::body::RequestBody;
use crate::http::error::Refusal;
use crate::nix::hash::NarHash;
use crate::service::{self, Error, NarOutcome, NarPiece, PathOutcome, Published, Rejection};

/// Narinfos stand in memory as they came, as texts and parsed.
const COPIES_HELD: u64 = 3;

/// Most NARs of one question.
const NAR_HASHES_COUNT_MAX: usize = 10_000;

/// Largest question, in bytes: 10 000 hashes take 620 KB.
const STORED_SIZE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(BATCH_SIZE_BYTES_MAX <= service::BATCH_SIZE_BYTES_MAX, "what is let in fits in memory");

/// Upload many NARs
///
/// Frames follow one another, each one line of JSON `{"file": …, "size_bytes": …}` that ends in LF, then exactly so
/// many bytes of the file: at most 16 MiB and 1 000 files in all. Each file is verified as one that is put alone. A
/// refused file does not sink the others; of a body that is no batch, or breaks off, nothing is kept.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/nars", operation_id = "nars", tag = "push",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body(content = String, content_type = "application/vnd.narvault.nars", description = "At most 16 MiB"),
    responses((status = 200, description = "What became of each file", body = NarsStored),
        ToSome, Unknown, Sealed, WithBatch),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn nars(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<NarsStored>> {
    app.service.cache_to_push(&call, &cache).await?;
    app.service.require_open()?;
    let mut body = body.stream(BATCH_MEDIA_TYPE, BATCH_SIZE_BYTES_MAX, "the batch")?;
    let outcomes = app.service.put_nars(&call, &cache, Box::pin(pieces(&mut body))).await;
    body.drop_politely();
    let results = outcomes?.into_iter().map(nar_stored).collect();
    Ok(Json(NarsStored { results }))
}

/// Ask which NARs are stored
///
/// Of up to 10 000 NARs, those that stand in this cache as verified files, whatever they were pushed as: an
/// interrupted push goes on from there, without sending a byte of them.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/nars/stored", operation_id = "nars_stored", tag = "push",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body(content = StoredRequest, description = "At most 1 MiB"),
    responses((status = 200, description = "Those that are stored", body = StoredAnswer),
        ToSome, Unknown, WithBody, WithLargeBody),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn stored(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<StoredAnswer>> {
    app.service.cache_to_push(&call, &cache).await?;
    let asked: StoredRequest = body.json_within(STORED_SIZE_BYTES_MAX).await?;
    if asked.nar_hashes.len() > NAR_HASHES_COUNT_MAX {
        let found = asked.nar_hashes.len();
        let why = format!("{found} of them, at most {NAR_HASHES_COUNT_MAX} are answered at once");
        return Err(Rejection::value("nar_hashes", why).into());
    }
    let hashes = asked.nar_hashes.iter().map(|text| parse("nar_hashes", text));
    let hashes = hashes.collect::<std::result::Result<Vec<NarHash>, _>>()?;
    let stored = app.service.stored_nars(&call, &cache, &hashes).await?;
    let nars = stored.into_iter().map(|nar| StoredNar {
        nar_hash: nar.nar_hash.to_string(),
        file: nar.file.to_string(),
        compression: nar.compression.to_string(),
        file_size_bytes: nar.file_size,
    });
    Ok(Json(StoredAnswer { nars: nars.collect() }))
}

/// Publish many paths
///
/// Narinfos in the order of their references, at most 1 000 and 8 MiB; each is checked, signed and logged as one
/// that is put alone. A path that comes earlier in the same call counts as published for those after it. A refused
/// path does not sink the others.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/publish", operation_id = "publish", tag = "push",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body(content = PublishRequest, description = "At most 8 MiB"),
    responses((status = 200, description = "What became of each path", body = PublishAnswer),
        ToSome, Unknown, Sealed, WithBody, WithNarinfos),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn publish(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<PublishAnswer>> {
    app.service.cache_to_push(&call, &cache).await?;
    app.service.require_open()?;
    let _room = app.service.room_for(COPIES_HELD * PUBLISH_SIZE_BYTES_MAX).await?;
    let asked: PublishRequest = body.json_within(PUBLISH_SIZE_BYTES_MAX).await?;
    if asked.narinfos.len() > PUBLISH_PATHS_MAX {
        let why = format!("{} of them, at most {PUBLISH_PATHS_MAX} are taken at once", asked.narinfos.len());
        return Err(Rejection::value("narinfos", why).into());
    }
    let outcomes = app.service.publish(&call, &cache, &asked.narinfos).await?;
    Ok(Json(PublishAnswer { results: outcomes.into_iter().map(path_published).collect() }))
}

/// The pieces of a batch as they arrive. After an error there are no more.
fn pieces(body: &mut RequestBody) -> impl Stream<Item = service::Result<NarPiece>> + Send {
    stream::try_unfold((FrameReader::default(), body), |(mut reader, body)| async move {
        loop {
            if let Some(piece) = reader.read().map_err(fault)? {
                let piece = match piece {
                    Piece::File(frame) => NarPiece::File { name: frame.file, size_bytes: frame.size_bytes },
                    Piece::Data(bytes) => NarPiece::Data(bytes),
                };
                return Ok(Some((piece, (reader, body))));
            }
            match body.next().await {
                Some(Ok(bytes)) => reader.push(bytes),
                Some(Err(error)) => {
                    tracing::debug!(%error, "the body of a batch broke off");
                    return Err(Error::Aborted);
                }
                None => return reader.finish().map_err(fault).map(|()| None),
            }
        }
    })
}

fn fault(error: FrameError) -> Error {
    match error {
        FrameError::TooLarge => Error::TooLarge { what: "the batch", max: BATCH_SIZE_BYTES_MAX },
        FrameError::TooMany => Rejection::value("files", error).into(),
        FrameError::Line { .. } | FrameError::LineTooLong { .. } | FrameError::Truncated { .. } => {
            Rejection::Frames(error.to_string()).into()
        }
    }
}

fn nar_stored(NarOutcome { name, result }: NarOutcome) -> NarStored {
    NarStored { file: name, refused: result.err().map(|error| Refusal::from(error).one_of_many()) }
}

fn path_published(PathOutcome { path, result }: PathOutcome) -> PathPublished {
    let store_path = path.map(|path| path.to_string()).unwrap_or_default();
    match result {
        Ok(standing) => PathPublished {
            store_path,
            outcome: match standing.published {
                Published::New => PublishOutcome::New,
                Published::Again => PublishOutcome::Again,
            },
            keys: standing.keys,
            refused: None,
        },
        Err(error) => PathPublished {
            store_path,
            outcome: PublishOutcome::Refused,
            keys: Vec::new(),
            refused: Some(Refusal::from(error).one_of_many()),
        },
    }
}
