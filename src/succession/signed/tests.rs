use super::super::testing::{TestKey, planned, roots, signed};
use super::*;

#[test]
fn a_key_signs_notes_under_its_own_name() {
    for (name, expected) in
        [("cache.example-1", "cache.example-1"), ("a+b", "a%2Bb"), ("a%2Bb", "a%252Bb"), ("100%", "100%25")]
    {
        let key = TestKey::named(name).public;

        assert_eq!(note_key(&key).unwrap().name().as_str(), expected);
        assert_eq!(note_key(&key).unwrap().bytes(), key.bytes());
    }
}

#[test]
fn a_name_that_gets_too_long_is_refused() {
    let key =
        |name: String| PublicKey::new(name.parse().unwrap(), TestKey::named("a").public.bytes()).unwrap();

    assert!(note_key(&key("+".repeat(85))).is_ok());
    assert!(matches!(note_key(&key("+".repeat(86))), Err(NoteKeyError::Name(_))));
}

#[test]
fn a_signature_is_of_one_key_and_one_text() {
    let statement = planned(1, "main-1", "main-2");
    let both = signed(&statement, &["main-1", "main-2"]);

    assert!(both.is_signed_by(&statement.old) && both.is_signed_by(&statement.new));
    assert!(!both.is_signed_by(&TestKey::named("main-3").public));
    let other = both.note().encode().replacen("seq 1", "seq 2", 1);
    let other = Signed::<Statement>::parse(other.as_bytes()).unwrap();
    assert!(!other.is_signed_by(&statement.old) && !other.is_signed_by(&statement.new));
}

#[test]
fn nixs_own_signature_of_the_same_bytes_is_what_stands_there() {
    // A note's signature is Ed25519 over the text: what keeps the uses of a key apart is how the texts begin.
    let text = planned(1, "main-1", "main-2").encode().unwrap();

    assert!(text.starts_with("narvault/"));
    assert!(!text.starts_with("1;") && !text.starts_with('{') && !text.starts_with("cosignature/"));
}

#[test]
fn a_text_of_another_kind_is_refused() {
    let roots = signed(&roots(1, 1, &["alice"]), &["alice"]);

    assert!(Signed::<Statement>::parse(roots.note().encode().as_bytes()).is_err());
    assert!(Signed::<Document>::parse(roots.note().encode().as_bytes()).is_ok());
    let checkpoint = TestKey::named("log").sign("narvault-log-x\n1\nAAAA\n");
    assert!(Signed::<Document>::parse(checkpoint.encode().as_bytes()).is_err());
}

#[test]
fn a_draft_gathers_signatures() {
    let statement = planned(1, "main-1", "main-2");
    let draft = Draft::new(Document::Succession(statement.clone())).unwrap();
    assert_eq!(Draft::parse(&draft.encode()).unwrap(), draft);
    assert_eq!(draft.signers(), Vec::<String>::new());

    let once = draft.with(TestKey::named("alice").sign(&statement.encode().unwrap())).unwrap();
    let once = Draft::parse(&once.encode()).unwrap();
    let twice = once.clone().with(TestKey::named("bob").sign(once.text())).unwrap();
    let again = twice.clone().with(TestKey::named("bob").sign(once.text())).unwrap();

    assert_eq!(twice.signers(), ["alice", "bob"]);
    assert_eq!(again, twice);
    assert_eq!(Signed::<Statement>::parse(twice.encode().as_bytes()).unwrap().content(), &statement);
    assert!(twice.with(TestKey::named("carol").sign("another text\n")).is_err());
}

#[test]
fn what_is_no_draft_is_refused() {
    let text = planned(1, "main-1", "main-2").encode().unwrap();
    for file in
        [String::new(), "\n".into(), "\n\n".into(), text.clone(), format!("{text}\n\n"), format!(" {text}\n")]
    {
        assert!(Draft::parse(&file).is_err(), "{file:?}");
    }
}
