//! Which key of a cache comes after which, told in statements that clients can follow: made at the ends of a planned
//! rotation, or signed by root keys after a compromise.
//!
//! A statement, the state of the keys that it tells of, its leaf and its outbox row are one transaction. Never has a key
//! that is compromised sign anything.

use std::sync::Arc;

use serde_json::json;

use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, RotationKind};
use crate::db::key_successions::{self, NoteRow, RootsOf};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{Connection, DbError, Gate, Tx, log, restarting};
use crate::nix::signature::{KeyName, PublicKey};
use crate::service::audit::Act;
use crate::service::leaves::AdminEvent;
use crate::service::release::Release;
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::storage::CacheObject;
use crate::succession::{
    CacheRef, Chain, Content, Document, Draft, LogHead, Reason, RootsRef, Signed, Statement, note_key,
};
use crate::time::Timestamp;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::{Note, NoteSignature, SignError};
use crate::vault::VaultError;

use super::worker::DAY_SECONDS;

/// How long the last statement of a chain is followed: a machine that was away for longer takes the keys over anew.
const LIFETIME_DAYS: i64 = 730;

/// The statements of a cache.
#[derive(Debug, Clone)]
pub struct Succession {
    pub cache: CacheRow,
    pub chain: Chain,
}

/// What root keys are to sign after a compromise. `None`: the only one that it can be; at once.
#[derive(Debug, Clone, Default)]
pub struct SuccessionRequest {
    /// The compromised key.
    pub old: Option<KeyName>,
    /// From when on clients drop it.
    pub retire_old: Option<Timestamp>,
}

/// A succession to tell of.
pub(super) struct Announcement<'a, 'k> {
    pub cache: &'a CacheRow,
    pub old: &'k KeyRow,
    pub new: &'k KeyRow,
    /// `None`: not yet known.
    pub retire_old: Option<Timestamp>,
    pub now: Timestamp,
}

impl Service {
    /// The statements of a cache: a public one's for anybody.
    pub async fn succession(&self, call: &Call, cache: &CacheName) -> Result<Succession> {
        let cache = Arc::unwrap_or_clone(self.cache_to_pull(call, cache).await?);
        let chain = chain_of(&mut *self.inner.db.read().await?, &cache).await?;
        Ok(Succession { cache, chain })
    }

    /// The document that stands beside a cache's narinfos; `None`: there is nothing to tell.
    pub async fn succession_document(&self, cache: &CacheRow) -> Result<Option<String>> {
        let chain = chain_of(&mut *self.inner.db.read().await?, cache).await?;
        Ok((!chain.is_empty()).then(|| chain.encode()))
    }

    /// What root keys are to sign after a compromise; nothing is written down.
    pub async fn draft_succession(
        &self,
        call: &Call,
        cache: &CacheName,
        asked: &SuccessionRequest,
    ) -> Result<String> {
        self.require(call, &Action::Administer, "key-succession-draft", cache.as_str()).await?;
        let now = self.inner.clock.now();
        let mut connection = self.inner.db.read().await?;
        let cache = caches::by_name(&mut connection, cache).await?.ok_or(Error::NotFound("cache"))?;
        let keys = signing_keys::of_cache(&mut connection, cache.id).await?;
        let chain = chain_of(&mut connection, &cache).await?;
        let old = stolen_key(&keys, &chain, asked.old.as_ref())?;
        let new = successor_of(&mut connection, &cache, &keys, old).await?;
        let roots = chain.roots.last().ok_or(Conflict::State(
            "the cache has no root keys whose word would count; `narvault root set` gives it some, and clients learn \
             them with `narvault use`",
        ))?;
        let statement = Statement {
            cache: reference(&cache),
            seq: chain.head() + 1,
            old: old.public_key.clone(),
            new: new.public_key.clone(),
            reason: Reason::Compromise,
            roots: Some(roots.content().reference()),
            not_before: now,
            retire_old: Some(asked.retire_old.unwrap_or(now)),
            expires: now.plus_seconds(LIFETIME_DAYS * DAY_SECONDS),
            log: log_head(&mut connection).await?,
        };
        let draft = Draft::new(Document::Succession(statement));
        Ok(draft.map_err(|error| Rejection::value("retire_old", error))?.encode())
    }

