use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::nix::signature::PublicKey;
use crate::tlog::leaf::{Basis, ClaimLines, Covered as _, KeyEvent, References, SignatureBytes};

const HELLO: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy-hello-1.0";
const NAR_HASH: &str = "sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7";
const FILE: &str = "1b1a0v8nkhdlxzyjk2qv1b1a0v8nkhdlxzyjk2qv1b1a0v8nkhdl";

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn secret() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn claim(nar_size: u64) -> ClaimLines {
    ClaimLines {
        cache: word("main"),
        path: word(&format!("/nix/store/{HELLO}")),
        nar_hash: Some(word(NAR_HASH)),
        nar_size: Some(nar_size),
        references: References::list("").unwrap(),
    }
}

fn hash() -> StorePathHash {
    HELLO[..32].parse().unwrap()
}

fn signature(message: &str) -> Signature {
    Signature { name: "main-1".parse().unwrap(), bytes: secret().sign(message.as_bytes()).to_bytes() }
}

fn signed(claim: Disclosed<ClaimLines>, signature: &Signature) -> Signed {
    let basis = Basis { policy: Some(word("direct")), replaces: None };
    Signed { claim, key: word("main-1"), sig: SignatureBytes(signature.bytes), basis }
}

fn lines() -> Disclosed<PathLines> {
    let ClaimLines { cache, path, nar_hash, .. } = claim(0);
    Disclosed::Open(PathLines { cache, path, nar_hash })
}

/// The narinfo of a claim, as narvault writes it.
fn narinfo(claim: &ClaimLines) -> String {
    let signature = signature(&claim.fingerprint().unwrap());
    let size = claim.nar_size.unwrap();
    format!(
        "StorePath: {}\nURL: nar/{FILE}.nar.xz\nCompression: xz\nFileHash: sha256:{FILE}\nFileSize: 99\n\
         NarHash: {NAR_HASH}\nNarSize: {size}\nReferences: \nSig: {signature}\n",
        claim.path
    )
}

/// A log that begins with the key of two caches, each of which has a path.
fn auditor(events: Vec<Event>) -> Auditor {
    let key = PublicKey::new("main-1".parse().unwrap(), secret().verifying_key().as_bytes()).unwrap();
    let key = KeyEvent {
        cache: Disclosed::Open(CacheLine { cache: Some(word("main")) }),
        key: word("main-1"),
        public_key: Some(word(&key.to_string())),
        state: Some(word("active")),
    };
    let other = ClaimLines {
        cache: word("other"),
        path: word("/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzz-x"),
        ..claim(1)
    };
    let other_signature = signature(&other.fingerprint().unwrap());
    let other = Event::Sign(signed(Disclosed::Open(other), &other_signature));
    let mut auditor = Auditor::with_ledger();
    for (index, event) in (0..).zip([Event::KeyCreate(key), other].into_iter().chain(events)) {
        let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
        let leaf = Leaf { event, time, by: None, token: None, detail: None };
        let text = leaf.encode().unwrap();
        auditor.leaf(index, Leaf::parse(text.as_bytes()), &Beside::default());
    }
    auditor
}

fn sign(claim: &ClaimLines) -> Event {
    Event::Sign(signed(Disclosed::Open(claim.clone()), &signature(&claim.fingerprint().unwrap())))
}

/// Kind and leaf of what is wrong with `text` below `main`, and the leaves of paths that are still awaited then.
fn judged(events: Vec<Event>, text: &str) -> (Vec<(FindingKind, Option<u64>)>, Vec<u64>) {
    let mut auditor = auditor(events);
    let faults = auditor.narinfo("main", hash(), text.as_bytes()).faults;
    let faults = faults.iter().map(|fault| (fault.kind, fault.leaf)).collect();
    (faults, auditor.awaited().iter().map(|one| one.leaf).collect())
}

#[test]
fn a_narinfo_as_its_leaf_has_it_is_seen_and_names_its_nar() {
    let mut auditor = auditor(vec![sign(&claim(1000))]);
    assert_eq!(auditor.awaited().len(), 2);

    let judged = auditor.narinfo("main", hash(), narinfo(&claim(1000)).as_bytes());

    assert_eq!(judged.faults, []);
    assert_eq!(judged.nar, Some((format!("{FILE}.nar.xz").parse().unwrap(), 99)));
    let left: Vec<_> = auditor.awaited().into_iter().map(|one| (one.leaf, one.cache)).collect();
    assert_eq!(left, [(1, "other".to_owned())]);
    assert_eq!(auditor.finish().narinfos, 1);
}

