//! Every promise of the log, broken once.

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::tlog::leaf::{Basis, CacheLine, SignatureBytes};

const PATH: &str = "/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-aaa-1.0";
const HASH: &str = "sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7";

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn secret() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn leaf(event: Event, token: Option<&str>) -> Leaf {
    let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
    Leaf { event, time, by: Some(word("somebody")), token: token.map(word), detail: None }
}

fn announced(name: &str) -> Leaf {
    let key = PublicKey::new(name.parse().unwrap(), secret().verifying_key().as_bytes()).unwrap();
    let event = KeyEvent {
        cache: Disclosed::Open(CacheLine { cache: Some(word("main")) }),
        key: word(name),
        public_key: Some(word(&key.to_string())),
        state: Some(word("active")),
    };
    leaf(Event::KeyCreate(event), None)
}

fn claim(references: &str) -> ClaimLines {
    ClaimLines {
        cache: word("main"),
        path: word(PATH),
        nar_hash: Some(word(HASH)),
        nar_size: Some(1072),
        references: References::list(references).unwrap(),
    }
}

fn sign(claim: &ClaimLines) -> SignatureBytes {
    SignatureBytes(secret().sign(claim.fingerprint().unwrap().as_bytes()).to_bytes())
}

fn signed(claim: Disclosed<ClaimLines>, sig: SignatureBytes) -> Signed {
    Signed { claim, key: word("main-1"), sig, basis: Basis { policy: Some(word("direct")), replaces: None } }
}

/// A signature over [`claim`], with token t-1.
fn honest() -> Leaf {
    let claim = claim("");
    let sig = sign(&claim);
    leaf(Event::Sign(signed(Disclosed::Open(claim), sig)), Some("t-1"))
}

/// A log that begins with a key and a token.
fn audited(leaves: &[Leaf]) -> Report {
    let mut auditor = Auditor::new();
    let first = [announced("main-1"), leaf(Event::TokenIssue(word("t-1")), None)];
    for (index, leaf) in (0..).zip(first.iter().chain(leaves)) {
        // As it is read: only the text counts.
        let text = leaf.encode().unwrap();
        auditor.leaf(index, Leaf::parse(text.as_bytes()), &Beside::default());
    }
    auditor.finish()
}

fn found(report: &Report) -> Vec<(FindingKind, Option<u64>)> {
    report.findings.iter().map(|finding| (finding.kind, finding.index)).collect()
}

