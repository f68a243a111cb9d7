//! What `narvault push` makes of each refusal: its words, its hint, its exit code; and how long it waits when it is asked
//! to.

use std::time::Duration;

use narvault::nix::nar::build::Node;

use crate::support::nix::{Machine, Nix, require_nix};
use crate::support::proxy::{Manners, Proxy, REFUSAL_DETAIL, Refusal};
use crate::support::server::{Backend, Ended, TestServer};

/// A machine with one path, and the path.
async fn pusher(nix: &Nix) -> (Machine, String) {
    let machine = nix.machine();
    let path = machine.add("thing", &Node::file("x"), &[]).await;
    (machine, path)
}

/// Each request, the whole push long.
const fn each(status: u16, slug: &'static str, retry_after: &'static str) -> [Refusal; 1] {
    [Refusal { request: 0, status, slug, retry_after }]
}

/// Refusals with the exit code, the words of the last error line, and the hint. Those that pass by themselves ask for a
/// wait that is too long, so that they are told at once.
const REFUSALS: &[([Refusal; 1], i32, &str, &str)] = &[
    (each(401, "unauthenticated", ""), 3, REFUSAL_DETAIL, "run `narvault login`, or set NARVAULT_TOKEN"),
    (each(403, "forbidden", ""), 3, REFUSAL_DETAIL, "run `narvault whoami` to see what this token allows"),
    (
        each(409, "conflicting-claim", ""),
        4,
        REFUSAL_DETAIL,
        "run `narvault path show CACHE HASH` to see who pushed the other content",
    ),
    (each(409, "no-signing-key", ""), 4, REFUSAL_DETAIL, "run `narvault key create CACHE`"),
    (
        each(413, "too-large", ""),
        4,
        REFUSAL_DETAIL,
        "a limit of the server stands against it, which only its operator can raise",
    ),
    (each(423, "sealed", ""), 4, REFUSAL_DETAIL, "run `narvault vault unseal`"),
    (
        each(429, "too-many-tries", "301"),
        1,
        REFUSAL_DETAIL,
        "run the same again after 301 s, as the answer asks",
    ),
    (each(503, "sealed", "30"), 1, "what the server says (request r-1)", "run `narvault vault unseal`"),
    (
        each(503, "busy", "Sun, 06 Nov 1994 08:54:38 GMT"),
        1,
        "what the server says (request r-1)",
        "run the same again after 301 s, as the answer asks",
    ),
    (
        each(401, "", ""),
        3,
        "{url} answered with status 401, and not as narvault does",
        "check the address: `--url`, NARVAULT_URL, or `narvault login URL`",
    ),
    (
        each(429, "", "999999999999999999999"),
        1,
        "{url} answered with status 429, and not as narvault does",
        "run the same again after 18446744073709551615 s, as the answer asks",
    ),
    (
        each(503, "", "301"),
        5,
        "{url} answered with status 503, and not as narvault does",
        "run the same again after 301 s, as the answer asks",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_is_told_in_words_with_a_hint_and_by_its_exit_code() {
    let nix = require_nix!();
    let (alice, path) = pusher(&nix).await;
    for (refusals, code, words, hint) in REFUSALS {
        let proxy = Proxy::before("http://127.0.0.1:1", Manners { refusals, ..Manners::default() }).await;

        let ended = Ended::of(alice.narvault_push(&proxy.url, "nvt_x", ["main", path.as_str()])).await;

        let words = words.replace("{url}", &proxy.url);
        assert_eq!(ended.stderr, format!("error: {words}\nhint: {hint}\n"), "{refusals:?}");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(*code), ""), "{refusals:?}");
        assert_eq!(proxy.requests(), 1, "{refusals:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_busy_is_given_up_with_a_word_on_how_to_go_on() {
    let nix = require_nix!();
    let (alice, path) = pusher(&nix).await;
    const BUSY: &[Refusal] = &each(503, "busy", "");
    let proxy = Proxy::before("http://127.0.0.1:1", Manners { refusals: BUSY, ..Manners::default() }).await;

    let ended = Ended::of(alice.narvault_push(&proxy.url, "nvt_x", ["main", path.as_str()])).await;

    assert_eq!((ended.code, proxy.requests()), (Some(1), 3), "{ended:?}");
    assert!(ended.stderr.contains(&format!("{REFUSAL_DETAIL} (request r-1); trying again in ")), "{ended:?}");
    assert!(
        ended.stderr.ends_with(
            "hint: the same again goes on where this ended; `narvault check --ready` tells whether the server is up\n"
        ),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_by_retry_after_is_waited_in_seconds_and_as_a_moment() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, path) = pusher(&nix).await;
    let token = server.token("alice", &["push:main"]).await.text;
    const ONE_SECOND: &[Refusal] = &[
        Refusal { request: 1, status: 429, slug: "too-many-tries", retry_after: "1" },
        Refusal { request: 2, status: 503, slug: "", retry_after: "Sun, 06 Nov 1994 08:49:38 GMT" },
    ];
    let manners = Manners { refusals: ONE_SECOND, ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;

    let ended = Ended::of(alice.narvault_push(&proxy.url, &token, ["main", path.as_str()])).await;

    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("1 new, 0 already there"), "{ended:?}");
    let waited = &proxy.distances()[..2];
    assert!(waited.iter().all(|waited| *waited >= Duration::from_secs(1)), "{waited:?}");
    assert!(ended.stderr.contains(&format!("{REFUSAL_DETAIL}; trying again in 1.")), "{ended:?}");
    server.stop().await;
}
