//! `narvault login`, `logout` and `whoami`.
//!
//! Never prints a token: what was claimed or typed goes into the login file and nowhere else.

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::Context;
use super::ask;
use super::failure::{Exit, Failure};
use super::session::{Session, TokenFrom};
use super::text::{Fields, moment};
use crate::api::{ClaimRequest, RevokeRequest, Whoami};
use crate::client::ServerUrl;
use crate::client::login::Login;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault login https://cache.example.org")]
pub struct LoginArgs {
    /// The server's address [default: `--url`, else the server last logged in to]
    #[arg(value_name = "URL")]
    server: Option<String>,
    /// The one-time `nvb_…` secret that the server printed
    #[arg(long, value_name = "SECRET", group = "credential", value_parser = super::secret)]
    claim: Option<SecretString>,
    /// Read the one-time `nvb_…` secret from stdin
    #[arg(long, group = "credential")]
    claim_stdin: bool,
    /// Read a `nvt_…` token from stdin
    #[arg(long, group = "credential")]
    token_stdin: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault logout --revoke")]
pub struct LogoutArgs {
    /// The server's address [default: `--url`, else the server last logged in to]
    #[arg(value_name = "URL")]
    server: Option<String>,
    /// Also revoke the token, so that no copy of it is of use
    #[arg(long)]
    revoke: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault whoami")]
pub struct WhoamiArgs {}

/// What somebody may log in with.
enum Credential {
    Claim(SecretString),
    Token(SecretString),
}

pub async fn login(args: LoginArgs, context: &Context) -> Result<(), Failure> {
    let url = context.server(args.server.as_deref())?;
    // Before anything is spent: a claim whose token cannot be kept would be lost.
    let store = context.logins()?;
    store.update(|_| ())?;

    let (token, who) = match credential(args, &url)? {
        Credential::Claim(claim) => {
            let client = context.client_of(url.clone(), None)?;
            let issued = client.claim(&ClaimRequest { claim: claim.expose_secret().to_owned() }).await?;
            let who = Whoami {
                contributor: issued.contributor,
                token_id: issued.id,
                scopes: issued.scopes,
                expires_at: issued.expires_at,
            };
            (SecretString::from(issued.token), who)
        }
        Credential::Token(token) => {
            let who = context.client_of(url.clone(), Some(&token))?.whoami().await?;
            (token, who)
        }
    };

    let login = Login {
        token,
        token_id: who.token_id.clone(),
        contributor: who.contributor.clone(),
        expires_at: who.expires_at.clone(),
    };
    store.update(|logins| logins.insert(&url, login))?;
    let until = moment(&who.expires_at);
    context.printer.note(&format!("logged in to {url} as {}, until {until}", who.contributor));
    context.warn_of_end(&who.expires_at);
    context.printer.answer(&who, |_| String::new())
}

pub async fn logout(args: LogoutArgs, context: &Context) -> Result<(), Failure> {
    let url = context.server(args.server.as_deref())?;
    let store = context.logins()?;
    let Some(login) = store.load()?.of(&url).cloned() else {
        context.printer.note(&format!("not logged in to {url}"));
        return Ok(());
    };
    if args.revoke {
        let client = context.client_of(url.clone(), Some(&login.token))?;
        // What this login issued for others stays theirs.
        let body = RevokeRequest { reason: "logout".into(), keep_issued: true };
        client.token_revoke(&login.token_id, &body).await?;
    }
    store.update(|logins| logins.remove(&url))?;
    context.printer.note(&format!("logged out of {url}"));
    if !args.revoke {
        let end = moment(&login.expires_at);
        context.printer.note(&format!("the token {} itself stays valid until {end}", login.token_id));
    }
    Ok(())
}

pub async fn whoami(_args: WhoamiArgs, context: &Context) -> Result<(), Failure> {
    let Session { client, token_from } = context.session()?;
    let who = client.whoami().await?;
    if token_from == TokenFrom::Environment {
        context.warn_of_end(&who.expires_at);
    }
    context.printer.answer(&who, |who| {
        Fields::default()
            .with("contributor", &who.contributor)
            .with("server", client.url())
            .with("token", &who.token_id)
            .with_all("scopes", who.scopes.clone())
            .with("expires", moment(&who.expires_at))
            .text()
    })
}

fn credential(args: LoginArgs, url: &ServerUrl) -> Result<Credential, Failure> {
    if let Some(claim) = args.claim {
        return require_claim(claim);
    }
    if args.claim_stdin {
        return require_claim(ask::secret_from_stdin("claim")?);
    }
    if args.token_stdin {
        return require_token(ask::secret_from_stdin("token")?);
    }
    if !ask::is_attended() {
        return Err(Failure::new(Exit::Usage, "nobody is there to type a token")
            .hint(format!("run `narvault login {url} --token-stdin`, or set NARVAULT_TOKEN")));
    }
    let secret = ask::prompt_secret("Token (nvt_…) or one-time claim (nvb_…), not shown")?;
    if secret.expose_secret().starts_with(CLAIM_PREFIX) {
        Ok(Credential::Claim(secret))
    } else {
        require_token(secret)
    }
}

fn require_claim(secret: SecretString) -> Result<Credential, Failure> {
    let text = secret.expose_secret();
    if text.starts_with(CLAIM_PREFIX) {
        Ok(Credential::Claim(secret))
    } else if text.starts_with(TOKEN_PREFIX) {
        Err(Failure::new(Exit::Usage, "this is a token, not a one-time claim").hint("use `--token-stdin`"))
    } else {
        Err(Failure::new(Exit::Usage, "a one-time claim begins with `nvb_`")
            .hint("run `narvault admin claim` on the server's host to get one"))
    }
}

fn require_token(secret: SecretString) -> Result<Credential, Failure> {
    let text = secret.expose_secret();
    if text.is_empty() {
        Err(Failure::new(Exit::Usage, "no token was given").hint("ask an admin for `narvault token issue`"))
    } else if text.starts_with(CLAIM_PREFIX) {
        Err(Failure::new(Exit::Usage, "this is a one-time claim, not a token").hint("use `--claim-stdin`"))
    } else {
        // The server takes tokens with and without their prefix.
        Ok(Credential::Token(secret))
    }
}

const TOKEN_PREFIX: &str = "nvt_";
const CLAIM_PREFIX: &str = "nvb_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_and_tokens_are_told_apart_without_repeating_them() {
        for (refused, hint) in [
            (require_claim("nvt_secret".into()), "--token-stdin"),
            (require_claim("secret".into()), "narvault admin claim"),
            (require_claim("".into()), "narvault admin claim"),
            (require_token("nvb_secret".into()), "--claim-stdin"),
            (require_token("".into()), "narvault token issue"),
        ] {
            let told = refused.err().unwrap().to_string();

            assert!(told.contains(hint) && !told.contains("secret"), "{told}");
        }
        assert!(matches!(require_claim("nvb_x".into()), Ok(Credential::Claim(_))));
        for text in ["nvt_x", "eyJ.x.y"] {
            assert!(matches!(require_token(text.into()), Ok(Credential::Token(_))), "{text}");
        }
    }
}
