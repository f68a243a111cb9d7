//! Tokens: claimed, issued, renewed, listed, revoked, reported.
//!
//! Never issues more than the issuer has, and shows a token's text once. A revocation takes along what
//! the token issued, and has answered only when all of it is dead.

use serde_json::json;

use super::audit::Act;
use super::leaves::AdminEvent;
use super::webhooks::Event;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::caller::IssueDenied;
use crate::access::token::{self, lifetime_seconds};
use crate::access::{
    Action, Caller, ClaimSecret, Claims, ContributorId, ContributorName, Scope, Scopes, TokenId, TokenText,
};
use crate::db::admin_claims::{self, NewAdminClaim};
use crate::db::contributors::{self, ContributorKind, ContributorRow};
use crate::db::tokens::{self, NewToken, TokenFilter, TokenRow};
use crate::db::{Gate, PageBounds, Tx, epoch, restarting, signing_keys};
use crate::time::Timestamp;
use crate::vault::{Purpose, random};

/// A token just made. Its text is shown this once.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    pub id: TokenId,
    pub text: TokenText,
    pub contributor: ContributorName,
    pub scopes: Scopes,
    pub expires_at: Timestamp,
}

/// A token that is asked for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    pub contributor: ContributorName,
    pub scopes: Scopes,
    pub lifetime_seconds: Option<u64>,
    pub note: Option<String>,
}

/// Which tokens are asked for; names are resolved here.
#[derive(Debug, Clone, Default)]
pub struct TokenQuery {
    pub contributor: Option<ContributorName>,
    pub issued_by: Option<TokenId>,
}

/// Who a caller is.
#[derive(Debug, Clone)]
pub struct Whoami {
    pub contributor: ContributorName,
    pub token: TokenId,
    pub scopes: Scopes,
    pub expires_at: Timestamp,
}

/// What is minted, once its right to exist was decided.
struct Minted<'a> {
    contributor: &'a ContributorRow,
    scopes: &'a Scopes,
    lifetime_seconds: u64,
    issued_by: Option<TokenId>,
    renewable_until: Option<Timestamp>,
    note: Option<&'a str>,
}

impl Service {
    /// Makes a one-time secret that makes `contributor` an administrator. Only for the operator on the host.
    pub async fn make_admin_claim(&self, call: &Call, contributor: &ContributorName) -> Result<ClaimSecret> {
        if call.caller != Caller::Host {
            return Err(self.denied(call, "admin-claim-make", contributor.as_str(), Error::Forbidden).await);
        }
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let secret = self.new_admin_claim(&mut tx, contributor, now).await?;
        let act = Act {
            action: "admin-claim-make",
            subject: contributor.to_string(),
            detail: json!({}),
            cache: None,
            event: None,
        };
        self.record(&mut tx, call, vec![act], now).await?;
        tx.commit().await?;
        Ok(secret)
    }

    pub(super) async fn new_admin_claim(
        &self,
        tx: &mut Tx,
        contributor: &ContributorName,
        now: Timestamp,
    ) -> Result<ClaimSecret> {
        let secret = ClaimSecret::new(random::bytes());
        let new = NewAdminClaim {
            id: self.new_id(now),
            secret_sha256: secret.sha256(),
            contributor,
            created_at: now,
            expires_at: now.plus_seconds(CLAIM_SECONDS),
        };
        admin_claims::insert(tx, &new).await?;
        Ok(secret)
    }

    /// Spends a one-time secret for an admin token. `text` is what the caller sent.
    pub async fn claim_admin(&self, call: &Call, text: &str) -> Result<IssuedToken> {
        self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
        let refused = Error::Unauthenticated(
            "this claim is unknown, spent or older than an hour; `narvault admin claim` on the server makes another",
        );
        let Ok(secret) = text.parse::<ClaimSecret>() else {
            return Err(self.denied(call, "admin-claim", "", refused).await);
        };
        // Before it is spent: a sealed server cannot make the token.
        self.require_open()?;
        match restarting(|| self.claim_admin_once(call, &secret)).await? {
            Some(token) => Ok(token),
            None => Err(self.denied(call, "admin-claim", "", refused).await),
        }
    }

