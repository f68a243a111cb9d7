//! From a credential to a caller: the signature first, then the row, which may be remembered for less
//! than a second.
//!
//! A bad credential is refused, never taken for none. Whatever changes something asks the row again,
//! inside its transaction.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::memory::Signers;
use super::{Call, Error, Result, Service};
use crate::access::token::issuer;
use crate::access::{
    Action, Caller, Claims, Credential, TokenCaller, TokenError, TokenId, TokenKeys, TokenText,
};
use crate::db::caches::CacheRow;
use crate::db::signing_keys::{self, KeyState};
use crate::db::standing::{self, Standing};
use crate::db::tokens::{self, LiveToken};
use crate::db::{Connection, Gate, Tx, webhooks};
use crate::nix::hash::Sha256Digest;
use crate::time::Timestamp;
use crate::vault::Purpose;

/// What a replica remembers about tokens: their keys, those that were live a moment ago, and when each
/// was last used.
pub(super) struct LiveTokens {
    keys: RwLock<Arc<TokenKeys>>,
    keys_read_at: Mutex<Instant>,
    /// Digests of texts whose signatures were found good: a push shows the same one with each of its requests.
    signed: Mutex<HashSet<Sha256Digest>>,
    live: Mutex<HashMap<TokenId, (i64, LiveToken)>>,
    uses: Mutex<HashMap<TokenId, Timestamp>>,
}

impl LiveTokens {
    /// Tokens signed by `keys`.
    pub fn new(keys: TokenKeys) -> Self {
        Self {
            keys: RwLock::new(Arc::new(keys)),
            keys_read_at: Mutex::new(Instant::now()),
            signed: Mutex::default(),
            live: Mutex::default(),
            uses: Mutex::default(),
        }
    }

    /// Whether the keys may be read again for a token of an unknown one: at most once in a while, because
    /// anybody can make such tokens.
    fn may_read_keys(&self) -> bool {
        let mut read_at = self.keys_read_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = read_at.elapsed() >= KEYS_PAUSE;
        if due {
            *read_at = Instant::now();
        }
        due
    }

    fn keys(&self) -> Arc<TokenKeys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a token says. Its signature is verified once; its key has to be among ours each time.
    fn verify(&self, text: &TokenText, now: Timestamp) -> std::result::Result<Claims, TokenError> {
        let signed = || self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = Sha256Digest::of(text.expose().as_bytes());
        if signed().contains(&digest) {
            return self.keys().verify_again(text, now);
        }
        let claims = self.keys().verify(text, now)?;
        let mut signed = signed();
        if signed.len() >= LIVE_MAX {
            signed.clear();
        }
        signed.insert(digest);
        Ok(claims)
    }

    fn get(&self, id: TokenId, epoch: i64) -> Option<LiveToken> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&id).filter(|(read_at, _)| *read_at == epoch).map(|(_, token)| token.clone())
    }

    fn remember(&self, epoch: i64, token: LiveToken) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.len() >= LIVE_MAX {
            live.clear();
        }
        live.insert(token.token, (epoch, token));
    }

    fn note_use(&self, id: TokenId, now: Timestamp) {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).insert(id, now);
    }

    fn take_uses(&self) -> Vec<(TokenId, Timestamp)> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

/// The public halves of the keys whose tokens may be live.
pub(super) async fn token_keys(connection: &mut Connection, cluster_id: &str) -> Result<TokenKeys> {
    let rows = signing_keys::by_purpose(connection, Purpose::Token).await?;
    let trusted = rows.into_iter().filter(|row| row.state.is_trusted() && row.state != KeyState::Next);
    Ok(TokenKeys::new(issuer(cluster_id), trusted.map(|row| row.key.public_key)))
}

/// How old the word may be that a token is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Read from its row now: for whatever administers.
    Now,
    /// Remembered for less than a second: for reading and pushing, which come in thousands. What a push
    /// writes asks the row again, behind the gate.
    Recent,
}

impl Service {
    /// Who shows this credential.
    pub async fn authenticate(&self, credential: &Credential, liveness: Liveness) -> Result<Caller> {
        let text = match credential {
            Credential::None => return Ok(Caller::Anonymous),
            Credential::Malformed(_) => return Err(Error::Unauthenticated(NOT_A_TOKEN)),
            Credential::Token(text) => text,
        };
        let now = self.inner.clock.now();
        let mut verified = self.verify_token(text, now);
        if matches!(verified, Err(TokenError::UnknownKey)) && self.inner.tokens.may_read_keys() {
            // Another replica may have made a key.
            self.reload_token_keys().await?;
            verified = self.verify_token(text, now);
        }
        let claims = verified.map_err(|error| match error {
            TokenError::Expired => Error::Unauthenticated(EXPIRED),
            _ => Error::Unauthenticated(NOT_A_TOKEN),
        })?;
        let caller = self.live(&claims, liveness, now).await?.ok_or_else(|| dead(claims.expires_at, now))?;
        self.inner.tokens.note_use(claims.token, now);
        Ok(Caller::Token(caller))
    }

    /// What a token says, if this server signed it and its time has not run out.
    pub(super) fn verify_token(
        &self,
        text: &TokenText,
        now: Timestamp,
    ) -> std::result::Result<Claims, TokenError> {
        self.inner.tokens.verify(text, now)
    }

