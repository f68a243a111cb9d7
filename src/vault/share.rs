//! Shares of a slot key, as texts that people keep: any k of n make the key again.
//!
//! Never combines before every share is known to belong together: too few shares, or one of another split, would make
//! a wrong key without an error. No error repeats a share.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU8;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};
use super::slots::{SlotKind, SlotRow};
use super::{random, shamir};

/// What every share begins with, so that scanners find one that leaked.
pub const SHARE_PREFIX: &str = "nvs1-";

/// How many shares there are, and how many of them open the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShareCount {
    threshold: u8,
    of: u8,
}

impl ShareCount {
    /// `threshold` of `of`. One share that opens alone would be a key file, and no better kept.
    pub fn new(threshold: u8, of: u8) -> Result<Self, ShareCountError> {
        if of > shamir::POINTS_MAX || threshold < THRESHOLD_MIN || threshold > of {
            return Err(ShareCountError);
        }
        Ok(Self { threshold, of })
    }

    /// How many shares open the slot.
    pub fn threshold(self) -> u8 {
        self.threshold
    }

    /// How many there are.
    pub fn of(self) -> u8 {
        self.of
    }
}

impl fmt::Display for ShareCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.threshold, self.of)
    }
}

impl FromStr for ShareCount {
    type Err = ShareCountError;

    /// Reads `3/5`.
    fn from_str(text: &str) -> Result<Self, ShareCountError> {
        let (threshold, of) = text.split_once('/').ok_or(ShareCountError)?;
        let number = |text: &str| text.parse().map_err(|_| ShareCountError);
        Self::new(number(threshold)?, number(of)?)
    }
}

/// Numbers that no slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not THRESHOLD/ALL with at least {THRESHOLD_MIN} needed and at most {} in all, such as 3/5",
    shamir::POINTS_MAX
)]
pub struct ShareCountError;

/// The parameters of a slot that shares open: `v=1,k=3,n=5,split=0a1b2c3d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitParams {
    count: ShareCount,
    /// Tells the shares of this split from those of every other: random.
    split: Tag,
}

impl SplitParams {
    /// How many shares there are, and how many of them open the slot.
    pub fn count(self) -> ShareCount {
        self.count
    }
}

impl fmt::Display for SplitParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count: ShareCount { threshold, of }, split } = self;
        write!(f, "v=1,k={threshold},n={of},split={}", HEXLOWER.encode(split))
    }
}

impl FromStr for SplitParams {
    type Err = ParseSplitError;

    fn from_str(text: &str) -> Result<Self, ParseSplitError> {
        let params = parse_params(text).ok_or(ParseSplitError)?;
        if params.to_string() == text { Ok(params) } else { Err(ParseSplitError) }
    }
}

fn parse_params(text: &str) -> Option<SplitParams> {
    let (threshold, rest) = text.strip_prefix("v=1,k=")?.split_once(",n=")?;
    let (of, split) = rest.split_once(",split=")?;
    let count = ShareCount::new(threshold.parse().ok()?, of.parse().ok()?).ok()?;
    let split = HEXLOWER.decode(split.as_bytes()).ok()?.try_into().ok()?;
    Some(SplitParams { count, split })
}

/// A slot's parameters that no version has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("parameters are not of the form `v=1,k=...,n=...,split=...`")]
pub struct ParseSplitError;

/// The key of a slot that shares open: made new to be split, or combined out of shares.
#[derive(Debug)]
pub struct SplitKey {
    key: LockedBytes,
    params: SplitParams,
}

impl SplitKey {
    /// A random key, to be split.
    pub fn generate(count: ShareCount) -> Result<Self, MemoryError> {
        let params = SplitParams { count, split: random::bytes() };
        Ok(Self { key: LockedBytes::random()?, params })
    }

    /// The shares of the slot `slot_id` that is made with this key. Made anew at each call, and none fits to those of
    /// another: to be called once.
    pub fn split(&self, cluster_id: &str, slot_id: &str) -> Result<Vec<Share>, MemoryError> {
        let ShareCount { threshold, of } = self.params.count;
        let home = Home { cluster: tag(cluster_id), slot: tag(slot_id), params: self.params };
        let points = shamir::split(&self.key, threshold, of)?;
        let numbers = (1..=u8::MAX).filter_map(NonZeroU8::new);
        Ok(numbers.zip(points).map(|(number, point)| Share { home, number, point }).collect())
    }

    /// What the slot's row says of it.
    pub(super) fn params(&self) -> SplitParams {
        self.params
    }

