use proptest::prelude::*;

use super::super::claim::tests::any_store_path;
use super::*;

const HEX: &str = "0d3afc1656b44d9551db2ba53a7e1d61e538d966b848f781ae98b076fb011dc4";
const THING_HEX: &str = "c18cdd4bb22dded47e0e51273156fca6e98cbc3bbc9bd2db3a439903e3fcb880";
const USER: &str = include_str!("../../../tests/golden/nix-2.8/ca-user.doi");
const THING: &str = include_str!("../../../tests/golden/nix-2.8/ca-thing.doi");
const USER_2_34: &str = include_str!("../../../tests/golden/nix-2.34/ca-user.doi");
const NEW: &str = r#"{"outPath":"1vf2sas9hn1hd8vwimspbahbl5hjg065-ca-user","signatures":[]}"#;
const SIG: &str = "Ym3M6sOHhaUbrW0unj6JYlpecPA/7PQhABjdrWlFwZh+pOOCMwvV77X6qm8Ct5smYPO9zxPWEXAdc6EAoBrQAg==";

fn old_key(hex: &str) -> RealisationKey {
    format!("realisations/sha256:{hex}!out.doi").parse().unwrap()
}

fn new_key() -> RealisationKey {
    "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out.doi".parse().unwrap()
}

fn signature(name: &str) -> Signature {
    format!("{name}:{SIG}").parse().unwrap()
}

#[test]
fn what_nix_wrote_is_read_and_written_again() {
    for (hex, body) in [(HEX, USER), (THING_HEX, THING), (HEX, USER_2_34)] {
        let realisation = Realisation::parse(old_key(hex), body.as_bytes()).unwrap();
        assert_eq!(realisation.to_json(), body);
    }
    let realisation = Realisation::parse(new_key(), NEW.as_bytes()).unwrap();
    assert_eq!(realisation.to_json(), NEW);
}