fn check(leaves: &[Leaf], expected: &[(FindingKind, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(kind, index)| (*kind, Some(*index))).collect();
    assert_eq!(found(&audited(leaves)), expected);
}

#[test]
fn an_honest_log_has_no_findings() {
    let report = audited(&[honest(), honest(), leaf(Event::VaultSlot, Some("t-1"))]);

    assert_eq!((report.findings, report.finding_count), (vec![], 0));
    assert_eq!((report.leaves, report.signatures), (5, 2));
    assert_eq!(report.events["sign"], 2);
}

#[test]
fn a_signature_that_is_not_its_keys_is_found_among_thousands() {
    let mut leaves = vec![honest(); 3000];
    for at in [0, 1500, 2999] {
        let Event::Sign(signed) = &mut leaves[at].event else { panic!() };
        signed.sig.0[9] ^= 1;
    }

    let report = audited(&leaves);

    let expected: Vec<_> = [2, 1502, 3001].map(|index| (FindingKind::Signature, Some(index))).into();
    assert_eq!(found(&report), expected);
    assert_eq!(report.signatures, 2997);
}

#[test]
fn a_signature_of_another_claim_is_found() {
    for other in [
        ClaimLines { nar_size: Some(1073), ..claim("") },
        ClaimLines { path: word(&PATH.replace("1.0", "1.1")), ..claim("") },
        claim("mmjhp110f3wf5kp5q70rc7p49yln4qzy-aaa-1.0"),
    ] {
        let other = signed(Disclosed::Open(other), sign(&claim("")));
        check(&[leaf(Event::Resign(other), Some("t-1"))], &[(FindingKind::Signature, 2)]);
    }
    let unknown = ClaimLines { nar_size: None, ..claim("") };
    let unknown = signed(Disclosed::Open(unknown), sign(&claim("")));
    check(&[leaf(Event::Sign(unknown), Some("t-1"))], &[(FindingKind::Claim, 2)]);
}

#[test]
fn a_key_that_was_not_announced_before_or_is_announced_twice_is_found() {
    let mut stranger = honest();
    let Event::Sign(signed) = &mut stranger.event else { panic!() };
    signed.key = word("other-1");

    check(&[stranger.clone(), announced("other-1"), stranger], &[(FindingKind::UnknownKey, 2)]);
    check(&[announced("main-1")], &[(FindingKind::UnknownKey, 2)]);
    let mut misnamed = announced("other-1");
    let Event::KeyCreate(key) = &mut misnamed.event else { panic!() };
    key.key = word("another-1");
    check(&[misnamed], &[(FindingKind::UnknownKey, 2)]);
}

#[test]
fn whatever_a_revoked_token_did_afterwards_is_found() {
    let revoke = |token: &str, by: &str| leaf(Event::TokenRevoke(word(token)), Some(by));

    check(&[honest(), revoke("t-1", "t-1")], &[]);
    check(&[revoke("t-1", "t-1"), honest()], &[(FindingKind::AfterRevocation, 3)]);
    let issue = leaf(Event::TokenIssue(word("t-2")), Some("t-1"));
    check(&[revoke("t-1", "t-1"), issue.clone()], &[(FindingKind::AfterRevocation, 3)]);
    // One call: its own token, then those that it issued.
    check(&[issue.clone(), revoke("t-1", "t-1"), revoke("t-2", "t-1")], &[]);
    // A descendant is dead once its own leaf says so, and not before.
    let of_t2 = Leaf { token: Some(word("t-2")), ..honest() };
    check(&[issue.clone(), revoke("t-1", "t-1"), of_t2.clone()], &[]);
    check(&[issue, revoke("t-2", "t-1"), of_t2], &[(FindingKind::AfterRevocation, 4)]);
}

#[test]
fn a_takedown_that_goes_on_after_its_asker_is_dead_is_no_finding_in_either_form() {
    let lines = PathLines { cache: word("main"), path: word(PATH), nar_hash: Some(word(HASH)) };
    let open = Disclosed::Open(lines);
    let revoked = leaf(Event::TokenRevoke(word("t-1")), Some("t-1"));
    for event in [Event::Withdraw(open.clone()), Event::Restore(open.clone())] {
        for token in [None, Some("t-1")] {
            check(&[honest(), revoked.clone(), leaf(event.clone(), token)], &[]);
        }
        // Whoever asked was somebody.
        check(&[leaf(event, Some("t-9"))], &[(FindingKind::UnissuedToken, 2)]);
    }
    // What is done at once is done by somebody who lives.
    for event in [Event::Delete(open.clone()), Event::Conflict(open)] {
        check(&[revoked.clone(), leaf(event, Some("t-1"))], &[(FindingKind::AfterRevocation, 3)]);
    }
}

#[test]
fn leaves_of_takedowns_as_every_version_wrote_them_are_read_without_a_finding() {
    const ISSUED: &str = "01997c5c-0000-7000-8000-000000000002";
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-v1/events");
    let mut auditor = Auditor::new();
    auditor.leaf(0, Ok(leaf(Event::TokenIssue(word(ISSUED)), None)), &Beside::default());
    auditor.leaf(1, Ok(leaf(Event::TokenRevoke(word(ISSUED)), Some(ISSUED))), &Beside::default());
    for (index, name) in
        (2..).zip(["withdraw", "withdraw.asked", "withdraw.private", "restore", "restore.asked"])
    {
        let text = std::fs::read(folder.join(format!("{name}.leaf"))).unwrap();
        auditor.leaf(index, Leaf::parse(&text), &Beside::default());
    }

    let report = auditor.finish();

    assert_eq!((found(&report), report.leaves), (vec![], 7));
}

#[test]
fn a_token_that_nobody_issued_is_found() {
    let forged = Leaf { token: Some(word("t-9")), ..honest() };

    check(&[forged], &[(FindingKind::UnissuedToken, 2)]);
}

#[test]
fn what_replaces_something_later_is_found() {
    for (replaces, expected) in [(1, vec![]), (2, vec![(FindingKind::Replaces, 2)])] {
        let mut replacing = honest();
        let Event::Sign(signed) = &mut replacing.event else { panic!() };
        signed.basis.replaces = Some(replaces);
        check(&[replacing], &expected);
    }
}

#[test]
fn what_is_no_leaf_is_found_and_what_is_of_a_later_version_is_shown() {
    let mut auditor = Auditor::new();
    let later = "narvault/log/v1\nevent moon-landing\ntime 2026-11-22T13:10:00.123Z\ncrew 3\nby -\ntoken -\n\
                 detail -\n";

    auditor.leaf(0, Leaf::parse(b"hello"), &Beside::default());
    auditor.leaf(1, Leaf::parse(later.as_bytes()), &Beside::default());
    let report = auditor.finish();

    assert_eq!(found(&report), [(FindingKind::Unparsable, Some(0))]);
    assert_eq!(report.unknown, [Unknown { index: 1, event: "moon-landing".into() }]);
}

#[test]
fn a_private_leaf_is_checked_by_its_opening_and_counted_without() {
    let (claim, salt) = (claim(""), [3; 16]);
    let sealed = Disclosed::sealed(&claim, &salt);
    let private = |sig| leaf(Event::Sign(signed(sealed.clone(), sig)), None);
    let check = |leaf: &Leaf, opening: Option<(Salt, String)>| {
        let mut auditor = Auditor::new();
        auditor.leaf(0, Ok(announced("main-1")), &Beside::default());
        assert_eq!(needed(leaf), Some(Needed::Opening));
        auditor.leaf(1, Ok(leaf.clone()), &Beside { private: opening, references: None });
        let report = auditor.finish();
        (report.signatures, report.hidden, found(&report).first().map(|(kind, _)| *kind))
    };
    let good = private(sign(&claim));

    assert_eq!(check(&good, Some((salt, claim.text()))), (1, 0, None));
    assert_eq!(check(&good, None), (0, 1, None));
    let opening = Some(FindingKind::Opening);
    assert_eq!(check(&good, Some(([4; 16], claim.text()))), (0, 0, opening));
    assert_eq!(check(&good, Some((salt, claim.text().replace("1072", "1073")))), (0, 0, opening));
    let forged = private(SignatureBytes([1; 64]));
    let signature = Some(FindingKind::Signature);
    assert_eq!(check(&forged, Some((salt, claim.text()))), (0, 0, signature));
}

#[test]
fn a_long_list_of_references_is_checked_by_its_digest() {
    let names = "mmjhp110f3wf5kp5q70rc7p49yln4qzy-aaa-1.0 mmjhp110f3wf5kp5q70rc7p49yln4qzz-bbb-1.0";
    let whole = claim(names);
    let (digest, list) = whole.references.shortened().unwrap();
    let short = ClaimLines { references: digest.clone(), ..whole.clone() };
    let long = leaf(Event::Sign(signed(Disclosed::Open(short), sign(&whole))), None);
    let References::Digest(digest) = digest else { panic!() };
    assert_eq!(needed(&long), Some(Needed::References(digest)));
    let check = |references: Option<&str>| {
        let mut auditor = Auditor::new();
        auditor.leaf(0, Ok(announced("main-1")), &Beside::default());
        let beside = Beside { references: references.map(str::to_owned), private: None };
        auditor.leaf(1, Ok(long.clone()), &beside);
        let report = auditor.finish();
        (report.signatures, found(&report).first().map(|(kind, _)| *kind))
    };

    assert_eq!(check(Some(&list)), (1, None));
    assert_eq!(check(None), (0, Some(FindingKind::References)));
    assert_eq!(check(Some(&list.replace("bbb", "bbc"))), (0, Some(FindingKind::References)));
}

#[test]
fn only_so_many_findings_are_named() {
    let mut auditor = Auditor::new();
    for index in 0..FINDINGS_NAMED_MAX as u64 + 5 {
        auditor.leaf(index, Leaf::parse(b""), &Beside::default());
    }
    let report = auditor.finish();

    assert_eq!(report.findings.len(), FINDINGS_NAMED_MAX);
    assert_eq!(report.finding_count, FINDINGS_NAMED_MAX as u64 + 5);
}
