//! A key management service, AWS KMS or what speaks its protocol, which encrypts and decrypts slot keys of the vault.
//!
//! Never asks without naming the key and the slot that it is about, and never believes an answer by another key. Never
//! logs what it sends or hears, whatever the log is set to: slot keys are in it. Never waits longer than it is told.

mod fault;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::Builder;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::primitives::Blob;
use subtle::ConstantTimeEq as _;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;
use zeroize::Zeroizing;

use self::fault::Fault;
pub use self::fault::KmsError;
use crate::vault::memory::LockedBytes;
use crate::vault::{KmsKeyArn, KmsParams, KmsSecret};

/// Which key, as somebody names it: its ARN, its id, or an alias. An alias may lead to another key tomorrow; what was
/// encrypted before is then refused, not looked for under the key of before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsKeyId(String);

impl KmsKeyId {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this may lead to `key`: that of an alias only the service knows.
    pub fn may_be(&self, key: &KmsKeyArn) -> bool {
        if self.0.starts_with("alias/") || self.0.contains(":alias/") {
            return true;
        }
        match self.0.parse::<KmsKeyArn>() {
            Ok(arn) => arn.is_same_key(key),
            Err(_) => self.0 == key.id(),
        }
    }

    /// The region that an ARN names.
    fn region(&self) -> Option<&str> {
        self.0.strip_prefix("arn:").and_then(|rest| rest.split(':').nth(2))
    }
}

impl FromStr for KmsKeyId {
    type Err = ParseKmsError;

    fn from_str(text: &str) -> Result<Self, ParseKmsError> {
        let plain = |text: &str, more: &[u8]| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        let alias = |text: &str| text.strip_prefix("alias/").is_some_and(|name| plain(name, b"-_/"));
        let is_alias_arn = || {
            // An alias's ARN is that of a key but for its last part.
            let (place, resource) = text.rsplit_once(':')?;
            (alias(resource) && format!("{place}:key/a").parse::<KmsKeyArn>().is_ok()).then_some(())
        };
        let known =
            plain(text, b"-") || alias(text) || text.parse::<KmsKeyArn>().is_ok() || is_alias_arn().is_some();
        if known && text.len() <= KEY_ID_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseKmsError::Key)
        }
    }
}

