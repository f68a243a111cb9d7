//! What the server says: whether it is there, what the tokens are good for, and whether a path can be pulled.
//!
//! Sends the token of a netrc file only to the cache that Nix would send it to.

use secrecy::{ExposeSecret, SecretString};

use super::nix_side::Setup;
use crate::access::{Action, CacheName, Scope};
use crate::api::{CacheView, Order, PathQuery, Whoami};
use crate::cli::check::report::Report;
use crate::cli::local_nix::Puller;
use crate::cli::session::{Session, TokenFrom};
use crate::cli::text::{ends_within, moment};
use crate::cli::{Context, Failure};
use crate::client::netrc::entry_for;
use crate::client::{Client, Error, FirstByte, ServerUrl};
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;

/// Whether the server answers, the clocks, and the user's own token. Gives whose that is, if there is one that works;
/// `None`: there is no use in going on.
pub async fn look(report: &mut Report, session: &Session, context: &Context) -> Option<Option<Whoami>> {
    let client = &session.client;
    match client.ready().await {
        Ok((true, told)) if told.contains("sealed") => report.warn(
            "server",
            format!("{} is sealed: pulls go on, pushes do not", client.url()),
            "an admin runs `narvault vault unseal`",
        ),
        Ok((true, _)) => report.ok("server", format!("{} is ready", client.url())),
        Ok((false, told)) => report.fail(
            "server",
            format!("{} is not ready: {}", client.url(), told.trim()),
            "look at the server's log, or run `narvault check` on its host",
        ),
        Err(error) => {
            fail(report, "server", &error);
            return None;
        }
    }
    // A proxy may leave it out; an error was told above.
    if let Ok(Some(date)) = client.date().await {
        clock(report, &date, context.clock.now());
    }
    if session.token_from == TokenFrom::Nowhere {
        report.ok("token", "none: public caches need none");
        return Some(None);
    }
    match client.whoami().await {
        Ok(who) => {
            let detail = format!(
                "of {}, for {}, until {}",
                who.contributor,
                who.scopes.join(" "),
                moment(&who.expires_at)
            );
            match ends_within(&who.expires_at, context.clock.now(), WARNING_DAYS) {
                Ok(Some(left)) => {
                    report.warn(
                        "token",
                        format!("{detail}: it ends in {left}"),
                        "run `narvault token renew`",
                    );
                }
                _ => report.ok("token", detail),
            }
            Some(Some(who))
        }
        Err(error) => {
            fail(report, "token", &error);
            Some(None)
        }
    }
}

/// Whether the user's own token is good for this cache. Without `view` the server did not show the cache.
pub fn scopes(report: &mut Report, who: &Whoami, name: &str, view: Option<&CacheView>, server: &ServerUrl) {
    let Ok(cache) = name.parse::<CacheName>() else { return };
    let scopes: Vec<Scope> = who.scopes.iter().filter_map(|scope| scope.parse().ok()).collect();
    let may = |action: Action| scopes.iter().any(|scope| scope.allows(&action));
    let contributor = &who.contributor;
    let cure = |scope: &str| {
        format!(
            "an admin runs `narvault token issue {contributor} --scope {scope}:{name}`, and you \
             `narvault login {server}` with what it prints"
        )
    };
    if may(Action::Push(cache.clone())) {
        report.ok("scope", format!("{name}: the token may push and pull"));
    } else if may(Action::Pull(cache)) {
        let detail = format!("{name}: the token has no `push:{name}`: pulls go on, pushes are refused");
        report.warn("scope", detail, cure("push"));
    } else if view.is_some_and(|view| view.public) {
        let detail =
            format!("{name}: the token has no `push:{name}`: pulls need none here, pushes are refused");
        report.warn("scope", detail, cure("push"));
    } else {
        let detail = format!("{name}: the token has neither `pull:{name}` nor `push:{name}`");
        report.fail("scope", detail, cure("pull"));
    }
}