    /// The token, if its row is live.
    async fn live(&self, claims: &Claims, liveness: Liveness, now: Timestamp) -> Result<Option<TokenCaller>> {
        // Taken before the row is read: a revocation in between moves the epoch on, and ends the memory.
        let epoch = self.inner.memory.fresh_epoch();
        let remembered = match liveness {
            Liveness::Now => None,
            Liveness::Recent => epoch.and_then(|epoch| self.inner.tokens.get(claims.token, epoch)),
        };
        let live = match remembered {
            Some(token) => Some(token),
            None => {
                let row = tokens::live(&mut *self.inner.db.read().await?, claims.token, now).await?;
                if let (Some(epoch), Some(token)) = (epoch, &row) {
                    self.inner.tokens.remember(epoch, token.clone());
                }
                row
            }
        };
        Ok(live.filter(|token| token.expires_at > now).and_then(|token| caller(claims, &token)))
    }

    /// Refuses unless the caller's token is live now and allows `action`. Every transaction that changes
    /// something asks this behind the gate, where the answer stays true until the commit.
    pub(super) async fn recheck(
        &self,
        tx: &mut Tx,
        call: &Call,
        action: &Action,
        now: Timestamp,
    ) -> Result<()> {
        self.recheck_live(tx, call, now).await?;
        Ok(call.caller.require(action)?)
    }

    /// Refuses unless the caller's token is live now.
    pub(super) async fn recheck_live(&self, tx: &mut Tx, call: &Call, now: Timestamp) -> Result<()> {
        let Some(token) = call.caller.token() else { return Ok(()) };
        let row = tokens::live(tx, token.token, now).await?;
        same_token(token, row.as_ref(), now)
    }

    /// The same for a transaction of a push, which has read all that it rests on at once.
    pub(super) fn recheck_in(
        &self,
        standing: &Standing,
        call: &Call,
        action: &Action,
        now: Timestamp,
    ) -> Result<()> {
        if let Some(token) = call.caller.token() {
            same_token(token, standing.live.get(&token.token), now)?;
        }
        Ok(call.caller.require(action)?)
    }

    /// What every transaction of a push begins with: refuses unless the caller's token is live now and allows pushing to
    /// this cache. Answers with the cache as it stands.
    pub(super) async fn recheck_push(
        &self,
        tx: &mut Tx,
        call: &Call,
        cache: &CacheRow,
        now: Timestamp,
    ) -> Result<Arc<Signers>> {
        let standing = standing::read(tx, call.caller.token().map(|token| token.token), now).await?;
        self.recheck_in(&standing, call, &Action::Push(cache.name.clone()), now)?;
        self.signers(tx, cache, &standing).await
    }

    /// The cache and its keys as they stand behind the gate.
    pub(super) async fn signers(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        standing: &Standing,
    ) -> Result<Arc<Signers>> {
        if let Some(signers) = self.inner.memory.signers(cache.id, standing.change_epoch) {
            return Ok(signers);
        }
        let cache = self.recheck_cache(tx, cache).await?;
        let keys = signing_keys::active_of_cache(tx, cache.id).await?;
        let has_webhooks = webhooks::count(tx).await? > 0;
        let signers = Arc::new(Signers { cache, keys, has_webhooks });
        self.inner.memory.remember_signers(standing.change_epoch, Arc::clone(&signers));
        Ok(signers)
    }

    /// Reads the token keys again, after something changed.
    pub(super) async fn reload_token_keys(&self) -> Result<()> {
        let keys = token_keys(&mut *self.inner.db.read().await?, &self.inner.cluster_id).await?;
        *self.inner.tokens.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Writes down each minute when tokens were last used, and once more at the end.
    pub(super) async fn token_uses_worker(self) {
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => break,
                () = tokio::time::sleep(USES_PAUSE) => self.flush_token_uses().await,
            }
        }
        self.flush_token_uses().await;
    }

    /// Writes down when tokens were last used.
    pub(super) async fn flush_token_uses(&self) {
        let uses = self.inner.tokens.take_uses();
        for batch in uses.chunks(USES_BATCH) {
            let written = async {
                let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
                tokens::note_uses(&mut tx, batch).await?;
                tx.commit().await
            };
            if let Err(error) = written.await {
                // Only a report loses by it: the next use writes a newer time.
                tracing::warn!(error = &error as &dyn std::error::Error, "last uses of tokens not written");
            }
        }
    }
}

/// The caller that signed claims and a live row make together. Where they differ, somebody wrote to the
/// database: that alone gives no right.
fn caller(claims: &Claims, row: &LiveToken) -> Option<TokenCaller> {
    let same = claims.token == row.token
        && claims.contributor == row.contributor
        && claims.scopes == row.scopes
        && claims.expires_at == row.expires_at;
    same.then(|| TokenCaller {
        token: row.token,
        contributor: row.contributor,
        scopes: row.scopes.clone(),
        expires_at: row.expires_at,
    })
}

/// Refuses unless the row is live, and says what the caller's credential said.
fn same_token(token: &TokenCaller, row: Option<&LiveToken>, now: Timestamp) -> Result<()> {
    let same = row.is_some_and(|row| {
        row.contributor == token.contributor
            && row.scopes == token.scopes
            && row.expires_at == token.expires_at
    });
    if same { Ok(()) } else { Err(dead(token.expires_at, now)) }
}

/// Why a token without a live row is refused. Its signed claims hold for a leeway after their end, its row does not.
fn dead(expires_at: Timestamp, now: Timestamp) -> Error {
    Error::Unauthenticated(if expires_at <= now { EXPIRED } else { NOT_LIVE })
}

const NOT_A_TOKEN: &str = "this is not a token of this server";
const EXPIRED: &str = "this token has expired; renew it in time, or ask for another";
const NOT_LIVE: &str = "this token was revoked, or its contributor is suspended; ask for another";

/// Tokens remembered at once, some 300 bytes each.
const LIVE_MAX: usize = 10_000;

/// Between two reads of the token keys for an unknown one.
const KEYS_PAUSE: Duration = Duration::from_secs(1);

const USES_PAUSE: Duration = Duration::from_secs(60);
const USES_BATCH: usize = 500;
