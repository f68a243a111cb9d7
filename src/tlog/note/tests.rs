use std::convert::Infallible;

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;

use super::*;

// From the documentation and tests of `golang.org/x/mod/sumdb/note`.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
/// 0x01 and the seed, as the published `PRIVATE+KEY+PeterNeumann+…` has them.
const PETER_SECRET: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n";
const PETER_LINE: &str = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const ENOCH_LINE: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

fn key(text: &str) -> VerifierKey {
    text.parse().unwrap()
}

fn parse(note: &str) -> Result<Note, NoteError> {
    Note::parse(note.as_bytes())
}

fn forged(key: &VerifierKey) -> Result<(), VerifyError> {
    Err(VerifyError::Forged { name: key.name().clone(), id: key.id() })
}

fn unsigned(key: &VerifierKey) -> Result<(), VerifyError> {
    Err(VerifyError::Unsigned { name: key.name().clone(), id: key.id() })
}

fn throwaway(name: &str, seed: u8) -> (SigningKey, VerifierKey) {
    let secret = SigningKey::from_bytes(&[seed; 32]);
    let bytes = secret.verifying_key().to_bytes();
    let public = VerifierKey::new(name.parse().unwrap(), Algorithm::Ed25519, &bytes).unwrap();
    (secret, public)
}

fn sign(text: &str, (secret, public): &(SigningKey, VerifierKey)) -> Result<Note, SignError<Infallible>> {
    Note::sign(text.to_owned(), public, |bytes| Ok(secret.sign(bytes).to_bytes()))
}

#[test]
fn a_note_of_others_is_read_verified_and_written_alike() {
    let bytes = format!("{TEXT}\n{PETER_LINE}{ENOCH_LINE}");
    let note = parse(&bytes).unwrap();

    assert_eq!(note.text(), TEXT);
    assert_eq!(note.verify(&key(PETER)), Ok(()));
    assert_eq!(note.verify(&key(ENOCH)), Ok(()));
    assert_eq!(note.encode(), bytes);
}

#[test]
fn signing_makes_the_same_bytes_as_others_do() {
    let secret = BASE64.decode(PETER_SECRET.as_bytes()).unwrap();
    let secret = SigningKey::from_bytes(secret[1..].try_into().unwrap());

    let note = sign(TEXT, &(secret, key(PETER))).unwrap();

    assert_eq!(note.encode(), format!("{TEXT}\n{PETER_LINE}"));
}

#[test]
fn a_signature_under_another_key_is_not_given_out() {
    let (_, public) = throwaway("log", 1);
    let (other, _) = throwaway("log", 2);

    let note = sign(TEXT, &(other, public.clone()));

    let SignError::Verify(error) = note.unwrap_err() else { panic!("signed") };
    assert_eq!(Err(error), forged(&public));
}

#[test]
fn what_the_signer_says_is_handed_on() {
    #[derive(Debug, thiserror::Error)]
    #[error("sealed")]
    struct Sealed;
    let (_, public) = throwaway("log", 1);

    let note = Note::sign(TEXT.to_owned(), &public, |_| Err(Sealed));

    assert!(matches!(note, Err(SignError::Sign(Sealed))));
}

#[test]
fn a_text_that_no_note_can_have_is_not_signed() {
    for text in ["", "no line feed", "a\rb\n", "a\tb\n", "nul\0\n"] {
        assert!(matches!(sign(text, &throwaway("log", 1)), Err(SignError::Note(_))), "{text:?}");
    }
    for text in ["\n", "\n\n", "a\n\nb\n", "— name AAAA\n", "\u{7f}é\n"] {
        let signed = sign(text, &throwaway("log", 1)).unwrap();
        assert_eq!(parse(&signed.encode()), Ok(signed));
    }
    let long = format!("{}\n", "x".repeat(NOTE_SIZE_BYTES_MAX));
    assert!(matches!(sign(&long, &throwaway("log", 1)), Err(SignError::Note(NoteError::TooLarge))));
}

#[test]
fn only_the_known_keys_count() {
    let note = parse(&format!("{TEXT}\n{PETER_LINE}")).unwrap();
    let enoch = key(ENOCH);
    assert_eq!(note.verify(&enoch), unsigned(&enoch));

    // The same key under another name, and another key under the same name, are strangers.
    let renamed = VerifierKey::new("Peter".parse().unwrap(), Algorithm::Ed25519, key(PETER).bytes()).unwrap();
    assert_eq!(note.verify(&renamed), unsigned(&renamed));
    let (_, namesake) = throwaway("PeterNeumann", 9);
    assert_eq!(note.verify(&namesake), unsigned(&namesake));

    let witness =
        VerifierKey::new(key(PETER).name().clone(), Algorithm::Cosignature, key(PETER).bytes()).unwrap();
    assert_eq!(note.verify(&witness), Err(VerifyError::Algorithm { name: witness.name().clone() }));
}

