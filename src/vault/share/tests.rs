use proptest::prelude::*;
use proptest::sample::Index;
use secrecy::ExposeSecret as _;

use super::super::key_file::KeyFile;
use super::super::root::{NewVault, OpenVault, UnlockError};
use super::super::seal::Sealed;
use super::super::slots::SlotSecret;
use super::*;

const CLUSTER: &str = "cluster";

/// A vault that a key file opens, with a slot for shares.
struct Vault {
    new: NewVault,
    slot: SlotRow,
    shares: Vec<Share>,
}

fn count(threshold: u8, of: u8) -> ShareCount {
    ShareCount::new(threshold, of).unwrap()
}

fn shared(threshold: u8, of: u8) -> Vault {
    let key_file = SlotSecret::KeyFile(KeyFile::of([1; 32]));
    let new = OpenVault::create(CLUSTER, "slot-1", &key_file).unwrap();
    let (slot, shares) = another_slot(&new, "slot-2", count(threshold, of));
    Vault { new, slot, shares }
}

fn another_slot(new: &NewVault, id: &str, count: ShareCount) -> (SlotRow, Vec<Share>) {
    let key = SplitKey::generate(count).unwrap();
    let shares = key.split(CLUSTER, id).unwrap();
    (new.vault.new_slot(id, &SlotSecret::Shamir(key)).unwrap(), shares)
}

impl Vault {
    fn slots(&self) -> [SlotRow; 2] {
        [self.new.slot.clone(), self.slot.clone()]
    }

    fn open<'a>(&self, shares: impl IntoIterator<Item = &'a Share>) -> Result<OpenVault, UnlockError> {
        let key = combine(CLUSTER, &self.slots(), shares).unwrap();
        let keks = std::slice::from_ref(&self.new.kek);
        OpenVault::open(CLUSTER, &self.slots(), keks, &SlotSecret::Shamir(key))
    }

    fn refusal<'a>(&self, shares: impl IntoIterator<Item = &'a Share>) -> String {
        combine(CLUSTER, &self.slots(), shares).unwrap_err().to_string()
    }
}

fn text(share: &Share) -> String {
    share.text().expose_secret().to_owned()
}

/// The same share as somebody would forge it: with a point of their own and a checksum that fits.
fn forged(share: &Share) -> Share {
    Share { point: LockedBytes::random().unwrap(), ..Share::parse(&text(share)).unwrap() }
}

#[test]
fn enough_shares_open_the_slot_in_whichever_order() {
    let vault = shared(3, 5);
    let at = |chosen: &[usize]| chosen.iter().map(|at| &vault.shares[*at]).collect::<Vec<_>>();

    for chosen in [&[0, 1, 2][..], &[4, 2, 0], &[1, 3, 4], &[0, 1, 2, 3], &[4, 3, 2, 1, 0]] {
        assert_eq!(vault.open(at(chosen)).unwrap().opened_by(), "slot-2", "{chosen:?}");
    }
    for chosen in [&[][..], &[2], &[0, 4]] {
        assert!(combine(CLUSTER, &vault.slots(), at(chosen)).is_err(), "{chosen:?}");
    }
    assert_eq!(vault.refusal(at(&[1, 3])), "2 of the 3 shares that are needed are here");
}

#[test]
fn the_text_of_a_share_is_that_of_the_documentation() {
    let vault = shared(2, 3);

    for (number, share) in (1..).zip(&vault.shares) {
        let text = text(share);

        assert_eq!(text.len(), 89);
        let code = text.strip_prefix("nvs1-").unwrap().to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(code.as_bytes()).unwrap();
        let hash = |text: &[u8]| Sha256::digest(text)[..4].to_vec();
        let params = format!("v=1,k=2,n=3,split={}", HEXLOWER.encode(&bytes[9..13]));
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1..5], hash(b"cluster"));
        assert_eq!(bytes[5..9], hash(b"slot-2"));
        assert_eq!(params, vault.slot.params);
        assert_eq!(bytes[13..16], [2, 3, number]);
        assert_eq!(bytes[16..48], share.point.expose()[..]);
        assert_eq!(bytes[48..], hash(&bytes[..48]));
    }
}

