//! Ed25519 keys: sealed as rows, opened for signing.
//!
//! Never signs with a key whose row does not prove to be the one it was sealed for, nor for another purpose than its
//! own: a cache key cannot be made to sign a token.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer as _, SigningKey};
use serde::Serialize;

use super::memory::LockedBytes;
use super::nix_key::NixSecretKey;
use super::root::OpenVault;
use super::seal::{Binding, Sealed};
use super::{VaultError, token};
use crate::nix::signature::PublicKey;
use crate::succession::Statement;

/// What a key signs. The text stands in the row and in the associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Store paths of one cache.
    Cache,
    /// Checkpoints of the signature log.
    Log,
    /// Access tokens.
    Token,
}

impl Purpose {
    /// `cache`, `log` or `token`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Log => "log",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Purpose {
    type Err = UnknownPurpose;

    fn from_str(text: &str) -> Result<Self, UnknownPurpose> {
        [Self::Cache, Self::Log, Self::Token].into_iter().find(|it| it.as_str() == text).ok_or(UnknownPurpose)
    }
}

/// A key of a purpose that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key is of a purpose that this version does not know")]
pub struct UnknownPurpose;

/// The columns of a key that are not secret and do not follow from the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLabel {
    pub id: String,
    /// As in front of Nix's `Sig:` and in signed notes; never used twice.
    pub name: String,
    pub version: u32,
    pub purpose: Purpose,
    /// Of cache keys only.
    pub cache_id: Option<String>,
}

/// A row of `signing_keys`, as far as the vault is concerned. State and times are the database's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    pub label: KeyLabel,
    pub public_key: [u8; 32],
    pub sealed: Sealed,
}

impl SealedKey {
    fn binding<'a>(cluster_id: &'a str, label: &'a KeyLabel, public_key: &'a [u8; 32]) -> Binding<'a> {
        Binding {
            cluster_id,
            table: "signing_keys",
            row_id: &label.id,
            key_name: Some(&label.name),
            version: Some(label.version),
            purpose: label.purpose.as_str(),
            cache_id: label.cache_id.as_deref(),
            public_key: Some(public_key),
            slot: None,
        }
    }
}

impl OpenVault {
    /// Makes a key and seals it.
    pub fn seal_new_key(&self, label: KeyLabel) -> Result<SealedKey, VaultError> {
        Ok(self.seal_seed(label, &LockedBytes::random()?))
    }

    /// Seals a key that was made with `nix key generate-secret`. The label must bear the key's own name, since that
    /// is what clients trust.
    pub fn seal_imported_key(
        &self,
        label: KeyLabel,
        imported: &NixSecretKey,
    ) -> Result<SealedKey, VaultError> {
        if label.name != imported.name() {
            return Err(VaultError::OtherName);
        }
        Ok(self.seal_seed(label, imported.seed()))
    }

    /// Opens a row for signing.
    pub fn open_key(&self, row: &SealedKey) -> Result<OpenKey, VaultError> {
        let kek = self.kek_of(&row.sealed, &row.label.id)?;
        let binding = SealedKey::binding(&self.cluster_id, &row.label, &row.public_key);
        let seed = kek.open(&row.sealed, &binding)?;
        if public_key(&seed) != row.public_key {
            return Err(VaultError::WrongPublicKey { row_id: row.label.id.clone() });
        }
        Ok(OpenKey { row: row.clone(), seed })
    }

    /// The row's record anew, under the newest key-encryption key. The row proves itself first, as before signing.
    pub fn rewrap_key(&self, row: &SealedKey) -> Result<Sealed, VaultError> {
        let open = self.open_key(row)?;
        Ok(self.seal_seed(row.label.clone(), &open.seed).sealed)
    }

    fn seal_seed(&self, label: KeyLabel, seed: &LockedBytes) -> SealedKey {
        let (kek_version, kek) = self.newest_kek();
        let public_key = public_key(seed);
        let sealed = kek.seal(seed, kek_version, &SealedKey::binding(&self.cluster_id, &label, &public_key));
        SealedKey { label, public_key, sealed }
    }
}