    async fn claim_admin_once(&self, call: &Call, secret: &ClaimSecret) -> Result<Option<IssuedToken>> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let Some(claim) = admin_claims::spend(&mut tx, &secret.sha256(), now).await? else { return Ok(None) };
        let mut acts = Vec::new();
        let contributor = match contributors::by_name(&mut tx, &claim.contributor).await? {
            Some(row) => row,
            None => {
                let row = ContributorRow {
                    id: ContributorId::new(now, random::bytes()),
                    name: claim.contributor,
                    kind: ContributorKind::Person,
                    group: None,
                    suspended_at: None,
                    created_at: now,
                };
                contributors::insert(&mut tx, &row).await?;
                acts.push(super::contributors::created(&row));
                row
            }
        };
        acts.push(Act {
            action: "admin-claim",
            subject: contributor.name.to_string(),
            detail: json!({ "claim": claim.id }),
            cache: None,
            event: Some(AdminEvent::AdminClaim),
        });
        let scopes = Scopes::new([Scope::Admin]).map_err(|error| Error::Internal(error.into()))?;
        let minted = Minted {
            contributor: &contributor,
            scopes: &scopes,
            lifetime_seconds: token::ADMIN_LIFETIME_SECONDS_MAX,
            issued_by: None,
            renewable_until: None,
            note: Some("first token of an administrator"),
        };
        let issued = self.mint(&mut tx, &minted, &mut acts, now).await?;
        self.record(&mut tx, call, acts, now).await?;
        tx.commit().await?;
        Ok(Some(issued))
    }

    /// Who the caller is.
    pub async fn whoami(&self, call: &Call) -> Result<Whoami> {
        let token = call.caller.token().ok_or(Error::Unauthenticated("this needs a token"))?;
        let row = contributors::by_id(&mut *self.inner.db.read().await?, token.contributor).await?;
        Ok(Whoami {
            contributor: row.ok_or(Error::NotFound("contributor"))?.name,
            token: token.token,
            scopes: token.scopes.clone(),
            expires_at: token.expires_at,
        })
    }

    /// Issues a token: an admin for anybody, others for themselves, within their own rights and time.
    pub async fn issue_token(&self, call: &Call, request: &TokenRequest) -> Result<IssuedToken> {
        let subject = request.contributor.as_str();
        if call.caller == Caller::Anonymous {
            return Err(self.denied(call, "token-issue", subject, anonymous()).await);
        }
        let note = request.note.as_deref().map(|note| checked_text("note", note)).transpose()?;
        self.require_open()?;
        match restarting(|| self.issue_once(call, request, note)).await {
            Err(error @ Error::Forbidden) => Err(self.denied(call, "token-issue", subject, error).await),
            result => result,
        }
    }

    async fn issue_once(
        &self,
        call: &Call,
        request: &TokenRequest,
        note: Option<&str>,
    ) -> Result<IssuedToken> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck_live(&mut tx, call, now).await?;
        let is_admin = call.caller.require(&Action::Administer).is_ok();
        let contributor = contributors::by_name(&mut tx, &request.contributor).await?;
        // To others than admins, a contributor that is not there is one that is not theirs.
        let contributor = match contributor {
            Some(row) => row,
            None if is_admin => return Err(Error::NotFound("contributor")),
            None => return Err(Error::Forbidden),
        };
        let own = call.caller.token();
        let (lifetime_seconds, renewable_until) = match own {
            Some(own) if !is_admin => {
                let seconds =
                    bounded_lifetime(&request.scopes, request.lifetime_seconds, own.expires_at, now)?;
                (seconds, Some(own.expires_at))
            }
            _ => (checked_lifetime(&request.scopes, request.lifetime_seconds)?, None),
        };
        let expires_at = now.plus_seconds(i64::try_from(lifetime_seconds).unwrap_or(i64::MAX));
        call.caller
            .require_issue(contributor.id, &request.scopes, earliest(expires_at, renewable_until))
            .map_err(issue_denied)?;
        let mut acts = Vec::new();
        let minted = Minted {
            contributor: &contributor,
            scopes: &request.scopes,
            lifetime_seconds,
            issued_by: own.map(|own| own.token),
            renewable_until,
            note,
        };
        let issued = self.mint(&mut tx, &minted, &mut acts, now).await?;
        self.record(&mut tx, call, acts, now).await?;
        tx.commit().await?;
        Ok(issued)
    }

    /// A new token of the same scopes: a sibling of the caller's, which stays as it is. Never outlives what
    /// the issuer of the first one could give.
    pub async fn renew_token(&self, call: &Call, lifetime_seconds: Option<u64>) -> Result<IssuedToken> {
        let Some(own) = call.caller.token() else {
            return Err(self.denied(call, "token-renew", "", anonymous()).await);
        };
        self.require_open()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck_live(&mut tx, call, now).await?;
            let row = tokens::by_id(&mut tx, own.token).await?.ok_or(Error::NotFound("token"))?;
            let contributor = contributors::by_id(&mut tx, own.contributor).await?;
            let contributor = contributor.ok_or(Error::NotFound("contributor"))?;
            let lifetime_seconds = match row.renewable_until {
                Some(until) => bounded_lifetime(&own.scopes, lifetime_seconds, until, now)?,
                None => checked_lifetime(&own.scopes, lifetime_seconds)?,
            };
            let mut acts = Vec::new();
            let minted = Minted {
                contributor: &contributor,
                scopes: &own.scopes,
                lifetime_seconds,
                issued_by: row.issued_by,
                renewable_until: row.renewable_until,
                note: row.note.as_deref(),
            };
            let issued = self.mint(&mut tx, &minted, &mut acts, now).await?;
            if let Some(act) = acts.first_mut() {
                act.action = "token-renew";
                act.detail["renews"] = own.token.to_string().into();
            }
            self.record(&mut tx, call, acts, now).await?;
            tx.commit().await?;
            Ok(issued)
        })
        .await
    }

    /// Writes the row and signs the text: neither alone is a token.
    async fn mint<'a>(
        &self,
        tx: &mut Tx,
        minted: &Minted<'_>,
        acts: &mut Vec<Act<'a>>,
        now: Timestamp,
    ) -> Result<IssuedToken> {
        if minted.contributor.suspended_at.is_some() {
            return Err(Conflict::State("the contributor is suspended").into());
        }
        self.recheck_open(tx).await?;
        let keys = signing_keys::by_purpose(tx, Purpose::Token).await?;
        let key = keys.iter().rev().find(|row| row.state.signs());
        let key = key.ok_or(Conflict::State("this server has no active key for tokens"))?;
        let id = TokenId::new(now, random::bytes());
        let claims =
            Claims::new(id, minted.contributor.id, minted.scopes.clone(), now, minted.lifetime_seconds);
        let payload = claims.payload(&token::issuer(&self.inner.cluster_id));
        let jwt = self.inner.keyring.mint_token(&key.key, &payload).map_err(|error| self.key_error(error))?;
        let text = jwt.parse::<TokenText>().map_err(|error| Error::Internal(error.into()))?;
        let new = NewToken {
            id,
            contributor: minted.contributor.id,
            scopes: minted.scopes,
            issued_by: minted.issued_by,
            key_id: &key.key.label.id,
            note: minted.note,
            created_at: now,
            expires_at: claims.expires_at,
            renewable_until: minted.renewable_until,
        };
        tokens::insert(tx, &new).await?;
        acts.push(Act {
            action: "token-issue",
            subject: id.to_string(),
            detail: json!({
                "contributor": minted.contributor.name.as_str(),
                "scopes": minted.scopes.to_string(),
                "expires_at": claims.expires_at.rfc3339(),
                "issued_by": minted.issued_by.map(|id| id.to_string()),
            }),
            cache: None,
            event: Some(AdminEvent::TokenIssue(id)),
        });
        Ok(IssuedToken {
            id,
            text,
            contributor: minted.contributor.name.clone(),
            scopes: minted.scopes.clone(),
            expires_at: claims.expires_at,
        })
    }

    /// A page of tokens: all for an admin, their own for others.
    pub async fn list_tokens(
        &self,
        call: &Call,
        query: &TokenQuery,
        page: &PageBounds,
    ) -> Result<Vec<TokenRow>> {
        let mut connection = self.inner.db.read().await?;
        let asked = match &query.contributor {
            None => None,
            Some(name) => Some(contributors::by_name(&mut connection, name).await?.map(|row| row.id)),
        };
        let contributor = if call.caller.require(&Action::Administer).is_ok() {
            asked.map(|id| id.ok_or(Error::NotFound("contributor"))).transpose()?
        } else {
            let own = call.caller.token().ok_or_else(anonymous)?.contributor;
            if asked.is_some_and(|asked| asked != Some(own)) {
                drop(connection);
                return Err(self.denied(call, "token-list", "", Error::Forbidden).await);
            }
            Some(own)
        };
        let filter = TokenFilter { contributor, issued_by: query.issued_by };
        Ok(tokens::list(&mut connection, &filter, page).await?)
    }

    /// One token: any for an admin, their own for others.
    pub async fn show_token(&self, call: &Call, id: TokenId) -> Result<TokenRow> {
        let row = tokens::by_id(&mut *self.inner.db.read().await?, id).await?;
        match (call.caller.require(&Action::Administer), call.caller.token(), row) {
            (Ok(()), _, row) => row.ok_or(Error::NotFound("token")),
            (_, Some(own), Some(row)) if own.contributor == row.contributor => Ok(row),
            (Err(denied), ..) => Err(self.denied(call, "token-show", &id.to_string(), denied.into()).await),
        }
    }

    /// Revokes a token and, unless `keep_issued`, what it issued, directly or through others. Answers with
    /// the tokens that died by this call; once it has, none of them works anywhere.
    pub async fn revoke_token(
        &self,
        call: &Call,
        id: TokenId,
        reason: &str,
        keep_issued: bool,
    ) -> Result<Vec<TokenId>> {
        if call.caller == Caller::Anonymous {
            return Err(self.denied(call, "token-revoke", &id.to_string(), anonymous()).await);
        }
        let reason = checked_text("reason", reason)?;
        let family = Family { root: Root::Token(id), keep_issued, reason, authority: Authority::Caller };
        match self.revoke_family(call, &family).await {
            Err(error @ Error::Forbidden) => {
                Err(self.denied(call, "token-revoke", &id.to_string(), error).await)
            }
            result => result,
        }
    }

    /// Revokes all tokens of a contributor and, unless `keep_issued`, what they issued to others.
    pub async fn revoke_contributor_tokens(
        &self,
        call: &Call,
        contributor: &ContributorName,
        reason: &str,
        keep_issued: bool,
    ) -> Result<Vec<TokenId>> {
        let subject = contributor.as_str();
        if call.caller == Caller::Anonymous {
            return Err(self.denied(call, "token-revoke", subject, anonymous()).await);
        }
        let reason = checked_text("reason", reason)?;
        let row = contributors::by_name(&mut *self.inner.db.read().await?, contributor).await?;
        let is_admin = call.caller.require(&Action::Administer).is_ok();
        let own = call.caller.token().map(|own| own.contributor);
        let id = match row {
            Some(row) if is_admin || own == Some(row.id) => row.id,
            None if is_admin => return Err(Error::NotFound("contributor")),
            _ => return Err(self.denied(call, "token-revoke", subject, Error::Forbidden).await),
        };
        let family =
            Family { root: Root::Contributor(id), keep_issued, reason, authority: Authority::Caller };
        self.revoke_family(call, &family).await
    }

    /// Kills a leaked token: whoever holds the text may. Answers with what died.
    pub async fn report_token(&self, call: &Call, text: &str) -> Result<Vec<TokenId>> {
        let now = self.inner.clock.now();
        self.inner.secret_tries.take(call.origin.address, now)?;
        let unknown = || Error::from(Rejection::value("token", "is not a token of this server"));
        let Ok(text) = text.parse::<TokenText>() else { return Err(unknown()) };
        let Ok(claims) = self.verify_token(&text, now) else {
            return Err(self.denied(call, "token-report", "", unknown()).await);
        };
        let family = Family {
            root: Root::Token(claims.token),
            keep_issued: false,
            reason: "reported as leaked",
            authority: Authority::Report,
        };
        self.revoke_family(call, &family).await
    }

    /// Revokes in batches: a publisher waits for one batch, not for all. What lives on meanwhile is found by
    /// the next round, also what it issued in between.
    pub(super) async fn revoke_family(&self, call: &Call, family: &Family<'_>) -> Result<Vec<TokenId>> {
        let mut revoked = Vec::new();
        let mut first = true;
        loop {
            let (batch, more) = restarting(|| self.revoke_batch(call, family, first)).await?;
            first = false;
            revoked.extend(batch);
            if !more {
                break;
            }
        }
        self.note_change().await;
        if !revoked.is_empty() {
            tracing::info!(count = revoked.len(), reason = family.reason, "tokens revoked");
        }
        Ok(revoked)
    }

    /// One batch: those revoked, and whether there may be more.
    async fn revoke_batch(
        &self,
        call: &Call,
        family: &Family<'_>,
        first: bool,
    ) -> Result<(Vec<TokenId>, bool)> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        // Later batches stand on the first one's right: the caller's own token may be among the dead.
        if first && family.authority == Authority::Caller {
            self.recheck_live(&mut tx, call, now).await?;
            self.recheck_may_revoke(&mut tx, call, family.root).await?;
        }
        let mut doomed = Vec::new();
        match family.root {
            Root::Token(id) if first => doomed.push(id),
            Root::Token(_) => {}
            Root::Contributor(id) => doomed = tokens::unrevoked_of(&mut tx, id, REVOKE_BATCH).await?,
        }
        if !family.keep_issued {
            let room = REVOKE_BATCH - i64::try_from(doomed.len()).unwrap_or(REVOKE_BATCH);
            let issued = match family.root {
                Root::Token(id) => tokens::descendants(&mut tx, id, room).await?,
                Root::Contributor(id) => tokens::descendants_of_contributor(&mut tx, id, room).await?,
            };
            doomed.extend(issued.into_iter().filter(|id| !doomed.contains(id)).collect::<Vec<_>>());
        }
        let more = i64::try_from(doomed.len()).unwrap_or(REVOKE_BATCH) >= REVOKE_BATCH;
        let mut revoked = Vec::new();
        let mut acts = Vec::new();
        for id in doomed {
            if tokens::revoke(&mut tx, id, family.reason, now).await? {
                acts.push(revoked_act(id, family.reason));
                revoked.push(id);
            }
        }
        if !revoked.is_empty() {
            let event = Event::TokenRevoked { tokens: &revoked, reason: family.reason };
            self.emit(&mut tx, call, event, now).await?;
            epoch::advance(&mut tx).await?;
            self.record(&mut tx, call, acts, now).await?;
        }
        tx.commit().await?;
        Ok((revoked, more))
    }

    /// Admins may revoke anything that there is, others what is their own.
    async fn recheck_may_revoke(&self, tx: &mut Tx, call: &Call, root: Root) -> Result<()> {
        let is_admin = call.caller.require(&Action::Administer).is_ok();
        let own = call.caller.token().map(|own| own.contributor);
        let owner = match root {
            Root::Contributor(id) => Some(id),
            Root::Token(id) => tokens::by_id(tx, id).await?.map(|row| row.contributor),
        };
        match owner {
            _ if !is_admin && (owner.is_none() || own != owner) => Err(Error::Forbidden),
            None => Err(Error::NotFound("token")),
            Some(_) => Ok(()),
        }
    }
}

