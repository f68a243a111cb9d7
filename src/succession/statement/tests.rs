use proptest::prelude::*;

use super::super::testing::{TestKey, compromise, day, planned, roots};
use super::*;

fn whole() -> Statement {
    let roots = roots(3, 2, &["alice", "bob", "carol"]);
    let log =
        LogHead { origin: "narvault-log-x4c1v0".into(), size: 1234, root: NodeHash::from_bytes([5; 32]) };
    Statement { log: Some(log), ..compromise(7, "main-1", "main-2", &roots) }
}

#[test]
fn a_statement_reads_back_as_it_was_written() {
    for statement in [planned(1, "main-1", "main-2"), whole()] {
        let text = statement.encode().unwrap();

        assert_eq!(Statement::parse(&text), Ok(statement));
    }
}

#[test]
fn the_text_has_the_documented_lines() {
    let text = planned(1, "main-1", "main-2").encode().unwrap();
    let keys: Vec<&str> = text.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();

    assert!(text.starts_with("narvault/key-succession/v1\ncache main 0199a1b2-"), "{text}");
    assert_eq!(
        keys,
        ["cache", "seq", "old", "new", "reason", "roots", "not-before", "retire-old", "expires", "log"]
    );
    assert!(text.contains("\nreason planned\nroots -\nnot-before 2026-11-22T12:00:00.000Z\nretire-old -\n"));
    assert!(text.ends_with("\nlog -\n"));
}

#[test]
fn other_spellings_are_refused() {
    let text = whole().encode().unwrap();
    for (from, to) in [
        ("/v1\n", "/v2\n"),
        ("narvault/", " narvault/"),
        ("seq 7", "seq 07"),
        ("seq 7", "seq +7"),
        ("seq 7", "seq -7"),
        ("seq 7", "seq  7"),
        ("seq 7", "seq 7 "),
        ("seq 7\n", "seq 7\r\n"),
        ("seq 7\n", "seq 7\nseq 7\n"),
        ("seq 7\n", ""),
        ("seq 7\n", "\nseq 7\n"),
        ("seq 7", "seq 18446744073709551616"),
        ("reason compromise", "reason Compromise"),
        ("reason compromise", "reason expired"),
        ("roots 3 ", "roots 3  "),
        ("roots 3 ", "roots 03 "),
        (".000Z\nretire", "Z\nretire"),
        (".000Z\nretire", ".000+00:00\nretire"),
        ("T12:00:00.000Z\nretire", "t12:00:00.000z\nretire"),
        ("log narvault-log-x4c1v0 1234 ", "log narvault-log-x4c1v0 01234 "),
        ("log narvault-log-x4c1v0 1234 ", "log 1234 "),
        ("cache main ", "cache ma in "),
        ("cache main ", "cache m\u{e4}in "),
        ("cache main ", "cache "),
        ("old main-1:", "old main 1:"),
        ("old main-1:", "old main-1:A"),
    ] {
        let changed = text.replacen(from, to, 1);

        assert_ne!(changed, text, "{from:?}");
        assert!(Statement::parse(&changed).is_err(), "{from:?} {to:?}");
    }
    assert_eq!(Statement::parse(&format!("{text}log -\n")), Err(ReadError::Trailing));
    assert!(Statement::parse(text.trim_end()).is_err());
    assert_eq!(Statement::parse(&format!("{text}{}", " ".repeat(8192))), Err(ReadError::TooLarge));
}

#[test]
fn what_contradicts_itself_is_neither_written_nor_read() {
    let first = || planned(1, "main-1", "main-2");
    let other_name =
        |name: &str, key: &PublicKey| PublicKey::new(name.parse().unwrap(), key.bytes()).unwrap();
    for (what, statement) in [
        ("no number", Statement { seq: 0, ..first() }),
        ("itself", Statement { new: first().old, ..first() }),
        ("one name", Statement { new: other_name("main-1", &first().new), ..first() }),
        ("one key", Statement { new: other_name("main-2", &first().old), ..first() }),
        ("no time", Statement { expires: first().not_before, ..first() }),
        ("retired before", Statement { retire_old: Some(day(-1)), ..first() }),
        ("no root keys", Statement { roots: None, ..whole() }),
        ("no end of the old key", Statement { retire_old: None, ..whole() }),
        ("no cache", Statement { cache: CacheRef { name: "-".into(), id: "x".into() }, ..first() }),
        ("two lines", Statement { cache: CacheRef { name: "a\nseq 2".into(), id: "x".into() }, ..first() }),
    ] {
        assert!(statement.encode().is_err(), "{what}");
        assert!(Statement::parse(&statement.text()).is_err(), "{what}");
    }
}

#[test]
fn a_key_that_may_be_stolen_does_not_vouch_for_the_next() {
    let (old, new) = (TestKey::named("main-1").public, TestKey::named("main-2").public);
    let stranger = TestKey::named("main-3").public;

    assert!(planned(1, "main-1", "main-2").needs(&old) && planned(1, "main-1", "main-2").needs(&new));
    assert!(!whole().needs(&old) && whole().needs(&new));
    assert!(!planned(1, "main-1", "main-2").needs(&stranger));
}

proptest! {
    #[test]
    fn any_statement_reads_back(
        seq in 1..u64::MAX,
        since in 0_i64..4_000_000_000_000,
        length in 1_i64..1_000_000_000_000,
        retire in proptest::option::of(0_i64..1_000_000_000_000),
        (old, new) in ("[!-9;-~]{1,40}", "[!-9;-~]{1,40}"),
    ) {
        prop_assume!(old != new);
        let not_before = Timestamp(since);
        let statement = Statement {
            seq,
            not_before,
            expires: not_before.plus_millis(length),
            retire_old: retire.map(|millis| not_before.plus_millis(millis)),
            old: PublicKey::new(old.parse().unwrap(), TestKey::named("a").public.bytes()).unwrap(),
            new: PublicKey::new(new.parse().unwrap(), TestKey::named("b").public.bytes()).unwrap(),
            ..planned(1, "main-1", "main-2")
        };

        let text = statement.encode().unwrap();

        prop_assert_eq!(Statement::parse(&text), Ok(statement));
    }
}
