use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::tlog::note::NoteSignature;

const TEXT: &str = "log.example/1\n7\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n";

fn witness(seed: u8) -> (SigningKey, VerifierKey) {
    let secret = SigningKey::from_bytes(&[seed; 32]);
    let bytes = secret.verifying_key().to_bytes();
    let public = VerifierKey::new("w.example".parse().unwrap(), Algorithm::Cosignature, &bytes).unwrap();
    (secret, public)
}

/// A line of `witness` that says `claimed`, over a message that says `signed`.
fn line(witness: &(SigningKey, VerifierKey), claimed: u64, signed: u64, text: &str) -> NoteSignature {
    let message = format!("cosignature/v1\ntime {signed}\n{text}");
    let signature = witness.0.sign(message.as_bytes()).to_bytes();
    let bytes = [&claimed.to_be_bytes()[..], &signature].concat();
    NoteSignature { name: witness.1.name().clone(), id: witness.1.id(), bytes }
}

fn note(text: &str, lines: &[NoteSignature]) -> Note {
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Note::parse(format!("{text}\n{lines}").as_bytes()).unwrap()
}

fn forged(key: &VerifierKey) -> Result<u64, VerifyError> {
    Err(VerifyError::Forged { name: key.name().clone(), id: key.id() })
}

#[test]
fn the_time_that_was_signed_is_answered_and_of_several_the_latest() {
    let one = witness(1);
    let at = |seconds| line(&one, seconds, seconds, TEXT);

    assert_eq!(verify(&note(TEXT, &[at(1_679_315_147)]), &one.1), Ok(1_679_315_147));
    assert_eq!(verify(&note(TEXT, &[at(0)]), &one.1), Ok(0));
    assert_eq!(verify(&note(TEXT, &[at(9), at(11), at(10)]), &one.1), Ok(11));
}

#[test]
fn another_time_text_key_or_length_is_forged() {
    let (one, two) = (witness(1), witness(2));
    let good = line(&one, 5, 5, TEXT);
    let other_text = TEXT.replace("\n7\n", "\n8\n");
    let by_other = NoteSignature { bytes: line(&two, 5, 5, TEXT).bytes, ..good.clone() };
    let short = NoteSignature { bytes: good.bytes[..71].to_vec(), ..good.clone() };
    let long = NoteSignature { bytes: [&good.bytes[..], &[0]].concat(), ..good.clone() };
    let tiny = NoteSignature { bytes: vec![0; 7], ..good.clone() };

    for bad in [line(&one, 6, 5, TEXT), line(&one, 5, 5, &other_text), by_other, short, long, tiny] {
        assert_eq!(verify(&note(TEXT, std::slice::from_ref(&bad)), &one.1), forged(&one.1), "{bad}");
        assert_eq!(verify(&note(TEXT, &[good.clone(), bad]), &one.1), forged(&one.1));
    }
}

#[test]
fn a_plain_signature_of_the_witnesss_key_is_no_cosignature() {
    let (secret, public) = witness(1);
    let bytes = secret.sign(TEXT.as_bytes()).to_bytes().to_vec();
    let plain = NoteSignature { name: public.name().clone(), id: public.id(), bytes };

    assert_eq!(verify(&note(TEXT, &[plain]), &public), forged(&public));
}

#[test]
fn a_cosignature_needs_a_key_for_cosignatures_and_a_checkpoint() {
    let one = witness(1);
    let plain = VerifierKey::new(one.1.name().clone(), Algorithm::Ed25519, one.1.bytes()).unwrap();
    let cosigned = note(TEXT, &[line(&one, 5, 5, TEXT)]);
    assert_eq!(verify(&cosigned, &plain), Err(VerifyError::Algorithm { name: plain.name().clone() }));
    let absent = VerifyError::Unsigned { name: plain.name().clone(), id: plain.id() };
    assert_eq!(cosigned.verify(&plain), Err(absent));

    let no_checkpoint = note("hello\n", &[line(&one, 5, 5, "hello\n")]);
    assert_eq!(verify(&no_checkpoint, &one.1), forged(&one.1));

    // The format ends times at 2^63 - 1.
    let late = note(TEXT, &[line(&one, 1 << 63, 1 << 63, TEXT)]);
    assert_eq!(verify(&late, &one.1), forged(&one.1));
}