    /// The slot key.
    pub(super) fn slot_key(&self) -> Result<LockedBytes, MemoryError> {
        LockedBytes::copy_of(self.key.expose())
    }
}

/// One share of a slot key, in locked memory. It says nothing of the key without others.
pub struct Share {
    home: Home,
    number: NonZeroU8,
    point: LockedBytes,
}

/// Where a share belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    cluster: Tag,
    slot: Tag,
    params: SplitParams,
}

/// Four bytes that stand for an id: enough to tell a few slots and servers apart, and no secret.
type Tag = [u8; 4];

impl Share {
    /// Reads the text of a share: `nvs1-` and 84 characters. Strict: there is one spelling, in lower case, without
    /// space.
    pub fn parse(text: &str) -> Result<Self, ParseShareError> {
        let code = text.strip_prefix(SHARE_PREFIX).ok_or(ParseShareError::Prefix)?;
        if code.chars().count() != CODE_CHARACTERS {
            return Err(ParseShareError::Length { found: code.chars().count() });
        }
        let mut upper = Zeroizing::new([0; CODE_CHARACTERS]);
        for (at, (place, character)) in upper.iter_mut().zip(code.chars()).enumerate() {
            let ('a'..='z' | '2'..='7') = character else {
                return Err(ParseShareError::Character { place: SHARE_PREFIX.len() + at + 1 });
            };
            *place = character.to_ascii_uppercase() as u8;
        }
        let mut bytes = Zeroizing::new([0; SHARE_BYTES]);
        // Nothing but bits beyond the last byte can be wrong with it now.
        BASE32_NOPAD.decode_mut(&*upper, &mut *bytes).map_err(|_| ParseShareError::Checksum)?;
        let (body, checksum) = bytes.split_at(SHARE_BYTES - CHECKSUM_BYTES);
        if check_sum(body) != checksum {
            return Err(ParseShareError::Checksum);
        }
        Self::read(body)
    }

    /// Reads what was found whole.
    fn read(body: &[u8]) -> Result<Self, ParseShareError> {
        let four =
            |at: usize| <Tag>::try_from(&body[at..at + 4]).expect("4 bytes: of the 48 before the checksum");
        let (version, threshold, of, number) = (body[0], body[13], body[14], body[15]);
        if version != VERSION {
            return Err(ParseShareError::Version { found: version });
        }
        let count = ShareCount::new(threshold, of).map_err(|_| ParseShareError::Numbers)?;
        let number = NonZeroU8::new(number).filter(|number| number.get() <= of);
        let mut point = LockedBytes::zeroed()?;
        point.expose_mut().copy_from_slice(&body[POINT_AT..]);
        Ok(Self {
            home: Home { cluster: four(1), slot: four(5), params: SplitParams { count, split: four(9) } },
            number: number.ok_or(ParseShareError::Numbers)?,
            point,
        })
    }

    /// The text of the share, to be shown to the one who keeps it and never again.
    pub fn text(&self) -> SecretString {
        let Home { cluster, slot, params: SplitParams { count, split } } = self.home;
        let mut bytes = Zeroizing::new([0; SHARE_BYTES]);
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&cluster);
        bytes[5..9].copy_from_slice(&slot);
        bytes[9..13].copy_from_slice(&split);
        bytes[13..POINT_AT].copy_from_slice(&[count.threshold, count.of, self.number.get()]);
        let (body, checksum) = bytes.split_at_mut(SHARE_BYTES - CHECKSUM_BYTES);
        body[POINT_AT..].copy_from_slice(self.point.expose());
        checksum.copy_from_slice(&check_sum(body));

        let mut code = Zeroizing::new([0; CODE_CHARACTERS]);
        BASE32_NOPAD.encode_mut(&*bytes, &mut *code);
        let mut text = String::with_capacity(SHARE_PREFIX.len() + CODE_CHARACTERS);
        text.push_str(SHARE_PREFIX);
        text.extend(code.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        text.into()
    }

    /// Which one of its split this is, from 1.
    pub fn number(&self) -> u8 {
        self.number.get()
    }

    /// How many shares there are, and how many of them open the slot.
    pub fn count(&self) -> ShareCount {
        self.home.params.count
    }

    /// Whether this and `other` are the same share, or two that cannot both be genuine.
    pub fn is_number_of(&self, other: &Self) -> bool {
        self.home == other.home && self.number == other.number
    }