/// The hash of the path that was published last, if the token may list them.
pub async fn newest(session: &Session, name: &str) -> Option<String> {
    let state = Some("published".to_owned());
    let query = PathQuery { state, limit: Some(1), order: Some(Order::Desc), ..PathQuery::default() };
    let page = session.client.paths(name, &query).await.ok()?;
    let path = StorePath::from_absolute(&page.items.first()?.store_path).ok()?;
    Some(path.hash().to_string())
}

fn clock(report: &mut Report, date: &str, now: Timestamp) {
    let Some(theirs) = Timestamp::parse_http_date(date) else { return };
    let ahead = now.unix_seconds() - theirs.unix_seconds();
    let detail = match ahead {
        0.. => format!("this machine is {ahead} s ahead of the server"),
        _ => format!("this machine is {} s behind the server", -ahead),
    };
    if ahead.abs() > SKEW_SECONDS_MAX {
        report.warn(
            "clock",
            detail,
            "set the clock: `timedatectl set-ntp true`; tokens and TLS depend on it",
        );
    } else {
        report.ok("clock", detail);
    }
}

/// A cache as the server describes it.
pub async fn cache(report: &mut Report, session: &Session, name: &str) -> Option<CacheView> {
    match session.client.cache(name).await {
        Ok(view) => {
            let kind = if view.public { "public" } else { "private" };
            report.ok("cache", format!("{name} is {kind} and has {} paths", view.paths));
            Some(view)
        }
        Err(error) => {
            fail(report, "cache", &error);
            None
        }
    }
}

/// The token that Nix has for a private cache, if it is there, can be read, and works.
pub async fn netrc(
    report: &mut Report,
    setup: &Setup,
    view: &CacheView,
    session: &Session,
    context: &Context,
) -> Result<Option<SecretString>, Failure> {
    let name = &view.name;
    let mend = format!("run `{}`", setup.use_command(&view.pull_url));
    let Some(path) = setup.netrc_file() else {
        report.fail("netrc", format!("{name} is private, and Nix has no netrc file"), mend);
        return Ok(None);
    };
    let who = match setup.puller {
        Puller::Own => "Nix",
        Puller::Daemon => "the daemon",
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            if setup.puller == Puller::Daemon {
                let detail = format!("{name}: {path} is for the daemon alone, as it should be");
                report.warn("netrc", detail, format!("run `sudo narvault doctor {}`", view.pull_url));
            } else {
                let detail = format!("{name}: {path} cannot be read, which to Nix is silently none");
                report.fail("netrc", detail, mend);
            }
            return Ok(None);
        }
        Err(_) => {
            report.fail("netrc", format!("{name} is private, and {who} finds no {path}"), mend);
            return Ok(None);
        }
    };
    let server = crate::cli::session::parse_url(&view.pull_url)?;
    let host = server.host();
    let Some(token) = entry_for(&text, &host).and_then(|entry| entry.password) else {
        report.fail("netrc", format!("{name}: {path} has no password for {host}"), mend);
        return Ok(None);
    };
    let client = match context.client_of(server, Some(&token)) {
        Ok(client) => client,
        Err(failure) => {
            let told = failure.to_string();
            let told = told.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            report.fail("netrc", format!("{name}: {told}"), mend);
            return Ok(None);
        }
    };
    match client.cache_info().await {
        Ok((200, _)) => {
            let detail = format!("{name}: the token in {path} reads it");
            match end_of(&token, session, context).await? {
                Some(left) => report.warn("netrc", format!("{detail}; it ends in {left}"), mend),
                None => report.ok("netrc", detail),
            }
            Ok(Some(token))
        }
        Ok((status, body)) => {
            let said = String::from_utf8_lossy(&body).trim().replace(token.expose_secret(), "…");
            let detail = format!("{name}: the token in {path} is refused ({status}): {said}");
            report.fail("netrc", detail, mend);
            Ok(None)
        }
        Err(error) => {
            fail(report, "netrc", &error);
            Ok(None)
        }
    }
}

