use std::path::Path;

use proptest::prelude::*;

use super::*;
const URL: &str = "https://cache.example.org/main";
const KEY: &str = "main-x4c1v0-1:AAAA";

fn used(url: &str, keys: &[&str]) -> Used {
    Used { url: url.to_owned(), public_keys: keys.iter().map(|key| (*key).to_owned()).collect() }
}

fn part_of(text: &str) -> Part {
    Part::of(Some(text)).unwrap()
}

/// The text with one more cache used.
fn using(text: Option<&str>, cache: Used, spelling: &Spelling) -> String {
    let mut part = text.map_or_else(Part::default, part_of);
    part.put(cache);
    part.write(text, spelling).unwrap().unwrap()
}

fn unusing(text: &str, url: &str) -> Option<String> {
    let mut part = part_of(text);
    part.caches.retain(|cache| cache.url != url);
    part.write(Some(text), &Spelling::Extra).unwrap()
}

fn whole() -> Spelling {
    let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    Spelling::Whole { substituters: values(SUBSTITUTERS_DEFAULT), public_keys: values(PUBLIC_KEYS_DEFAULT) }
}

fn list(text: &str, name: &str, default: &[&str]) -> Vec<String> {
    let read = |_: &Path| Some(text.to_owned());
    Resolved::read(&["/etc/nix/nix.conf".into()], &read).list(name, default)
}

#[test]
fn a_cache_and_its_keys_are_added_at_the_end() {
    let text =
        using(Some("substituters = https://a\n"), used(URL, &[KEY, "main-x4c1v0-2:BBBB"]), &Spelling::Extra);

    let expected = "substituters = https://a\n\
        # narvault: begin\n\
        # Written by `narvault use` as a whole; `narvault unuse` takes it out.\n\
        extra-substituters = https://cache.example.org/main\n\
        extra-trusted-public-keys = main-x4c1v0-1:AAAA main-x4c1v0-2:BBBB\n\
        # narvault: end\n";
    assert_eq!(text, expected);
    assert_eq!(list(&text, "substituters", SUBSTITUTERS_DEFAULT), ["https://a", URL]);
}

#[test]
fn before_nix_2_4_the_whole_lists_are_written() {
    let text = using(None, used(URL, &[KEY]), &whole());
    let again = using(Some(&text), used("https://b/team", &["team-1:C"]), &whole());

    assert_eq!(list(&again, "substituters", &[]), ["https://cache.nixos.org/", URL, "https://b/team"]);
    assert_eq!(list(&again, "trusted-public-keys", &[]), [PUBLIC_KEYS_DEFAULT[0], KEY, "team-1:C"]);
    assert!(!again.contains("extra-"), "{again}");
    assert_eq!(part_of(&again).caches, [used(URL, &[KEY]), used("https://b/team", &["team-1:C"])]);
    let one = unusing(&again, URL).unwrap();
    assert_eq!(unusing(&one, "https://b/team"), None);
}

#[test]
fn caches_come_and_go_one_by_one() {
    let both = using(Some("# mine\r\n"), used(URL, &[KEY]), &Spelling::Extra);
    let both = using(Some(&both), used("https://b/team", &["team-1:C"]), &Spelling::Extra);

    let one = unusing(&both, URL).unwrap();
    let none = unusing(&one, "https://b/team").unwrap();

    assert!(both.lines().count() == both.matches("\r\n").count(), "{both:?}");
    assert_eq!(part_of(&one).caches, [used("https://b/team", &["team-1:C"])]);
    assert_eq!(none, "# mine\r\n");
}

#[test]
fn other_keys_replace_the_known_ones() {
    let old = using(None, used(URL, &[KEY]), &Spelling::Extra);

    let new = using(Some(&old), used(URL, &["main-x4c1v0-2:BBBB"]), &Spelling::Extra);

    assert_eq!(part_of(&new).caches, [used(URL, &["main-x4c1v0-2:BBBB"])]);
    assert!(!new.contains(KEY));
}

#[test]
fn a_netrc_file_is_named_after_the_caches() {
    let part = Part { caches: vec![used(URL, &[KEY])], netrc_file: Some("/home/u/netrc".into()) };

    let text = part.write(None, &Spelling::Extra).unwrap().unwrap();

    assert!(text.contains("netrc-file = /home/u/netrc\n# narvault: end\n"), "{text}");
    assert_eq!(part_of(&text), part);
}

#[test]
fn what_somebody_wrote_between_the_marks_is_kept_outside_of_them() {
    let text = using(Some("a = 1\n"), used(URL, &[KEY]), &Spelling::Extra);
    let touched = text.replace("# narvault: end", "max-jobs = 4\n# narvault: end");

    let again = using(Some(&touched), used(URL, &[KEY]), &Spelling::Extra);

    assert!(again.starts_with("a = 1\nmax-jobs = 4\n# narvault: begin\n"), "{again}");
    assert_eq!(unusing(&touched, URL).unwrap(), "a = 1\nmax-jobs = 4\n");
    assert_eq!(unusing(&again, URL).unwrap(), "a = 1\nmax-jobs = 4\n");
}

proptest! {
    #[test]
    fn unuse_undoes_use_and_use_twice_is_use_once(
        lines in prop::collection::vec(("[a-z-]{0,12}( ?= ?)?[ -~]{0,20}", prop_oneof![Just("\n"), Just("\r\n")]), 0..6),
        cut: bool,
        names in prop::collection::vec("[a-z0-9]{1,8}", 1..4),
        old_nix: bool,
    ) {
        let mut text: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
        if cut {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        let spelling = if old_nix { whole() } else { Spelling::Extra };
        let urls: std::collections::BTreeSet<String> =
            names.iter().map(|name| format!("https://cache.example.org/{name}")).collect();
        let mut written = text.clone();
        for url in &urls {
            written = using(Some(&written), used(url, &["k-1:A", "k-2:B"]), &spelling);
            let twice = using(Some(&written), used(url, &["k-1:A", "k-2:B"]), &spelling);
            prop_assert_eq!(&twice, &written);
        }

        prop_assert_eq!(part_of(&written).caches.len(), urls.len());
        let trusted = list(&written, "trusted-public-keys", &[]);
        prop_assert!(trusted.contains(&"k-2:B".to_owned()), "{}", written);
        for url in &urls {
            written = unusing(&written, url).unwrap();
        }
        prop_assert_eq!(written, text);
    }
}