    /// The slot that this share helps to open, out of those of a vault.
    pub fn slot<'a>(&self, cluster_id: &str, slots: &'a [SlotRow]) -> Result<&'a SlotRow, SharesError> {
        if self.home.cluster != tag(cluster_id) {
            return Err(SharesError::OtherCluster { number: self.number() });
        }
        let mut split = slots.iter().filter(|slot| slot.kind == SlotKind::Shamir).peekable();
        if split.peek().is_none() {
            return Err(SharesError::NoSlot);
        }
        let mut named = split.filter(|slot| self.home.slot == tag(&slot.id)).peekable();
        if named.peek().is_none() {
            return Err(SharesError::OtherSlot { number: self.number() });
        }
        let params = self.home.params.to_string();
        named.find(|slot| slot.params == params).ok_or(SharesError::OtherSplit { number: self.number() })
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share([redacted])")
    }
}

/// The key that `shares` make, if all of them belong to one slot of this vault, no two are the same, and they are
/// enough. Whether they are genuine shows when the slot is opened with it.
pub fn combine<'a>(
    cluster_id: &str,
    slots: &[SlotRow],
    shares: impl IntoIterator<Item = &'a Share>,
) -> Result<SplitKey, SharesError> {
    let mut points = BTreeMap::new();
    let mut first: Option<&Share> = None;
    for share in shares {
        share.slot(cluster_id, slots)?;
        let home = first.get_or_insert(share).home;
        if share.home != home {
            return Err(SharesError::Mixed { number: share.number() });
        }
        if points.insert(share.number, &share.point).is_some() {
            return Err(SharesError::Twice { number: share.number() });
        }
    }
    let params = first.ok_or(SharesError::None)?.home.params;
    let (found, needed) = (points.len(), params.count.threshold);
    if found < usize::from(needed) {
        return Err(SharesError::TooFew { found, needed });
    }
    let key = shamir::combine(&points)?.ok_or(SharesError::TooFew { found, needed })?;
    Ok(SplitKey { key, params })
}

/// The first bytes of the SHA-256 of an id.
fn tag(id: &str) -> Tag {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(id).into();
    [a, b, c, d]
}

/// Finds what a person mistyped: one in four thousand million gets by. No protection against anybody.
fn check_sum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(body).into();
    [a, b, c, d]
}

/// Why a text is not a share.
#[derive(Debug, thiserror::Error)]
pub enum ParseShareError {
    #[error(
        "character {place} of the share is neither a letter from a to z in lower case nor a digit from 2 to 7"
    )]
    Character { place: usize },
    #[error("the share is mistyped: its checksum does not fit to the rest")]
    Checksum,
    #[error(
        "the share has {found} characters after `{SHARE_PREFIX}`, expected {CODE_CHARACTERS}: some are missing, or too many"
    )]
    Length { found: usize },
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("the share has numbers that no split has")]
    Numbers,
    #[error("a share begins with `{SHARE_PREFIX}`, in lower case and without space before it")]
    Prefix,
    #[error("the share has format {found}, this version knows {VERSION}")]
    Version { found: u8 },
}

/// Why shares that are whole do not make a key.
#[derive(Debug, thiserror::Error)]
pub enum SharesError {
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("share {number} belongs to another slot than the ones before it, or to another split")]
    Mixed { number: u8 },
    #[error("there is no share")]
    None,
    #[error("this vault has no slot that is opened with shares")]
    NoSlot,
    #[error("share {number} belongs to another server: its cluster is another one")]
    OtherCluster { number: u8 },
    #[error("share {number} belongs to a slot that this vault does not have, or has no longer")]
    OtherSlot { number: u8 },
    #[error(
        "share {number} is of another generation: its slot was split in another way than this share says"
    )]
    OtherSplit { number: u8 },
    #[error("{found} of the {needed} shares that are needed are here")]
    TooFew { found: usize, needed: u8 },
    #[error("share {number} is there twice")]
    Twice { number: u8 },
}

/// Fewest shares that open a slot.
const THRESHOLD_MIN: u8 = 2;

const VERSION: u8 = 1;
/// Version, cluster, slot and split, then threshold, count and number.
const POINT_AT: usize = 1 + 3 * 4 + 3;
const CHECKSUM_BYTES: usize = 4;
const SHARE_BYTES: usize = POINT_AT + SECRET_BYTES + CHECKSUM_BYTES;
/// 52 bytes, five bits each; the last character has four bits that are zero.
const CODE_CHARACTERS: usize = (SHARE_BYTES * 8).div_ceil(5);

#[cfg(test)]
mod tests;