/// What a revocation is about.
pub(super) struct Family<'a> {
    pub root: Root,
    pub keep_issued: bool,
    pub reason: &'a str,
    pub authority: Authority,
}

#[derive(Clone, Copy)]
pub(super) enum Root {
    Token(TokenId),
    Contributor(ContributorId),
}

/// By what right it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Authority {
    /// The caller's scopes.
    Caller,
    /// A quarantine that was begun by right.
    Quarantine,
    /// The caller showed the token itself.
    Report,
}

fn revoked_act<'a>(id: TokenId, reason: &str) -> Act<'a> {
    Act {
        action: "token-revoke",
        subject: id.to_string(),
        detail: json!({ "reason": reason }),
        cache: None,
        event: Some(AdminEvent::TokenRevoke(id)),
    }
}

fn anonymous() -> Error {
    Error::Unauthenticated("this needs a token")
}

fn issue_denied(denied: IssueDenied) -> Error {
    match denied {
        IssueDenied::Denied(denied) => denied.into(),
        IssueDenied::OtherContributor | IssueDenied::MoreScopes => Error::Forbidden,
        IssueDenied::LivesLonger => Rejection::value("expires_in_seconds", denied).into(),
    }
}

fn checked_lifetime(scopes: &Scopes, asked: Option<u64>) -> Result<u64> {
    Ok(lifetime_seconds(scopes, asked).map_err(|error| Rejection::value("expires_in_seconds", error))?)
}

