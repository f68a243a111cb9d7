//! `narvault token`: who may do what, until when.
//!
//! Prints a token's text once, alone on stdout, when it is issued; never on stderr, where logs are made.

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use super::Context;
use super::args::{Lifetime, ListArgs, Since};
use super::ask::{self, Unattended};
use super::failure::Failure;
use super::list::print_list;
use super::session::TokenFrom;
use super::takedown::{self, QuarantineHow, RestoreHow};
use super::text::{Fields, Table, moment, plain};
use crate::api::{
    RevokeRequest, Revoked, TokenCreate, TokenIssued, TokenQuery, TokenRenew, TokenReport, TokenView,
};
use crate::client::login::Login;
use crate::client::{Client, ServerUrl};
use crate::time::Timestamp;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Issue a token; its text is printed this once
    Issue(IssueArgs),
    /// List tokens
    List(TokenListArgs),
    /// Show one token
    Show(ShowArgs),
    /// Get a new token of the same scopes as one's own
    Renew(RenewArgs),
    /// Revoke a token, and what it issued, at once
    Revoke(RevokeArgs),
    /// Revoke every token of a contributor, and what they issued, at once
    RevokeAll(RevokeAllArgs),
    /// Revoke a token, and what it issued, and withdraw what rests on them alone
    Quarantine(QuarantineArgs),
    /// Undo `quarantine`; the token stays dead
    Restore(RestoreArgs),
    /// Kill a leaked token by its text, read from stdin; needs no login
    Report(ReportArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token issue ci --scope push:main --expires 30d")]
pub struct IssueArgs {
    /// The contributor's name
    contributor: String,
    /// What it allows: admin, or pull:, push:, delete: and a cache's name or a beginning and `*`
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true)]
    scopes: Vec<String>,
    /// How long it lives, such as 12h or 30d [default: the server's]
    #[arg(long, value_name = "TIME")]
    expires: Option<Lifetime>,
    /// What it is for
    #[arg(long)]
    note: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token list --contributor ci")]
