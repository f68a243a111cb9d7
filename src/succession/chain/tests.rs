use super::super::testing::{chain, planned, roots, signed};
use super::*;

fn two() -> Chain {
    let set = roots(1, 1, &["alice", "bob"]);
    let mut chain = chain(&[planned(1, "main-1", "main-2"), planned(2, "main-2", "main-3")]);
    chain.roots.push(signed(&set, &["alice", "bob"]));
    chain
}

#[test]
fn a_document_reads_back_as_it_was_written() {
    for chain in [Chain::default(), two()] {
        assert_eq!(Chain::parse(chain.encode().as_bytes()), Ok(chain));
    }
    assert_eq!((two().head(), Chain::default().head()), (2, 0));
    assert!(Chain::default().is_empty() && !two().is_empty());
}

#[test]
fn other_shapes_are_refused() {
    let text = two().encode();
    let (first, rest) = text.split_at(text.find("\n\nnarvault/key-succession").unwrap() + 2);
    for (what, changed) in [
        ("nothing", "\n".to_owned()),
        ("no end", text.trim_end().to_owned()),
        ("a line more", format!("{text}\n")),
        ("a line before", format!("\n{text}")),
        ("two lines between", format!("{first}\n{rest}")),
        (
            "another order",
            format!(
                "{}\n{}",
                rest.trim_end_matches('\n').to_owned() + "\n",
                first.trim_end_matches('\n').to_owned() + "\n"
            ),
        ),
        ("half a note", text.replacen("\n\n\u{2014}", "\n\u{2014}", 1)),
        ("windows", text.replace('\n', "\r\n")),
        ("another format", text.replace("key-succession/v1", "key-succession/v2")),
    ] {
        assert!(Chain::parse(changed.as_bytes()).is_err(), "{what}");
    }
    assert_eq!(Chain::parse(b"\xff\n"), Err(ChainError::NotUtf8));
    assert_eq!(Chain::parse(&vec![b'\n'; CHAIN_SIZE_BYTES_MAX + 1]), Err(ChainError::TooLarge));
    assert_eq!(Chain::parse("a\n\n".repeat(2001).as_bytes()), Err(ChainError::TooLarge));
}
