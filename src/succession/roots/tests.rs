use super::super::testing::{TestKey, cache, roots, signed};
use super::*;

#[test]
fn a_set_reads_back_as_it_was_written() {
    let server = Roots { scope: RootScope::Server("x4c1v0abcd".into()), ..roots(9, 1, &["alice"]) };
    for roots in [roots(1, 2, &["alice", "bob", "carol"]), server] {
        let text = roots.encode().unwrap();

        assert_eq!(Roots::parse(&text), Ok(roots));
    }
}

#[test]
fn the_text_has_the_documented_lines() {
    let text = roots(1, 1, &["alice", "bob"]).encode().unwrap();
    let lines: Vec<&str> = text.lines().collect();

    assert_eq!(&lines[..2], ["narvault/key-roots/v1", &format!("for cache {}", cache())]);
    assert_eq!(&lines[2..4], ["version 1", "threshold 1"]);
    assert!(lines[4].starts_with("root alice:") && lines[5].starts_with("root bob:"));
    assert_eq!(lines.len(), 6);
}

#[test]
fn sets_that_could_not_be_meant_are_refused() {
    let three = || roots(1, 2, &["alice", "bob", "carol"]);
    let key = |name: &str, of: &str| {
        PublicKey::new(name.parse().unwrap(), TestKey::named(of).public.bytes()).unwrap()
    };
    let many: Vec<PublicKey> =
        (10..26).map(|number| TestKey::named(&format!("key-{number}")).public).collect();
    for (what, set) in [
        ("no version", Roots { version: 0, ..three() }),
        ("no threshold", Roots { threshold: 0, ..three() }),
        ("more than there are", Roots { threshold: 4, ..three() }),
        ("nobody", Roots { keys: Vec::new(), ..three() }),
        ("too many", Roots { keys: many, ..three() }),
        ("another order", roots(1, 2, &["bob", "alice"])),
        ("one twice", roots(1, 2, &["alice", "alice"])),
        ("one under two names", Roots { keys: vec![key("a", "alice"), key("b", "alice")], ..three() }),
        ("two lines", Roots { scope: RootScope::Server("x\nversion 1".into()), ..three() }),
    ] {
        assert!(set.encode().is_err(), "{what}");
        assert!(Roots::parse(&set.text()).is_err(), "{what}");
    }
}

#[test]
fn other_spellings_are_refused() {
    let text = roots(1, 2, &["alice", "bob"]).encode().unwrap();
    for (from, to) in [
        ("version 1", "version 01"),
        ("version 1", "version +1"),
        ("for cache", "for  cache"),
        ("for cache", "for machine"),
        ("threshold 2\n", ""),
        ("root bob", "Root bob"),
        ("root bob", "\nroot bob"),
    ] {
        assert!(Roots::parse(&text.replacen(from, to, 1)).is_err(), "{from:?} {to:?}");
    }
}

#[test]
fn each_root_key_counts_once() {
    let set = roots(1, 2, &["alice", "bob", "carol"]);
    let twice = signed(&set, &["alice", "alice", "stranger"]);
    let two = signed(&set, &["carol", "alice"]);

    assert_eq!((twice.signers_among(&set), twice.has_threshold_of(&set)), (1, false));
    assert_eq!((two.signers_among(&set), two.has_threshold_of(&set)), (2, true));
}

#[test]
fn a_reference_is_of_one_text() {
    let set = roots(1, 2, &["alice", "bob"]);
    let reference = set.reference();

    assert_eq!(RootsRef::parse("roots", &reference.to_string()), Ok(Some(reference.clone())));
    assert_ne!(roots(1, 1, &["alice", "bob"]).reference().digest, reference.digest);
    assert_eq!(signed(&set, &["alice"]).digest(), reference.digest);
    assert_eq!(RootsRef::parse("roots", "-"), Ok(None));
    for text in ["", "1", "1 ", "x AAAA", "1 AAAA", "-1 AAAA"] {
        assert!(RootsRef::parse("roots", text).is_err(), "{text:?}");
    }
}