#[test]
fn a_share_of_another_server_or_slot_or_split_is_named_before_anything_is_combined() {
    let vault = shared(2, 3);
    let elsewhere = SplitKey::generate(count(2, 3)).unwrap().split("another", "slot-2").unwrap();
    let (_, of_other_slot) = another_slot(&vault.new, "slot-3", count(2, 3));
    let (_, of_other_split) = another_slot(&vault.new, "slot-2", count(2, 3));
    let (_, of_other_count) = another_slot(&vault.new, "slot-2", count(2, 4));

    for (others, why) in [
        (elsewhere, "share 2 belongs to another server: its cluster is another one"),
        (of_other_slot, "share 2 belongs to a slot that this vault does not have, or has no longer"),
        (
            of_other_split,
            "share 2 is of another generation: its slot was split in another way than this share says",
        ),
        (
            of_other_count,
            "share 2 is of another generation: its slot was split in another way than this share says",
        ),
    ] {
        assert_eq!(vault.refusal([&vault.shares[0], &others[1]]), why);
        assert_eq!(others[1].slot(CLUSTER, &vault.slots()).unwrap_err().to_string(), why);
    }
}

#[test]
fn shares_of_two_slots_of_one_vault_are_not_mixed() {
    let vault = shared(2, 3);
    let (slot, shares) = another_slot(&vault.new, "slot-3", count(2, 3));
    let slots = [&vault.slots()[..], &[slot]].concat();

    let mixed = combine(CLUSTER, &slots, [&vault.shares[0], &shares[1]]).unwrap_err();

    assert_eq!(
        mixed.to_string(),
        "share 2 belongs to another slot than the ones before it, or to another split"
    );
    let keks = [vault.new.kek.clone()];
    for (shares, slot_id) in [(&vault.shares, "slot-2"), (&shares, "slot-3")] {
        let key = combine(CLUSTER, &slots, &shares[1..]).unwrap();
        let opened = OpenVault::open(CLUSTER, &slots, &keks, &SlotSecret::Shamir(key)).unwrap();
        assert_eq!(opened.opened_by(), slot_id);
    }
}

#[test]
fn the_same_share_twice_is_no_second_one() {
    let vault = shared(2, 3);
    let again = Share::parse(&text(&vault.shares[1])).unwrap();

    assert_eq!(vault.refusal([&vault.shares[1], &again]), "share 2 is there twice");
    assert_eq!(vault.refusal([&vault.shares[1], &forged(&again)]), "share 2 is there twice");
    assert!(again.is_number_of(&vault.shares[1]));
    assert!(!again.is_number_of(&vault.shares[0]));
}

#[test]
fn a_vault_without_such_a_slot_says_so() {
    let vault = shared(2, 3);

    let refused = combine(CLUSTER, &vault.slots()[..1], &vault.shares).unwrap_err();

    assert_eq!(refused.to_string(), "this vault has no slot that is opened with shares");
    assert_eq!(vault.refusal([]), "there is no share");
}

#[test]
fn a_forged_share_is_told_by_the_check_value() {
    let vault = shared(2, 3);

    let refused = vault.open([&vault.shares[0], &forged(&vault.shares[1])]);

    let Err(error @ UnlockError::WrongSecret { kind: SlotKind::Shamir }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.to_string(), "what these shares make opens no slot of the vault");
    // More shares than are needed must all be genuine.
    let refused = vault.open([&vault.shares[0], &vault.shares[2], &forged(&vault.shares[1])]);
    assert!(matches!(refused, Err(UnlockError::WrongSecret { .. })));
}

#[test]
fn whatever_a_person_mistypes_is_found() {
    let vault = shared(2, 3);
    let text = text(&vault.shares[0]);

    for at in 0..text.len() {
        for character in "a2z7".chars().filter(|character| !text[at..].starts_with(*character)) {
            let mut typed = text.clone();
            typed.replace_range(at..=at, &character.to_string());

            let refused = Share::parse(&typed).unwrap_err();

            let expected = if at < 5 { "Prefix" } else { "Checksum" };
            assert_eq!(format!("{refused:?}"), expected, "character {at}");
        }
    }
    for at in 5..text.len() - 1 {
        let mut swapped = text.clone().into_bytes();
        swapped.swap(at, at + 1);
        let swapped = String::from_utf8(swapped).unwrap();
        assert!(swapped == text || Share::parse(&swapped).is_err(), "characters {at} and the next");
    }
}