#[test]
fn what_was_changed_in_a_narinfo_is_found() {
    use FindingKind::{NarinfoDiffers, NarinfoUnaccounted};
    let sound = narinfo(&claim(1000));
    let other = "073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7";
    #[rustfmt::skip]
    let table: [(&str, &str, FindingKind, Option<u64>); 12] = [
        ("NarSize: 1000", "NarSize: 1001", NarinfoDiffers, Some(2)),
        ("References: ", "References: mmjhp110f3wf5kp5q70rc7p49yln4qzz-x", NarinfoDiffers, Some(2)),
        ("-hello-1.0", "-hello-1.1", NarinfoDiffers, Some(2)),
        ("StorePath: /nix/store/m", "StorePath: /nix/store/n", NarinfoDiffers, None),
        ("Compression: xz", "Compression: zstd", NarinfoDiffers, None),
        (&format!("URL: nar/{FILE}"), &format!("URL: nar/{other}"), NarinfoDiffers, None),
        (&format!("FileHash: sha256:{FILE}\n"), "", NarinfoDiffers, None),
        ("FileSize: 99\n", "", NarinfoDiffers, None),
        ("Sig: main-1", "CA: fixed:md5:00000000000000000000000000000000\nSig: main-1", NarinfoDiffers, None),
        ("Sig: main-1", "System: x\nSig: main-1", NarinfoDiffers, None),
        ("Sig: main-1", "Sig: main-2", NarinfoUnaccounted, None),
        ("StorePath", "Storepath", NarinfoDiffers, None),
    ];
    for (from, to, kind, leaf) in table {
        let changed = sound.replace(from, to);
        assert_ne!(changed, sound, "{from}");

        let (faults, _) = judged(vec![sign(&claim(1000))], &changed);

        assert_eq!(faults, [(kind, leaf)], "{from} -> {to}");
    }
    let ca = format!("CA: fixed:r:{NAR_HASH}\n");
    assert_eq!(judged(vec![sign(&claim(1000))], &(sound + &ca)).0, [(NarinfoDiffers, None)]);
}

#[test]
fn an_older_narinfo_and_one_that_was_taken_away_are_found() {
    use FindingKind::{NarinfoDiffers, NarinfoWithdrawn};
    let (old, new) = (claim(1000), claim(2000));
    let (delete, restore) = (Event::Delete(lines()), Event::Restore(lines()));
    let withdraw = Event::Withdraw(lines());
    let text = narinfo(&old);

    let replaced = judged(vec![sign(&old), delete.clone(), sign(&new)], &text);
    assert_eq!(replaced, (vec![(NarinfoDiffers, Some(4))], vec![1]));
    let withdrawn = judged(vec![sign(&old), withdraw.clone()], &text);
    assert_eq!(withdrawn, (vec![(NarinfoWithdrawn, Some(3))], vec![1]));
    assert_eq!(judged(vec![sign(&old), withdraw, restore], &text), (vec![], vec![1]));
    let cache = Disclosed::Open(CacheLine { cache: Some(word("main")) });
    let deleted = judged(vec![sign(&old), Event::CacheDelete(cache)], &text);
    assert_eq!(deleted, (vec![(NarinfoWithdrawn, Some(3))], vec![1]));
}

#[test]
fn a_narinfo_in_another_cache_than_its_leafs_is_found() {
    let mut auditor = auditor(vec![sign(&claim(1000))]);
    let text = narinfo(&claim(1000));
    let kinds = |judged: Judged| judged.faults.into_iter().map(|fault| fault.kind).collect::<Vec<_>>();

    let found = kinds(auditor.narinfo("other", hash(), text.as_bytes()));
    assert_eq!(found, [FindingKind::NarinfoUnaccounted]);
    // Where no cache of that name is known, it may be that the cache lies there.
    assert_eq!(kinds(auditor.narinfo("team/main", hash(), text.as_bytes())), []);
}

