use proptest::prelude::*;

use super::super::claim::tests::{any_claim, any_store_path};
use super::super::compression::tests::any_compression;
use super::super::hash::Sha256Digest;
use super::super::signature::PublicKey;
use super::*;

/// The public half of the throwaway key that signed the golden files.
const GOLDEN_KEY: &str = "cache.example-1:KTnIv/5EZPLL82WhTGPgRkMxcH8bKEo3oeDue5yu2Q8=";
const AAA: &str = include_str!("../../../tests/golden/nix-2.8/aaa.xz.narinfo");
const SIGNED: [&str; 5] = [
    AAA,
    include_str!("../../../tests/golden/nix-2.8/ca-user.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/ca-thing.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/text.narinfo"),
    include_str!("../../../tests/golden/nix-2.34/aaa.xz.narinfo"),
];
const UNSIGNED: [&str; 6] = [
    include_str!("../../../tests/golden/nix-2.8/aaa.none.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/aaa.zstd.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/aaa.bzip2.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/aaa.gzip.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/aaa.br.narinfo"),
    include_str!("../../../tests/golden/nix-2.8/drv.narinfo"),
];

fn print(info: &NarInfo) -> String {
    NarInfoText {
        claim: &info.claim,
        file: info.file,
        compression: info.compression,
        file_size: info.file_size.unwrap(),
        deriver: info.deriver.as_ref(),
        signatures: &info.signatures,
        ca: info.ca.as_ref(),
    }
    .to_string()
}

fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(text.as_bytes())
}

/// `AAA` without the line of `field`.
fn without(field: Field) -> String {
    AAA.lines().filter(|line| !line.starts_with(field.key())).map(|line| format!("{line}\n")).collect()
}

/// `AAA` with another value for `field`.
fn with(field: Field, value: &str) -> String {
    format!("{}{field}: {value}\n", without(field))
}

#[test]
fn what_nix_wrote_is_printed_again_byte_for_byte() {
    for text in SIGNED.iter().chain(&UNSIGNED) {
        assert_eq!(&print(&parse(text).unwrap()), text);
    }
}

#[test]
fn what_nix_signed_verifies_over_the_fingerprint() {
    let key: PublicKey = GOLDEN_KEY.parse().unwrap();
    for text in SIGNED {
        let info = parse(text).unwrap();
        let [signature] = &info.signatures[..] else { panic!("one signature") };
        assert!(key.verify(info.claim.fingerprint().as_bytes(), signature), "{text}");
    }
}

#[test]
fn the_content_addresses_that_nix_wrote_lead_to_their_paths() {
    let mut recomputed = 0;
    for text in SIGNED.iter().chain(&UNSIGNED) {
        let NarInfo { claim, ca: Some(ca), .. } = parse(text).unwrap() else { continue };
        assert!(ca.is_recomputed(&claim.path, &claim.references));
        assert_eq!(ca.store_path(claim.path.name(), &claim.references), Ok(claim.path));
        recomputed += 1;
    }
    assert_eq!(recomputed, 4);
}

#[test]
fn every_spelling_of_a_hash_is_the_same_claim() {
    let claim = parse(AAA).unwrap().claim;
    let base64 = data_encoding::BASE64.encode(&claim.nar_hash.0.0);
    let hex = claim.nar_hash.0.hex();
    for value in [format!("sha256:{hex}"), format!("sha256:{base64}"), format!("sha256-{base64}")] {
        assert_eq!(parse(&with(Field::NarHash, &value)).unwrap().claim, claim, "{value}");
    }
}

#[test]
fn what_may_be_missing_may_be_missing() {
    for field in [Field::FileHash, Field::FileSize, Field::References, Field::Deriver, Field::Sig, Field::Ca]
    {
        assert!(parse(&without(field)).is_ok(), "{field}");
    }
    assert_eq!(parse(&with(Field::Deriver, "unknown-deriver")).unwrap().deriver, None);
}

#[test]
fn what_must_be_there_must_be_there() {
    for field in [Field::StorePath, Field::Url, Field::NarHash, Field::NarSize] {
        assert_eq!(parse(&without(field)), Err(NarInfoError::Missing { field }));
    }
    assert!(parse("\n").is_err());
    assert_eq!(parse(""), Err(NarInfoError::NoFinalLineFeed));
}

#[test]
fn a_missing_compression_means_bzip2() {
    let bzip2 = UNSIGNED[2].replace("Compression: bzip2\n", "");
    assert_eq!(parse(&bzip2).unwrap().compression, Compression::Bzip2);
    assert_eq!(parse(&without(Field::Compression)), Err(NarInfoError::CompressionOfUrl));
}

