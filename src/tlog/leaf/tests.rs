use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

const HASH: &str = "7pprv9srdzifgfss2pfhc3i03qyayigx";
const SIG: &str = "L1my2At/ytj/ZyKn1Sq3DsL/eHav0KW7URkN7hAwWWylEmm7cIZKDgaaB9qWy9EoSvMMRb6P7HDk7nhHS8orAA==";
const SALT: Salt = [7; 16];

/// The leaf of a signature that Nix 2.8 made too.
const SIGN: &str = include_str!("../../../tests/golden/log-v1/sign.leaf");

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn parse(text: &str) -> Result<Leaf, LeafError> {
    Leaf::parse(text.as_bytes())
}

fn claim() -> ClaimLines {
    match parse(SIGN).unwrap().event.claim() {
        Some(Disclosed::Open(claim)) => claim.clone(),
        _ => panic!("an open claim"),
    }
}

/// A leaf around lines of its own.
fn framed(event: &str, own: &str) -> String {
    format!("{HEADER}event {event}\ntime 2026-11-22T13:10:00.123Z\n{own}by -\ntoken -\ndetail -\n")
}

#[test]
fn a_leaf_is_read_and_written_byte_for_byte() {
    let leaf = parse(SIGN).unwrap();

    assert_eq!(leaf.encode().unwrap(), SIGN);
    let Event::Sign(signed) = &leaf.event else { panic!("a signature") };
    assert_eq!(signed.key.as_str(), "cache.example-1");
    assert_eq!(signed.basis, Basis { policy: Some(word("direct")), replaces: None });
}

#[test]
fn the_bytes_that_nix_signed_are_rebuilt_from_the_leaf_alone() {
    let fingerprint = claim().fingerprint().unwrap();
    let signature = data_encoding::BASE64.decode(SIG.as_bytes()).unwrap();
    let key = data_encoding::BASE64.decode(b"KTnIv/5EZPLL82WhTGPgRkMxcH8bKEo3oeDue5yu2Q8=").unwrap();
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key.try_into().unwrap()).unwrap();

    let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
    assert!(key.verify_strict(fingerprint.as_bytes(), &signature).is_ok());
}

#[test]
fn a_claim_without_references_ends_in_a_semicolon() {
    let claim = ClaimLines { references: References::list("").unwrap(), ..claim() };
    assert!(claim.text().ends_with("references -\n"));
    assert!(claim.fingerprint().unwrap().ends_with(";2080;"));
}

#[test]
fn a_private_leaf_shows_one_line_which_its_opening_fits() {
    let start = SIGN.find("cache ").unwrap();
    let end = SIGN.find("key ").unwrap();
    let covered = &SIGN[start..end];
    let private = format!("private {}\n", Commitment::of(&SALT, covered.as_bytes()));
    let text = SIGN.replace(covered, &private);

    let leaf = parse(&text).unwrap();

    assert_eq!(leaf.encode().unwrap(), text);
    let hidden = leaf.event.claim().unwrap();
    assert_eq!(hidden, &Disclosed::sealed(&claim(), &SALT));
    assert!(hidden.is(&ClaimLines::parse(covered).unwrap(), &SALT));
    assert!(!hidden.is(&claim(), &[8; 16]));
    let other = ClaimLines { nar_size: Some(1), ..claim() };
    assert!(!hidden.is(&other, &SALT));
    assert!(Disclosed::Open(claim()).is(&claim(), &SALT));
    assert!(!Disclosed::Open(claim()).is(&other, &SALT));
}

#[test]
fn openings_that_are_not_exact_are_refused() {
    let text = claim().text();
    assert!(ClaimLines::parse(&text).is_ok());
    for text in [
        String::new(),
        text.trim_end().into(),
        format!("{text}\n"),
        format!("{text}key main-1\n"),
        text.replace("4kdz", "z4kd"),
    ] {
        assert!(ClaimLines::parse(&text).is_err(), "{text}");
    }
}

