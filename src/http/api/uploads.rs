//! Uploads in parts, for files that are larger than proxies let through or lines last.
//!
//! Never says of an upload of somebody else more than of none.

use std::convert::Infallible;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use data_encoding::BASE64;
use uuid::Uuid;

use super::extract::{Holder, Named, PathName, Result, Unread};
use super::refusals::{Conflicts, Sealed, ToSome, Unknown, WithBody, WithPart};
use super::tokens::parse;
use crate::access::CacheName;
use crate::api::{PARTS_MAX, PartUrl, PartUrlRequest, UploadComplete, UploadOpen, UploadPart, UploadView};
use crate::http::App;
use crate::nix::hash::Sha256Digest;
use crate::service::{Error, NewPart, PartRow, Rejection, UploadDetails, WholeFile};

/// Largest part of any upload, in bytes.
const PART_SIZE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The text in the address that should name an upload.
pub(super) struct UploadName(Option<Uuid>);

impl FromStr for UploadName {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(Self(text.parse().ok()))
    }
}

impl PathName for UploadName {
    const PARAMETER: &'static str = "id";
    const THING: &'static str = "upload";
}

impl UploadName {
    fn id(&self) -> std::result::Result<Uuid, Error> {
        self.0.ok_or(Error::NotFound("upload"))
    }
}

/// The text in the address that should number a part.
pub(super) struct PartNumber(Option<u32>);

impl FromStr for PartNumber {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = text.parse().ok().filter(|number| digits && (1..=PARTS_MAX).contains(number));
        Ok(Self(number))
    }
}

impl PartNumber {
    fn number(&self) -> std::result::Result<u32, Rejection> {
        self.0.ok_or_else(|| Rejection::value("number", format!("is not from 1 to {PARTS_MAX}")))
    }
}

impl PathName for PartNumber {
    const PARAMETER: &'static str = "number";
    const THING: &'static str = "part";
}

/// Open an upload in parts
///
/// Or find the one that the same contributor left unfinished, with any token and on any replica: an upload is known
/// by its NAR and compression. The client makes the same bytes again and sends the parts that are not listed.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/uploads", operation_id = "upload_open", tag = "push",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = UploadOpen,
    responses((status = 200, description = "The upload", body = UploadView),
        ToSome, Unknown, Conflicts, Sealed, WithBody),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn open(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<UploadView>> {
    app.service.cache_to_push(&call, &cache).await?;
    app.service.require_open()?;
    let asked: UploadOpen = body.json().await?;
    let nar_hash = parse("nar_hash", &asked.nar_hash)?;
    let compression = parse("compression", &asked.compression)?;
    let upload =
        app.service.open_upload(&call, &cache, (nar_hash, compression), asked.part_size_bytes).await?;
    Ok(Json(view(upload)))
}

/// Show an upload in parts
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/uploads/{id}", operation_id = "upload", tag = "push",
    params(("cache" = String, Path, description = "The cache's name"),
        ("id" = String, Path, description = "The upload's id")),
    responses((status = 200, description = "The upload", body = UploadView), ToSome, Unknown),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(id): Named<UploadName>,
) -> Result<Json<UploadView>> {
    app.service.cache_to_push(&call, &cache).await?;
    Ok(Json(view(app.service.show_upload(&call, &cache, id.id()?).await?)))
}

/// Send a part
///
/// Raw bytes with the header `Content-Digest: sha-256=:…:` (RFC 9530). Each part is of the upload's part size, but
/// the last, which may be smaller. The same part may be sent again; another one of the same number replaces it.
#[utoipa::path(
    put, path = "/api/v1/caches/{cache}/uploads/{id}/parts/{number}", operation_id = "upload_part", tag = "push",
    params(("cache" = String, Path, description = "The cache's name"),
        ("id" = String, Path, description = "The upload's id"),
        ("number" = u32, Path, description = "From 1 to 10 000"),
        ("Content-Digest" = String, Header, description = "`sha-256=:<base64>:`")),
    request_body(content = String, content_type = "application/octet-stream", description = "At most 64 MiB"),
    responses((status = 200, description = "It is there", body = UploadPart),
        ToSome, Unknown, Conflicts, Sealed, WithPart),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn put_part(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(id): Named<UploadName>,
    Named(number): Named<PartNumber>,
    headers: HeaderMap,
    body: Unread,
) -> Result<Json<UploadPart>> {
    app.service.cache_to_push(&call, &cache).await?;
    let id = id.id()?;
    app.service.show_upload(&call, &cache, id).await?;
    app.service.require_open()?;
    let mut body = body.stream("application/octet-stream", PART_SIZE_BYTES_MAX, "the part")?;
    let put = async {
        let sha256 = content_digest(&headers)?;
        let part = NewPart { number: number.number()?, sha256, stated_size: body.stated_size() };
        app.service.put_part(&call, &cache, id, part, &mut body).await
    };
    let put = put.await;
    body.drop_politely();
    Ok(Json(part_view(put?)))
}

