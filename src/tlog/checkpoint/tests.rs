use std::convert::Infallible;

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::tlog::note::SignError;
use crate::tlog::verifier_key::Algorithm;

const ROOT: &str = "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=";

/// The example of c2sp.org/tlog-checkpoint, and of c2sp.org/tlog-cosignature.
const EXAMPLE: &str = "example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
";

fn checkpoint(text: &str) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::parse(text)
}

fn signed(text: &str, name: &str, seed: u8) -> (String, VerifierKey) {
    let secret = SigningKey::from_bytes(&[seed; 32]);
    let bytes = secret.verifying_key().to_bytes();
    let log = VerifierKey::new(name.parse().unwrap(), Algorithm::Ed25519, &bytes).unwrap();
    let note: Result<Note, SignError<Infallible>> =
        Note::sign(text.to_owned(), &log, |bytes| Ok(secret.sign(bytes).to_bytes()));
    (note.unwrap().encode(), log)
}

#[test]
fn the_example_of_the_format_is_read() {
    let read = checkpoint(EXAMPLE).unwrap();

    assert_eq!(read.origin, "example.com/behind-the-sofa");
    assert_eq!(read.size, 20_852_163);
    assert_eq!(read.extensions, [] as [String; 0]);
    assert_eq!(read.encode().unwrap(), EXAMPLE);
}

#[test]
fn extension_lines_are_kept() {
    let text = format!("e\n0\n{ROOT}\nabc\n  def  \n");

    let read = checkpoint(&text).unwrap();

    assert_eq!(read.extensions, ["abc", "  def  "]);
    assert_eq!(read.encode().unwrap(), text);
}

// Among these are the bad ones of the crate `tlog_tiles`.
#[test]
fn what_is_not_a_checkpoint_is_refused_with_its_reason() {
    assert_eq!(checkpoint(""), Err(CheckpointError::Lines));
    assert_eq!(checkpoint("\n"), Err(CheckpointError::Lines));
    assert_eq!(checkpoint("o\n1\n"), Err(CheckpointError::Lines));
    assert_eq!(checkpoint(&format!("o\n1\n{ROOT}")), Err(CheckpointError::Lines));
    assert_eq!(checkpoint(&format!("o\n1\n{ROOT}\nabc")), Err(CheckpointError::Lines));
    assert_eq!(checkpoint(&format!("\n1\n{ROOT}\n")), Err(CheckpointError::Line));
    assert_eq!(checkpoint(&format!("o\n1\n{ROOT}\n\n")), Err(CheckpointError::Line));
    assert_eq!(checkpoint(&format!("o\n1\n{ROOT}\nabc\n\ndef\n")), Err(CheckpointError::Line));
    assert_eq!(checkpoint(&format!("o\tx\n1\n{ROOT}\n")), Err(CheckpointError::Line));
    for size in
        ["", "-1", "+1", "01", "00", " 1", "1 ", "0xabcdef", "9223372036854775808", "18446744073709551616"]
    {
        assert_eq!(checkpoint(&format!("o\n{size}\n{ROOT}\n")), Err(CheckpointError::Size), "{size}");
    }
    assert!(checkpoint(&format!("o\n9223372036854775807\n{ROOT}\n")).is_ok());
    for root in [
        "",
        "AA==",
        &ROOT[..43],
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBCg==",
        &ROOT.replace("b0", "b1"),
    ] {
        assert_eq!(checkpoint(&format!("o\n1\n{root}\n")), Err(CheckpointError::Root), "{root}");
    }
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let good = checkpoint(EXAMPLE).unwrap();

    for line in ["", "two\nlines", "tab\t"] {
        assert_eq!(
            Checkpoint { origin: line.to_owned(), ..good.clone() }.encode(),
            Err(CheckpointError::Line)
        );
        let extensions = vec![line.to_owned()];
        assert_eq!(Checkpoint { extensions, ..good.clone() }.encode(), Err(CheckpointError::Line));
    }
    assert_eq!(Checkpoint { size: TREE_SIZE_MAX + 1, ..good }.encode(), Err(CheckpointError::Size));
}

#[test]
fn only_the_log_itself_opens_its_checkpoint() {
    let (bytes, log) = signed(EXAMPLE, "example.com/behind-the-sofa", 1);
    let (_, stranger) = signed(EXAMPLE, "example.com/behind-the-sofa", 2);

    let (opened, note) = Checkpoint::open(bytes.as_bytes(), &log).unwrap();

    assert_eq!(opened, checkpoint(EXAMPLE).unwrap());
    assert_eq!(note.encode(), bytes);
    let by_stranger = Checkpoint::open(bytes.as_bytes(), &stranger);
    assert!(matches!(by_stranger, Err(OpenError::Signature(VerifyError::Unsigned { .. }))));
    assert!(matches!(Checkpoint::open(EXAMPLE.as_bytes(), &log), Err(OpenError::Note(_))));
}

#[test]
fn a_key_of_another_log_does_not_speak_for_this_one() {
    let (bytes, other) = signed(EXAMPLE, "example.com/other", 1);

    let expected = "example.com/other".to_owned();
    let found = "example.com/behind-the-sofa".to_owned();
    assert_eq!(Checkpoint::open(bytes.as_bytes(), &other), Err(OpenError::Origin { found, expected }));
}

#[test]
fn a_signed_text_that_is_no_checkpoint_is_refused() {
    let (bytes, log) = signed("log\n7\n", "log", 1);

    assert_eq!(Checkpoint::open(bytes.as_bytes(), &log), Err(OpenError::Checkpoint(CheckpointError::Lines)));
}

proptest! {
    #[test]
    fn a_checkpoint_that_is_written_is_read_again(
        origin in "[!-~é][ -~é]{0,40}", size in 0..=TREE_SIZE_MAX, root: [u8; 32],
        extensions in proptest::collection::vec("[ -~]{1,20}", 0..4),
    ) {
        let written = Checkpoint { origin, size, root: NodeHash::from_bytes(root), extensions };

        prop_assert_eq!(checkpoint(&written.encode().unwrap()), Ok(written));
    }

    #[test]
    fn what_is_read_is_spelled_in_one_way(text in "[a\n]{1,3}\n[+0-9]{1,3}\n[A-Za-z0-9]{43}=\n([ a]{0,2}\n){0,2}") {
        if let Ok(read) = checkpoint(&text) {
            prop_assert_eq!(read.encode().unwrap(), text);
        }
    }
}
