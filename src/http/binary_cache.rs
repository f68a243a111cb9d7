//! The binary cache protocol, for unmodified Nix: a pull URL and a push URL for each cache.
//!
//! Two URLs, because a client remembers for 30 days the unsigned narinfo that it pushed, under the URL it
//! pushed to (NixOS/nix issue 16175). Refusals come in the order credential, right, existence, sealed,
//! size, syntax, content; an answer to Nix is one or two lines of plain text below 1 KiB.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::body::RequestBody;
use super::conditional::{self, RangeAnswer};
use super::error::Refusal;
use super::{App, Deliver, encoding, request};
use crate::access::CacheName;
use crate::nix::cache_info::CACHE_INFO_SIZE_BYTES_MAX;
use crate::nix::compression::{NarFileName, ParseNarFileNameError};
use crate::nix::realisation::REALISATION_SIZE_BYTES_MAX;
use crate::service::{
    Auxiliary, CacheObject, CacheRow, Call, Error, Liveness, NarHandle, Published, RenderedNarInfo, Room,
    Side,
};

/// What a path below a cache's URL names.
enum Named {
    Object(CacheObject),
    /// A NAR in a format that is not accepted.
    RefusedNar(ParseNarFileNameError),
    Nothing,
}

/// `GET|HEAD /{cache}/…`: what goes into nix.conf.
pub(super) async fn pull(State(app): State<App>, request: Request) -> Response {
    let (cache, named) = split(request.uri(), "/");
    if let Some(response) = remembered(&app, &request, &cache, &named) {
        return response;
    }
    let (parts, body) = request.into_parts();
    let answer = async {
        let cache = find_to_pull(&app, &parts, cache).await?;
        match parts.method {
            Method::GET | Method::HEAD => {}
            _ => return Err(Refusal::push_url(&app, &cache.name)),
        }
        match named {
            Named::Object(object) => {
                get(&app, &cache, &parts.method, &parts.headers, object, Side::Pull).await
            }
            Named::RefusedNar(_) | Named::Nothing => Err(Error::NotFound("object in this cache").into()),
        }
    };
    match answer.await {
        Ok(response) => response,
        Err(refusal) => {
            RequestBody::new(&parts.headers, body).drop_politely();
            refusal.plain()
        }
    }
}

/// `GET|HEAD|PUT /push/{cache}/…`: what `nix copy --to` gets. Every request needs a token with `push`.
pub(super) async fn push(State(app): State<App>, request: Request) -> Response {
    let (cache, named) = split(request.uri(), "/push/");
    let (parts, body) = request.into_parts();
    let mut body = RequestBody::new(&parts.headers, body);
    let answer = async {
        let call = request::call(&app, &parts, Liveness::Recent).await?;
        let Some(cache) = cache else { return Err(unknown_cache(&call).into()) };
        let row = app.service.cache_to_push(&call, &cache).await?;
        match (&parts.method, named) {
            (_, Named::Nothing) => Err(Error::NotFound("object in a binary cache").into()),
            (&Method::GET | &Method::HEAD, Named::Object(object)) => {
                get(&app, &row, &parts.method, &parts.headers, object, Side::Push).await
            }
            (&Method::GET | &Method::HEAD, Named::RefusedNar(_)) => {
                Err(Error::NotFound("object in this cache").into())
            }
            (&Method::PUT, Named::Object(object)) => {
                put(&app, &call, &cache, &parts.headers, object, &mut body).await
            }
            (&Method::PUT, Named::RefusedNar(error)) => {
                app.service.require_nar_room(body.stated_size())?;
                Err(Refusal::nar_name(error))
            }
            _ => Err(Refusal::method("GET, HEAD, PUT")),
        }
    };
    match answer.await {
        Ok(response) => response,
        Err(refusal) => {
            body.drop_politely();
            refusal.plain()
        }
    }
}

/// The hottest path: a public narinfo that is remembered. Asks for nothing and waits for nothing.
fn remembered(app: &App, request: &Request, cache: &Option<CacheName>, named: &Named) -> Option<Response> {
    let (Some(cache), Named::Object(CacheObject::Narinfo(hash))) = (cache, named) else { return None };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let cache = app.service.remembered_cache(cache).filter(|cache| cache.public)?;
    let narinfo = app.service.remembered_narinfo(&cache, *hash)?;
    Some(narinfo_response(&cache, request.headers(), &narinfo))
}

