//! Tokens: EdDSA-signed JWTs (RFC 7519, RFC 8725, RFC 9068), their claims, and how long they may live.
//!
//! Never believes a header about how to check it, never asks for the time, never sees a private key: what is to be
//! signed is handed out ([`Claims::payload`]). A verified token is not yet a live one: the caller also needs its row.

use std::collections::HashMap;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::name::{ContributorId, TokenId};
use super::scope::{ScopeError, Scopes};
use super::secret::TokenText;
use crate::time::Timestamp;

/// How far the clocks of replicas may be apart, for every comparison of a token's times, in seconds.
pub const LEEWAY_SECONDS: i64 = 60;

/// The longest token that is given out, in bytes: it has to fit into netrc lines and proxies' header limits. The limits
/// of [`Scopes`] keep to it, for any issuer of up to 64 bytes.
pub const MINTED_LENGTH_MAX: usize = 1536;

/// How long a token lives if nothing is asked for: 90 days.
pub const LIFETIME_SECONDS_DEFAULT: u64 = 90 * DAY;

/// How long a token may live: 365 days.
pub const LIFETIME_SECONDS_MAX: u64 = 365 * DAY;

/// How long a token with the scope `admin` may live, and lives if nothing is asked for: 30 days.
pub const ADMIN_LIFETIME_SECONDS_MAX: u64 = 30 * DAY;

const DAY: u64 = 24 * 60 * 60;
const ALGORITHM: &str = "EdDSA";
const TYPE: &str = "at+jwt";

/// Why a lifetime cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeError {
    #[error("a token must live for at least one second")]
    Zero,
    #[error("a token lives at most {} days", LIFETIME_SECONDS_MAX / DAY)]
    TooLong,
    #[error("an admin token lives at most {} days", ADMIN_LIFETIME_SECONDS_MAX / DAY)]
    AdminTooLong,
}

/// The lifetime in seconds of a token with `scopes` for which `requested` seconds were asked, or nothing.
pub fn lifetime_seconds(scopes: &Scopes, requested: Option<u64>) -> Result<u64, LifetimeError> {
    let (max, too_long) = if scopes.is_admin() {
        (ADMIN_LIFETIME_SECONDS_MAX, LifetimeError::AdminTooLong)
    } else {
        (LIFETIME_SECONDS_MAX, LifetimeError::TooLong)
    };
    match requested {
        None => Ok(LIFETIME_SECONDS_DEFAULT.min(max)),
        Some(0) => Err(LifetimeError::Zero),
        Some(seconds) if seconds > max => Err(too_long),
        Some(seconds) => Ok(seconds),
    }
}

/// The `iss` and `aud` of all tokens of one cluster. Not the URL, which may change.
pub fn issuer(cluster_id: &str) -> String {
    format!("narvault:{cluster_id}")
}

/// A public key's `kid`: the RFC 7638 thumbprint (SHA-256, base64url) of its OKP key (RFC 8037).
pub fn kid(public_key: &[u8; 32]) -> String {
    let x = BASE64URL_NOPAD.encode(public_key);
    // The members of RFC 7638, section 3.2, in their order, without spaces.
    let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    BASE64URL_NOPAD.encode(&Sha256::digest(jwk))
}