#[test]
fn unknown_fields_are_ignored_and_not_printed() {
    let text = format!("System: x86_64-linux\nX-New: a: b\nX-New: \n{AAA}");
    assert_eq!(print(&parse(&text).unwrap()), AAA);
}

#[test]
fn each_field_stands_once() {
    for line in AAA.lines().filter(|line| !line.starts_with("Sig")) {
        let error = parse(&format!("{AAA}{line}\n")).unwrap_err();
        assert!(matches!(error, NarInfoError::Repeated { .. }), "{line}");
    }
}

#[test]
fn signatures_are_collapsed_and_printed_sorted() {
    let sig = AAA.lines().find(|line| line.starts_with("Sig")).unwrap();
    let other = sig.replace("cache.example-1", "b");
    let text = format!("{AAA}{sig}\n{other}\n");

    let info = parse(&text).unwrap();

    assert_eq!(info.signatures.len(), 2);
    assert!(print(&info).contains(&format!("{other}\n{sig}\n")));
}

#[test]
fn more_signatures_than_the_limit_are_refused() {
    let sig = AAA.lines().find(|line| line.starts_with("Sig")).unwrap();
    let full = format!("{AAA}{}", format!("{sig}\n").repeat(SIGNATURES_MAX - 1));

    assert!(parse(&full).is_ok());
    assert_eq!(parse(&format!("{full}{sig}\n")), Err(NarInfoError::TooManySignatures));
}

#[test]
fn a_narinfo_larger_than_the_limit_is_refused() {
    let text = format!("{AAA}X: {}\n", "x".repeat(NARINFO_SIZE_BYTES_MAX - AAA.len() - 4));

    assert_eq!(text.len(), NARINFO_SIZE_BYTES_MAX);
    assert!(parse(&text).is_ok());
    assert_eq!(parse(&format!("{text}\n")), Err(NarInfoError::TooLarge));
}

#[test]
fn lines_that_some_nix_reads_otherwise_are_refused() {
    for (text, expected) in [
        (AAA.replace('\n', "\r\n"), NarInfoError::CarriageReturn { line: 1 }),
        (AAA.trim_end().into(), NarInfoError::NoFinalLineFeed),
        (format!("{AAA}\n"), NarInfoError::LineShape { line: 11 }),
        (format!("\n{AAA}"), NarInfoError::LineShape { line: 1 }),
        (format!("# comment\n{AAA}"), NarInfoError::LineShape { line: 1 }),
        (format!(" {AAA}"), NarInfoError::LineShape { line: 1 }),
        (AAA.replace("NarSize: ", "NarSize:"), NarInfoError::LineShape { line: 7 }),
        (AAA.replace("NarSize: ", "NarSize:  "), NarInfoError::LineShape { line: 7 }),
        (AAA.replace("NarSize: ", "NarSize:\t"), NarInfoError::LineShape { line: 7 }),
        (AAA.replace("NarSize: ", "NarSize : "), NarInfoError::LineShape { line: 7 }),
        (AAA.replace("References: ", "References:\0"), NarInfoError::LineShape { line: 8 }),
        (AAA.replace("NarSize", "narsize"), NarInfoError::Missing { field: Field::NarSize }),
        (without(Field::References) + "References:\n", NarInfoError::LineShape { line: 10 }),
    ] {
        assert_eq!(parse(&text), Err(expected), "{text}");
    }
    assert_eq!(NarInfo::parse(b"StorePath: \xff\n"), Err(NarInfoError::NotUtf8));
}

