//! Statements about keys that were published since the backup: they lie in storage, and clients have followed them. One
//! that were forgotten would be followed by another under its number, which clients take for an attack.
//!
//! What lies in storage is believed by the rules that clients go by, from the keys and root keys that the backup has.

use std::collections::HashSet;

use super::Said;
use crate::db::caches::{self, CacheRow};
use crate::db::key_successions::{self, NoteRow, RootsOf};
use crate::db::{Gate, PageBounds, Tx, restarting, signing_keys};
use crate::nix::signature::PublicKey;
use crate::service::keys::chain_of;
use crate::service::{Error, Result, Service};
use crate::storage::CacheObject;
use crate::succession::{CHAIN_SIZE_BYTES_MAX, Chain, Memory, RootScope, Seen, Signed, follow};
use crate::time::Timestamp;

/// Caches that are asked for at once.
const PAGE: i64 = 200;

/// What came of one cache.
#[derive(Default)]
struct Adopted {
    statements: u64,
    /// Keys that statements name and the backup does not have: their secrets are lost.
    without_secret: Vec<String>,
    /// Why the rest was left.
    left: Option<String>,
}

impl Service {
    /// Takes in what lies in storage of each cache beyond what the backup knew.
    pub(super) async fn adopt_successions(&self, said: &mut Said) -> Result<()> {
        let mut after = None;
        loop {
            let page = PageBounds { after, limit: PAGE, descending: false };
            let page = caches::list(&mut *self.inner.db.read().await?, &page).await?;
            for cache in &page {
                self.adopt_succession(cache, said).await?;
            }
            match page.last() {
                Some(last) => after = Some(last.id.to_string()),
                None => return Ok(()),
            }
        }
    }

