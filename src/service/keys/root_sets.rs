//! Root keys of a cache, or of all caches that have none of their own: public halves only, whose holders sign away from
//! here. A set is followed by another only with the word of enough keys of both.
//!
//! Never decides whose word counts for a client: that is what the client has seen before.

use serde_json::json;

use super::succession::{chain_of, overtaken, read_note, read_rows, reference, roots_of};
use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::key_successions::{self, NoteRow, RootsOf};
use crate::db::{Connection, Gate, PageBounds, Tx, restarting, signing_keys};
use crate::nix::signature::PublicKey;
use crate::service::audit::Act;
use crate::service::leaves::AdminEvent;
use crate::service::release::Release;
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::storage::CacheObject;
use crate::succession::{Document, Draft, RootScope, Roots, Signed};
use crate::time::Timestamp;

/// Caches that are asked for at once.
const CACHES_AT_ONCE: i64 = 200;

/// Sets of root keys, and what for.
#[derive(Debug, Clone)]
pub struct RootSets {
    /// As it stands in their texts.
    pub scope: RootScope,
    /// From the first version on; the last one is in force.
    pub sets: Vec<Signed<Roots>>,
}

/// Where a set belongs.
struct Place {
    of: RootsOf,
    scope: RootScope,
    cache: Option<CacheRow>,
}

impl Service {
    /// The root keys that hold for a cache, which a public one's are for anybody, or those of the server.
    pub async fn root_sets(&self, call: &Call, cache: Option<&CacheName>) -> Result<RootSets> {
        let Some(name) = cache else {
            self.require(call, &Action::Administer, "root-show", "server").await?;
            let rows = key_successions::roots(&mut *self.inner.db.read().await?, RootsOf::Server).await?;
            return Ok(RootSets { scope: self.server_scope(), sets: read_rows("key_roots", &rows)? });
        };
        let cache = self.cache_to_pull(call, name).await?;
        let (of, rows) = roots_of(&mut *self.inner.db.read().await?, &cache).await?;
        let scope = match of {
            RootsOf::Server if !rows.is_empty() => self.server_scope(),
            RootsOf::Server | RootsOf::Cache(_) => RootScope::Cache(reference(&cache)),
        };
        Ok(RootSets { scope, sets: read_rows("key_roots", &rows)? })
    }

    /// The text of the next set, to be signed; nothing is written down.
    pub async fn draft_roots(
        &self,
        call: &Call,
        cache: Option<&CacheName>,
        threshold: u64,
        mut keys: Vec<PublicKey>,
    ) -> Result<String> {
        self.require(call, &Action::Administer, "root-draft", subject(cache)).await?;
        let mut connection = self.inner.db.read().await?;
        let place = self.place_of_roots(&mut connection, cache).await?;
        let version = key_successions::roots(&mut connection, place.of).await?.len() as u64 + 1;
        keys.sort_by(|one, other| one.name().cmp(other.name()));
        let roots = Roots { scope: place.scope, version, threshold, keys };
        let draft = Draft::new(Document::Roots(roots)).map_err(|error| Rejection::value("keys", error))?;
        Ok(draft.encode())
    }