pub struct TokenListArgs {
    /// Only those of this contributor
    #[arg(long, value_name = "NAME")]
    contributor: Option<String>,
    /// Only those that this token issued, directly or through others
    #[arg(long, value_name = "ID")]
    issued_by: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token show 019aabcd-1234-7abc-8def-0123456789ab")]
pub struct ShowArgs {
    /// The token's id
    id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token renew --expires 30d")]
pub struct RenewArgs {
    /// How long the new one lives, such as 12h or 30d [default: the server's]
    #[arg(long, value_name = "TIME")]
    expires: Option<Lifetime>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault token revoke 019aabcd-1234-7abc-8def-0123456789ab --reason 'laptop lost'"
)]
pub struct RevokeArgs {
    /// The token's id
    id: String,
    #[command(flatten)]
    how: RevokeHow,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token revoke-all alice --reason 'left the team'")]
pub struct RevokeAllArgs {
    /// The contributor's name
    contributor: String,
    #[command(flatten)]
    how: RevokeHow,
}

#[derive(Debug, Args)]
struct RevokeHow {
    /// Why, for the audit
    #[arg(long)]
    reason: String,
    /// Leave alive what was issued by it
    #[arg(long)]
    keep_issued: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault token quarantine 019aabcd-1234-7abc-8def-0123456789ab --reason 'in a public log' --dry-run"
)]
pub struct QuarantineArgs {
    /// The token's id
    id: String,
    /// What was pushed with it since then counts no longer: RFC 3339, or how long ago, such as 7d [default: all]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    #[command(flatten)]
    how: QuarantineHow,
    /// Leave alone what was issued by it
    #[arg(long)]
    keep_issued: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault token restore 019aabcd-1234-7abc-8def-0123456789ab --reason 'nobody used it'"
)]
pub struct RestoreArgs {
    /// The token's id
    id: String,
    #[command(flatten)]
    how: RestoreHow,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault token report < leaked.txt")]
pub struct ReportArgs {}

pub async fn run(command: TokenCommand, context: &Context) -> Result<(), Failure> {
    match command {
        TokenCommand::Issue(args) => issue(args, context).await,
        TokenCommand::List(args) => list(args, context).await,
        TokenCommand::Show(args) => {
            let token = context.client()?.token(&args.id).await?;
            context.printer.answer(&token, |token| fields(token, context.clock.now()))
        }
        TokenCommand::Renew(args) => renew(args, context).await,
        TokenCommand::Revoke(args) => revoke(args, context).await,
        TokenCommand::RevokeAll(args) => revoke_all(args, context).await,
        TokenCommand::Quarantine(QuarantineArgs { id, since, how, keep_issued }) => {
            let client = context.client()?;
            takedown::quarantine(context, &how, since, keep_issued, async |body, query| {
                client.token_quarantine(&id, body, query).await
            })
            .await
        }
        TokenCommand::Restore(RestoreArgs { id, how }) => {
            let client = context.client()?;
            takedown::restore(context, how, async |body| client.token_restore(&id, body).await).await
        }
        TokenCommand::Report(ReportArgs {}) => report(context).await,
    }
}

async fn issue(args: IssueArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let body = TokenCreate {
        contributor: args.contributor,
        scopes: args.scopes,
        expires_in_seconds: args.expires.map(Lifetime::as_seconds),
        note: args.note,
    };
    let issued = client.token_issue(&body).await?;
    context.printer.answer(&issued, |issued| format!("{}\n", plain(&issued.token)))?;
    context.printer.note_lines(&how_to_use(&issued, client.url()));
    Ok(())
}

async fn list(args: TokenListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let now = context.clock.now();
    print_list(
        context.printer,
        &args.list,
        &COLUMNS,
        |token| row(token, now),
        async |query| {
            let query = TokenQuery {
                contributor: args.contributor.clone(),
                issued_by: args.issued_by.clone(),
                cursor: query.cursor,
                limit: query.limit,
                order: query.order,
            };
            client.tokens(&query).await
        },
    )
    .await
}

async fn renew(args: RenewArgs, context: &Context) -> Result<(), Failure> {
    let session = context.session()?;
    if session.token_from == TokenFrom::Login {
        // Before anything is issued: a token that cannot be kept would be lost, and alive.
        context.logins()?.update(|_| ())?;
    }
    let old = session.client.whoami().await?;
    let body = TokenRenew { expires_in_seconds: args.expires.map(Lifetime::as_seconds) };
    let issued = session.client.renew(&body).await?;
    if session.token_from == TokenFrom::Login {
        let login = Login {
            token: issued.token.as_str().into(),
            token_id: issued.id.clone(),
            contributor: issued.contributor.clone(),
            expires_at: issued.expires_at.clone(),
        };
        context.logins()?.update(|logins| logins.insert(session.client.url(), login))?;
    }
    context.printer.answer(&issued, |issued| match session.token_from {
        TokenFrom::Login => String::new(),
        TokenFrom::Environment | TokenFrom::Nowhere => format!("{}\n", plain(&issued.token)),
    })?;
    context.printer.note(&format!("the new token {} lives until {}", issued.id, moment(&issued.expires_at)));
    context.printer.note(&format!(
        "hint: the old one lives on until {}; end it with `narvault token revoke {} --reason renewed --keep-issued`",
        moment(&old.expires_at),
        old.token_id
    ));
    Ok(())
}

async fn revoke(args: RevokeArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    if !args.how.keep_issued {
        let query = TokenQuery { issued_by: Some(args.id.clone()), ..TokenQuery::default() };
        show_doomed(&client, query, "these tokens were issued by it and die with it:", context).await;
    }
    ask::confirm(&format!("Revoke the token {}?", plain(&args.id)), args.how.yes, Unattended::Proceed)?;
    let revoked = client.token_revoke(&args.id, &args.how.body()).await?;
    print_revoked(&revoked, context)
}

async fn revoke_all(args: RevokeAllArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let query = TokenQuery { contributor: Some(args.contributor.clone()), ..TokenQuery::default() };
    let heading = if args.how.keep_issued {
        "these tokens die:"
    } else {
        "these tokens die, and with them every token that they issued:"
    };
    show_doomed(&client, query, heading, context).await;
    let question = format!("Revoke every token of {}?", plain(&args.contributor));
    ask::confirm(&question, args.how.yes, Unattended::Proceed)?;
    let revoked = client.contributor_revoke_tokens(&args.contributor, &args.how.body()).await?;
    print_revoked(&revoked, context)
}

async fn report(context: &Context) -> Result<(), Failure> {
    let url = context.server(None)?;
    let secret = ask::secret_from_stdin("token")?;
    let body = TokenReport { token: secret.expose_secret().to_owned() };
    context.client_of(url, None)?.token_report(&body).await?;
    context.printer.note("reported: if this was a live token, it is dead now");
    Ok(())
}

impl RevokeHow {
    fn body(&self) -> RevokeRequest {
        RevokeRequest { reason: self.reason.clone(), keep_issued: self.keep_issued }
    }
}

/// Shows which live tokens a revocation will take with it. One page, and no failure: in an emergency the list must not
/// stand in the way; the answer of the revocation names every token that died.
async fn show_doomed(client: &Client, query: TokenQuery, heading: &str, context: &Context) {
    let query = TokenQuery { limit: Some(DOOMED_COUNT_MAX), ..query };
    let page = match client.tokens(&query).await {
        Ok(page) => page,
        Err(error) => {
            context.printer.note(&format!("which tokens die with it cannot be listed: {error}"));
            return;
        }
    };
    let now = context.clock.now();
    let live: Vec<_> = page.items.iter().filter(|token| state(token, now) == "live").collect();
    if live.is_empty() && page.next.is_none() {
        return;
    }
    let header = COLUMNS.map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(header).chain(live.into_iter().map(|token| row(token, now))).collect();
    context.printer.note(heading);
    context.printer.note_lines(&Table::default().text(&rows));
    if page.next.is_some() {
        context.printer.note(&format!("and perhaps more: only the first {DOOMED_COUNT_MAX} were looked at"));
    }
}

fn print_revoked(revoked: &Revoked, context: &Context) -> Result<(), Failure> {
    context
        .printer
        .answer(revoked, |revoked| revoked.revoked.iter().map(|id| format!("{}\n", plain(id))).collect())?;
    match revoked.revoked.len() {
        0 => context.printer.note("nothing to revoke: no such token was alive"),
        1 => context.printer.note("revoked 1 token"),
        count => context.printer.note(&format!("revoked {count} tokens")),
    }
    Ok(())
}

fn state(token: &TokenView, now: Timestamp) -> &'static str {
    if token.revoked_at.is_some() {
        "revoked"
    } else if Timestamp::parse_rfc3339(&token.expires_at).is_ok_and(|end| end <= now) {
        "expired"
    } else {
        "live"
    }
}