/// Why a token is not believed. Says which rule was broken, never what stood there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token header is not base64url")]
    HeaderEncoding,
    #[error("token header is not a JSON object of exactly `alg`, `typ` and `kid`")]
    Header,
    #[error("token algorithm is not {ALGORITHM}")]
    Algorithm,
    #[error("token type is not {TYPE}")]
    Type,
    #[error("token is signed with a key that this server does not know")]
    UnknownKey,
    #[error("token signature is not 64 bytes in base64url")]
    SignatureEncoding,
    #[error("token signature is wrong")]
    Signature,
    #[error("token claims are not base64url")]
    ClaimsEncoding,
    #[error("token claims are not a JSON object of known members, each once")]
    Claims,
    #[error("token has no `{0}`")]
    ClaimMissing(&'static str),
    #[error("token claim `{0}` has the wrong type")]
    ClaimType(&'static str),
    #[error("token claim `{0}` is not what this server writes there")]
    ClaimValue(&'static str),
    #[error("token scope is not understood")]
    Scope,
    #[error("token was issued by another server")]
    Issuer,
    #[error("token is meant for another server")]
    Audience,
    #[error("token ends before it begins")]
    Times,
    #[error("token is not valid yet")]
    NotYet,
    #[error("token has expired")]
    Expired,
}

/// What a token says: who it is for, what it allows, from when to when. Times are whole seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub token: TokenId,
    pub contributor: ContributorId,
    pub scopes: Scopes,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderText<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    typ: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    kid: std::borrow::Cow<'a, str>,
}

/// [`Claims`] as they stand in a token: what the token key signs.
#[derive(Debug, Serialize)]
pub struct Payload {
    iss: String,
    aud: String,
    sub: String,
    jti: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    scope: String,
}

/// Claims before their types were looked at. Read into this, rather than into typed members, so that each wrong one
/// can be named; `jsonwebtoken` once took an `nbf` of the wrong type as absent (CVE-2026-25537).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimsValues {
    iss: Option<Value>,
    aud: Option<Value>,
    sub: Option<Value>,
    jti: Option<Value>,
    iat: Option<Value>,
    nbf: Option<Value>,
    exp: Option<Value>,
    scope: Option<Value>,
}

impl Claims {
    /// Claims that begin at `now`, rounded down to the second, and hold for `lifetime_seconds`.
    pub fn new(
        token: TokenId,
        contributor: ContributorId,
        scopes: Scopes,
        now: Timestamp,
        lifetime_seconds: u64,
    ) -> Self {
        let issued_at = from_unix_seconds(now.unix_seconds());
        let lifetime = i64::try_from(lifetime_seconds).unwrap_or(i64::MAX);
        Self { token, contributor, scopes, issued_at, expires_at: issued_at.plus_seconds(lifetime) }
    }

    /// These claims as a token of `issuer` carries them.
    pub fn payload(&self, issuer: &str) -> Payload {
        Payload {
            iss: issuer.to_owned(),
            aud: issuer.to_owned(),
            sub: self.contributor.to_string(),
            jti: self.token.to_string(),
            iat: self.issued_at.unix_seconds(),
            nbf: self.issued_at.unix_seconds(),
            exp: self.expires_at.unix_seconds(),
            scope: self.scopes.to_string(),
        }
    }
}

/// What tokens are checked against: this cluster's issuer and the public halves of its token keys.
#[derive(Clone, Debug)]
pub struct TokenKeys {
    issuer: String,
    keys: HashMap<String, [u8; 32]>,
}

impl TokenKeys {
    /// Tokens of `issuer`, signed by any of `public_keys`. A revoked key is left out.
    pub fn new(issuer: String, public_keys: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self { issuer, keys: public_keys.into_iter().map(|key| (kid(&key), key)).collect() }
    }

    /// The claims of `token`, if this server signed them and `now` lies within their time, give or take
    /// [`LEEWAY_SECONDS`].
    pub fn verify(&self, token: &TokenText, now: Timestamp) -> Result<Claims, TokenError> {
        let (header, _, signature) = token.parts();
        verify_signature(self.key_of(header)?, token.message(), signature)?;
        self.verify_again(token, now)
    }

