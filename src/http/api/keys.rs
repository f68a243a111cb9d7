//! Signing keys of caches: made or imported, and listed. A secret goes in and never comes out.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Anyone, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, Sealed, ToSome, Unknown, WithBody, WithQuery};
use super::tokens::parse;
use crate::access::{Action, CacheName};
use crate::api::{KeyCreate, KeyView, Page, PageQuery};
use crate::http::App;
use crate::service::{self, KeyRow, KeySource, Rejection};

/// Make or import a signing key
///
/// The new key signs at once, beside those that do already, or with `"next": true` is only published. `{}` makes one under the next default name,
/// `{"name": …}` under a name of your choice, `{"import": …}` takes over the text of
/// `nix key generate-secret`. No call ever returns a secret.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys", operation_id = "key_create", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = KeyCreate,
    responses((status = 201, description = "The key's public half", body = KeyView),
        ToSome, Unknown, Conflicts, WithBody, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn create(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<(StatusCode, Json<KeyView>)> {
    app.service.require(&call, &Action::Administer, "key-create", cache.as_str()).await?;
    app.service.require_open()?;
    let asked: KeyCreate = body.json().await?;
    let next = asked.next;
    let source = source(asked)?;
    let key = if next {
        app.service.create_next_key(&call, &cache, &source).await?
    } else {
        app.service.create_key(&call, &cache, &source).await?
    };
    Ok((StatusCode::CREATED, Json(view(key))))
}

/// List signing keys
///
/// Every key that the cache ever had, those of a public cache for anybody.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/keys", operation_id = "keys", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"), PageQuery),
    responses((status = 200, description = "A page of keys", body = Page<KeyView>), ToSome, Unknown, WithQuery),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<KeyView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_keys(&call, &cache).await?;
    let rows = paging.cut(rows, |row| row.key.label.id.as_str());
    Ok(Json(paging.page(rows, |row| row.key.label.id.clone(), view)))
}

fn source(asked: KeyCreate) -> service::Result<KeySource> {
    match (asked.name, asked.import) {
        (Some(_), Some(_)) => {
            Err(Rejection::value("name", "an imported key has a name already; leave it out").into())
        }
        (None, Some(text)) => KeySource::import(&text),
        (name, None) => Ok(KeySource::New { name: name.map(|name| parse("name", &name)).transpose()? }),
    }
}

pub(super) fn view(row: KeyRow) -> KeyView {
    KeyView {
        name: row.public_key.name().as_str().to_owned(),
        public_key: row.public_key.to_string(),
        state: row.state.as_str().to_owned(),
        imported: row.imported,
        created_at: row.created_at.rfc3339(),
        id: row.key.label.id,
    }
}