/// The lifetime that was asked for, if it ends by `until`; if none was, the longest that does.
fn bounded_lifetime(scopes: &Scopes, asked: Option<u64>, until: Timestamp, now: Timestamp) -> Result<u64> {
    let left = u64::try_from(until.unix_seconds() - now.unix_seconds()).unwrap_or(0);
    let seconds = checked_lifetime(scopes, asked)?;
    match asked {
        Some(_) if seconds > left => {
            let why = format!("no longer than {left} seconds: the token that issues it ends then");
            Err(Rejection::value("expires_in_seconds", why).into())
        }
        _ if left == 0 => {
            Err(Rejection::value("expires_in_seconds", "the token that issues it ends now").into())
        }
        _ => Ok(seconds.min(left)),
    }
}

fn earliest(time: Timestamp, bound: Option<Timestamp>) -> Timestamp {
    bound.map_or(time, |bound| bound.min(time))
}

/// A text that people write for people: one line, of at most [`TEXT_LENGTH_MAX`] bytes.
pub(super) fn checked_text<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    if text.len() > TEXT_LENGTH_MAX {
        let why = format!("is {} bytes, at most {TEXT_LENGTH_MAX} are kept", text.len());
        return Err(Rejection::value(field, why).into());
    }
    if text.chars().any(char::is_control) {
        return Err(Rejection::value(field, "has control characters").into());
    }
    Ok(text)
}

/// The longest note or reason.
const TEXT_LENGTH_MAX: usize = 500;

/// How long a claim may be spent.
const CLAIM_SECONDS: i64 = 3600;

/// Tokens revoked while publishers wait.
const REVOKE_BATCH: i64 = 200;

#[cfg(test)]
mod tests;