#[test]
fn a_hidden_leaf_accounts_for_its_narinfo_and_for_no_other() {
    let hidden = |claim: &ClaimLines| {
        let sealed = Disclosed::sealed(claim, &[3; 16]);
        Event::Sign(signed(sealed, &signature(&claim.fingerprint().unwrap())))
    };
    let text = narinfo(&claim(1000));

    assert_eq!(judged(vec![hidden(&claim(1000))], &text), (vec![], vec![1]));
    let changed = text.replace("NarSize: 1000", "NarSize: 1001");
    let expected = vec![(FindingKind::NarinfoDiffers, Some(2))];
    assert_eq!(judged(vec![hidden(&claim(1000))], &changed), (expected, vec![1]));
    assert!(!claim(1000).text().is_empty());
}

/// A salt for each leaf, so that none opens another.
fn salt(number: u8) -> crate::tlog::leaf::Salt {
    [number; 16]
}

/// Leaves of a private cache, each with what it hides, and whether that is shown.
fn in_secret(events: Vec<(Event, String, bool)>, text: &str) -> (Vec<(FindingKind, Option<u64>)>, Vec<u64>) {
    let mut auditor = auditor(Vec::new());
    for (index, (event, lines, is_shown)) in (2..).zip(events) {
        let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
        let leaf = Leaf { event, time, by: None, token: None, detail: None };
        let private = is_shown.then(|| (salt(index as u8), lines));
        auditor.leaf(index, Ok(leaf), &Beside { private, references: None });
    }
    let faults = auditor.narinfo("secret", hash(), text.as_bytes()).faults;
    let faults = faults.iter().map(|fault| (fault.kind, fault.leaf)).collect();
    (faults, auditor.awaited().iter().filter(|one| one.cache == "secret").map(|one| one.leaf).collect())
}

#[test]
fn a_private_path_is_awaited_where_its_leaves_were_opened() {
    use FindingKind::{NarinfoDiffers, NarinfoUnaccounted, NarinfoWithdrawn};
    let secret = ClaimLines { cache: word("secret"), ..claim(1000) };
    let text = narinfo(&secret);
    let elsewhere = text.replace("Sig: main-1", "Sig: main-2");
    let sign = |number: u8, is_shown: bool| {
        let signature = signature(&secret.fingerprint().unwrap());
        let event = Event::Sign(signed(Disclosed::sealed(&secret, &salt(number)), &signature));
        (event, secret.text(), is_shown)
    };
    let ClaimLines { cache, path, nar_hash, .. } = secret.clone();
    let lines = PathLines { cache: cache.clone(), path, nar_hash };
    let moved = |event: fn(Disclosed<PathLines>) -> Event, number: u8, is_shown: bool| {
        (event(Disclosed::sealed(&lines, &salt(number))), lines.text(), is_shown)
    };
    let line = CacheLine { cache: Some(cache) };
    let deleted = |number: u8, is_shown: bool| {
        (Event::CacheDelete(Disclosed::sealed(&line, &salt(number))), line.text(), is_shown)
    };
    let (shown, hidden) = (true, false);

    assert_eq!(in_secret(vec![sign(2, shown)], &text), (vec![], vec![]));
    assert_eq!(in_secret(vec![sign(2, shown)], &elsewhere), (vec![(NarinfoUnaccounted, None)], vec![2]));
    assert_eq!(in_secret(vec![sign(2, hidden)], &elsewhere), (vec![(NarinfoUnaccounted, None)], vec![]));
    let larger = text.replace("NarSize: 1000", "NarSize: 1001");
    assert_eq!(in_secret(vec![sign(2, shown)], &larger).0, [(NarinfoDiffers, Some(2))]);
    let withdrawn = vec![sign(2, shown), moved(Event::Withdraw, 3, shown)];
    assert_eq!(in_secret(withdrawn.clone(), &text), (vec![(NarinfoWithdrawn, Some(3))], vec![]));
    let back = [withdrawn.clone(), vec![moved(Event::Restore, 4, shown)]].concat();
    assert_eq!(in_secret(back, &elsewhere).1, [2]);
    let gone = vec![sign(2, shown), deleted(3, shown)];
    assert_eq!(in_secret(gone, &text), (vec![(NarinfoWithdrawn, Some(3))], vec![]));

    // What nobody opened may have been about this path: nothing is said of it until a later leaf does.
    for (event, next) in [
        (moved(Event::Withdraw, 3, hidden), 4),
        (moved(Event::Delete, 3, hidden), 4),
        (deleted(3, hidden), 4),
    ] {
        let unknown = vec![sign(2, shown), event];
        assert_eq!(in_secret(unknown.clone(), &elsewhere).1, [0u64; 0]);
        assert_eq!(in_secret(unknown.clone(), &text).0, []);
        let again = [unknown, vec![sign(next, shown)]].concat();
        assert_eq!(in_secret(again, &elsewhere).1, [u64::from(next)]);
    }
    let may_be_back = [withdrawn, vec![moved(Event::Restore, 4, hidden)]].concat();
    assert_eq!(in_secret(may_be_back, &text), (vec![], vec![]));
}