fn row(token: &TokenView, now: Timestamp) -> Vec<String> {
    vec![
        token.id.clone(),
        token.contributor.clone(),
        state(token, now).to_owned(),
        moment(&token.expires_at),
        token.last_used_at.as_deref().map_or_else(|| "never".into(), moment),
        token.scopes.join(" "),
        token.note.clone().unwrap_or_default(),
    ]
}

fn fields(token: &TokenView, now: Timestamp) -> String {
    Fields::default()
        .with("id", &token.id)
        .with("contributor", &token.contributor)
        .with("state", state(token, now))
        .with_all("scopes", token.scopes.clone())
        .with_some("note", token.note.as_ref())
        .with_some("issued by", token.issued_by.as_ref())
        .with("created", moment(&token.created_at))
        .with("expires", moment(&token.expires_at))
        .with("last used", token.last_used_at.as_deref().map_or_else(|| "never".into(), moment))
        .with_some("revoked", token.revoked_at.as_deref().map(moment))
        .with_some("reason", token.revoke_reason.as_ref())
        .text()
}

/// What to do with a token, for stderr: names the token, never its text.
fn how_to_use(issued: &TokenIssued, server: &ServerUrl) -> String {
    let cache_of = |kind: &str| {
        issued.scopes.iter().find_map(|scope| scope.strip_prefix(kind)).map(cache_or_placeholder)
    };
    let mut text = format!(
        "token {} of {} lives until {}; its text is not shown again\n",
        plain(&issued.id),
        plain(&issued.contributor),
        plain(&moment(&issued.expires_at))
    );
    let push = cache_of("push:");
    let pull = cache_of("pull:");
    if push.is_some() || pull.is_some() {
        text.push_str("for Nix, a line in ~/.config/nix/netrc (mode 0600):\n");
        text.push_str(&format!("  machine {} login narvault password <the token>\n", server.host()));
    }
    if let Some(cache) = push {
        text.push_str("to push:\n");
        text.push_str(&format!(
            "  nix copy --option netrc-file ~/.config/nix/netrc --to {server}/push/{cache} ./result\n"
        ));
    } else if let Some(cache) = pull {
        text.push_str("to pull:\n");
        text.push_str(&format!("  extra-substituters = {server}/{cache}\n"));
    }
    text.push_str("for narvault itself: NARVAULT_TOKEN, or `narvault login --token-stdin`\n");
    text
}