/// Ask where a part may go straight to the storage
///
/// By one PUT of exactly so many bytes, where the upload says `direct`. The URL is a secret, and outlives the token's
/// revocation by its 900 s; but nothing that it brings becomes a file without a live token.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/uploads/{id}/parts/{number}/url", operation_id = "upload_part_url",
    tag = "push",
    params(("cache" = String, Path, description = "The cache's name"),
        ("id" = String, Path, description = "The upload's id"),
        ("number" = u32, Path, description = "From 1 to 10 000")),
    request_body = PartUrlRequest,
    responses((status = 200, description = "The URL", body = PartUrl),
        ToSome, Unknown, Conflicts, Sealed, WithBody),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn part_url(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(id): Named<UploadName>,
    Named(number): Named<PartNumber>,
    body: Unread,
) -> Result<Json<PartUrl>> {
    app.service.cache_to_push(&call, &cache).await?;
    let id = id.id()?;
    app.service.show_upload(&call, &cache, id).await?;
    app.service.require_open()?;
    let PartUrlRequest { size_bytes, sha256 } = body.json().await?;
    let sha256 = Sha256Digest::from_hex(&sha256).map_err(|error| Rejection::value("sha256", error))?;
    let part = NewPart { number: number.number()?, sha256, stated_size: Some(size_bytes) };
    let (url, expires_at) = app.service.part_url(&call, &cache, id, part, size_bytes).await?;
    Ok(Json(PartUrl { url: url.into(), expires_at: expires_at.rfc3339() }))
}

/// Complete an upload in parts
///
/// The whole file is read back and verified as one that came in one piece, and only then stands in the cache. It goes
/// on if the client goes away, and the same call may be made again until it answers. A refused file takes the upload
/// with it.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/uploads/{id}/complete", operation_id = "upload_complete", tag = "push",
    params(("cache" = String, Path, description = "The cache's name"),
        ("id" = String, Path, description = "The upload's id")),
    request_body = UploadComplete,
    responses((status = 204, description = "The file is verified and stored, and the upload is gone"),
        ToSome, Unknown, Conflicts, Sealed, WithBody),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn complete(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(id): Named<UploadName>,
    body: Unread,
) -> Result<StatusCode> {
    app.service.cache_to_push(&call, &cache).await?;
    app.service.require_open()?;
    let UploadComplete { file, file_size_bytes, parts } = body.json().await?;
    if parts > PARTS_MAX {
        return Err(Rejection::value("parts", format!("is not from 1 to {PARTS_MAX}")).into());
    }
    let whole = WholeFile { file: parse("file", &file)?, size_bytes: file_size_bytes, parts };
    app.service.complete_upload(&call, &cache, id.id()?, whole).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give an upload up
#[utoipa::path(
    delete, path = "/api/v1/caches/{cache}/uploads/{id}", operation_id = "upload_abort", tag = "push",
    params(("cache" = String, Path, description = "The cache's name"),
        ("id" = String, Path, description = "The upload's id")),
    responses((status = 204, description = "It is gone, with its parts"), ToSome, Unknown),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn abort(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(id): Named<UploadName>,
) -> Result<StatusCode> {
    app.service.cache_to_push(&call, &cache).await?;
    app.service.abort_upload(&call, &cache, id.id()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The SHA-256 of the header `Content-Digest`, which may hold others beside it.
fn content_digest(headers: &HeaderMap) -> std::result::Result<Sha256Digest, Rejection> {
    let values = headers.get_all("content-digest").iter().filter_map(|value| value.to_str().ok());
    let mut members = values.flat_map(|value| value.split(',')).map(str::trim);
    let digest = members.find_map(|member| member.strip_prefix("sha-256=:")?.strip_suffix(':'));
    let bytes = digest.and_then(|digest| BASE64.decode(digest.as_bytes()).ok()?.try_into().ok());
    let absent =
        || Rejection::value("Content-Digest", "has to be `sha-256=:<base64 of 32 bytes>:` (RFC 9530)");
    bytes.map(Sha256Digest).ok_or_else(absent)
}

fn view(details: UploadDetails) -> UploadView {
    UploadView {
        id: details.id.to_string(),
        part_size_bytes: details.part_size_bytes,
        expires_at: details.expires_at.rfc3339(),
        parts: details.parts.into_iter().map(part_view).collect(),
        direct: details.direct,
    }
}

fn part_view(row: PartRow) -> UploadPart {
    UploadPart { number: row.number, size_bytes: row.size_bytes, sha256: row.sha256.hex() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_strictly() {
        let zeros = format!("{}=", "A".repeat(43));
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-digest", text.parse().unwrap());
            content_digest(&headers).ok()
        };

        for text in [format!("sha-256=:{zeros}:"), format!("sha-512=:AA==:, sha-256=:{zeros}:")] {
            assert_eq!(read(&text), Some(Sha256Digest([0; 32])), "{text}");
        }
        for text in [
            "",
            "sha-256",
            "sha-256=::",
            &format!("sha-256={zeros}"),
            &format!("sha-256=:{zeros}"),
            &format!("SHA-256=:{zeros}:"),
            &format!("sha-256=:{}:", &zeros[1..]),
            &format!("sha-512=:{zeros}:"),
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(content_digest(&HeaderMap::new()).is_err());
    }

    #[test]
    fn parts_have_one_spelling() {
        for (text, number) in
            [("1", Some(1)), ("10000", Some(10_000)), ("0", None), ("01", None), ("+1", None)]
        {
            assert_eq!(text.parse::<PartNumber>().unwrap().0, number, "{text}");
        }
        for text in ["", "10001", "-1", "1.0", "x", "4294967297"] {
            assert_eq!(text.parse::<PartNumber>().unwrap().0, None, "{text}");
        }
    }
}
