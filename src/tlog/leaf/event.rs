//! What happened: the lines of a leaf that are an event's own.

use super::lines::{Reader, Writer};
use super::value::{References, SignatureBytes, Word, join, parse_hex, parse_number};
use super::{Commitment, LeafError, Salt, ValueError};

/// What happened. The first lines of most may be hidden behind a commitment: see [`Disclosed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Sign(Signed),
    Resign(Signed),
    Realisation(Signed),
    Attest(Attested),
    Withdraw(Disclosed<PathLines>),
    Delete(Disclosed<PathLines>),
    Restore(Disclosed<PathLines>),
    Conflict(Disclosed<PathLines>),
    /// The subject is the token's `jti`.
    TokenIssue(Word),
    TokenRevoke(Word),
    /// The subject is the contributor's id.
    ContributorCreate(Word),
    ContributorSuspend(Word),
    ContributorQuarantine(Word),
    CacheCreate(Disclosed<CacheLine>),
    CacheDelete(Disclosed<CacheLine>),
    PolicyChange(Disclosed<CacheLine>),
    KeyCreate(KeyEvent),
    KeyState(KeyEvent),
    KeySuccession(KeyEvent),
    OidcRule,
    VaultSlot,
    AdminClaim,
    AuditCommit,
    /// Of a later version: shown, not refused.
    Unknown(UnknownEvent),
}

/// A signature made over a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub claim: Disclosed<ClaimLines>,
    /// The name of the key that signed.
    pub key: Word,
    pub sig: SignatureBytes,
    pub basis: Basis,
}

/// Support for a claim, without a signature of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    pub claim: Disclosed<ClaimLines>,
    pub basis: Basis,
}

/// Why it was allowed, and what it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// Such as `direct`.
    pub policy: Option<Word>,
    /// The index of the last sign leaf of this path.
    pub replaces: Option<u64>,
}

/// Something about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEvent {
    pub cache: Disclosed<CacheLine>,
    pub key: Word,
    pub public_key: Option<Word>,
    pub state: Option<Word>,
}

/// An event that this version does not know. Only the parser makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownEvent {
    pub(super) name: Word,
    /// Before `by`, and between `token` and `detail`.
    pub(super) own: Vec<(String, String)>,
    pub(super) further: Vec<(String, String)>,
}

impl UnknownEvent {
    /// The event's own lines, as key and value, in their order.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.own.iter().chain(&self.further).map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Lines that a public cache shows and a private one commits to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disclosed<T> {
    Open(T),
    /// SHA-256(salt ‖ the lines, each with its line feed).
    Private(Commitment),
}

impl<T: Covered> Disclosed<T> {
    /// Hides the lines. Salt and [`Covered::text`] are the opening, to be kept elsewhere.
    pub fn sealed(lines: &T, salt: &Salt) -> Self {
        Self::Private(Commitment::of(salt, lines.text().as_bytes()))
    }