/// How long a token lasts yet, if that is not long.
async fn end_of(
    token: &SecretString,
    session: &Session,
    context: &Context,
) -> Result<Option<String>, Failure> {
    let client = context.client_of(session.client.url().clone(), Some(token))?;
    let Ok(who) = client.whoami().await else { return Ok(None) };
    Ok(ends_within(&who.expires_at, context.clock.now(), WARNING_DAYS).ok().flatten())
}

/// Whether a path can be pulled: it is there, signed by a key that is trusted, and its NAR can be read.
pub async fn path(report: &mut Report, setup: &Setup, view: &CacheView, cache: &Client, hash: &str) {
    let name = &view.name;
    let narinfo = match cache.narinfo(hash).await {
        Ok((200, body)) => NarInfo::parse(&body),
        Ok((404, _)) => {
            let hint = format!("push it: `nix copy --to '{}' PATH`", view.push_url);
            report.fail("path", format!("{name} does not have {hash}"), hint);
            return;
        }
        Ok((status, _)) => {
            report.fail("path", format!("{name} answers {status} for {hash}"), "try again later");
            return;
        }
        Err(error) => return fail(report, "path", &error),
    };
    let Ok(narinfo) = narinfo else {
        let hint = "compare `narvault --version` with the server's";
        report.fail("path", format!("{name} has a narinfo for {hash} that cannot be read"), hint);
        return;
    };
    let keys: Vec<PublicKey> = setup.public_keys().iter().filter_map(|key| key.parse().ok()).collect();
    let message = narinfo.claim.fingerprint();
    let signed = narinfo.signatures.iter().any(|signature| {
        keys.iter().any(|key| *key.name() == signature.name && key.verify(message.as_bytes(), signature))
    });
    let path = narinfo.claim.path.to_string();
    if signed {
        report.ok("path", format!("{name} has {path}, signed by a trusted key"));
    } else {
        let detail = format!("{name} has {path}, and no key that Nix trusts has signed it");
        report.fail("path", detail, format!("run `{}`", setup.use_command(&view.pull_url)));
    }
    match cache.nar_begins(&narinfo.file.to_string()).await {
        Ok(found) => nar(report, &format!("{name}: the NAR of {path}"), &found),
        Err(error) => fail(report, "nar", &error),
    }
}

/// Whether a NAR's first byte came, and what to do where it did not.
fn nar(report: &mut Report, what: &str, found: &FirstByte) {
    let from = found.elsewhere.as_ref().map_or(String::new(), |host| format!(" from {host}"));
    if found.came {
        return report.ok("nar", format!("{what} can be read{from}"));
    }
    let reach = "the operator lets the bucket be reached from here, or sets `nars.deliver = \"proxy\"`";
    let (detail, hint) = match (found.status, &found.elsewhere) {
        (None, _) => (format!("{what} cannot be read: nobody answers{from}"), reach),
        (Some(status), Some(_)) => (format!("{what} cannot be read: status {status}{from}"), reach),
        (Some(404), None) => (
            format!("{what} is not there (status 404)"),
            "the operator runs `narvault storage scrub`; pushing the path again brings it back",
        ),
        (Some(status @ 200..=299), None) => (
            format!("{what} is empty (status {status})"),
            "look at what stands between here and the server: a proxy cuts answers",
        ),
        (Some(status), None) => (
            format!("{what} cannot be read (status {status})"),
            "look at the server's log, or run `narvault check` on its host",
        ),
    };
    report.fail("nar", detail, hint);
}

fn fail(report: &mut Report, part: &'static str, error: &Error) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let hint = error.hint().unwrap_or_else(|| "run it again with another `--url`".to_owned());
    report.fail(part, format!("{error}{cause}"), hint);
}

/// From here on a token's end is near, in days, as everywhere.
const WARNING_DAYS: i64 = 7;