#[test]
fn there_is_one_spelling_of_a_share_and_errors_say_what_is_wrong_without_repeating_it() {
    let vault = shared(2, 3);
    let text = text(&vault.shares[0]);
    let code = &text[5..];

    for (typed, why) in [
        (String::new(), "a share begins with `nvs1-`, in lower case and without space before it"),
        (code.to_owned(), "a share begins with `nvs1-`"),
        (text.to_uppercase(), "a share begins with `nvs1-`, in lower case"),
        (format!(" {text}"), "without space before it"),
        (format!("nvs2-{code}"), "a share begins with `nvs1-`"),
        (format!("{text}\n"), "has 85 characters after `nvs1-`, expected 84"),
        (format!("{text}a"), "has 85 characters"),
        (text[..88].to_owned(), "has 83 characters"),
        ("nvs1-".to_owned(), "has 0 characters"),
        (format!("nvs1-{}", code.to_uppercase()), "of the share is neither a letter"),
        (format!("nvs1-1{}", &code[1..]), "character 6 of the share is neither"),
        (format!("nvs1-{}=", &code[..83]), "character 89 of the share is neither"),
        (format!("nvs1-{}é", &code[..83]), "character 89 of the share is neither"),
        (format!("nvs1-{}", "a".repeat(84)), "is mistyped: its checksum does not fit"),
    ] {
        let refused = Share::parse(&typed).unwrap_err().to_string();

        assert!(refused.contains(why), "{refused}");
        assert!(!refused.contains(&code[8..20]), "{refused}");
    }
}