    /// Whether `lines` with `salt` are what stands here, openly or not.
    pub fn is(&self, lines: &T, salt: &Salt) -> bool {
        match self {
            Self::Open(open) => open.text() == lines.text(),
            Self::Private(commitment) => commitment.opens(salt, lines.text().as_bytes()),
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Open(lines) => lines.write(writer),
            Self::Private(commitment) => writer.line("private", commitment),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, LeafError> {
        if reader.peek_key() == Some("private") {
            reader.parse("private").map(Self::Private)
        } else {
            T::read(reader).map(Self::Open)
        }
    }
}

/// Lines that can stand openly or behind a commitment.
#[expect(private_bounds, reason = "the three kinds of lines are all there are")]
pub trait Covered: CoveredLines {
    /// The lines, each with its line feed: what a commitment covers and an opening shows.
    fn text(&self) -> String {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.text
    }

    /// Reads an opening: exactly what [`Covered::text`] prints.
    fn parse(text: &str) -> Result<Self, LeafError> {
        let mut reader = Reader::new(text, 1);
        let lines = Self::read(&mut reader)?;
        reader.end()?;
        if lines.text() == text { Ok(lines) } else { Err(LeafError::NotCanonical) }
    }
}

impl<T: CoveredLines> Covered for T {}

trait CoveredLines: Sized {
    fn write(&self, writer: &mut Writer);
    fn read(reader: &mut Reader<'_>) -> Result<Self, LeafError>;
}

/// The cache alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLine {
    pub cache: Option<Word>,
}

impl CoveredLines for CacheLine {
    fn write(&self, writer: &mut Writer) {
        writer.line_or_dash("cache", self.cache.as_ref());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, LeafError> {
        Ok(Self { cache: reader.parse_or_dash("cache")? })
    }
}

/// A path of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathLines {
    pub cache: Word,
    /// `/nix/store/<hash>-<name>`.
    pub path: Word,
    /// `sha256:<Nix base-32>`.
    pub nar_hash: Option<Word>,
}

impl CoveredLines for PathLines {
    fn write(&self, writer: &mut Writer) {
        writer.line("cache", &self.cache);
        writer.line("path", &self.path);
        writer.line_or_dash("nar-hash", self.nar_hash.as_ref());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, LeafError> {
        Ok(Self {
            cache: reader.parse("cache")?,
            path: reader.parse("path")?,
            nar_hash: reader.parse_or_dash("nar-hash")?,
        })
    }
}

/// A claim: what Nix signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimLines {
    pub cache: Word,
    /// `/nix/store/<hash>-<name>`.
    pub path: Word,
    /// `sha256:<Nix base-32>`.
    pub nar_hash: Option<Word>,
    /// Bytes.
    pub nar_size: Option<u64>,
    pub references: References,
}

impl ClaimLines {
    /// The bytes that Nix signs, rebuilt from the leaf alone. `None` where a part is not known or the
    /// references are a digest (see [`References::resolved`]).
    pub fn fingerprint(&self) -> Option<String> {
        let References::List(references) = &self.references else { return None };
        let (store, _) = self.path.as_str().rsplit_once('/')?;
        let between = format!(",{store}/");
        let first = if references.is_empty() { "" } else { &between[1..] };
        let (nar_hash, nar_size) = (self.nar_hash.as_ref()?, self.nar_size?);
        Some(format!("1;{};{nar_hash};{nar_size};{first}{}", self.path, join(references, &between)))
    }
}

impl CoveredLines for ClaimLines {
    fn write(&self, writer: &mut Writer) {
        writer.line("cache", &self.cache);
        writer.line("path", &self.path);
        writer.line_or_dash("nar-hash", self.nar_hash.as_ref());
        writer.line_or_dash("nar-size", self.nar_size.as_ref());
        match &self.references {
            References::List(words) if words.is_empty() => writer.line("references", "-"),
            References::List(words) => writer.line("references", join(words, " ")),
            References::Digest(digest) => {
                writer.line("references-sha256", data_encoding::HEXLOWER.encode(digest));
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, LeafError> {
        Ok(Self {
            cache: reader.parse("cache")?,
            path: reader.parse("path")?,
            nar_hash: reader.parse_or_dash("nar-hash")?,
            nar_size: reader.parse_with("nar-size", number_or_dash)?,
            references: if reader.peek_key() == Some("references-sha256") {
                References::Digest(reader.parse_with("references-sha256", parse_hex)?)
            } else {
                let list = |text| References::list(if text == "-" { "" } else { text });
                reader.parse_with("references", list)?
            },
        })
    }
}

fn number_or_dash(text: &str) -> Result<Option<u64>, ValueError> {
    if text == "-" { Ok(None) } else { parse_number(text).map(Some) }
}

impl Event {
    /// The word on the `event` line.
    pub fn name(&self) -> &str {
        match self {
            Self::Sign(_) => "sign",
            Self::Resign(_) => "resign",
            Self::Realisation(_) => "realisation",
            Self::Attest(_) => "attest",
            Self::Withdraw(_) => "withdraw",
            Self::Delete(_) => "delete",
            Self::Restore(_) => "restore",
            Self::Conflict(_) => "conflict",
            Self::TokenIssue(_) => "token-issue",
            Self::TokenRevoke(_) => "token-revoke",
            Self::ContributorCreate(_) => "contributor-create",
            Self::ContributorSuspend(_) => "contributor-suspend",
            Self::ContributorQuarantine(_) => "contributor-quarantine",
            Self::CacheCreate(_) => "cache-create",
            Self::CacheDelete(_) => "cache-delete",
            Self::PolicyChange(_) => "policy-change",
            Self::KeyCreate(_) => "key-create",
            Self::KeyState(_) => "key-state",
            Self::KeySuccession(_) => "key-succession",
            Self::OidcRule => "oidc-rule",
            Self::VaultSlot => "vault-slot",
            Self::AdminClaim => "admin-claim",
            Self::AuditCommit => "audit-commit",
            Self::Unknown(event) => event.name.as_str(),
        }
    }

    /// The claim that a signature or an attestation is about.
    pub fn claim(&self) -> Option<&Disclosed<ClaimLines>> {
        match self {
            Self::Sign(signed) | Self::Resign(signed) | Self::Realisation(signed) => Some(&signed.claim),
            Self::Attest(attested) => Some(&attested.claim),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn claim_mut(&mut self) -> Option<&mut Disclosed<ClaimLines>> {
        match self {
            Self::Sign(signed) | Self::Resign(signed) | Self::Realisation(signed) => Some(&mut signed.claim),
            Self::Attest(attested) => Some(&mut attested.claim),
            _ => None,
        }
    }

    /// The lines between `time` and `by`.
    pub(super) fn write_own(&self, writer: &mut Writer) {
        match self {
            Self::Sign(signed) | Self::Resign(signed) | Self::Realisation(signed) => {
                signed.claim.write(writer);
                writer.line("key", &signed.key);
                writer.line("sig", signed.sig);
            }
            Self::Attest(attested) => attested.claim.write(writer),
            Self::Withdraw(path) | Self::Delete(path) | Self::Restore(path) | Self::Conflict(path) => {
                path.write(writer);
            }
            Self::TokenIssue(subject)
            | Self::TokenRevoke(subject)
            | Self::ContributorCreate(subject)
            | Self::ContributorSuspend(subject)
            | Self::ContributorQuarantine(subject) => writer.line("subject", subject),
            Self::CacheCreate(cache) | Self::CacheDelete(cache) | Self::PolicyChange(cache) => {
                cache.write(writer);
            }
            Self::KeyCreate(key) | Self::KeyState(key) | Self::KeySuccession(key) => {
                key.cache.write(writer);
                writer.line("key", &key.key);
                writer.line_or_dash("public-key", key.public_key.as_ref());
                writer.line_or_dash("state", key.state.as_ref());
            }
            Self::OidcRule | Self::VaultSlot | Self::AdminClaim | Self::AuditCommit => {}
            Self::Unknown(event) => event.own.iter().for_each(|(key, value)| writer.line(key, value)),
        }
    }

    /// The lines between `token` and `detail`.
    pub(super) fn write_further(&self, writer: &mut Writer) {
        match self {
            Self::Sign(Signed { basis, .. })
            | Self::Resign(Signed { basis, .. })
            | Self::Realisation(Signed { basis, .. })
            | Self::Attest(Attested { basis, .. }) => {
                writer.line_or_dash("policy", basis.policy.as_ref());
                writer.line_or_dash("replaces", basis.replaces.as_ref());
            }
            Self::Unknown(event) => event.further.iter().for_each(|(key, value)| writer.line(key, value)),
            _ => {}
        }
    }

    /// Reads what [`Event::write_own`] writes.
    pub(super) fn read_own(name: Word, reader: &mut Reader<'_>) -> Result<Self, LeafError> {
        Ok(match name.as_str() {
            "sign" => Self::Sign(read_signed(reader)?),
            "resign" => Self::Resign(read_signed(reader)?),
            "realisation" => Self::Realisation(read_signed(reader)?),
            "attest" => Self::Attest(Attested { claim: Disclosed::read(reader)?, basis: NO_BASIS }),
            "withdraw" => Self::Withdraw(Disclosed::read(reader)?),
            "delete" => Self::Delete(Disclosed::read(reader)?),
            "restore" => Self::Restore(Disclosed::read(reader)?),
            "conflict" => Self::Conflict(Disclosed::read(reader)?),
            "token-issue" => Self::TokenIssue(reader.parse("subject")?),
            "token-revoke" => Self::TokenRevoke(reader.parse("subject")?),
            "contributor-create" => Self::ContributorCreate(reader.parse("subject")?),
            "contributor-suspend" => Self::ContributorSuspend(reader.parse("subject")?),
            "contributor-quarantine" => Self::ContributorQuarantine(reader.parse("subject")?),
            "cache-create" => Self::CacheCreate(Disclosed::read(reader)?),
            "cache-delete" => Self::CacheDelete(Disclosed::read(reader)?),
            "policy-change" => Self::PolicyChange(Disclosed::read(reader)?),
            "key-create" => Self::KeyCreate(read_key(reader)?),
            "key-state" => Self::KeyState(read_key(reader)?),
            "key-succession" => Self::KeySuccession(read_key(reader)?),
            "oidc-rule" => Self::OidcRule,
            "vault-slot" => Self::VaultSlot,
            "admin-claim" => Self::AdminClaim,
            "audit-commit" => Self::AuditCommit,
            _ => Self::Unknown(UnknownEvent { name, own: read_until("by", reader)?, further: Vec::new() }),
        })
    }

    /// Reads what [`Event::write_further`] writes.
    pub(super) fn read_further(&mut self, reader: &mut Reader<'_>) -> Result<(), LeafError> {
        match self {
            Self::Sign(Signed { basis, .. })
            | Self::Resign(Signed { basis, .. })
            | Self::Realisation(Signed { basis, .. })
            | Self::Attest(Attested { basis, .. }) => {
                basis.policy = reader.parse_or_dash("policy")?;
                basis.replaces = reader.parse_with("replaces", number_or_dash)?;
            }
            Self::Unknown(event) => event.further = read_until("detail", reader)?,
            _ => {}
        }
        Ok(())
    }
}

/// Stands until the lines after `token` are read.
const NO_BASIS: Basis = Basis { policy: None, replaces: None };

fn read_signed(reader: &mut Reader<'_>) -> Result<Signed, LeafError> {
    Ok(Signed {
        claim: Disclosed::read(reader)?,
        key: reader.parse("key")?,
        sig: reader.parse("sig")?,
        basis: NO_BASIS,
    })
}

fn read_key(reader: &mut Reader<'_>) -> Result<KeyEvent, LeafError> {
    Ok(KeyEvent {
        cache: Disclosed::read(reader)?,
        key: reader.parse("key")?,
        public_key: reader.parse_or_dash("public-key")?,
        state: reader.parse_or_dash("state")?,
    })
}

fn read_until(key: &str, reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, LeafError> {
    let mut lines = Vec::new();
    while reader.peek_key().is_some_and(|next| next != key) {
        let (key, value) = reader.any()?;
        lines.push((key.to_owned(), value.to_owned()));
    }
    Ok(lines)
}