/// A clock that is off by more has no time service; tokens allow for a minute.
const SKEW_SECONDS_MAX: i64 = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Status;

    #[test]
    fn a_nar_that_does_not_come_is_a_finding_with_its_cure() {
        let host = || Some("bucket.example".to_owned());
        for (status, came, elsewhere, expected, hint) in [
            (Some(206), true, None, "can be read", ""),
            (Some(200), true, None, "can be read", ""),
            (Some(206), true, host(), "can be read from bucket.example", ""),
            (None, false, host(), "nobody answers from bucket.example", "nars.deliver"),
            (Some(403), false, host(), "status 403 from bucket.example", "nars.deliver"),
            (Some(404), false, None, "is not there", "narvault storage scrub"),
            (Some(206), false, None, "is empty", "a proxy cuts answers"),
            (Some(503), false, None, "status 503", "narvault check"),
            (Some(302), false, None, "status 302", "narvault check"),
        ] {
            let mut report = Report::default();

            nar(&mut report, "the NAR", &FirstByte { status, came, elsewhere });

            let line = &report.checks[0];
            let status = if came { Status::Ok } else { Status::Fail };
            assert_eq!((line.part, line.status), ("nar", status), "{}", line.detail);
            assert!(line.detail.contains(expected), "{}", line.detail);
            assert!(line.hint.as_deref().unwrap_or_default().contains(hint), "{:?}", line.hint);
        }
    }

    #[test]
    fn a_token_without_the_scope_for_the_cache_is_a_finding_with_its_cure() {
        let server = "https://a.example".parse().unwrap();
        let view = |public: bool| -> CacheView {
            let json = serde_json::json!({
                "id": "c-1", "name": "team", "public": public, "priority": 41, "prefix": "team", "upstreams": [],
                "upstream_paths": "store", "undeclared_references": "record", "public_keys": [],
                "pull_url": "https://a.example/team", "push_url": "https://a.example/push/team", "paths": 0,
                "bytes": 0, "created_at": "2026-11-22T13:10:00Z"
            });
            serde_json::from_value(json).unwrap()
        };
        for (scopes, view, status, told, hint) in [
            (&["push:team"][..], Some(view(false)), Status::Ok, "may push and pull", ""),
            (&["push:te*"], Some(view(false)), Status::Ok, "may push and pull", ""),
            (&["admin"], Some(view(false)), Status::Ok, "may push and pull", ""),
            (
                &["push:other", "pull:team"],
                Some(view(false)),
                Status::Warn,
                "no `push:team`",
                "--scope push:team",
            ),
            (&["push:other"], Some(view(true)), Status::Warn, "pulls need none", "--scope push:team"),
            (&["push:other"], None, Status::Fail, "neither `pull:team`", "--scope pull:team"),
            (
                &["delete:team"],
                None,
                Status::Fail,
                "neither `pull:team`",
                "token issue bob --scope pull:team",
            ),
        ] {
            let who = Whoami {
                contributor: "bob".to_owned(),
                token_id: "t-1".to_owned(),
                scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
                expires_at: "2026-11-22T13:10:00Z".to_owned(),
            };
            let mut report = Report::default();

            super::scopes(&mut report, &who, "team", view.as_ref(), &server);

            let line = &report.checks[0];
            assert_eq!((line.part, line.status), ("scope", status), "{scopes:?}");
            assert!(line.detail.contains(told), "{scopes:?}: {}", line.detail);
            assert!(line.hint.as_deref().unwrap_or_default().contains(hint), "{scopes:?}: {:?}", line.hint);
        }
    }

    #[test]
    fn a_clock_that_is_off_by_more_than_30_seconds_is_warned_of() {
        let server = Timestamp::parse_http_date("Sun, 22 Nov 2026 13:10:00 GMT").unwrap();
        for (ahead, expected) in
            [(0, false), (30, false), (-30, false), (31, true), (-31, true), (86_400, true)]
        {
            let mut report = Report::default();

            clock(&mut report, "Sun, 22 Nov 2026 13:10:00 GMT", server.plus_seconds(ahead));

            assert_eq!(report.checks[0].hint.is_some(), expected, "{ahead}: {}", report.checks[0].detail);
            assert_eq!(report.failures(), 0);
        }
    }
}