/// A key whose seed lies open in locked memory; dropping it wipes the seed.
pub struct OpenKey {
    row: SealedKey,
    seed: LockedBytes,
}

impl OpenKey {
    /// The row that this was opened from.
    pub fn row(&self) -> &SealedKey {
        &self.row
    }

    /// Signs the fingerprint of a store path (`1;path;nar-hash;nar-size;references`) as Nix does: the bytes
    /// themselves, not their hash (`nix:src/libstore/path-info.cc`).
    pub fn sign_claim(&self, fingerprint: &[u8]) -> Result<[u8; 64], VaultError> {
        self.require(Purpose::Cache)?;
        Ok(self.sign(fingerprint))
    }

    /// Signs the text of a checkpoint (C2SP signed-note: the text up to and with its last newline).
    pub fn sign_note(&self, text: &[u8]) -> Result<[u8; 64], VaultError> {
        self.require(Purpose::Log)?;
        Ok(self.sign(text))
    }

    /// Signs that one key of a cache comes after another, if the statement needs this key's word: of a key that may be in
    /// other hands it never does.
    pub fn sign_succession(&self, statement: &Statement) -> Result<[u8; 64], VaultError> {
        self.require(Purpose::Cache)?;
        let is_own = |key: &PublicKey| {
            key.name().as_str() == self.row.label.name && *key.bytes() == self.row.public_key
        };
        let is_needed = |key: &PublicKey| statement.needs(key) && is_own(key);
        if is_needed(&statement.old) || is_needed(&statement.new) {
            Ok(self.sign(statement.encode().map_err(VaultError::Statement)?.as_bytes()))
        } else {
            Err(VaultError::NotConcerned)
        }
    }

    /// Writes `claims` into a signed token: a JWT, without narvault's `nvt_` in front.
    pub fn mint_token(&self, claims: &impl Serialize) -> Result<String, VaultError> {
        self.require(Purpose::Token)?;
        token::mint(&self.seed, &self.row.public_key, claims).map_err(VaultError::Mint)
    }

    fn require(&self, needed: Purpose) -> Result<(), VaultError> {
        let found = self.row.label.purpose;
        if found == needed { Ok(()) } else { Err(VaultError::WrongPurpose { found, needed }) }
    }

    /// The public key is derived anew each time: signing with one that does not belong to the seed would
    /// give the seed away, and the signing key lies outside of locked memory only for this call, and is wiped.
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        SigningKey::from_bytes(self.seed.expose()).sign(message).to_bytes()
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenKey").field("label", &self.row.label).field("seed", &self.seed).finish()
    }
}

fn public_key(seed: &LockedBytes) -> [u8; 32] {
    SigningKey::from_bytes(seed.expose()).verifying_key().to_bytes()
}

#[cfg(test)]
mod tests {
    use data_encoding::{BASE64, HEXLOWER as HEX};
    use ed25519_dalek::VerifyingKey;

    use super::super::key_file::KeyFile;
    use super::super::slots::SlotSecret;
    use super::*;
    use crate::succession::testing as succession;

    fn vault() -> OpenVault {
        OpenVault::create("cluster", "slot", &SlotSecret::KeyFile(KeyFile::of([1; 32]))).unwrap().vault
    }

    fn label(purpose: Purpose) -> KeyLabel {
        let cache_id = (purpose == Purpose::Cache).then(|| "cache-id".to_owned());
        KeyLabel { id: "key-id".into(), name: "main-1".into(), version: 1, purpose, cache_id }
    }

    fn open_key(purpose: Purpose, seed: &[u8; 32]) -> OpenKey {
        let vault = vault();
        let row = vault.seal_seed(label(purpose), &LockedBytes::copy_of(seed).unwrap());
        vault.open_key(&row).unwrap()
    }

    #[test]
    fn a_sealed_key_opens_and_its_signatures_verify() {
        let vault = vault();
        let row = vault.seal_new_key(label(Purpose::Cache)).unwrap();

        let signature = vault.open_key(&row).unwrap().sign_claim(b"1;path").unwrap();

        let verifier = VerifyingKey::from_bytes(&row.public_key).unwrap();
        assert!(verifier.verify_strict(b"1;path", &signature.into()).is_ok());
        assert!(verifier.verify_strict(b"1;other", &signature.into()).is_err());
        assert_eq!(row.sealed.kek_version(), 1);
    }