    /// The same for a text whose signature has been verified before, by a key of the same name: everything else of it is
    /// looked at again.
    pub fn verify_again(&self, token: &TokenText, now: Timestamp) -> Result<Claims, TokenError> {
        let (header, claims, _) = token.parts();
        self.key_of(header)?;
        let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).map_err(|_| TokenError::ClaimsEncoding)?;
        let claims = object(&claims).ok_or(TokenError::Claims)?;
        self.check_claims(claims, now)
    }

    fn key_of(&self, header: &str) -> Result<&[u8; 32], TokenError> {
        let header = BASE64URL_NOPAD.decode(header.as_bytes()).map_err(|_| TokenError::HeaderEncoding)?;
        // Unknown members are refused, and with them `crit`, `jwk`, `jku` and `x5c`.
        let header: HeaderText<'_> = object(&header).ok_or(TokenError::Header)?;
        // Compared, never obeyed: `verify_signature` knows one algorithm.
        if header.alg != ALGORITHM {
            return Err(TokenError::Algorithm);
        }
        if header.typ != TYPE {
            return Err(TokenError::Type);
        }
        self.keys.get(header.kid.as_ref()).ok_or(TokenError::UnknownKey)
    }

    fn check_claims(&self, claims: ClaimsValues, now: Timestamp) -> Result<Claims, TokenError> {
        if text("iss", claims.iss)? != self.issuer {
            return Err(TokenError::Issuer);
        }
        if text("aud", claims.aud)? != self.issuer {
            return Err(TokenError::Audience);
        }
        let contributor = text("sub", claims.sub)?.parse().map_err(|_| TokenError::ClaimValue("sub"))?;
        let token = text("jti", claims.jti)?.parse().map_err(|_| TokenError::ClaimValue("jti"))?;
        let issued_at = moment("iat", claims.iat)?;
        let not_before = moment("nbf", claims.nbf)?;
        let expires_at = moment("exp", claims.exp)?;
        let scopes = text("scope", claims.scope)?.parse().map_err(|_: ScopeError| TokenError::Scope)?;

        if expires_at <= not_before || expires_at <= issued_at {
            return Err(TokenError::Times);
        }
        let latest_start = now.plus_seconds(LEEWAY_SECONDS);
        if not_before > latest_start || issued_at > latest_start {
            return Err(TokenError::NotYet);
        }
        if expires_at.plus_seconds(LEEWAY_SECONDS) <= now {
            return Err(TokenError::Expired);
        }
        Ok(Claims { token, contributor, scopes, issued_at, expires_at })
    }
}

fn verify_signature(key: &[u8; 32], message: &str, signature: &str) -> Result<(), TokenError> {
    // Looked at here first: one spelling only, and of the one length.
    let bytes = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| TokenError::SignatureEncoding)?;
    if bytes.len() != 64 {
        return Err(TokenError::SignatureEncoding);
    }
    // `from_ed_der` takes the 32 raw bytes, despite its name.
    let key = DecodingKey::from_ed_der(key);
    match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, Algorithm::EdDSA) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(TokenError::Signature),
    }
}

/// Reads a JSON object that begins with its brace: serde would take an array for a struct as well.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if json.first() == Some(&b'{') { serde_json::from_slice(json).ok() } else { None }
}

fn text(claim: &'static str, value: Option<Value>) -> Result<String, TokenError> {
    match value {
        None => Err(TokenError::ClaimMissing(claim)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(TokenError::ClaimType(claim)),
    }
}

/// A NumericDate as we write it: a whole, non-negative number of seconds.
fn moment(claim: &'static str, value: Option<Value>) -> Result<Timestamp, TokenError> {
    match value {
        None => Err(TokenError::ClaimMissing(claim)),
        Some(Value::Number(number)) => {
            let seconds = number.as_i64().ok_or(TokenError::ClaimType(claim))?;
            let in_range = (0..=i64::MAX / 1000).contains(&seconds);
            if in_range { Ok(from_unix_seconds(seconds)) } else { Err(TokenError::ClaimValue(claim)) }
        }
        Some(_) => Err(TokenError::ClaimType(claim)),
    }
}

fn from_unix_seconds(seconds: i64) -> Timestamp {
    Timestamp(0).plus_seconds(seconds)
}

#[cfg(test)]
mod tests;