/// A text with a checksum that fits.
fn spelled(body: &[u8; 48]) -> String {
    let bytes = [&body[..], &check_sum(body)].concat();
    format!("nvs1-{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

#[test]
fn numbers_that_no_split_has_and_later_formats_are_refused() {
    let with = |version, k, n, x| {
        let mut body = [7; 48];
        (body[0], body[13], body[14], body[15]) = (version, k, n, x);
        Share::parse(&spelled(&body))
    };

    assert!(with(1, 2, 3, 1).is_ok() && with(1, 15, 15, 15).is_ok());
    for (k, n, x) in
        [(0, 3, 1), (1, 3, 1), (4, 3, 1), (2, 16, 1), (2, 255, 1), (2, 3, 0), (2, 3, 4), (2, 3, 255)]
    {
        assert!(matches!(with(1, k, n, x), Err(ParseShareError::Numbers)), "{k} {n} {x}");
    }
    for version in [0, 2, 255] {
        assert!(matches!(with(version, 2, 3, 1), Err(ParseShareError::Version { .. })), "{version}");
    }
    // The four bits behind the last byte are zero, as there shall be one spelling.
    let text = spelled(&[1; 48]);
    let last = if text.ends_with('a') { 'b' } else { 'r' };
    let other = format!("{}{last}", &text[..88]);
    assert!(text.ends_with(['a', 'q']) && matches!(Share::parse(&other), Err(ParseShareError::Checksum)));
}

#[test]
fn a_slot_is_bound_to_its_parameters() {
    let vault = shared(2, 3);
    let key = || SlotSecret::Shamir(combine(CLUSTER, &vault.slots(), &vault.shares).unwrap());
    let keks = [vault.new.kek.clone()];
    let open = |params: &str| {
        let slot = SlotRow { params: params.to_owned(), ..vault.slot.clone() };
        OpenVault::open(CLUSTER, &[slot], &keks, &key())
    };

    assert!(open(&vault.slot.params).is_ok());
    let fewer = vault.slot.params.replace("n=3", "n=2");
    assert!(matches!(open(&fewer), Err(UnlockError::WrongSecret { .. })));
    for params in ["", "v=1,k=2,n=3,split=", "$argon2id$v=19$m=262144,t=3,p=4$"] {
        assert!(matches!(open(params), Err(UnlockError::Slot { .. })), "{params}");
    }
}

#[test]
fn counts_and_parameters_read_back_as_written_and_nothing_else_is_read() {
    for (text, expected) in [("2/2", Some((2, 2))), ("3/5", Some((3, 5))), ("15/15", Some((15, 15)))] {
        let read = text.parse::<ShareCount>().unwrap();
        assert_eq!(Some((read.threshold(), read.of())), expected);
    }
    for text in [
        "", "3", "3/", "/5", "1/1", "1/5", "0/5", "6/5", "2/16", "3/256", "-3/5", "3/5/7", "3 / 5", "3of5",
        "03/5x",
    ] {
        assert_eq!(text.parse::<ShareCount>(), Err(ShareCountError), "{text}");
    }
    assert_eq!(count(3, 5).to_string(), "3 of 5");

    let text = "v=1,k=3,n=5,split=0a1b2c3d";
    let params: SplitParams = text.parse().unwrap();
    assert_eq!((params.to_string().as_str(), params.count()), (text, count(3, 5)));
    for text in [
        "",
        "v=1,k=3,n=5,split=0A1B2C3D",
        "v=1,k=3,n=5,split=0a1b2c3",
        "v=1,k=3,n=5,split=0a1b2c3d00",
        "v=1,k=3,n=5,split=0a1b2c3d ",
        "v=1,k=03,n=5,split=0a1b2c3d",
        "v=1,k=+3,n=5,split=0a1b2c3d",
        "v=1,k=1,n=5,split=0a1b2c3d",
        "v=1,k=3,n=16,split=0a1b2c3d",
        "v=1,n=5,k=3,split=0a1b2c3d",
        "v=2,k=3,n=5,split=0a1b2c3d",
    ] {
        assert_eq!(text.parse::<SplitParams>(), Err(ParseSplitError), "{text}");
    }
}

#[test]
fn shares_and_their_key_print_nothing_of_their_content() {
    let share = Share { point: LockedBytes::copy_of(&[65; 32]).unwrap(), ..shared(2, 2).shares.remove(0) };
    let key = SplitKey {
        key: LockedBytes::copy_of(&[65; 32]).unwrap(),
        ..SplitKey::generate(count(2, 2)).unwrap()
    };

    assert_eq!(format!("{share:?}"), "Share([redacted])");
    assert!(format!("{:?}", share.text()).contains("REDACTED"));
    assert!(format!("{key:?}").starts_with("SplitKey { key: [redacted], params: "), "{key:?}");
}

/// Made by a program of its own (`tests/golden/shares-v1/generate.py`), in another language, from the description in
/// docs/formats.md, with the slots that they open. They open for ever.
#[test]
fn slots_with_shares_of_format_1_still_open() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/golden/shares-v1/shares.json")).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    for split in golden.as_array().unwrap() {
        let slot = SlotRow {
            id: text(&split["slot_id"]),
            kind: SlotKind::Shamir,
            params: text(&split["params"]),
            wrapped_root: Sealed::parse(&HEXLOWER.decode(text(&split["wrapped_root"]).as_bytes()).unwrap())
                .unwrap(),
            kcv: HEXLOWER.decode(text(&split["kcv"]).as_bytes()).unwrap().try_into().unwrap(),
        };
        let texts: Vec<String> = split["shares"].as_array().unwrap().iter().map(text).collect();
        let shares: Vec<Share> = texts.iter().map(|text| Share::parse(text).unwrap()).collect();
        let count = slot.params.parse::<SplitParams>().unwrap().count();
        assert_eq!(shares.len(), usize::from(count.of()));

        for (share, text) in shares.iter().zip(&texts) {
            assert_eq!(share.text().expose_secret(), text);
        }
        for chosen in 0..1_u32 << count.of() {
            let chosen = shares.iter().filter(|share| chosen >> (share.number() - 1) & 1 == 1);
            let enough = chosen.clone().count() >= usize::from(count.threshold());
            let combined = combine(&text(&split["cluster_id"]), std::slice::from_ref(&slot), chosen);
            assert_eq!(combined.is_ok(), enough);
            if let Ok(key) = combined {
                assert_eq!(HEXLOWER.encode(key.key.expose()), text(&split["slot_key"]));
                let cluster_id = text(&split["cluster_id"]);
                let root = slot.unwrap_root(&cluster_id, &SlotSecret::Shamir(key)).unwrap();
                assert_eq!(HEXLOWER.encode(root.expose()), text(&split["root"]));
            }
        }
    }
}

proptest! {
    #[test]
    fn every_share_reads_back_as_written(of in 2..=15_u8, threshold: Index, cluster in ".{0,40}", slot in ".{0,40}") {
        let threshold = 2 + threshold.index(usize::from(of) - 1) as u8;
        for share in SplitKey::generate(count(threshold, of)).unwrap().split(&cluster, &slot).unwrap() {
            let read = Share::parse(&text(&share)).unwrap();

            prop_assert_eq!(read.home, share.home);
            prop_assert_eq!(read.number, share.number);
            prop_assert_eq!(read.point.expose(), share.point.expose());
        }
    }

    #[test]
    fn no_text_makes_the_parser_fail_otherwise_than_with_an_error(text in "(nvs1-)?[a-z2-7é]{0,90}") {
        if let Ok(read) = Share::parse(&text) {
            prop_assert_eq!(self::text(&read), text);
        }
    }
}