    #[test]
    fn two_new_keys_differ() {
        let vault = vault();

        let (one, other) =
            (vault.seal_new_key(label(Purpose::Cache)), vault.seal_new_key(label(Purpose::Cache)));

        assert_ne!(one.unwrap().public_key, other.unwrap().public_key);
    }

    #[test]
    fn a_row_with_any_column_changed_does_not_open() {
        let vault = vault();
        let row = vault.seal_new_key(label(Purpose::Cache)).unwrap();
        let other = vault.seal_new_key(KeyLabel { id: "other".into(), ..label(Purpose::Cache) }).unwrap();
        let with = |change: fn(&mut KeyLabel)| {
            let mut changed = row.clone();
            change(&mut changed.label);
            changed
        };

        for (column, changed) in [
            ("id", with(|label| label.id = "other".into())),
            ("name", with(|label| label.name = "main-2".into())),
            ("version", with(|label| label.version = 2)),
            ("purpose", with(|label| label.purpose = Purpose::Token)),
            ("cache", with(|label| label.cache_id = Some("other".into()))),
            ("no cache", with(|label| label.cache_id = None)),
            ("public key", SealedKey { public_key: other.public_key, ..row.clone() }),
            ("sealed bytes", SealedKey { sealed: other.sealed.clone(), ..row.clone() }),
        ] {
            assert!(matches!(vault.open_key(&changed), Err(VaultError::Tampered { .. })), "{column}");
        }
        let mut elsewhere = vault;
        elsewhere.cluster_id = "other".into();
        assert!(matches!(elsewhere.open_key(&row), Err(VaultError::Tampered { .. })));
    }

    #[test]
    fn a_row_of_an_unknown_kek_is_told_as_such() {
        let vault = vault();
        let row = vault.seal_new_key(label(Purpose::Cache)).unwrap();
        let mut bytes = row.sealed.as_bytes().to_vec();
        bytes[5] = 9;

        let refused = vault.open_key(&SealedKey { sealed: Sealed::parse(&bytes).unwrap(), ..row });

        assert!(matches!(refused, Err(VaultError::UnknownKek { kek_version: 9, .. })));
    }

    #[test]
    fn a_seed_sealed_beside_another_public_key_is_fatal() {
        let vault = vault();
        let seed = LockedBytes::copy_of(&[5; 32]).unwrap();
        let public_key = public_key(&LockedBytes::copy_of(&[6; 32]).unwrap());
        let label = label(Purpose::Cache);
        let sealed = vault.newest_kek().1.seal(&seed, 1, &SealedKey::binding("cluster", &label, &public_key));

        let refused = vault.open_key(&SealedKey { label, public_key, sealed });

        assert!(matches!(refused, Err(VaultError::WrongPublicKey { .. })));
    }

    #[test]
    fn a_key_does_the_work_of_its_purpose_only() {
        for purpose in [Purpose::Cache, Purpose::Log, Purpose::Token] {
            let key = open_key(purpose, &[3; 32]);

            assert_eq!(key.sign_claim(b"1;").is_ok(), purpose == Purpose::Cache);
            assert_eq!(key.sign_note(b"x\n").is_ok(), purpose == Purpose::Log);
            assert_eq!(key.mint_token(&serde_json::json!({})).is_ok(), purpose == Purpose::Token);
        }
    }

    /// `nix key generate-secret` and `nix store sign` of Nix 2.8; the key is a throwaway.
    #[test]
    fn an_imported_key_signs_as_nix_does() {
        let vault = vault();
        let imported = NixSecretKey::parse(
            "cache.example-1:uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK+zqxgwYQw==",
        )
        .unwrap();
        let label = KeyLabel { name: "cache.example-1".into(), ..label(Purpose::Cache) };

        let row = vault.seal_imported_key(label, &imported).unwrap();
        let signature = vault.open_key(&row).unwrap().sign_claim(
            b"1;/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-aaa-1.0;\
              sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7;1072;",
        );

        assert_eq!(BASE64.encode(&row.public_key), "qbpTc1CV7zZtvHQogvObKwO8kHojKd+CSCvs6sYMGEM=");
        assert_eq!(
            BASE64.encode(&signature.unwrap()),
            "Ym3M6sOHhaUbrW0unj6JYlpecPA/7PQhABjdrWlFwZh+pOOCMwvV77X6qm8Ct5smYPO9zxPWEXAdc6EAoBrQAg=="
        );
    }

