//! What a transaction wishes to be released once it is committed.

use bytes::Bytes;

use crate::db::auxiliary::AuxiliaryKind;
use crate::db::caches::CacheRow;
use crate::db::outbox::{self, LeaseTerms, Leased, OutboxKind, Wish};
use crate::db::{DbError, Tx};
use crate::nix::store_path::StorePathHash;
use crate::service::{Result, Service, auxiliary, key_of};
use crate::storage::{BegunPut, CacheObject, Storage};
use crate::time::Timestamp;

/// Objects that a transaction asks to be released, and their names for afterwards.
pub(in crate::service) struct Release<'a> {
    pub cache: &'a CacheRow,
    now: Timestamp,
    /// `None`: the worker releases them, nobody waits.
    terms: Option<&'a LeaseTerms>,
    /// What to release once the transaction is committed.
    pub objects: Vec<Wanted>,
}

/// An object to release once the transaction that asked for it is committed.
#[derive(Debug)]
pub(in crate::service) struct Wanted {
    pub(super) object: String,
    /// The lease that was taken with the wish, unless somebody else has it.
    pub(super) leased: Option<Leased>,
    /// What the rows say when they are committed, where that is known.
    pub(super) fresh: Option<FreshNarInfo>,
}

/// A narinfo as the transaction left it that asked for its release. Under the lease that was taken with the wish it may
/// be written without a look at the rows: whoever changes them afterwards asks for the object again, and that is done
/// once the lease ends.
#[derive(Debug)]
pub(in crate::service) struct FreshNarInfo {
    /// What it refers to, but for itself.
    pub references: Vec<StorePathHash>,
    pub text: Bytes,
    /// As far as it is written already, which nobody can see yet.
    pub begun: Option<BegunPut>,
}

impl Wanted {
    /// The same, with the text known.
    pub fn with(self, fresh: Option<FreshNarInfo>) -> Self {
        Self { fresh, ..self }
    }

    /// Begins to write it, where it is known and may be written: beside the transaction that asked for it.
    pub fn begin(&mut self, storage: &Storage) {
        if let (Some(_), Some(fresh), Ok(key)) = (&self.leased, &mut self.fresh, self.object.parse()) {
            fresh.begun = Some(storage.begin_put(&key, fresh.text.clone()));
        }
    }
}

impl<'a> Release<'a> {
    pub fn new(service: &'a Service, cache: &'a CacheRow, now: Timestamp) -> Self {
        Self { cache, now, terms: Some(&service.inner.lease_terms), objects: Vec::new() }
    }

    /// For many objects, which the worker releases by and by.
    pub fn by_worker(cache: &'a CacheRow, now: Timestamp) -> Self {
        Self { cache, now, terms: None, objects: Vec::new() }
    }

    /// Asks for an object of the cache to be written or deleted, as the rows will say.
    pub async fn object(&mut self, tx: &mut Tx, object: CacheObject) -> Result<()> {
        let wanted = self.wish(tx, [object]).await?;
        self.objects.extend(wanted);
        Ok(())
    }

    /// The same for many, each once: what is wanted of each, in their order, which is not among `objects`.
    pub async fn wish(
        &self,
        tx: &mut Tx,
        objects: impl IntoIterator<Item = CacheObject>,
    ) -> Result<Vec<Wanted>> {
        let wishes: Vec<Wish> =
            objects.into_iter().map(|object| self.wish_for(object)).collect::<Result<_>>()?;
        if wishes.is_empty() {
            return Ok(Vec::new());
        }
        let leased = outbox::enqueue(tx, &wishes, self.cache.id, self.terms, self.now).await?;
        if self.terms.is_none() {
            return Ok(Vec::new());
        }
        let wanted = wishes.into_iter().zip(leased);
        Ok(wanted.map(|(wish, leased)| Wanted { object: wish.object, leased, fresh: None }).collect())
    }

    fn wish_for(&self, object: CacheObject) -> Result<Wish> {
        let (kind, subject) = match &object {
            CacheObject::Info => (OutboxKind::CacheInfo, String::new()),
            CacheObject::Narinfo(hash) => (OutboxKind::NarInfo, hash.to_string()),
            CacheObject::Nar(_) => (OutboxKind::Nar, String::new()),
            CacheObject::Listing(_) | CacheObject::BuildLog(_) | CacheObject::DebugInfo(_) => {
                (OutboxKind::Auxiliary, String::new())
            }
            CacheObject::Realisation(_) => (OutboxKind::Realisation, String::new()),
            CacheObject::KeySuccession => (OutboxKind::KeySuccession, String::new()),
        };
        Ok(Wish { object: key_of(self.cache, object)?.to_string(), kind, subject })
    }

    /// The same for an auxiliary object, by its row's name.
    pub async fn auxiliary(&mut self, tx: &mut Tx, kind: AuxiliaryKind, name: &str) -> Result<()> {
        match auxiliary::object_named(kind, name) {
            Some(object) => self.object(tx, object).await,
            None => Err(DbError::Corrupt { table: "auxiliary", column: "name", row: name.to_owned() }.into()),
        }
    }
}