#[test]
fn what_is_shown_for_a_withdrawal_is_held_against_it() {
    let lines =
        PathLines { cache: word("secret"), path: word(&format!("/nix/store/{HELLO}")), nar_hash: None };
    for (salt_shown, text, is_found) in [
        (salt(2), lines.text(), false),
        (salt(3), lines.text(), true),
        (salt(2), lines.text().replace("hello", "world"), true),
    ] {
        let mut auditor = auditor(Vec::new());
        let event = Event::Withdraw(Disclosed::sealed(&lines, &salt(2)));
        let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
        let leaf = Leaf { event, time, by: None, token: None, detail: None };
        let beside = Beside { private: Some((salt_shown, text)), references: None };

        auditor.leaf(2, Ok(leaf), &beside);

        let found = auditor.finish().findings;
        let kinds: Vec<_> = found.iter().map(|finding| (finding.kind, finding.index)).collect();
        assert_eq!(kinds == [(FindingKind::Opening, Some(2))], is_found, "{kinds:?}");
        assert!(is_found || kinds.is_empty());
    }
}

#[test]
fn two_paths_of_other_content_do_not_have_one_nar() {
    let mut auditor = auditor(vec![sign(&claim(1000))]);
    let text = narinfo(&claim(1000));
    assert_eq!(auditor.narinfo("main", hash(), text.as_bytes()).faults, []);

    let other = text.replace(NAR_HASH, &format!("sha256:{FILE}"));
    let faults = auditor.narinfo("main", hash(), other.as_bytes()).faults;

    assert!(faults.iter().any(|fault| fault.what.contains("another NarHash")), "{faults:?}");
}

/// An entry about hello, and its leaf's event with that signature.
fn entry(out_path: &str) -> (RealisationKey, String, Event) {
    let key: RealisationKey = format!("realisations/sha256:{}!out.doi", "0a".repeat(32)).parse().unwrap();
    let out_path = StorePath::from_base_name(out_path).unwrap();
    let mut entry =
        Realisation { key: key.clone(), out_path, dependents: Default::default(), signatures: vec![] };
    let signature = signature(&entry.fingerprint());
    entry.signatures.push(signature.clone());
    (key, entry.to_json(), Event::Realisation(signed(Disclosed::Open(claim(1000)), &signature)))
}

#[test]
fn a_build_trace_entry_verifies_its_leaf_and_a_changed_one_is_found() {
    let (key, body, event) = entry(HELLO);
    let mut sound = auditor(vec![event.clone(), event.clone()]);
    assert_eq!(sound.entry(key.clone(), body.as_bytes()), []);
    let report = sound.finish();
    assert_eq!((report.realisations, report.realisations_verified), (2, 2));

    let kinds = |events: Vec<Event>, body: &str| {
        let mut auditor = auditor(events);
        let faults = auditor.entry(key.clone(), body.as_bytes());
        let faults: Vec<_> = faults.into_iter().map(|fault| (fault.kind, fault.leaf)).collect();
        (faults, auditor.finish().realisations_verified)
    };
    let (other_key, other, of_other) = entry("mmjhp110f3wf5kp5q70rc7p49yln4qzz-x");
    assert_eq!(other_key, key);
    let changed = body.replace(HELLO, "mmjhp110f3wf5kp5q70rc7p49yln4qzz-x");
    let differs = |leaf| (vec![(FindingKind::EntryDiffers, leaf)], 0);
    assert_eq!(kinds(vec![event.clone()], &changed), differs(Some(2)));
    // Its leaf is about hello.
    assert_eq!(kinds(vec![of_other], &other), differs(Some(2)));
    assert_eq!(kinds(vec![event], "{}"), differs(None));
    assert_eq!(kinds(vec![], &body), (vec![(FindingKind::EntryUnaccounted, None)], 0));
}