    #[test]
    fn an_import_under_another_name_is_refused() {
        let imported = NixSecretKey::parse(
            "cache.example-1:uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK+zqxgwYQw==",
        )
        .unwrap();

        let refused = vault().seal_imported_key(label(Purpose::Cache), &imported);

        assert!(matches!(refused, Err(VaultError::OtherName)));
    }

    /// RFC 8032, section 7.1, all of its tests.
    #[test]
    fn signatures_are_those_of_the_rfc() {
        for (seed, public_key, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b\
                 d25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c\
                 387b2eaeb4302aeeb00d291612bb0c00",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659\
                 4a7c15e9716ed28dc027beceea1ec40a",
            ),
            (
                "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5",
                "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
                "08b8b2b733424243760fe426a4b54908632110a66c2f6591eabd3345e3e4eb98fa6e264bf09efe12ee50f8f54e9f77b1\
                 e355f6c50544e23fb1433ddf73be84d879de7c0046dc4996d9e773f4bc9efe5738829adb26c81b37c93a1b270b20329d\
                 658675fc6ea534e0810a4432826bf58c941efb65d57a338bbd2e26640f89ffbc1a858efcb8550ee3a5e1998bd177e93a\
                 7363c344fe6b199ee5d02e82d522c4feba15452f80288a821a579116ec6dad2b3b310da903401aa62100ab5d1a36553e\
                 06203b33890cc9b832f79ef80560ccb9a39ce767967ed628c6ad573cb116dbefefd75499da96bd68a8a97b928a8bbc10\
                 3b6621fcde2beca1231d206be6cd9ec7aff6f6c94fcd7204ed3455c68c83f4a41da4af2b74ef5c53f1d8ac70bdcb7ed1\
                 85ce81bd84359d44254d95629e9855a94a7c1958d1f8ada5d0532ed8a5aa3fb2d17ba70eb6248e594e1a2297acbbb39d\
                 502f1a8c6eb6f1ce22b3de1a1f40cc24554119a831a9aad6079cad88425de6bde1a9187ebb6092cf67bf2b13fd65f270\
                 88d78b7e883c8759d2c4f5c65adb7553878ad575f9fad878e80a0c9ba63bcbcc2732e69485bbc9c90bfbd62481d9089b\
                 eccf80cfe2df16a2cf65bd92dd597b0707e0917af48bbb75fed413d238f5555a7a569d80c3414a8d0859dc65a46128ba\
                 b27af87a71314f318c782b23ebfe808b82b0ce26401d2e22f04d83d1255dc51addd3b75a2b1ae0784504df543af8969b\
                 e3ea7082ff7fc9888c144da2af58429ec96031dbcad3dad9af0dcbaaaf268cb8fcffead94f3c7ca495e056a9b47acdb7\
                 51fb73e666c6c655ade8297297d07ad1ba5e43f1bca32301651339e22904cc8c42f58c30c04aafdb038dda0847dd988d\
                 cda6f3bfd15c4b4c4525004aa06eeff8ca61783aacec57fb3d1f92b0fe2fd1a85f6724517b65e614ad6808d6f6ee34df\
                 f7310fdc82aebfd904b01e1dc54b2927094b2db68d6f903b68401adebf5a7e08d78ff4ef5d63653a65040cf9bfd4aca7\
                 984a74d37145986780fc0b16ac451649de6188a7dbdf191f64b5fc5e2ab47b57f7f7276cd419c17a3ca8e1b939ae49e4\
                 88acba6b965610b5480109c8b17b80e1b7b750dfc7598d5d5011fd2dcc5600a32ef5b52a1ecc820e308aa342721aac09\
                 43bf6686b64b2579376504ccc493d97e6aed3fb0f9cd71a43dd497f01f17c0e2cb3797aa2a2f256656168e6c496afc5f\
                 b93246f6b1116398a346f1a641f3b041e989f7914f90cc2c7fff357876e506b50d334ba77c225bc307ba537152f3f161\
                 0e4eafe595f6d9d90d11faa933a15ef1369546868a7f3a45a96768d40fd9d03412c091c6315cf4fde7cb68606937380d\
                 b2eaaa707b4c4185c32eddcdd306705e4dc1ffc872eeee475a64dfac86aba41c0618983f8741c5ef68d3a101e8a3b8ca\
                 c60c905c15fc910840b94c00a0b9d0",
                "0aab4c900501b3e24d7cdf4663326a3a87df5e4843b2cbdb67cbf6e460fec350aa5371b1508f9f4528ecea23c436d94b\
                 5e8fcd4f681e30a6ac00a9704a188a03",
            ),
            (
                "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
                "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd\
                 454d4423643ce80e2a9ac94fa54ca49f",
                "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030\
                 3dca179c138ac17ad9bef1177331a704",
            ),
        ] {
            let seed: [u8; 32] = HEX.decode(seed.as_bytes()).unwrap().try_into().unwrap();
            let key = open_key(Purpose::Cache, &seed);

            let signed = key.sign_claim(&HEX.decode(message.as_bytes()).unwrap()).unwrap();

            assert_eq!(HEX.encode(&key.row().public_key), public_key);
            assert_eq!(HEX.encode(&signed), signature);
        }
    }

    #[test]
    fn purposes_read_back_as_written() {
        for purpose in [Purpose::Cache, Purpose::Log, Purpose::Token] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        for text in ["", "Cache", "root", "kek"] {
            assert_eq!(text.parse::<Purpose>(), Err(UnknownPurpose), "{text}");
        }
    }

    #[test]
    fn a_key_signs_successions_that_need_its_word_and_no_others() {
        let key = open_key(Purpose::Cache, &[3; 32]);
        let own = PublicKey::new("main-1".parse().unwrap(), &key.row().public_key).unwrap();
        let renamed = PublicKey::new("main-9".parse().unwrap(), &key.row().public_key).unwrap();
        let other = succession::TestKey::named("main-1").public;
        let leaves =
            |old: &PublicKey| Statement { old: old.clone(), ..succession::planned(1, "x", "main-2") };
        let comes = |new: &PublicKey| Statement { new: new.clone(), ..succession::planned(1, "x", "main-1") };
        let roots = succession::roots(1, 1, &["alice"]);
        let stolen = succession::compromise(1, "x", "main-2", &roots);

        for (what, statement, signs) in [
            ("it leaves", leaves(&own), true),
            ("it comes", comes(&own), true),
            ("it comes for a stolen one", Statement { new: own.clone(), ..stolen.clone() }, true),
            ("it was stolen", Statement { old: own, ..stolen }, false),
            ("another of its name", leaves(&other), false),
            ("it under another name", comes(&renamed), false),
            ("two others", succession::planned(1, "x", "y"), false),
        ] {
            let signed = key.sign_succession(&statement);

            match signed {
                Ok(signature) if signs => {
                    let verifier = VerifyingKey::from_bytes(&key.row().public_key).unwrap();
                    let text = statement.encode().unwrap();
                    assert!(verifier.verify_strict(text.as_bytes(), &signature.into()).is_ok(), "{what}");
                }
                Err(VaultError::NotConcerned) if !signs => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        let impossible = Statement { seq: 0, ..leaves(&comes(&other).old) };
        assert!(key.sign_succession(&impossible).is_err());
        let log = open_key(Purpose::Log, &[3; 32]);
        assert!(matches!(log.sign_succession(&impossible), Err(VaultError::WrongPurpose { .. })));
    }

    #[test]
    fn an_open_key_prints_nothing_of_its_seed() {
        let printed = format!("{:?}", open_key(Purpose::Cache, &[65; 32]));

        assert!(printed.contains("seed: [redacted]"), "{printed}");
        assert!(!printed.contains("65, 65"), "{printed}");
    }
}