    async fn adopt_succession(&self, cache: &CacheRow, said: &mut Said) -> Result<()> {
        let key = crate::service::key_of(cache, CacheObject::KeySuccession)?;
        let Some(bytes) = self.inner.storage.read(&key, CHAIN_SIZE_BYTES_MAX).await? else { return Ok(()) };
        let name = &cache.name;
        let Ok(stored) = Chain::parse(&bytes) else {
            said.recovery
                .lost
                .push(format!("what was told of the keys of {name}: it cannot be read in storage"));
            return Ok(());
        };
        let stored = &stored;
        let adopted = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let adopted = self.adopt_chain(&mut tx, cache, stored, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(adopted)
        })
        .await?;
        said.recovery.successions_adopted += adopted.statements;
        for key in adopted.without_secret {
            said.recovery.lost.push(format!(
                "the secret of {key}, which clients of {name} were told to trust: rotate to a new key, and keep the old \
                 one until clients have followed"
            ));
        }
        if let Some(why) = adopted.left {
            said.recovery.lost.push(format!("what was told since of the keys of {name}: {why}"));
        }
        Ok(())
    }

    async fn adopt_chain(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        stored: &Chain,
        now: Timestamp,
    ) -> Result<Adopted> {
        let ours = chain_of(tx, cache).await?;
        if stored.head() <= ours.head() && stored.roots.len() <= ours.roots.len() {
            return Ok(Adopted::default());
        }
        let keys: Vec<PublicKey> =
            signing_keys::of_cache(tx, cache.id).await?.into_iter().map(|row| row.public_key).collect();
        let memory = Memory {
            cache: Some(cache.id.to_string()),
            seen: Some(Seen { seq: ours.head(), digest: ours.statements.last().map(Signed::digest) }),
            roots: ours.roots.last().map(|roots| roots.content().reference()),
            pending: Vec::new(),
        };
        let followed = match follow(&keys, &memory, stored, now) {
            Ok(followed) => followed,
            Err(refusal) => return Ok(Adopted { left: Some(refusal.to_string()), ..Adopted::default() }),
        };
        let mut adopted = Adopted::default();
        // The server's sets are in every cache's document; the first one that is looked at brings them back.
        if followed.memory.roots.is_some() {
            for signed in stored.roots.iter().skip(ours.roots.len()) {
                let of = match &signed.content().scope {
                    RootScope::Cache(_) => RootsOf::Cache(cache.id),
                    RootScope::Server(_) => RootsOf::Server,
                };
                let row = self.note_row(signed.content().version, signed.note().encode(), now)?;
                key_successions::insert_roots(tx, of, &row).await?;
            }
        } else if !stored.roots.is_empty() {
            adopted.left =
                Some("root keys, which nothing vouches for here; hand the same draft in again".to_owned());
        }
        let last = followed.memory.seen.map_or(0, |seen| seen.seq);
        let since = ours.head();
        for signed in
            stored.statements.iter().filter(|signed| (since + 1..=last).contains(&signed.content().seq))
        {
            let row = self.note_row(signed.content().seq, signed.note().encode(), now)?;
            key_successions::insert(tx, cache.id, &row).await?;
            adopted.statements += 1;
        }
        let known: HashSet<&PublicKey> = keys.iter().collect();
        adopted.without_secret =
            followed.added.iter().filter(|key| !known.contains(key)).map(PublicKey::to_string).collect();
        Ok(adopted)
    }

    fn note_row(&self, number: u64, note: String, now: Timestamp) -> Result<NoteRow> {
        let number = i64::try_from(number).map_err(|error| Error::Internal(error.into()))?;
        Ok(NoteRow { id: self.new_id(now), number, note, created_at: now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{TestDb, on_each_database};
    use crate::service::testing::{TestService, new_cache};
    use crate::service::{Call, KeySource};
    use crate::succession::testing::{TestKey, planned, roots, signed};
    use crate::succession::{CacheRef, Statement};

    /// A server whose cache has the key of a test, and the cache's row.
    async fn server(test: &TestDb) -> (TestService, CacheRow) {
        let server = TestService::start(test).await;
        // A cache of its own: of a key that came beside another one, something would be told already.
        let new = new_cache("told");
        server.service.create_cache(&Call::host(), &new).await.unwrap();
        let source = KeySource::import(&TestKey::named("main-1").nix_secret()).unwrap();
        server.service.create_key(&Call::host(), &new.name, &source).await.unwrap();
        let cache = CacheRow::clone(&server.service.existing_cache(&new.name).await.unwrap());
        (server, cache)
    }

    /// A statement about that cache, signed by both keys.
    fn told(cache: &CacheRow, seq: u64, old: &str, new: &str) -> Signed<Statement> {
        let cache = CacheRef { name: cache.name.to_string(), id: cache.id.to_string() };
        signed(&Statement { cache, ..planned(seq, old, new) }, &[old, new])
    }

    async fn adopt(server: &TestService, cache: &CacheRow, chain: &Chain) -> Said {
        let key = crate::service::key_of(cache, CacheObject::KeySuccession).unwrap();
        server.service.inner.storage.put(&key, chain.encode().into()).await.unwrap();
        let mut said = Said::default();
        server.service.adopt_successions(&mut said).await.unwrap();
        said
    }

    async fn standing(server: &TestService, cache: &CacheRow) -> Chain {
        chain_of(&mut server.service.inner.db.read().await.unwrap(), cache).await.unwrap()
    }

    on_each_database! {
        async fn what_was_told_since_is_taken_back_and_lost_secrets_are_named(test: &TestDb) {
            let (server, cache) = server(test).await;
            let statements = vec![told(&cache, 1, "main-1", "main-2"), told(&cache, 2, "main-2", "main-3")];
            let chain = Chain { roots: Vec::new(), statements };

            let said = adopt(&server, &cache, &chain).await;

            assert_eq!(said.recovery.successions_adopted, 2);
            assert_eq!(standing(&server, &cache).await, chain);
            let lost = said.recovery.lost.join("\n");
            assert!(lost.contains("the secret of main-2:") && lost.contains("the secret of main-3:"), "{lost}");
            let again = adopt(&server, &cache, &chain).await;
            assert_eq!((again.recovery.successions_adopted, again.recovery.lost), (0, Vec::new()));
        }

        async fn what_nobody_here_has_signed_is_left(test: &TestDb) {
            let (server, cache) = server(test).await;
            let set = signed(&roots(1, 1, &["mallory"]), &["mallory"]);
            for (chain, text) in [
                (Chain { statements: vec![told(&cache, 1, "evil-1", "evil-2")], ..Chain::default() }, "not trusted here"),
                (Chain { statements: vec![told(&cache, 2, "main-1", "evil-2")], ..Chain::default() }, "is missing"),
                (Chain { roots: vec![set], ..Chain::default() }, "not of"),
            ] {
                let said = adopt(&server, &cache, &chain).await;

                assert_eq!(said.recovery.successions_adopted, 0);
                assert!(said.recovery.lost.len() == 1, "{text}: {:?}", said.recovery.lost);
                assert!(said.recovery.lost[0].contains(text), "{text}: {:?}", said.recovery.lost);
                assert!(standing(&server, &cache).await.is_empty(), "{text}");
            }
        }
    }
}
