//! Caches: create, list, show, edit, delete.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, ToSome, Unknown, WithBody, WithQuery};
use super::tokens::parse;
use crate::access::{Action, CacheName};
use crate::api::{self, CacheCreate, CacheDeleteQuery, CacheEdit, CacheView, Page, PageQuery};
use crate::http::App;
use crate::nix::signature::PublicKey;
use crate::service::{
    CacheChange, CacheDetails, NewCache, Rejection, UndeclaredReferences, Upstream, UpstreamPaths,
};

/// Create a cache
///
/// It has no signing key yet: until the first one is made, pushes to it are refused with 409.
#[utoipa::path(
    post, path = "/api/v1/caches", operation_id = "cache_create", tag = "caches",
    request_body = CacheCreate,
    responses((status = 201, description = "The cache, without a key", body = CacheView),
        ToSome, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn create(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<(StatusCode, Json<CacheView>)> {
    app.service.require(&call, &Action::Administer, "cache-create", "").await?;
    let new = new_cache(body.json().await?)?;
    let cache = app.service.create_cache(&call, &new).await?;
    Ok((StatusCode::CREATED, Json(view(&app, cache))))
}

/// List caches
#[utoipa::path(
    get, path = "/api/v1/caches", operation_id = "caches", tag = "caches",
    params(PageQuery),
    responses((status = 200, description = "A page of caches", body = Page<CacheView>), ToSome, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<CacheView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_caches(&call, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |cache| cache.row.id.to_string(), |cache| view(&app, cache))))
}

/// Show a cache
///
/// With what clients need: its public keys, the pull URL for nix.conf, the push URL for `nix copy --to`. A
/// public cache is shown to anybody, a private one to tokens with `pull`.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}", operation_id = "cache", tag = "caches",
    params(("cache" = String, Path, description = "The cache's name")),
    responses((status = 200, description = "The cache", body = CacheView), ToSome, Unknown),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
) -> Result<Json<CacheView>> {
    Ok(Json(view(&app, app.service.show_cache(&call, &cache).await?)))
}

/// Edit a cache
///
/// Fields that are absent stay as they are.
#[utoipa::path(
    patch, path = "/api/v1/caches/{cache}", operation_id = "cache_edit", tag = "caches",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = CacheEdit,
    responses((status = 200, description = "The cache as it is now", body = CacheView),
        ToSome, Unknown, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn edit(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<CacheView>> {
    app.service.require(&call, &Action::Administer, "cache-edit", cache.as_str()).await?;
    let change = change(body.json().await?)?;
    Ok(Json(view(&app, app.service.edit_cache(&call, &cache, &change).await?)))
}

/// Delete a cache
///
/// Its name is never given again. A cache that holds paths is deleted only with `purge=true`.
#[utoipa::path(
    delete, path = "/api/v1/caches/{cache}", operation_id = "cache_delete", tag = "caches",
    params(("cache" = String, Path, description = "The cache's name"), CacheDeleteQuery),
    responses((status = 204, description = "It is gone"), ToSome, Unknown, Conflicts, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Query(asked): Query<CacheDeleteQuery>,
) -> Result<StatusCode> {
    app.service.delete_cache(&call, &cache, asked.purge).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn new_cache(asked: CacheCreate) -> std::result::Result<NewCache, Rejection> {
    Ok(NewCache {
        name: parse("name", &asked.name)?,
        public: asked.public,
        priority: asked.priority,
        prefix: asked.prefix,
        upstreams: asked.upstreams.map(upstreams).transpose()?,
        upstream_paths: asked.upstream_paths.map(upstream_paths),
        undeclared_references: asked.undeclared_references.map(undeclared_references),
    })
}

fn change(asked: CacheEdit) -> std::result::Result<CacheChange, Rejection> {
    Ok(CacheChange {
        public: asked.public,
        priority: asked.priority,
        upstreams: asked.upstreams.map(upstreams).transpose()?,
        upstream_paths: asked.upstream_paths.map(upstream_paths),
        undeclared_references: asked.undeclared_references.map(undeclared_references),
    })
}

fn upstreams(asked: Vec<api::Upstream>) -> std::result::Result<Vec<Upstream>, Rejection> {
    let read = |upstream: api::Upstream| {
        let keys = upstream.public_keys.iter().map(|key| parse("upstreams", key));
        Ok(Upstream { url: upstream.url, public_keys: keys.collect::<std::result::Result<_, _>>()? })
    };
    asked.into_iter().map(read).collect()
}

fn upstream_paths(asked: api::UpstreamPaths) -> UpstreamPaths {
    match asked {
        api::UpstreamPaths::Store => UpstreamPaths::Store,
        api::UpstreamPaths::Skip => UpstreamPaths::Skip,
    }
}

fn undeclared_references(asked: api::UndeclaredReferences) -> UndeclaredReferences {
    match asked {
        api::UndeclaredReferences::Record => UndeclaredReferences::Record,
        api::UndeclaredReferences::Refuse => UndeclaredReferences::Refuse,
    }
}

fn view(app: &App, cache: CacheDetails) -> CacheView {
    let CacheDetails { row, public_keys, paths, bytes } = cache;
    let server = app.settings.public_url.as_str().trim_end_matches('/');
    CacheView {
        id: row.id.to_string(),
        pull_url: format!("{server}/{}", row.name),
        push_url: format!("{server}/push/{}", row.name),
        name: row.name.to_string(),
        public: row.public,
        priority: row.priority,
        prefix: row.prefix,
        upstreams: row.upstreams.into_iter().map(upstream_view).collect(),
        upstream_paths: match row.upstream_paths {
            UpstreamPaths::Store => api::UpstreamPaths::Store,
            UpstreamPaths::Skip => api::UpstreamPaths::Skip,
        },
        undeclared_references: match row.undeclared_references {
            UndeclaredReferences::Record => api::UndeclaredReferences::Record,
            UndeclaredReferences::Refuse => api::UndeclaredReferences::Refuse,
        },
        public_keys: public_keys.iter().map(PublicKey::to_string).collect(),
        paths,
        bytes,
        created_at: row.created_at.rfc3339(),
    }
}

fn upstream_view(upstream: Upstream) -> api::Upstream {
    let public_keys = upstream.public_keys.iter().map(PublicKey::to_string).collect();
    api::Upstream { url: upstream.url, public_keys }
}
