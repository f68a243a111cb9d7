//! Secrets of webhooks: made here, shown once, sealed, and used to sign messages without being seen again.
//!
//! The scheme is that of Standard Webhooks (spec/standard-webhooks.md in standard-webhooks/standard-webhooks): HMAC-SHA256
//! with the bytes whose base64 stands behind `whsec_`.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::SecretString;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::VaultError;
use super::keyring::Keyring;
use super::memory::LockedBytes;
use super::root::OpenVault;
use super::seal::{Binding, Sealed};

/// What a webhook's secret begins with when it is shown.
pub const WEBHOOK_SECRET_PREFIX: &str = "whsec_";

/// A row of `webhooks`, as far as the vault is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedWebhook {
    pub id: String,
    pub sealed: Sealed,
}

impl OpenVault {
    /// Makes the secret of the webhook `id`: sealed, and its text, which is to be shown once and never again.
    pub fn seal_new_webhook(&self, id: &str) -> Result<(SealedWebhook, SecretString), VaultError> {
        let secret = LockedBytes::random()?;
        let encoded = Zeroizing::new(BASE64.encode(secret.expose()));
        let text = SecretString::from(format!("{WEBHOOK_SECRET_PREFIX}{}", encoded.as_str()));
        let (kek_version, kek) = self.newest_kek();
        let sealed = kek.seal(&secret, kek_version, &binding(&self.cluster_id, id));
        Ok((SealedWebhook { id: id.to_owned(), sealed }, text))
    }

    /// The HMAC of `message` with the webhook's secret.
    pub fn sign_webhook(&self, row: &SealedWebhook, message: &[u8]) -> Result<[u8; 32], VaultError> {
        let secret = self.open_webhook(row)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose())
            .expect("a key of any length: RFC 2104, section 3");
        mac.update(message);
        Ok(mac.finalize().into_bytes().into())
    }

    /// The row's record anew, under the newest key-encryption key.
    pub fn rewrap_webhook(&self, row: &SealedWebhook) -> Result<Sealed, VaultError> {
        let secret = self.open_webhook(row)?;
        let (kek_version, kek) = self.newest_kek();
        Ok(kek.seal(&secret, kek_version, &binding(&self.cluster_id, &row.id)))
    }

    fn open_webhook(&self, row: &SealedWebhook) -> Result<LockedBytes, VaultError> {
        let kek = self.kek_of(&row.sealed, &row.id)?;
        kek.open(&row.sealed, &binding(&self.cluster_id, &row.id))
    }
}

impl Keyring {
    /// The HMAC of `message` with a webhook's secret: see [`OpenVault::sign_webhook`].
    pub fn sign_webhook(&self, row: &SealedWebhook, message: &[u8]) -> Result<[u8; 32], VaultError> {
        self.with_vault(|vault| vault.sign_webhook(row, message))
    }
}

fn binding<'a>(cluster_id: &'a str, row_id: &'a str) -> Binding<'a> {
    Binding {
        cluster_id,
        table: "webhooks",
        row_id,
        key_name: None,
        version: None,
        purpose: "webhook",
        cache_id: None,
        public_key: None,
        slot: None,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::super::key_file::KeyFile;
    use super::super::slots::SlotSecret;
    use super::*;

    fn vault() -> OpenVault {
        OpenVault::create("cluster", "slot", &SlotSecret::KeyFile(KeyFile::of([1; 32]))).unwrap().vault
    }

    #[test]
    fn messages_are_signed_by_the_secret_that_was_shown() {
        let vault = vault();
        let (row, text) = vault.seal_new_webhook("hook").unwrap();

        let mac = vault.sign_webhook(&row, b"id.1.{}").unwrap();

        let secret = BASE64.decode(&text.expose_secret().as_bytes()[WEBHOOK_SECRET_PREFIX.len()..]).unwrap();
        assert_eq!(secret.len(), 32);
        let mut expected = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
        expected.update(b"id.1.{}");
        assert!(expected.verify_slice(&mac).is_ok());
    }

    #[test]
    fn a_row_of_another_webhook_does_not_open() {
        let vault = vault();
        let (row, _) = vault.seal_new_webhook("hook").unwrap();
        let (other, _) = vault.seal_new_webhook("other").unwrap();

        let moved = SealedWebhook { id: row.id.clone(), ..other.clone() };

        assert!(matches!(vault.sign_webhook(&moved, b""), Err(VaultError::Tampered { .. })));
        assert_ne!(row.sealed, other.sealed);
    }

    /// The example of the specification: its secret, message and signature.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let vault = vault();
        let secret: Vec<u8> = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
        mac.update(b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}");

        assert_eq!(
            BASE64.encode(&mac.finalize().into_bytes()),
            "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        // And ours is the same function: both by the same 32 bytes.
        let (row, text) = vault.seal_new_webhook("hook").unwrap();
        let secret = BASE64.decode(&text.expose_secret().as_bytes()[WEBHOOK_SECRET_PREFIX.len()..]).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
        mac.update(b"x");
        let expected: [u8; 32] = mac.finalize().into_bytes().into();
        assert_eq!(vault.sign_webhook(&row, b"x").unwrap(), expected);
    }

    #[test]
    fn a_sealed_keyring_signs_nothing() {
        let (row, _) = vault().seal_new_webhook("hook").unwrap();

        assert!(matches!(Keyring::sealed().sign_webhook(&row, b""), Err(VaultError::Sealed)));
    }

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        let (row, text) = vault().seal_new_webhook("hook").unwrap();

        assert!(!format!("{row:?} {text:?}").contains("whsec_"));
    }
}
