use proptest::prelude::*;

use super::*;
use crate::tlog::checkpoint::CheckpointError;
use crate::tlog::note::VerifyError;

const GOLDEN: &str = include_str!("../../../tests/golden/tlog-v1/256.tlog-proof");
const VKEYS: &str = include_str!("../../../tests/golden/tlog-v1/vkeys");

fn log() -> VerifierKey {
    VKEYS.lines().next().unwrap().parse().unwrap()
}

fn parse(text: &str) -> Result<ProofFile, ProofFileError> {
    ProofFile::parse(text.as_bytes())
}

#[test]
fn it_proves_its_leaf_and_no_other() {
    let proof = parse(GOLDEN).unwrap();
    assert_eq!(proof.extra.as_deref(), Some(&b"leaf 256\n"[..]));

    let checkpoint = proof.verify(b"leaf 256\n", &log()).unwrap();
    assert_eq!((checkpoint.size, checkpoint.origin.as_str()), (600, "log.example/golden"));

    let not_proved = |index, source| Err(VerifyProofError::Proof { index, source });
    assert_eq!(proof.verify(b"leaf 257\n", &log()), not_proved(256, ProofError::Root));
    let moved = ProofFile { index: 255, ..proof.clone() };
    assert_eq!(moved.verify(b"leaf 256\n", &log()), not_proved(255, ProofError::Root));
    let behind = ProofFile { index: 600, ..proof.clone() };
    let outside = ProofError::Outside { index: 600, size: 600 };
    assert_eq!(behind.verify(b"leaf 256\n", &log()), not_proved(600, outside));
    let cut = ProofFile { hashes: proof.hashes[1..].to_vec(), ..proof };
    let length = ProofError::Length { found: 9, expected: 10 };
    assert_eq!(cut.verify(b"leaf 256\n", &log()), not_proved(256, length));
}

#[test]
fn a_checkpoint_of_a_stranger_proves_nothing() {
    let bytes = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes();
    let stranger = VerifierKey::new(log().name().clone(), log().algorithm(), &bytes).unwrap();

    let verified = parse(GOLDEN).unwrap().verify(b"leaf 256\n", &stranger);

    let unsigned = VerifyError::Unsigned { name: stranger.name().clone(), id: stranger.id() };
    assert_eq!(verified, Err(VerifyProofError::Checkpoint(OpenError::Signature(unsigned))));
}

#[test]
fn what_is_not_a_proof_file_is_refused_with_its_reason() {
    let check = |from: &str, to: &str, error| {
        assert!(GOLDEN.contains(from), "{from}");
        assert_eq!(parse(&GOLDEN.replacen(from, to, 1)), Err(error), "{to:?} for {from:?}");
    };
    assert_eq!(parse(""), Err(ProofFileError::Header));
    check("@v1", "@v2", ProofFileError::Header);
    check("extra ", "extra  ", ProofFileError::Extra);
    check("YK\n", "YK=\n", ProofFileError::Extra);
    check("extra ", "more ", ProofFileError::Index);
    check("index 256", "index 0256", ProofFileError::Index);
    check("index 256", "index +256", ProofFileError::Index);
    check("index 256", "index -1", ProofFileError::Index);
    check("index 256", "index 9223372036854775807", ProofFileError::Index);
    check("index 256\n", "", ProofFileError::Index);
    check("GQpz", "GQp", ProofFileError::Hash { line: 1 });
    check("hdmV", "hdmV ", ProofFileError::Hash { line: 2 });
    check("\n\nlog.example", "\nlog.example", ProofFileError::Hash { line: 11 });
    check("— log", "- log", ProofFileError::Checkpoint(NoteError::SignatureLine { line: 1 }));
    assert_eq!(ProofFile::parse(b"\xff"), Err(ProofFileError::NotUtf8));
    assert_eq!(parse("c2sp.org/tlog-proof@v1\nindex 0\n"), Err(ProofFileError::Hashes));
}

#[test]
fn limits_hold_at_both_ends() {
    let proof = parse(GOLDEN).unwrap();
    let with_hashes = |count| ProofFile { hashes: vec![NodeHash::empty(); count], ..proof.clone() };
    assert!(parse(&with_hashes(PROOF_HASHES_MAX).encode()).is_ok());
    assert_eq!(parse(&with_hashes(PROOF_HASHES_MAX + 1).encode()), Err(ProofFileError::Hashes));

    let with_extra = |size| ProofFile { extra: Some(vec![7; size]), ..proof.clone() };
    assert!(parse(&with_extra(EXTRA_SIZE_BYTES_MAX).encode()).is_ok());
    assert_eq!(parse(&with_extra(EXTRA_SIZE_BYTES_MAX + 1).encode()), Err(ProofFileError::Extra));
    let large = "x".repeat(PROOF_FILE_SIZE_BYTES_MAX + 1);
    assert_eq!(parse(&large), Err(ProofFileError::TooLarge));
}

#[test]
fn a_signed_text_that_is_no_checkpoint_proves_nothing() {
    use ed25519_dalek::Signer as _;
    let secret = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let bytes = secret.verifying_key().to_bytes();
    let log = VerifierKey::new("log".parse().unwrap(), log().algorithm(), &bytes).unwrap();
    let note = Note::sign("log\n1\n".to_owned(), &log, |bytes| {
        Ok::<_, std::convert::Infallible>(secret.sign(bytes).to_bytes())
    });
    let proof = ProofFile { extra: None, index: 0, hashes: Vec::new(), checkpoint: note.unwrap() };

    let malformed = OpenError::Checkpoint(CheckpointError::Lines);
    assert_eq!(proof.verify(b"leaf", &log), Err(VerifyProofError::Checkpoint(malformed)));
}

proptest! {
    #[test]
    fn any_flipped_bit_fails_but_in_the_extra_data(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = GOLDEN.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let extra = GOLDEN.find("extra").unwrap()..GOLDEN.find("index").unwrap();
        // Lines of witnesses are not asked for here.
        let witnesses = GOLDEN.find("— witness").unwrap();
        prop_assume!(!extra.contains(&at) && at < witnesses);

        let verified = ProofFile::parse(&bytes).map(|proof| proof.verify(b"leaf 256\n", &log()));

        prop_assert!(!matches!(verified, Ok(Ok(_))), "{at} {bit}");
    }

    #[test]
    fn a_file_that_is_written_is_read_again(
        extra in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        index in 0..TREE_SIZE_MAX,
        hashes in proptest::collection::vec(any::<[u8; 32]>().prop_map(NodeHash::from_bytes), 0..64),
    ) {
        let proof = ProofFile { extra, index, hashes, checkpoint: parse(GOLDEN).unwrap().checkpoint };

        prop_assert_eq!(parse(&proof.encode()), Ok(proof));
    }
}