async fn find_to_pull(
    app: &App,
    parts: &axum::http::request::Parts,
    name: Option<CacheName>,
) -> Result<std::sync::Arc<CacheRow>, Refusal> {
    // A public cache does not look at credentials: netrc sends them unasked to every cache on a host, and
    // an expired one must not break a build.
    if let Some(name) = &name
        && let Some(cache) = app.service.cache(name).await?
        && cache.public
    {
        return Ok(cache);
    }
    let call = request::call(app, parts, Liveness::Recent).await?;
    match name {
        Some(name) => Ok(app.service.cache_to_pull(&call, &name).await?),
        None => Err(unknown_cache(&call).into()),
    }
}

/// A name that no cache can have: to a stranger the same as one that none has.
fn unknown_cache(call: &Call) -> Error {
    match call.caller.token() {
        None => Error::Unauthenticated("this needs a token"),
        Some(_) => Error::NotFound("cache"),
    }
}

async fn get(
    app: &App,
    cache: &CacheRow,
    method: &Method,
    headers: &HeaderMap,
    object: CacheObject,
    side: Side,
) -> Result<Response, Refusal> {
    let absent = || Error::NotFound("object in this cache");
    let text = match &object {
        CacheObject::Narinfo(hash) => {
            if let Some(narinfo) = app.service.narinfo(cache, *hash).await? {
                return Ok(narinfo_response(cache, headers, &narinfo));
            }
            if side == Side::Pull {
                return Err(absent().into());
            }
            // Whoever pushes need not send what an upstream holds, if the cache says so.
            app.service.upstream_narinfo(cache, *hash).await?.map(|signed| Bytes::from(signed.to_string()))
        }
        CacheObject::Nar(file) => {
            let nar = app.service.nar(cache, *file, side).await?.ok_or_else(absent)?;
            return nar_response(app, cache, method, headers, *file, &nar, side).await;
        }
        CacheObject::Info => Some(Bytes::from(app.service.cache_info(cache))),
        CacheObject::Listing(hash) => app.service.auxiliary(cache, &Auxiliary::Listing(*hash)).await?,
        CacheObject::BuildLog(drv) => app.service.auxiliary(cache, &Auxiliary::Log(drv.clone())).await?,
        CacheObject::DebugInfo(key) => {
            app.service.auxiliary(cache, &Auxiliary::DebugInfo(key.clone())).await?
        }
        CacheObject::Realisation(key) => app.service.realisation(cache, key).await?,
        CacheObject::KeySuccession => {
            let document = app.service.succession_document(cache).await?.ok_or_else(absent)?;
            return Ok(conditional::document(headers, document, object.content_type(), cache.public));
        }
    };
    let text = text.ok_or_else(absent)?;
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(object.content_type()));
    headers.insert(header::CACHE_CONTROL, cache_control(cache, SHORT_LIVED));
    Ok(response)
}