#[test]
fn every_event_has_its_lines() {
    let path = format!("cache main\npath /nix/store/{HASH}-a\nnar-hash -\n");
    let private = format!("private {}\n", Commitment::of(&SALT, b"x"));
    let key = "cache main\nkey main-1\npublic-key -\nstate active\n";
    for (events, own) in [
        ("withdraw delete restore conflict", path.as_str()),
        ("withdraw delete restore conflict", &private),
        ("token-issue token-revoke", "subject 01997c5c-0000-7000-8000-000000000002\n"),
        ("contributor-create contributor-suspend contributor-quarantine", "subject 01997c5c\n"),
        ("cache-create cache-delete policy-change", "cache main\n"),
        ("cache-create cache-delete policy-change", "cache -\n"),
        ("cache-create cache-delete policy-change", &private),
        ("key-create key-state key-succession", key),
        ("key-create key-state key-succession", &key.replace("cache main\n", &private)),
        ("oidc-rule vault-slot admin-claim audit-commit", ""),
    ] {
        for event in events.split(' ') {
            let text = framed(event, own);
            let leaf = parse(&text).expect(event);
            assert_eq!(leaf.encode().unwrap(), text);
            assert_eq!(leaf.event.name(), event);
            assert!(!matches!(leaf.event, Event::Unknown(_)), "{event}");

            assert!(parse(&framed(event, &format!("{own}more -\n"))).is_err(), "{event}");
            assert!(own.is_empty() || parse(&framed(event, "")).is_err(), "{event}");
        }
    }
    for event in ["sign", "resign", "realisation"] {
        let text = SIGN.replace("event sign", &format!("event {event}"));
        assert_eq!(parse(&text).unwrap().encode().unwrap(), text);
    }
    let attest = SIGN.replace("event sign", "event attest");
    assert!(parse(&attest).is_err());
    let attest: String = attest
        .lines()
        .filter(|line| !line.starts_with("key ") && !line.starts_with("sig "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(parse(&attest).unwrap().encode().unwrap(), attest);
}

/// Every event, in every form that it has: in clear, hidden, with a digest for its list, of the server itself, and as
/// early versions wrote what a takedown did, with the token that had asked for it.
#[test]
fn leaves_that_were_ever_written_are_read_for_ever() {
    let claims = ["", ".digest", ".private"];
    let (hidden, of_server) = (["", ".private"], ["", ".private", ".server"]);
    let by_asker = ["", ".private", ".asked"];
    let mut expected = vec!["later.leaf".to_owned()];
    for (events, forms) in [
        ("sign resign realisation attest", &claims[..]),
        ("withdraw restore", &by_asker),
        ("delete conflict cache-create cache-delete key-state key-succession", &hidden),
        ("policy-change key-create", &of_server),
        ("token-issue token-revoke contributor-create contributor-suspend contributor-quarantine", &[""]),
        ("oidc-rule vault-slot admin-claim audit-commit", &[""]),
    ] {
        let names =
            events.split(' ').flat_map(|event| forms.iter().map(move |form| format!("{event}{form}.leaf")));
        expected.extend(names);
    }
    expected.sort();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-v1/events");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();

        let leaf = parse(&text).expect(&name);

        assert_eq!(leaf.encode().unwrap(), text, "{name}");
        let (event, form) = name.split_once('.').unwrap();
        let is_known = !matches!(leaf.event, Event::Unknown(_));
        assert_eq!(is_known.then(|| leaf.event.name()), (event != "later").then_some(event), "{name}");
        assert_eq!(text.contains("\nprivate "), form == "private.leaf", "{name}");
        assert_eq!(text.contains("\nreferences-sha256 "), form == "digest.leaf", "{name}");
        assert!(form != "asked.leaf" || leaf.token.is_some(), "{name}");
        found.push(name);
    }
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn an_event_of_a_later_version_is_shown() {
    let text = framed("key-escrow", "cache main\nshare two words\n").replace("detail", "why because\ndetail");

    let leaf = parse(&text).unwrap();

    assert_eq!(leaf.encode().unwrap(), text);
    let Event::Unknown(event) = &leaf.event else { panic!("unknown") };
    let lines: Vec<_> = event.lines().collect();
    assert_eq!(lines, [("cache", "main"), ("share", "two words"), ("why", "because")]);
}

#[test]
fn other_texts_are_refused() {
    for (from, to) in [
        ("narvault/log/v1", "narvault/log/v2"),
        ("narvault/log/v1\n", ""),
        ("narvault/log/v1\n", "narvault/log/v1\n\n"),
        ("narvault/log/v1\n", "narvault/log/v1\r\n"),
        ("event sign", "event  sign"),
        ("event sign", "event sign "),
        ("event sign", "event -"),
        ("event sign", "Event sign"),
        ("event sign\n", ""),
        ("event sign", "event resign sign"),
        ("123Z", "123456Z"),
        ("123Z", "123+00:00"),
        ("13:10", "13.10"),
        ("T13", "t13"),
        ("cache main", "cache"),
        ("cache main", "cache "),
        ("cache main", "cache -"),
        ("cache main", "cache ma in"),
        ("cache main", "cache mäin"),
        ("cache main", "cache main\ncache main"),
        ("cache main\n", ""),
        ("path /nix", "path -\npath /nix"),
        ("nar-size 2080", "nar-size 02080"),
        ("nar-size 2080", "nar-size +2080"),
        ("nar-size 2080", "nar-size 2080 "),
        ("nar-size 2080", "nar-size 18446744073709551616"),
        ("references 4kdz", "references  4kdz"),
        ("references 4kdz", "references z4kdz"),
        ("references 4kdz", "references - 4kdz"),
        ("-1.0\nkey", "-1.0 7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0\nkey"),
        ("-1.0\nkey", "-1.0 \nkey"),
        ("references 4kdz", "references-sha256 4kdz"),
        ("key cache", "private AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nkey cache"),
        ("sig L1my", "sig 1my"),
        ("rAA==", "rAA="),
        ("rAA==", "rAB=="),
        ("sig L1my", "sig cache.example-1:L1my"),
        ("sig L1my", "sig -\nsig L1my"),
        ("by 0", "by \t0"),
        ("policy direct\nreplaces -", "replaces -\npolicy direct"),
        ("replaces -", "replaces 00"),
        ("replaces -", "replaces none"),
        ("replaces -\n", ""),
        ("detail AAAA", "detail AAA"),
        ("AAA=\n", "AAA="),
        ("AAA=\n", "AAA=\n\n"),
        ("AAA=\n", "AAB=\n"),
        ("AAA=\n", "AAA=\nnote x\n"),
    ] {
        let text = SIGN.replacen(from, to, 1);
        assert_ne!(text, SIGN, "{from:?}");
        assert!(parse(&text).is_err(), "{from:?} -> {to:?}");
    }
    assert_eq!(Leaf::parse(b"narvault/log/v1\n\xff"), Err(LeafError::NotUtf8));
    assert_eq!(parse(""), Err(LeafError::Header));
}

#[test]
fn words_that_would_break_a_line_are_refused() {
    for text in ["", "-", " ", "a b", "a\n", "a\r", "ü", &"x".repeat(WORD_LEN_MAX + 1)] {
        assert!(text.parse::<Word>().is_err(), "{text:?}");
    }
    assert!("x".repeat(WORD_LEN_MAX).parse::<Word>().is_ok());
}

#[test]
fn a_leaf_that_would_be_too_large_carries_the_digest_of_its_references() {
    let names: Vec<String> = (0..400).map(|index| format!("{HASH}-reference-{index:03}")).collect();
    let list = names.join(" ");
    let full = ClaimLines { references: References::list(&list).unwrap(), ..claim() };
    let mut leaf = parse(SIGN).unwrap();
    *leaf.event.claim_mut().unwrap() = Disclosed::Open(full.clone());
    assert_eq!(leaf.encode(), Err(LeafError::TooLarge));

    let (leaf, kept) = leaf.fitted();

    let text = leaf.encode().unwrap();
    assert_eq!(kept.as_deref(), Some(list.as_str()));
    assert!(text.contains(&format!("\nreferences-sha256 {}\n", hex(list.as_bytes()))));
    assert_eq!(parse(&text), Ok(leaf.clone()));
    let Some(Disclosed::Open(short)) = leaf.event.claim() else { panic!("an open claim") };
    assert_eq!(short.fingerprint(), None);
    assert_eq!(short.references.resolved(&list), Some(full.references));
    assert_eq!(short.references.resolved(&names[1..].join(" ")), None);
}

#[test]
fn a_leaf_that_fits_is_left_alone_and_one_byte_more_is_refused() {
    let leaf = parse(SIGN).unwrap();
    assert_eq!(leaf.clone().fitted(), (leaf, None));

    let line = format!("{}\n", "x".repeat(LEAF_SIZE_BYTES_MAX - framed("later", "own \n").len()));
    let full = framed("later", &format!("own {line}"));
    assert_eq!(full.len(), LEAF_SIZE_BYTES_MAX);
    assert!(parse(&full).is_ok());
    assert_eq!(parse(&framed("later", &format!("own x{line}"))), Err(LeafError::TooLarge));
}

#[test]
fn a_commitment_is_the_hash_of_salt_and_text() {
    let commitment = Commitment::of(&SALT, b"{}");
    let salted = [&SALT[..], b"{}"].concat();
    let digest = data_encoding::HEXLOWER.decode(hex(&salted).as_bytes()).unwrap();
    assert_eq!(commitment.to_string(), data_encoding::BASE64.encode(&digest));
    assert!(commitment.opens(&SALT, b"{}") && !commitment.opens(&SALT, b"{ }"));
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

fn any_word() -> impl Strategy<Value = Word> {
    "[!-~]{2,40}".prop_map(|text| word(&text))
}

fn any_disclosed<T: std::fmt::Debug + Clone>(
    lines: impl Strategy<Value = T>,
) -> impl Strategy<Value = Disclosed<T>> {
    (lines, any::<Option<Salt>>()).prop_map(|(lines, salt)| match salt {
        None => Disclosed::Open(lines),
        Some(salt) => Disclosed::Private(Commitment::of(&salt, b"lines")),
    })
}

fn any_claim() -> impl Strategy<Value = Disclosed<ClaimLines>> {
    let references = prop_oneof![
        proptest::collection::btree_set(any_word(), 0..5).prop_map(References::List),
        any::<[u8; 32]>().prop_map(References::Digest),
    ];
    let lines = (any_word(), any_word(), proptest::option::of(any_word()), any::<Option<u64>>(), references)
        .prop_map(|(cache, path, nar_hash, nar_size, references)| ClaimLines {
            cache,
            path,
            nar_hash,
            nar_size,
            references,
        });
    any_disclosed(lines)
}

fn any_event() -> impl Strategy<Value = Event> {
    let basis = || {
        (proptest::option::of(any_word()), any::<Option<u64>>())
            .prop_map(|(policy, replaces)| Basis { policy, replaces })
    };
    let signed =
        (any_claim(), any_word(), any::<[u8; 32]>(), basis()).prop_map(|(claim, key, half, basis)| {
            let sig = SignatureBytes([half, half].concat().try_into().unwrap());
            Signed { claim, key, sig, basis }
        });
    let cache = || any_disclosed(proptest::option::of(any_word()).prop_map(|cache| CacheLine { cache }));
    let key = (cache(), any_word(), proptest::option::of(any_word()), proptest::option::of(any_word()))
        .prop_map(|(cache, key, public_key, state)| KeyEvent { cache, key, public_key, state });
    let path = (any_word(), any_word(), proptest::option::of(any_word()))
        .prop_map(|(cache, path, nar_hash)| PathLines { cache, path, nar_hash });
    prop_oneof![
        signed.prop_map(Event::Sign),
        (any_claim(), basis()).prop_map(|(claim, basis)| Event::Attest(Attested { claim, basis })),
        any_disclosed(path).prop_map(Event::Withdraw),
        any_word().prop_map(Event::TokenRevoke),
        cache().prop_map(Event::PolicyChange),
        key.prop_map(Event::KeyState),
        Just(Event::AdminClaim),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        event in any_event(),
        millis in 0..1000u32,
        by in proptest::option::of(any_word()),
        token in proptest::option::of(any_word()),
        detail in any::<Option<Salt>>(),
    ) {
        let time = format!("2026-11-22T13:10:00.{millis:03}Z").parse().unwrap();
        let detail = detail.map(|salt| Commitment::of(&salt, b"{}"));
        let leaf = Leaf { event, time, by, token, detail };

        prop_assert_eq!(Leaf::parse(leaf.encode().unwrap().as_bytes()), Ok(leaf));
    }

    #[test]
    fn what_is_read_is_written_byte_for_byte(cut in 0..SIGN.len(), drop in 0..40usize, text in "[ -~\n]{0,6}") {
        let end = (cut + drop).min(SIGN.len());
        let changed = format!("{}{text}{}", &SIGN[..cut], &SIGN[end..]);

        if let Ok(leaf) = parse(&changed) {
            prop_assert_eq!(leaf.encode(), Ok(changed));
        }
    }

    #[test]
    fn no_bytes_panic(body: Vec<u8>, text: String) {
        let _ = Leaf::parse(&body);
        let _ = parse(&format!("{HEADER}{text}"));
        let _ = ClaimLines::parse(&text);
        let _ = References::list(&text);
    }
}