#[test]
fn one_forged_line_of_a_known_key_spoils_the_note() {
    let forged_line = PETER_LINE.replace("x08go/ZJ", "x08go/ZK");
    let peter = key(PETER);

    for lines in
        [forged_line.clone(), format!("{PETER_LINE}{forged_line}"), format!("{forged_line}{PETER_LINE}")]
    {
        let note = parse(&format!("{TEXT}\n{lines}")).unwrap();
        assert_eq!(note.verify(&peter), forged(&peter), "{lines}");
    }
    let note = parse(&format!("{TEXT}\n{forged_line}{ENOCH_LINE}")).unwrap();
    assert_eq!(note.verify(&key(ENOCH)), Ok(()));
    let short = parse(&format!("{TEXT}\n— PeterNeumann x08go/Y=\n")).unwrap();
    assert_eq!(short.verify(&peter), forged(&peter));
}

#[test]
fn what_is_not_a_note_is_refused_with_its_reason() {
    let signature = |line| Err(NoteError::SignatureLine { line });
    let without = PETER_LINE.trim_end();
    assert_eq!(parse(""), Err(NoteError::NoSignatures));
    assert_eq!(parse(TEXT), Err(NoteError::NoSignatures));
    assert_eq!(parse(&format!("{TEXT}\n")), Err(NoteError::NoSignatures));
    assert_eq!(parse(&format!("{TEXT}{PETER_LINE}")), Err(NoteError::NoSignatures));
    assert_eq!(parse(&format!("\n{PETER_LINE}")), Err(NoteError::NoSignatures));
    assert_eq!(parse(&format!("{TEXT}\n{without}")), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{PETER_LINE}{without}")), signature(2));
    assert_eq!(parse(&format!("{TEXT}\n{PETER_LINE}\n")), Err(NoteError::NoSignatures));
    assert_eq!(parse(&format!("{TEXT}\n{PETER_LINE}more\n")), signature(2));
    assert_eq!(parse(&format!("{TEXT}\n{without} \n")), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace('—', "-"))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace("— ", "—  "))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace("PeterN", "Peter N"))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace("PeterN", "Peter+N"))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace("AM=", "AN="))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{}", PETER_LINE.replace('=', ""))), signature(1));
    assert_eq!(parse(&format!("{TEXT}\n{without}AAAA\n")), signature(1), "padding in the middle");
    assert_eq!(parse(&format!("{TEXT}\n— name x08gow==\n")), signature(1), "no byte after the id");
    assert_eq!(parse(&format!("\u{1}{TEXT}\n{PETER_LINE}")), Err(NoteError::Control));
    assert_eq!(parse(&format!("a\r\n{TEXT}\n{PETER_LINE}")), Err(NoteError::Control));
    let latin = [b"\xe9\n\n", PETER_LINE.as_bytes()].concat();
    assert_eq!(Note::parse(&latin), Err(NoteError::NotUtf8));
}

#[test]
fn limits_hold_at_both_ends() {
    let many = |count| parse(&format!("{TEXT}\n{}", PETER_LINE.repeat(count)));
    assert!(many(SIGNATURES_MAX).is_ok());
    assert_eq!(many(SIGNATURES_MAX + 1), Err(NoteError::TooManySignatures));

    let rest = format!("\n\n{PETER_LINE}");
    let long = |size: usize| parse(&format!("{}{rest}", "x".repeat(size - rest.len())));
    assert!(long(NOTE_SIZE_BYTES_MAX).is_ok());
    assert_eq!(long(NOTE_SIZE_BYTES_MAX + 1), Err(NoteError::TooLarge));
}

#[test]
fn a_signature_is_added_once() {
    let note = parse(&format!("{TEXT}\n{PETER_LINE}")).unwrap();
    let enoch = parse(&format!("{TEXT}\n{ENOCH_LINE}")).unwrap().signatures()[0].clone();

    let both = note.with(enoch.clone()).unwrap();
    assert_eq!(both.encode(), format!("{TEXT}\n{PETER_LINE}{ENOCH_LINE}"));
    assert_eq!(both.clone().with(enoch).unwrap(), both);

    let full = parse(&format!("{TEXT}\n{}", PETER_LINE.repeat(SIGNATURES_MAX))).unwrap();
    let more = parse(&format!("{TEXT}\n{ENOCH_LINE}")).unwrap().signatures()[0].clone();
    assert_eq!(full.with(more), Err(NoteError::TooManySignatures));
}

proptest! {
    #[test]
    fn a_note_that_is_signed_is_read_again(text in "([ -~é\n]{0,60}\n){1,4}", seed in 0u8..8) {
        let log = throwaway("log.example/1", seed);
        let note = sign(&text, &log).unwrap();

        let read = parse(&note.encode()).unwrap();

        prop_assert_eq!(&read, &note);
        prop_assert_eq!(read.text(), text);
        prop_assert_eq!(read.verify(&log.1), Ok(()));
    }

    #[test]
    fn any_flipped_bit_fails(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = format!("{TEXT}\n{PETER_LINE}").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;

        let verified = Note::parse(&bytes).map(|note| note.verify(&key(PETER)));

        prop_assert!(!matches!(verified, Ok(Ok(()))), "{at} {bit}");
    }

    #[test]
    fn what_is_read_is_spelled_in_one_way(bytes in "[a \n]{0,6}\n\n(— [a+ ]{1,2} [AQ=]{4,12}\n?){0,3}") {
        if let Ok(note) = parse(&bytes) {
            prop_assert_eq!(note.encode(), bytes);
        }
    }
}