fn narinfo_response(cache: &CacheRow, asked: &HeaderMap, narinfo: &RenderedNarInfo) -> Response {
    let unchanged = conditional::matches(asked, &narinfo.etag);
    let body = if unchanged { Body::empty() } else { Body::from(narinfo.text.clone()) };
    let mut response = Response::new(body);
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/x-nix-narinfo"));
    headers.insert(header::CACHE_CONTROL, cache_control(cache, SHORT_LIVED));
    if let Ok(etag) = HeaderValue::from_str(&narinfo.etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// A NAR: by redirect where the configuration says so, else streamed, whole or the range asked for.
async fn nar_response(
    app: &App,
    cache: &CacheRow,
    method: &Method,
    asked: &HeaderMap,
    file: NarFileName,
    nar: &NarHandle,
    side: Side,
) -> Result<Response, Refusal> {
    let may_redirect = side == Side::Pull
        && method == Method::GET
        && app.settings.deliver == Deliver::Redirect
        && (cache.public || app.settings.redirect_private);
    if may_redirect && let Some(url) = app.service.nar_url(nar).await? {
        let location = HeaderValue::from_str(url.as_str()).map_err(|error| Error::Internal(error.into()))?;
        let mut response = StatusCode::FOUND.into_response();
        response.headers_mut().insert(header::LOCATION, location);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return Ok(response);
    }
    let etag = format!("\"{file}\"");
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    // Nix resumes a broken download only if it reads exactly this.
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-nix-nar"));
    headers.insert(header::CACHE_CONTROL, cache_control(cache, IMMUTABLE));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if conditional::matches(asked, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let range = match conditional::range(asked, &etag, nar.size) {
        RangeAnswer::Whole => None,
        RangeAnswer::Part(range) => Some(range),
        RangeAnswer::Unsatisfiable => {
            let text = format!("bytes */{}", nar.size);
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&text).expect("digits"));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(response);
        }
    };
    let length = range.as_ref().map_or(nar.size, |range| range.end - range.start);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = &range {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, nar.size);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&text).expect("digits"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if method == Method::GET {
        let object = app.service.nar_body(nar, range).await?;
        *response.body_mut() = Body::from_stream(object.body);
    }
    Ok(response)
}

async fn put(
    app: &App,
    call: &Call,
    cache: &CacheName,
    headers: &HeaderMap,
    object: CacheObject,
    body: &mut RequestBody,
) -> Result<Response, Refusal> {
    let service = &app.service;
    let auxiliary = match object {
        CacheObject::KeySuccession => return Err(Refusal::method("GET, HEAD")),
        CacheObject::Info => {
            // Nix puts its own where it finds none; ours stands.
            body.read(CACHE_INFO_SIZE_BYTES_MAX as u64, "nix-cache-info").await?;
            return Ok(StatusCode::OK.into_response());
        }
        CacheObject::Nar(file) => {
            let stated_size = body.stated_size();
            service.require_nar_room(stated_size)?;
            if headers.contains_key(header::CONTENT_ENCODING) {
                return Err(Refusal::encoded_nar());
            }
            service.put_nar(call, cache, file, stated_size, body).await?;
            return Ok(StatusCode::CREATED.into_response());
        }
        CacheObject::Narinfo(hash) => {
            let max = service.narinfo_size_bytes_max();
            let (_room, text) = whole(app, headers, body, max, "the narinfo").await?;
            return match service.put_narinfo(call, cache, hash, &text).await? {
                Published::New => Ok(StatusCode::CREATED.into_response()),
                Published::Again => Ok(StatusCode::OK.into_response()),
            };
        }
        CacheObject::Realisation(key) => {
            let max = REALISATION_SIZE_BYTES_MAX as u64;
            let (_room, text) = whole(app, headers, body, max, "the realisation").await?;
            service.put_realisation(call, cache, key, &text).await?;
            return Ok(StatusCode::CREATED.into_response());
        }
        CacheObject::Listing(hash) => Auxiliary::Listing(hash),
        CacheObject::BuildLog(derivation) => Auxiliary::Log(derivation),
        CacheObject::DebugInfo(key) => Auxiliary::DebugInfo(key),
    };
    let max = service.auxiliary_size_bytes_max();
    let (_room, text) = whole(app, headers, body, max, "the object").await?;
    service.put_auxiliary(call, cache, auxiliary, text).await?;
    Ok(StatusCode::CREATED.into_response())
}

/// A body that is held whole, decoded, with the memory that it was admitted to. Waits for that memory before the
/// first byte is read.
async fn whole(
    app: &App,
    headers: &HeaderMap,
    body: &mut RequestBody,
    max: u64,
    what: &'static str,
) -> Result<(Room, Vec<u8>), Refusal> {
    app.service.require_open()?;
    let size = body.size_at_most(max, what)?;
    let decoded = if headers.contains_key(header::CONTENT_ENCODING) { max } else { 0 };
    let room = app.service.room_for(COPIES_HELD * size.max(decoded)).await?;
    let text = encoding::decoded(headers, body.read(max, what).await?, max).await?;
    Ok((room, text))
}

/// Takes the cache's name and the object out of a URL. `None`: a name that no cache can have.
fn split(uri: &Uri, prefix: &str) -> (Option<CacheName>, Named) {
    let path = uri.path().strip_prefix(prefix).unwrap_or_default();
    let (cache, object) = path.split_once('/').unwrap_or((path, ""));
    let cache = cache.parse().ok();
    let Ok(object) = percent_decode_str(object).decode_utf8() else { return (cache, Named::Nothing) };
    let mut object = object.into_owned();
    if let Some(query) = uri.query() {
        // Old clients send a `?` in a derivation's name as it is.
        let Ok(query) = percent_decode_str(query).decode_utf8() else { return (cache, Named::Nothing) };
        object = format!("{object}?{query}");
    }
    let named = match object.strip_prefix("nar/").map(str::parse::<NarFileName>) {
        Some(Ok(file)) => Named::Object(CacheObject::Nar(file)),
        Some(Err(error @ ParseNarFileNameError::Compression(_))) => Named::RefusedNar(error),
        Some(Err(_)) => Named::Nothing,
        None => object.parse().map_or(Named::Nothing, Named::Object),
    };
    (cache, named)
}

fn cache_control(cache: &CacheRow, public: &'static str) -> HeaderValue {
    HeaderValue::from_static(if cache.public { public } else { "private, no-store" })
}

/// A small body stands in memory as it came, decoded or parsed, and compressed for its row.
const COPIES_HELD: u64 = 3;

const SHORT_LIVED: &str = "public, max-age=60";
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