    /// Takes over what root keys have signed after a compromise, adds the new key's signature, and publishes it.
    pub async fn submit_succession(&self, call: &Call, cache: &CacheName, note: &str) -> Result<Succession> {
        self.require(call, &Action::Administer, "key-succession", cache.as_str()).await?;
        self.require_open()?;
        let signed: Signed<Statement> = read_note(note)?;
        let signed = &signed;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            let cache = caches::by_name(&mut tx, cache).await?.ok_or(Error::NotFound("cache"))?;
            let keys = signing_keys::of_cache(&mut tx, cache.id).await?;
            let chain = chain_of(&mut tx, &cache).await?;
            check_submitted(signed, &cache, &chain, now)?;
            let new = party(&keys, &signed.content().new, "new", KeyState::signs)?;
            let is_over = |state| matches!(state, KeyState::Compromised | KeyState::Destroyed);
            party(&keys, &signed.content().old, "old", is_over)?;
            let signature = self.succession_signature(new, signed.content())?;
            let note = signed.note().clone().with(signature).map_err(refused)?;
            let act = self.publish_succession(&mut tx, &cache, signed.content(), note, now).await?;
            self.record(&mut tx, call, vec![act], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.succession(call, cache).await
    }

    /// Tells of a key that comes beside others outside of a rotation, unless that was told before: an active one and the
    /// new one sign that it is to be trusted, too. `None`: there is nobody yet who could be told.
    pub(super) async fn tell_of_another<'a>(
        &self,
        tx: &mut Tx,
        cache: &'a CacheRow,
        keys: &[KeyRow],
        new: &KeyRow,
        now: Timestamp,
    ) -> Result<Option<Act<'a>>> {
        let chain = chain_of(tx, cache).await?;
        let named = |one: &Statement| [&one.old, &one.new].contains(&&new.public_key);
        if chain.statements.iter().map(Signed::content).any(named) {
            return Ok(None);
        }
        // The oldest is the one that most clients know.
        let mut others = keys.iter().filter(|row| row.state == KeyState::Active);
        let Some(old) = others.find(|row| row.key.label.id != new.key.label.id) else { return Ok(None) };
        // One that was taken over may have a name that statements cannot have.
        if [old, new].into_iter().any(|key| note_key(&key.public_key).is_err()) {
            return Ok(None);
        }
        let told = Announcement { cache, old, new, retire_old: None, now };
        self.tell_succession(tx, told).await.map(Some)
    }

    /// Tells that one key comes after another as planned, signed by both, in the transaction that makes it so.
    pub(super) async fn tell_succession<'a>(
        &self,
        tx: &mut Tx,
        told: Announcement<'a, '_>,
    ) -> Result<Act<'a>> {
        let Announcement { cache, old, new, retire_old, now } = told;
        let roots = roots_in_force(tx, cache).await?;
        let seq = key_successions::head(tx, cache.id).await? + 1;
        let statement = Statement {
            cache: reference(cache),
            seq: u64::try_from(seq).map_err(|error| Error::Internal(error.into()))?,
            old: old.public_key.clone(),
            new: new.public_key.clone(),
            reason: Reason::Planned,
            roots,
            not_before: now,
            retire_old,
            expires: now.plus_seconds(LIFETIME_DAYS * DAY_SECONDS),
            log: log_head(tx).await?,
        };
        let note = self.succession_note(old, &statement)?;
        let note = note.with(self.succession_signature(new, &statement)?).map_err(internal)?;
        self.publish_succession(tx, cache, &statement, note, now).await
    }

    /// The row, the wish for its object, and the act.
    async fn publish_succession<'a>(
        &self,
        tx: &mut Tx,
        cache: &'a CacheRow,
        statement: &Statement,
        note: Note,
        now: Timestamp,
    ) -> Result<Act<'a>> {
        let signed: Signed<Statement> = Signed::of(note).map_err(internal)?;
        let row = NoteRow {
            id: self.new_id(now),
            number: i64::try_from(statement.seq).map_err(internal)?,
            note: signed.note().encode(),
            created_at: now,
        };
        key_successions::insert(tx, cache.id, &row).await.map_err(overtaken)?;
        Release::by_worker(cache, now).object(tx, CacheObject::KeySuccession).await?;
        Ok(Act {
            action: "key-succession",
            subject: statement.new.name().to_string(),
            detail: json!({
                "seq": statement.seq,
                "old": statement.old.to_string(),
                "new": statement.new.to_string(),
                "retire_old": statement.retire_old.map(Timestamp::rfc3339),
                "sha256": data_encoding::BASE64.encode(&signed.digest()),
            }),
            cache: Some(cache),
            event: Some(AdminEvent::KeySuccession {
                public_key: Box::new(statement.new.clone()),
                reason: statement.reason.as_str(),
            }),
        })
    }

    fn succession_signature(&self, key: &KeyRow, statement: &Statement) -> Result<NoteSignature> {
        let note = self.succession_note(key, statement)?;
        note.signatures().first().cloned().ok_or_else(|| internal(VaultError::NotConcerned))
    }

    /// The statement, signed by one key.
    fn succession_note(&self, key: &KeyRow, statement: &Statement) -> Result<Note> {
        let verifier = note_key(&key.public_key).map_err(|error| Rejection::value("key", error))?;
        let text = statement.encode().map_err(internal)?;
        let sign = |_: &[u8]| self.inner.keyring.sign_succession(&key.key, statement);
        Note::sign(text, &verifier, sign).map_err(|error| match error {
            SignError::Sign(error) => self.key_error(error),
            other => internal(other),
        })
    }
}