    /// Takes a signed set over as the one in force, and publishes it.
    pub async fn submit_roots(&self, call: &Call, cache: Option<&CacheName>, note: &str) -> Result<RootSets> {
        self.require(call, &Action::Administer, "root-set", subject(cache)).await?;
        let signed: Signed<Roots> = read_note(note)?;
        let signed = &signed;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let place = self.place_of_roots(&mut tx, cache).await?;
            let before = read_rows("key_roots", &key_successions::roots(&mut tx, place.of).await?)?;
            check_next(signed, &place.scope, before.last())?;
            for key in &signed.content().keys {
                if signing_keys::named(&mut tx, key.name()).await?.is_some() {
                    let why = format!("{} is a key of this server, and root keys lie elsewhere", key.name());
                    return Err(Rejection::value("note", why).into());
                }
            }
            let row = NoteRow {
                id: self.new_id(now),
                number: i64::try_from(signed.content().version)
                    .map_err(|error| Error::Internal(error.into()))?,
                note: signed.note().encode(),
                created_at: now,
            };
            key_successions::insert_roots(&mut tx, place.of, &row).await.map_err(overtaken)?;
            self.release_roots(&mut tx, place.cache.as_ref(), now).await?;
            let act = set_act(signed, place.cache.as_ref());
            self.record(&mut tx, call, vec![act], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.root_sets(call, cache).await
    }

    /// Has the documents written anew that a set is in: of one cache, or of all that have none of their own.
    async fn release_roots(&self, tx: &mut Tx, cache: Option<&CacheRow>, now: Timestamp) -> Result<()> {
        if let Some(cache) = cache {
            return Release::by_worker(cache, now).object(tx, CacheObject::KeySuccession).await;
        }
        let mut after = None;
        loop {
            let page = PageBounds { after, limit: CACHES_AT_ONCE, descending: false };
            let page = caches::list(tx, &page).await?;
            for cache in &page {
                if matches!(roots_of(tx, cache).await?.0, RootsOf::Server) {
                    Release::by_worker(cache, now).object(tx, CacheObject::KeySuccession).await?;
                }
            }
            match page.last() {
                Some(last) => after = Some(last.id.to_string()),
                None => return Ok(()),
            }
        }
    }

    /// Has a new cache's document written, if there is something to tell.
    pub(in crate::service) async fn has_succession(
        &self,
        connection: &mut Connection,
        cache: &CacheRow,
    ) -> Result<bool> {
        Ok(!chain_of(connection, cache).await?.is_empty())
    }

    /// Where a set of a cache, or of the server, belongs. A cache's first one is refused where the server's hold for it:
    /// clients would see the scope change, which they take for an attack.
    async fn place_of_roots(&self, connection: &mut Connection, cache: Option<&CacheName>) -> Result<Place> {
        let Some(name) = cache else {
            return Ok(Place { of: RootsOf::Server, scope: self.server_scope(), cache: None });
        };
        let cache = caches::by_name(connection, name).await?.ok_or(Error::NotFound("cache"))?;
        if let (RootsOf::Server, rows) = roots_of(connection, &cache).await?
            && !rows.is_empty()
        {
            return Err(Conflict::State(
                "the server's root keys hold for this cache; change those, with `narvault root set --server`",
            )
            .into());
        }
        let scope = RootScope::Cache(reference(&cache));
        Ok(Place { of: RootsOf::Cache(cache.id), scope, cache: Some(cache) })
    }

    fn server_scope(&self) -> RootScope {
        RootScope::Server(self.inner.cluster_id.clone())
    }
}

/// Refuses what cannot follow the set in force.
fn check_next(signed: &Signed<Roots>, scope: &RootScope, before: Option<&Signed<Roots>>) -> Result<()> {
    let roots = signed.content();
    let refuse = |why: String| Err(Rejection::value("note", why).into());
    if roots.scope != *scope {
        return refuse(format!("the set is for {}, not for {scope}", roots.scope));
    }
    let next = before.map_or(1, |before| before.content().version + 1);
    if roots.version != next {
        return Err(Conflict::State(
            "another set came in between; draft it again with the version of now, and have it signed again",
        )
        .into());
    }
    if !signed.has_threshold_of(roots) {
        let found = signed.signers_among(roots);
        return refuse(format!("{found} of its own keys have signed, {} are needed", roots.threshold));
    }
    if let Some(before) = before.map(Signed::content).filter(|before| !signed.has_threshold_of(before)) {
        let found = signed.signers_among(before);
        return refuse(format!(
            "{found} keys of the set before have signed, {} are needed",
            before.threshold
        ));
    }
    Ok(())
}

fn set_act<'a>(signed: &Signed<Roots>, cache: Option<&'a CacheRow>) -> Act<'a> {
    let roots = signed.content();
    Act {
        action: "root-set",
        subject: cache.map_or_else(|| "server".to_owned(), |cache| cache.name.to_string()),
        detail: json!({
            "version": roots.version,
            "threshold": roots.threshold,
            "keys": roots.keys.iter().map(PublicKey::to_string).collect::<Vec<_>>(),
            "sha256": data_encoding::BASE64.encode(&signed.digest()),
        }),
        cache,
        event: Some(AdminEvent::PolicyChange),
    }
}

fn subject(cache: Option<&CacheName>) -> &str {
    cache.map_or("server", CacheName::as_str)
}
