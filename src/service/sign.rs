//! The one place in the service where the vault is asked to sign.

use super::{Result, Service};
use crate::db::signing_keys::KeyRow;
use crate::nix::signature::Signature;
use crate::threads::in_place;

impl Service {
    /// Signs the fingerprint of a verified claim or of a realisation with the key of a cache. Whoever calls
    /// this appends the leaf in the same transaction.
    pub(super) fn sign_fingerprint(&self, key: &KeyRow, fingerprint: &[u8]) -> Result<Signature> {
        self.inner.log_health.check(self.inner.clock.now())?;
        let keyring = &self.inner.keyring;
        let sign = || keyring.sign_claim(&key.key, fingerprint);
        // Making a passphrase slot takes a second, and a key that is not open yet waits for it.
        let made = if keyring.is_free() { sign() } else { in_place(sign) };
        let bytes = made.map_err(|error| self.key_error(error))?;
        Ok(Signature { name: key.public_key.name().clone(), bytes })
    }
}