/// All statements of a cache, with the root keys that hold for it.
pub(in crate::service) async fn chain_of(connection: &mut Connection, cache: &CacheRow) -> Result<Chain> {
    let (_, roots) = roots_of(connection, cache).await?;
    let statements = key_successions::of_cache(connection, cache.id).await?;
    Ok(Chain {
        roots: read_rows("key_roots", &roots)?,
        statements: read_rows("key_successions", &statements)?,
    })
}

/// The sets of root keys that hold for a cache, and whose they are: its own, or else the server's.
pub(super) async fn roots_of(
    connection: &mut Connection,
    cache: &CacheRow,
) -> Result<(RootsOf, Vec<NoteRow>)> {
    let own = key_successions::roots(connection, RootsOf::Cache(cache.id)).await?;
    if own.is_empty() {
        Ok((RootsOf::Server, key_successions::roots(connection, RootsOf::Server).await?))
    } else {
        Ok((RootsOf::Cache(cache.id), own))
    }
}

/// What was written down as notes.
pub(super) fn read_rows<T: Content>(table: &'static str, rows: &[NoteRow]) -> Result<Vec<Signed<T>>> {
    let read = |row: &NoteRow| {
        Signed::parse(row.note.as_bytes())
            .map_err(|_| DbError::Corrupt { table, column: "note", row: row.id.clone() }.into())
    };
    rows.iter().map(read).collect()
}

/// A note that somebody hands in.
pub(super) fn read_note<T: Content>(note: &str) -> Result<Signed<T>> {
    Ok(Signed::parse(note.as_bytes()).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Rejection::value("note", format!("{error}{cause}"))
    })?)
}

/// A cache as statements name it.
pub(super) fn reference(cache: &CacheRow) -> CacheRef {
    CacheRef { name: cache.name.to_string(), id: cache.id.to_string() }
}

/// Somebody else was first with that number.
pub(super) fn overtaken(error: DbError) -> Error {
    match error {
        DbError::Duplicate => Conflict::State(OVERTAKEN).into(),
        other => other.into(),
    }
}

async fn roots_in_force(connection: &mut Connection, cache: &CacheRow) -> Result<Option<RootsRef>> {
    let (_, rows) = roots_of(connection, cache).await?;
    let sets = read_rows::<crate::succession::Roots>("key_roots", &rows)?;
    Ok(sets.last().map(|set| set.content().reference()))
}

/// How far the log is as its newest checkpoint says.
async fn log_head(connection: &mut Connection) -> Result<Option<LogHead>> {
    let Some(row) = log::checkpoint(connection).await? else { return Ok(None) };
    let unreadable =
        || DbError::Corrupt { table: "log_checkpoint", column: "note", row: row.size.to_string() };
    let note = Note::parse(row.note.as_bytes()).map_err(|_| unreadable())?;
    let Checkpoint { origin, size, root, .. } = Checkpoint::parse(note.text()).map_err(|_| unreadable())?;
    Ok(Some(LogHead { origin, size, root }))
}