fn cache_or_placeholder(pattern: &str) -> String {
    if pattern.contains('*') { "CACHE".into() } else { plain(pattern).into_owned() }
}

const COLUMNS: [&str; 7] = ["ID", "CONTRIBUTOR", "STATE", "EXPIRES", "LAST USED", "SCOPES", "NOTE"];

/// One page of the server's.
const DOOMED_COUNT_MAX: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(scopes: &[&str]) -> TokenIssued {
        TokenIssued {
            id: "t-1".into(),
            token: "nvt_secret".into(),
            contributor: "ci".into(),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            expires_at: "2026-12-22T13:10:00.000Z".into(),
        }
    }

    #[test]
    fn how_to_use_a_token_names_host_and_push_url_and_not_the_token() {
        let server = "https://cache.example.org:8443/".parse().unwrap();

        let text = how_to_use(&issued(&["pull:other", "push:main"]), &server);

        assert!(text.contains("machine cache.example.org login narvault password <the token>\n"), "{text}");
        assert!(text.contains("--to https://cache.example.org:8443/push/main ./result\n"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn how_to_use_fits_the_scopes() {
        let server = "https://a.example".parse().unwrap();
        for (scopes, contained, not_contained) in [
            (&["admin"][..], "NARVAULT_TOKEN", "netrc"),
            (&["push:ci-*"], "https://a.example/push/CACHE", "ci-*"),
            (&["pull:main"], "extra-substituters = https://a.example/main", "push"),
        ] {
            let text = how_to_use(&issued(scopes), &server);

            assert!(text.contains(contained) && !text.contains(not_contained), "{text}");
        }
    }

    #[test]
    fn a_token_is_live_until_its_end_or_its_revocation() {
        let now = Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap();
        let token = |expires_at: &str, revoked_at: Option<&str>| TokenView {
            id: "t-1".into(),
            contributor: "ci".into(),
            scopes: vec!["push:main".into()],
            note: None,
            issued_by: None,
            created_at: "2026-11-01T00:00:00Z".into(),
            expires_at: expires_at.into(),
            last_used_at: None,
            revoked_at: revoked_at.map(str::to_owned),
            revoke_reason: None,
        };

        assert_eq!(state(&token("2026-11-22T12:00:01Z", None), now), "live");
        assert_eq!(state(&token("2026-11-22T12:00:00Z", None), now), "expired");
        assert_eq!(state(&token("2026-12-22T12:00:00Z", Some("2026-11-02T00:00:00Z")), now), "revoked");
    }
}