impl fmt::Display for KmsKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a region, such as `eu-central-1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsRegion(String);

impl FromStr for KmsRegion {
    type Err = ParseKmsError;

    fn from_str(text: &str) -> Result<Self, ParseKmsError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_region = (1..=64).contains(&text.len()) && text.bytes().all(plain);
        if is_region { Ok(Self(text.to_owned())) } else { Err(ParseKmsError::Region) }
    }
}

impl fmt::Display for KmsRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text names no key, or no region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKmsError {
    #[error("is neither the ARN nor the id of a KMS key, nor an alias that begins with `alias/`")]
    Key,
    #[error("is not a region such as eu-central-1")]
    Region,
}

/// Where the service is, and which key opens the vault at start.
#[derive(Debug, Clone, Default)]
pub struct KmsSettings {
    /// `None`: no slot of this kind is tried at start.
    pub key_id: Option<KmsKeyId>,
    /// Where the key's name does not tell it.
    pub region: Option<KmsRegion>,
    /// The server, unless it is AWS's own for the region.
    pub endpoint: Option<String>,
}

/// Asks the service. Credentials come by the usual AWS chain, anew for each call: calls are rare.
#[derive(Debug, Clone)]
pub struct Kms {
    settings: KmsSettings,
}

/// The slot that a slot key is of: the encryption context, without which the service does not decrypt.
#[derive(Debug, Clone, Copy)]
pub struct SlotPlace<'a> {
    pub cluster_id: &'a str,
    pub slot_id: &'a str,
}

impl Kms {
    /// Opens no connection yet.
    pub fn new(settings: KmsSettings) -> Self {
        Self { settings }
    }

    /// A new random slot key, encrypted by `key`, and decrypted again to see that this server may.
    pub async fn new_secret(&self, key: &KmsKeyId, place: SlotPlace<'_>) -> Result<KmsSecret, KmsError> {
        within(CALL_MAX, async {
            let client = client(&self.settings, self.region(key, None)).await?;
            let slot_key = LockedBytes::random()?;
            let params = encrypt(&client, key, place, &slot_key).await?;
            let decrypted = decrypt(&client, key, place, &params).await?;
            if !bool::from(decrypted.expose().ct_eq(slot_key.expose())) {
                return Err(KmsError::Answer("it decrypts what it encrypted to something else"));
            }
            Ok(KmsSecret::new(params, slot_key))
        })
        .await
    }

    /// The slot key that stands encrypted in a slot's row. `limit`: the longest that it may take.
    pub async fn secret(
        &self,
        key: &KmsKeyId,
        place: SlotPlace<'_>,
        params: &KmsParams,
        limit: Duration,
    ) -> Result<KmsSecret, KmsError> {
        within(limit, async {
            let client = client(&self.settings, self.region(key, Some(params.key()))).await?;
            let slot_key = decrypt(&client, key, place, params).await?;
            Ok(KmsSecret::new(params.clone(), slot_key))
        })
        .await
    }

    /// Encrypts and decrypts something of no meaning, and says which key it was.
    pub async fn check(&self, key: &KmsKeyId) -> Result<KmsKeyArn, KmsError> {
        let place = SlotPlace { cluster_id: "-", slot_id: "check" };
        Ok(self.new_secret(key, place).await?.params().key().clone())
    }

    /// Where to ask: in the region that the key's name tells, else that of the settings, else that of the key that a slot
    /// was `made_with`. `None`: what the usual AWS chain says.
    fn region<'a>(&'a self, key: &'a KmsKeyId, made_with: Option<&'a KmsKeyArn>) -> Option<&'a str> {
        let configured = self.settings.region.as_ref().map(|region| region.0.as_str());
        key.region().or(configured).or(made_with.map(KmsKeyArn::region))
    }
}

async fn client(settings: &KmsSettings, region: Option<&str>) -> Result<Client, KmsError> {
    let mut chain = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = region {
        chain = chain.region(Region::new(region.to_owned()));
    }
    let chain = chain.load().await;
    if chain.region().is_none() {
        return Err(KmsError::NoRegion);
    }
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_MAX)
        .read_timeout(ATTEMPT_MAX)
        .operation_attempt_timeout(ATTEMPT_MAX)
        .operation_timeout(CALL_MAX)
        .build();
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX);
    let mut config = Builder::from(&chain).timeout_config(timeouts).retry_config(retries);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

async fn encrypt(
    client: &Client,
    key: &KmsKeyId,
    place: SlotPlace<'_>,
    slot_key: &LockedBytes,
) -> Result<KmsParams, KmsError> {
    let answer = client
        .encrypt()
        .key_id(key.as_str())
        .set_encryption_context(Some(place.context()))
        // The library keeps copies of its own, which nobody wipes, and so does TLS: docs/threat-model.md says so.
        .plaintext(Blob::new(slot_key.expose().to_vec()))
        .send()
        .await
        .map_err(|error| Fault::of(error).into_error(key))?;
    let arn = answer.key_id().ok_or(KmsError::Answer("it does not say which key encrypted"))?;
    let arn: KmsKeyArn = arn.parse()?;
    if !key.may_be(&arn) {
        return Err(KmsError::Answer("it is by another key than the one that was asked"));
    }
    let ciphertext = answer.ciphertext_blob.ok_or(KmsError::Answer("it has no ciphertext"))?;
    Ok(KmsParams::new(arn, ciphertext.into_inner())?)
}

async fn decrypt(
    client: &Client,
    key: &KmsKeyId,
    place: SlotPlace<'_>,
    params: &KmsParams,
) -> Result<LockedBytes, KmsError> {
    let mut answer = client
        .decrypt()
        .key_id(key.as_str())
        .set_encryption_context(Some(place.context()))
        .ciphertext_blob(Blob::new(params.ciphertext()))
        .send()
        .await
        .map_err(|error| Fault::of(error).into_decrypt_error(key, params.key()))?;
    let plaintext = Zeroizing::new(answer.plaintext.take().map(Blob::into_inner).unwrap_or_default());
    let arn = answer.key_id().ok_or(KmsError::Answer("it does not say which key decrypted"))?;
    if !arn.parse::<KmsKeyArn>()?.is_same_key(params.key()) {
        return Err(KmsError::Answer("it is by another key than the one in the slot's row"));
    }
    let slot_key = plaintext.as_slice().try_into();
    Ok(LockedBytes::copy_of(slot_key.map_err(|_| KmsError::Answer("what it decrypted is not 32 bytes"))?)?)
}

impl SlotPlace<'_> {
    fn context(self) -> HashMap<String, String> {
        [("app", "narvault"), ("cluster", self.cluster_id), ("slot", self.slot_id)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }
}

/// What comes of `asking` by `limit`. Nothing of it reaches the log: at the level `trace`, the library writes down what
/// it sends.
async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, KmsError>>,
) -> Result<T, KmsError> {
    let answer = tokio::time::timeout(limit, asking.with_subscriber(NoSubscriber::new())).await;
    answer.unwrap_or_else(|_| Err(KmsError::Unreachable { said: format!("no answer in {limit:?}") }))
}

/// What AWS allows for an ARN, which is the longest name of a key.
const KEY_ID_BYTES_MAX: usize = 2048;

/// For a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// For one attempt: a healthy KMS answers within 50 ms.
const ATTEMPT_MAX: Duration = Duration::from_secs(4);

const ATTEMPTS_MAX: u32 = 3;

/// For a call with all its attempts, and the looking for credentials.
pub const CALL_MAX: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1f0e-aB9";

    fn key(text: &str) -> KmsKeyId {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_is_named_by_its_arn_its_id_or_an_alias() {
        for text in [
            ARN,
            "1f0e-aB9",
            "mrk-12",
            "alias/narvault",
            "alias/team/nar_vault-1",
            "arn:aws:kms:eu-central-1:123456789012:alias/narvault",
        ] {
            assert_eq!(key(text).to_string(), text);
        }
        for text in [
            "",
            "alias/",
            "alias/a b",
            "alias/é",
            "narvault key",
            "key/1",
            "https://kms.example",
            "arn:aws:kms:eu-central-1:123456789012:alias/",
            "arn:aws:kms:eu-central-1:alias/narvault",
            "arn:aws:s3:eu-central-1:123456789012:alias/narvault",
            &"a".repeat(2049),
        ] {
            assert_eq!(text.parse::<KmsKeyId>(), Err(ParseKmsError::Key), "{text:?}");
        }
    }

    #[test]
    fn only_slots_of_the_key_that_is_meant_are_asked_about() {
        let arn: KmsKeyArn = ARN.parse().unwrap();
        for (text, may_be) in [
            (ARN, true),
            ("1f0e-aB9", true),
            ("alias/narvault", true),
            ("arn:aws:kms:eu-central-1:123456789012:alias/narvault", true),
            ("1f0e-aB", false),
            ("arn:aws:kms:eu-central-1:999999999999:key/1f0e-aB9", false),
            ("arn:aws:kms:us-east-1:123456789012:key/1f0e-aB9", false),
        ] {
            assert_eq!(key(text).may_be(&arn), may_be, "{text}");
        }
    }

    #[test]
    fn a_region_is_that_of_the_name_or_the_settings_before_that_of_the_slot() {
        let arn: KmsKeyArn = ARN.parse().unwrap();
        let of = |region: Option<&str>| {
            let region = region.map(|region| region.parse().unwrap());
            Kms::new(KmsSettings { region, ..KmsSettings::default() })
        };
        for (configured, named, made_with, region) in [
            (None, "alias/a", None, None),
            (None, "alias/a", Some(&arn), Some("eu-central-1")),
            (Some("eu-west-1"), "alias/a", Some(&arn), Some("eu-west-1")),
            (Some("eu-west-1"), "1f0e-aB9", None, Some("eu-west-1")),
            (Some("eu-west-1"), "arn:aws:kms:us-east-1:123456789012:alias/a", Some(&arn), Some("us-east-1")),
            (None, ARN, None, Some("eu-central-1")),
        ] {
            assert_eq!(of(configured).region(&key(named), made_with), region, "{configured:?} {named}");
        }
        assert_eq!("eu-central-1".parse::<KmsRegion>().unwrap().to_string(), "eu-central-1");
        for text in ["", "EU", "eu central", "eu.central", "a/b", &"a".repeat(65)] {
            assert_eq!(text.parse::<KmsRegion>(), Err(ParseKmsError::Region), "{text:?}");
        }
    }
}