/// The compromised key that no statement has told of yet.
fn stolen_key<'a>(keys: &'a [KeyRow], chain: &Chain, named: Option<&KeyName>) -> Result<&'a KeyRow> {
    let is_over = |row: &&KeyRow| matches!(row.state, KeyState::Compromised | KeyState::Destroyed);
    if let Some(name) = named {
        let row = keys.iter().find(|row| row.public_key.name() == name).ok_or(Error::NotFound("key"))?;
        return Some(row)
            .filter(is_over)
            .ok_or_else(|| Conflict::State("the key is not compromised: `narvault key compromise`").into());
    }
    let told = |row: &&KeyRow| {
        let mut told = chain.statements.iter().map(Signed::content);
        told.any(|one| one.reason == Reason::Compromise && one.old == row.public_key)
    };
    let mut left = keys.iter().filter(is_over).filter(|row| !told(row));
    match (left.next(), left.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(Conflict::State("no key is compromised of which clients were not told").into()),
        (Some(_), Some(_)) => Err(Conflict::State("several keys are compromised; name one").into()),
    }
}

/// The key that signs in place of `old`.
async fn successor_of<'a>(
    connection: &mut Connection,
    cache: &CacheRow,
    keys: &'a [KeyRow],
    old: &KeyRow,
) -> Result<&'a KeyRow> {
    let active = || keys.iter().filter(|row| row.state == KeyState::Active);
    let newest = key_rotations::newest(connection, cache.id).await?;
    let of_it = newest.filter(|newest| {
        newest.kind == RotationKind::Compromise && newest.old_key.as_ref() == Some(&old.key.label.id)
    });
    let named = of_it.and_then(|rotation| rotation.new_key);
    let found =
        active().find(|row| Some(&row.key.label.id) == named.as_ref()).or_else(|| active().next_back());
    Ok(found.ok_or(Conflict::NoSigningKey)?)
}

/// Refuses what cannot come next in this chain.
fn check_submitted(
    signed: &Signed<Statement>,
    cache: &CacheRow,
    chain: &Chain,
    now: Timestamp,
) -> Result<()> {
    let statement = signed.content();
    let refuse = |why: &str| Err(Rejection::value("note", why).into());
    if statement.reason != Reason::Compromise {
        return refuse("a planned succession is told by the rotation itself: `narvault key rotate`");
    }
    if statement.cache != reference(cache) {
        return refuse("the statement is of another cache");
    }
    if statement.seq != chain.head() + 1 {
        return Err(Conflict::State(OVERTAKEN).into());
    }
    if statement.expires <= now {
        return refuse("the statement has ended");
    }
    let Some(roots) = chain.roots.last() else {
        return refuse("the cache has no root keys whose word would count");
    };
    if statement.roots.as_ref() != Some(&roots.content().reference()) {
        return Err(Conflict::State(
            "the statement names other root keys than those of now; draft it again, and have it signed again",
        )
        .into());
    }
    let (found, needed) = (signed.signers_among(roots.content()), roots.content().threshold);
    if found < needed {
        return refuse(&format!("{found} root keys have signed, {needed} are needed"));
    }
    Ok(())
}

/// The row of a key that a statement names, in a state that fits.
fn party<'a>(
    keys: &'a [KeyRow],
    key: &PublicKey,
    what: &str,
    fits: impl Fn(KeyState) -> bool,
) -> Result<&'a KeyRow> {
    let row = keys.iter().find(|row| row.public_key == *key);
    let row =
        row.ok_or_else(|| Rejection::value("note", format!("the {what} key is none of this cache's")))?;
    if fits(row.state) {
        Ok(row)
    } else {
        let state = row.state.as_str();
        Err(Rejection::value("note", format!("the {what} key is {state} by now")).into())
    }
}

fn refused(error: impl std::error::Error) -> Rejection {
    Rejection::value("note", error)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}

/// Why a number is taken.
const OVERTAKEN: &str =
    "another statement came in between; draft it again with the number of now, and have it signed again";
