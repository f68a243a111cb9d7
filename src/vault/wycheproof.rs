//! The primitives, in the crates and the ways in which the vault and its clients use them, against the vectors of
//! Project Wycheproof: each corner in which implementations were found to differ or to fail.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use wycheproof::{TestResult, aead, eddsa, hkdf as derivation};

use crate::nix::signature::{PublicKey, Signature};

#[test]
fn signatures_verify_as_they_must_and_no_other_does() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let mut valid = 0;
    for group in &set.test_groups {
        let point: [u8; 32] = group.key.pk[..].try_into().unwrap();
        let key = PublicKey::new("wycheproof-1".parse().unwrap(), &point).unwrap();
        for test in &group.tests {
            let signature: Option<[u8; 64]> = test.sig[..].try_into().ok();
            let verified = signature
                .is_some_and(|bytes| key.verify(&test.msg, &Signature { name: key.name().clone(), bytes }));
            assert_ne!(test.result, TestResult::Acceptable, "{}: {}", test.tc_id, test.comment);
            assert_eq!(verified, test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            valid += usize::from(verified);
        }
    }
    assert!(valid > 50, "{valid}");
}

#[test]
fn records_open_as_they_must_and_no_other_does() {
    let set = aead::TestSet::load(aead::TestName::XChaCha20Poly1305).unwrap();
    let mut valid = 0;
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 192) {
        assert_eq!((group.key_size, group.tag_size), (256, 128));
        for test in &group.tests {
            let key: [u8; 32] = test.key[..].try_into().unwrap();
            let nonce: [u8; 24] = test.nonce[..].try_into().unwrap();
            let (cipher, nonce) = (XChaCha20Poly1305::new(&key.into()), XNonce::from(nonce));
            let sealed = [&test.ct[..], &test.tag[..]].concat();

            let opened = cipher.decrypt(&nonce, Payload { msg: &sealed, aad: &test.aad });

            let expected = (test.result == TestResult::Valid).then(|| test.pt.to_vec());
            assert_eq!(opened.ok(), expected, "{}: {}", test.tc_id, test.comment);
            if expected.is_some() {
                let again = cipher.encrypt(&nonce, Payload { msg: &test.pt, aad: &test.aad }).unwrap();
                assert_eq!(again, sealed, "{}: {}", test.tc_id, test.comment);
                valid += 1;
            }
        }
    }
    assert!(valid > 50, "{valid}");
}

#[test]
fn keys_are_derived_as_they_must_be_and_never_longer_than_they_may() {
    let set = derivation::TestSet::load(derivation::TestName::HkdfSha256).unwrap();
    let (mut valid, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut derived = vec![0; test.size];
        let expanded = Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut derived);

        assert_eq!(expanded.is_ok(), test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
        if expanded.is_ok() {
            assert_eq!(derived, test.okm[..], "{}: {}", test.tc_id, test.comment);
            valid += 1;
        } else {
            refused += 1;
        }
    }
    assert!(valid > 50 && refused > 0, "{valid}, {refused}");
}