#[test]
fn the_older_fingerprint_is_the_body_without_its_signatures() {
    let mut realisation = Realisation::parse(old_key(HEX), USER.as_bytes()).unwrap();
    let expected = USER.replace(r#","signatures":[]"#, "");

    assert_eq!(realisation.fingerprint(), expected);

    realisation.signatures.push(signature("a"));

    assert_eq!(realisation.fingerprint(), expected);
}

#[test]
fn the_newer_fingerprint_names_the_derivation() {
    let realisation = Realisation::parse(new_key(), NEW.as_bytes()).unwrap();
    assert_eq!(
        realisation.fingerprint(),
        r#"{"key":{"drvPath":"y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv","outputName":"out"},"value":{"outPath":"1vf2sas9hn1hd8vwimspbahbl5hjg065-ca-user"}}"#
    );
}

#[test]
fn signatures_are_read_in_both_spellings_and_printed_in_that_of_the_generation() {
    let both = format!(r#""signatures":["b:{SIG}",{{"keyName":"a","sig":"{SIG}"}},"b:{SIG}"]"#);
    let old = USER.replace(r#""signatures":[]"#, &both);
    let new = NEW.replace(r#""signatures":[]"#, &both);

    let old = Realisation::parse(old_key(HEX), old.as_bytes()).unwrap();
    let new = Realisation::parse(new_key(), new.as_bytes()).unwrap();

    assert_eq!(old.signatures, [signature("b"), signature("a")]);
    assert!(old.to_json().ends_with(&format!(r#""signatures":["a:{SIG}","b:{SIG}"]}}"#)));
    assert!(new.to_json().ends_with(&format!(
        r#""signatures":[{{"keyName":"a","sig":"{SIG}"}},{{"keyName":"b","sig":"{SIG}"}}]}}"#
    )));
}

#[test]
fn what_older_clients_leave_out_is_empty() {
    let body = format!(r#"{{"id":"sha256:{HEX}!out","outPath":"1vf2sas9hn1hd8vwimspbahbl5hjg065-ca-user"}}"#);
    let realisation = Realisation::parse(old_key(HEX), body.as_bytes()).unwrap();
    assert!(realisation.dependents.is_empty() && realisation.signatures.is_empty());
}

#[test]
fn other_names_are_refused() {
    for name in [
        "".to_owned(),
        "realisations/".into(),
        "realisations/.doi".into(),
        format!("sha256:{HEX}!out.doi"),
        format!("realisations/sha256:{HEX}!out"),
        format!("realisations/sha256:{HEX}!.doi"),
        format!("realisations/sha256:{HEX}.doi"),
        format!("realisations/sha256:{HEX}%21out.doi"),
        format!("realisations/sha256:{}!out.doi", &HEX[2..]),
        format!("realisations/sha256:{}!out.doi", HEX.to_uppercase()),
        format!("realisations/md5:{HEX}!out.doi"),
        format!("realisations/sha256:{HEX}!a/b.doi"),
        format!("realisations/sha256:{HEX}!a!b.doi"),
        format!("realisations/sha256:{HEX}!...doi"),
        format!("realisations//sha256:{HEX}!out.doi"),
        "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv".into(),
        "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out".into(),
        "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user/out.doi".into(),
        "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/a/out.doi".into(),
        "build-trace-v2/../y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out.doi".into(),
        "build-trace-v3/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out.doi".into(),
    ] {
        assert!(name.parse::<RealisationKey>().is_err(), "{name:?}");
    }
}

#[test]
fn other_bodies_are_refused() {
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for (from, to) in [
        (HEX, THING_HEX),
        ("!out\",\"outPath", "!dev\",\"outPath"),
        ("\"id\"", "\"x\":1,\"id\""),
        ("\"id\"", "\"id\":\"\",\"id\""),
        ("\"outPath\"", "\"outPaths\""),
        ("\"outPath\":\"", "\"outPath\":\"/nix/store/"),
        (THING_HEX, "x"),
        ("\"vmkh1b", "\"/nix/store/vmkh1b"),
        ("{\"sha256:", "{\"sha256:x\":null,\"sha256:"),
        ("[]", "[\"\"]"),
        ("[]", "[\"a:AAAA\"]"),
        ("[]", "[{\"keyName\":\"a\"}]"),
        ("[]", "[{\"keyName\":\"a\",\"sig\":\"AAAA\"}]"),
        ("[]", "[1]"),
        ("[]", "{}"),
        ("[]", deep.as_str()),
        ("}", "}}"),
    ] {
        let body = USER.replacen(from, to, 1);
        assert_ne!(body, USER);
        assert!(Realisation::parse(old_key(HEX), body.as_bytes()).is_err(), "{from} -> {to}");
    }
    assert!(Realisation::parse(new_key(), USER.as_bytes()).is_err());
    assert!(Realisation::parse(old_key(HEX), NEW.as_bytes()).is_err());
}

#[test]
fn a_repeated_dependent_is_refused() {
    let entry = format!(r#""sha256:{THING_HEX}!out":"vmkh1bywiz9zvy1ba93swrb683mxr3kq-ca-thing""#);
    let body = USER.replacen(&entry, &format!("{entry},{entry}"), 1);
    let error = Realisation::parse(old_key(HEX), body.as_bytes());
    assert!(matches!(error, Err(ParseRealisationError::Json(_))));
}

#[test]
fn bodies_beyond_a_limit_are_refused() {
    let large = format!("{USER}{}", " ".repeat(REALISATION_SIZE_BYTES_MAX));
    let error = Realisation::parse(old_key(HEX), large.as_bytes());
    assert!(matches!(error, Err(ParseRealisationError::TooLarge)));

    let many = vec![format!("\"a:{SIG}\""); SIGNATURES_MAX + 1].join(",");
    let body = USER.replace("[]", &format!("[{many}]"));
    let error = Realisation::parse(old_key(HEX), body.as_bytes());
    assert!(matches!(error, Err(ParseRealisationError::TooManySignatures)));
}

fn any_drv_output() -> impl Strategy<Value = DrvOutput> {
    (any::<[u8; 32]>(), "[a-z][A-Za-z0-9+._?=-]{0,9}").prop_map(|(digest, output)| DrvOutput {
        drv_hash: Sha256Digest(digest),
        output: output.parse().unwrap(),
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses(
        id in any_drv_output(),
        derivation in any_store_path(),
        out_path in any_store_path(),
        dependents in proptest::collection::btree_map(any_drv_output(), any_store_path(), 0..4),
        names in proptest::collection::btree_set("[!-9;-~]{1,9}", 0..3),
    ) {
        let derivation = StorePath::from_base_name(&format!("{}.drv", derivation.base_name())).unwrap();
        let output = id.output.clone();
        let signatures: Vec<Signature> = names.iter().map(|name| signature(name)).collect();
        for (key, dependents) in [
            (RealisationKey::DrvOutput(id), dependents),
            (RealisationKey::BuildTrace { derivation, output }, BTreeMap::new()),
        ] {
            prop_assert_eq!(key.to_string().parse(), Ok(key.clone()));
            let realisation = Realisation { key, out_path: out_path.clone(), dependents, signatures: signatures.clone() };

            let parsed = Realisation::parse(realisation.key.clone(), realisation.to_json().as_bytes()).unwrap();

            // Signatures come back sorted by their text.
            prop_assert_eq!(parsed.to_json(), realisation.to_json());
            prop_assert_eq!(parsed.fingerprint(), realisation.fingerprint());
            prop_assert_eq!(parsed.out_path, realisation.out_path);
            prop_assert_eq!(parsed.dependents, realisation.dependents);
        }
    }

    #[test]
    fn no_bytes_panic(body: Vec<u8>, text: String, cut in 0..USER.len()) {
        let _ = Realisation::parse(old_key(HEX), &body);
        let _ = text.parse::<RealisationKey>();
        let mut changed = USER.to_owned();
        changed.insert_str(cut, &text);
        let _ = Realisation::parse(old_key(HEX), changed.as_bytes());
        let _ = Realisation::parse(new_key(), changed.as_bytes());
    }
}