#[test]
fn values_that_are_not_exact_are_refused() {
    const X: &str = "1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz";
    let table: &[(Field, &[&str])] = &[
        (Field::StorePath, &["", "7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0", "/nix/store/x", "/gnu/store/x"]),
        (
            Field::Url,
            &[
                "",
                "nar/",
                "/nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.xz",
                "../nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.xz",
                "nar/../1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.xz",
                "nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.xz?x",
                "nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.lz4",
                "nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.zst",
                "nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar",
                "http://example.org/nar/1d68zf8lv7f6n1059lv6i3gzfvwy2znrsm8xymkqpvvziw8hi9rz.nar.xz",
            ],
        ),
        (Field::Compression, &["", "XZ", "zstd", "none", "gzip", "lzma", "lz4", "xz "]),
        (Field::FileHash, &["", X, "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e"]),
        (Field::FileHash, &["sha256:13mqindg90rwkpgrs66ybvv6ppd32rdzidwnzk0zg6hxwj10dic2"]),
        (Field::FileSize, &["", "0", "-1", "x", "0404"]),
        (Field::NarHash, &["", X, "sha256:", "sha512:00"]),
        (
            Field::NarSize,
            &["", "0", "-1", "+1", "01", "1.0", "1e3", "1 ", "9223372036854775808", "99999999999999999999"],
        ),
        (Field::References, &[" ", "-", "/nix/store/4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt"]),
        (Field::Deriver, &["", "/nix/store/s4nlw0pvv88v85y0n2w26h9600dqgqxd-aaa-1.0.drv", "x"]),
        (Field::Sig, &["", "AAAA", "cache.example-1:", "cache.example-1:AAAA", ":AAAA", "a:!!!!"]),
        (Field::Ca, &["", "text", "fixed:sha256:", "nar:sha256:x"]),
    ];
    for (field, values) in table {
        for value in *values {
            let error = parse(&with(*field, value)).expect_err(value).to_string();
            assert!(error.contains(field.key()) || error.contains("line"), "{field}: {value:?}: {error}");
            assert!(error.len() < 1024);
        }
    }
}

#[test]
fn a_content_address_of_another_method_is_read_and_not_printed() {
    let text = with(Field::Ca, "fixed:md5:5k3537sv5p3dmsj6l9n59sm9f9");

    let info = parse(&text).unwrap();

    assert!(matches!(info.ca, Some(ContentAddress::Other(_))));
    assert_eq!(print(&info), AAA);
}

#[test]
fn what_another_cache_signs_counts_whatever_its_file_is_called() {
    let key: PublicKey = GOLDEN_KEY.parse().unwrap();
    for url in ["nar/anything.nar?hash=x", "https://elsewhere.example/nar/1.nar.lz4"] {
        let text = with(Field::Url, url);
        assert!(parse(&text).is_err());

        let signed = SignedClaim::parse(text.as_bytes()).unwrap();

        assert_eq!(signed.claim, parse(AAA).unwrap().claim);
        assert!(key.verify(signed.claim.fingerprint().as_bytes(), &signed.signatures[0]));
        assert_eq!(SignedClaim::parse(signed.to_string().as_bytes()), Ok(signed.clone()));
        // Nix takes it for a narinfo, and so do we.
        assert_eq!(parse(&signed.to_string()).unwrap().claim, signed.claim);
    }
    for field in [Field::StorePath, Field::NarHash, Field::NarSize] {
        assert_eq!(SignedClaim::parse(without(field).as_bytes()), Err(NarInfoError::Missing { field }));
    }
}

fn any_narinfo() -> impl Strategy<Value = NarInfo> {
    let signature = ("[!-9;-~]{1,20}", any::<[u8; 32]>()).prop_map(|(name, half)| Signature {
        name: name.parse().unwrap(),
        bytes: [half, half].concat().try_into().unwrap(),
    });
    let digest = || any::<[u8; 32]>().prop_map(Sha256Digest);
    let ca = digest().prop_map(ContentAddress::Recursive);
    (
        any_claim(),
        digest(),
        any_compression(),
        1..=SIZE_MAX,
        proptest::option::of(any_store_path()),
        proptest::collection::vec(signature, 0..4),
        proptest::option::of(ca),
    )
        .prop_map(|(claim, digest, compression, size, deriver, mut signatures, ca)| {
            signatures.sort_by_key(Signature::to_string);
            let file = NarFileName { hash: FileHash(digest), extension: compression.extension() };
            NarInfo { claim, file, compression, file_size: Some(size), deriver, signatures, ca }
        })
}

proptest! {
    #[test]
    fn what_is_printed_parses(info in any_narinfo()) {
        prop_assert_eq!(parse(&print(&info)), Ok(info));
    }

    #[test]
    fn no_bytes_panic(body: Vec<u8>, line in "[A-Za-z]{0,9}:? ?[ -~]{0,40}\n") {
        let _ = NarInfo::parse(&body);
        let _ = parse(&format!("{AAA}{line}"));
    }

    #[test]
    fn what_parses_is_printed_as_something_that_parses_alike(cut in 0..AAA.len(), text in "[ -~\n]{0,4}") {
        let mut changed = AAA.to_owned();
        changed.insert_str(cut, &text);

        if let Ok(mut info) = parse(&changed) {
            info.file_size.get_or_insert(1);
            prop_assert_eq!(parse(&print(&info)).map(|again| again.claim), Ok(info.claim));
        }
    }
}
