//! The token with which Nix pulls from a private cache: where it is written, and which one it is.
//!
//! A token that is there and works is kept. Never writes a token that may do more than it must, unless it was handed
//! in for this, and never prints one.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::target::{Reader, Target, file_failure};
use crate::api::TokenCreate;
use crate::cli::local_nix::Places;
use crate::cli::session::{Session, TokenFrom};
use crate::cli::{Context, Exit, Failure};
use crate::client::netrc::{Part, entry_for};
use crate::client::nix_conf::Resolved;
use crate::client::text_file::{Openness, Secrecy, TextFile};
use crate::client::{Error as ClientError, ErrorKind, MarkError, ServerUrl};

/// How Nix comes to read a netrc file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It is the one that Nix reads.
    ByItself,
    /// nix.conf must name it.
    BySetting,
    /// Determinate's daemon takes it into the one that Nix reads, where its own configuration names it.
    ThroughDeterminate,
}

/// A netrc file, and the change to it.
pub struct NetrcEdit {
    pub file: TextFile,
    pub reached: Reached,
    /// Who else may read it now.
    pub openness: Option<Openness>,
    pub before: Option<String>,
    pub after: Option<String>,
    /// Of the token that was made for it.
    pub token_id: Option<String>,
    /// An older entry for the host that does not count any more: its line.
    pub hides: Option<usize>,
}

impl NetrcEdit {
    pub fn is_change(&self) -> bool {
        self.before != self.after
    }

    /// Whether the file is open to others and is closed, whether its text changes or not.
    pub fn closes(&self) -> bool {
        self.after.is_some() && self.openness.is_some_and(|openness| openness.is_ours)
    }

    /// Writes it, and gives the place of the backup if there is one. To be called under the file's lock.
    pub fn apply(&self) -> Result<Option<PathBuf>, Failure> {
        let failed = |error| file_failure(error, &Reader::Unknown);
        let mut backup = None;
        if self.is_change() {
            // As with nix.conf: what the file would be without us.
            let before = Part::without(self.before.as_deref());
            let before = before.map_err(|error| marks_failure(&self.file, error))?;
            if let Some(before) = before.filter(|_| self.before.is_some() && self.after.is_some()) {
                self.file.back_up(&before, Secrecy::Secret).map_err(failed)?;
                backup = Some(self.file.backup_path());
            }
            self.file.write(self.after.as_deref(), Secrecy::Secret).map_err(failed)?;
        } else if self.closes() {
            self.file.close().map_err(failed)?;
        }
        Ok(backup)
    }
}

/// The netrc file that belongs to a nix.conf, and how Nix comes to read it.
pub fn place(
    target: &Target,
    ours: Option<&str>,
    resolved: &Resolved,
    places: &Places,
) -> Result<(TextFile, Reached), Failure> {
    let at = |path: PathBuf| TextFile::at(&path).map_err(|error| file_failure(error, &target.reader));
    if let Some(path) = ours {
        return Ok((at(path.into())?, Reached::BySetting));
    }
    let beside = || target.file.path.with_file_name("netrc");
    let configured = resolved.value("netrc-file").map(PathBuf::from).filter(|path| path.is_absolute());
    match configured {
        // Written anew by its owner, so that an entry of ours would be lost; and its place is set behind the file that
        // is left to people, so that a setting of ours would be too.
        Some(path) if path == Path::new(DETERMINATE_NETRC) => {
            let path = if target.reader == Reader::Machine { places.netrc_default() } else { beside() };
            return Ok((at(path)?, Reached::ThroughDeterminate));
        }
        Some(path) => {
            let file = at(path)?;
            // A user cannot write into the machine's.
            if target.reader != Reader::User || is_writable(&file) {
                return Ok((file, Reached::ByItself));
            }
        }
        None if target.reader == Reader::Machine => {
            return Ok((at(places.netrc_default())?, Reached::ByItself));
        }
        None => {}
    }
    Ok((at(beside())?, Reached::BySetting))
}

fn is_writable(file: &TextFile) -> bool {
    use rustix::fs::{Access, access};
    match access(&file.path, Access::WRITE_OK) {
        Err(rustix::io::Errno::NOENT) => {
            file.path.parent().is_some_and(|folder| access(folder, Access::WRITE_OK).is_ok())
        }
        found => found.is_ok(),
    }
}

/// What is wanted of a netrc file.
pub struct Wanted<'a> {
    pub cache: &'a str,
    /// Where Nix pulls: what the file has an entry for.
    pub host: &'a str,
    /// Where tokens are made and tried.
    pub server: &'a ServerUrl,
    pub session: &'a Session,
}

/// The change that lets Nix read the cache. Under `dry_run` no token is made.
pub async fn plan(
    wanted: &Wanted<'_>,
    (file, reached): (TextFile, Reached),
    context: &Context,
    dry_run: bool,
) -> Result<NetrcEdit, Failure> {
    let before = file.read().map_err(|error| file_failure(error, &Reader::Unknown))?;
    let openness = file.openness();
    let text = before.as_deref();
    let marks = |error: MarkError| marks_failure(&file, error);
    let present = entry_for(text.unwrap_or_default(), wanted.host);
    let is_ours = Part::holds(text, wanted.host).map_err(marks)?;
    // What is no token of ours is nobody's business here, though Nix would send it.
    let token = present.as_ref().and_then(|entry| entry.password.clone()).filter(looks_like_a_token);
    let pull = format!("pull:{}", wanted.cache);
    let mut scopes = vec![pull.clone()];
    if let Some(token) = &token {
        let client = context.client_of(wanted.server.clone(), Some(token))?;
        match client.cache(wanted.cache).await {
            Ok(_) => {
                let after = before.clone();
                return Ok(NetrcEdit { file, reached, openness, before, after, token_id: None, hides: None });
            }
            Err(error) if error.kind() == ErrorKind::NotAuthorised || error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        // It may still be needed for something else on this host, which has one token for everything.
        match client.whoami().await {
            Ok(who) => scopes.extend(who.scopes.into_iter().filter(|scope| *scope != pull)),
            Err(error) if error.kind() == ErrorKind::NotAuthorised => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (token, token_id) = match wanted.session.token_from {
        _ if dry_run => (SecretString::from("nvt_"), None),
        TokenFrom::Environment => (context.token_given()?, None),
        TokenFrom::Login => issue(wanted, scopes).await?,
        TokenFrom::Nowhere => return Err(ClientError::NoToken { url: wanted.server.clone() }.into()),
    };
    let after = Part::put(text, wanted.host, &token).map_err(marks)?;
    let hides = present.filter(|_| !is_ours).map(|entry| entry.line);
    Ok(NetrcEdit { file, reached, openness, before, after: Some(after), token_id, hides })
}

/// A token of the user's own that can do no more than is needed here.
async fn issue(wanted: &Wanted<'_>, scopes: Vec<String>) -> Result<(SecretString, Option<String>), Failure> {
    let client = &wanted.session.client;
    let contributor = client.whoami().await?.contributor;
    let note = Some("narvault use: netrc of a machine".to_owned());
    let body = TokenCreate { contributor, scopes: scopes.clone(), expires_in_seconds: None, note };
    match client.token_issue(&body).await {
        Ok(issued) => Ok((issued.token.into(), Some(issued.id))),
        Err(error) if error.kind() == ErrorKind::NotAuthorised => Err(Failure::from(error).hint(format!(
            "a token with {} is needed for {}: ask for one, and set NARVAULT_TOKEN to it for this command",
            scopes.join(", "),
            wanted.host
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The change that takes our entry for a host out again.
pub fn plan_removal(file: TextFile, host: &str) -> Result<NetrcEdit, Failure> {
    let before = file.read().map_err(|error| file_failure(error, &Reader::Unknown))?;
    let after = Part::remove(before.as_deref(), host).map_err(|error| marks_failure(&file, error))?;
    let (reached, openness) = (Reached::ByItself, file.openness());
    Ok(NetrcEdit { file, reached, openness, before, after, token_id: None, hides: None })
}

/// A token goes by its prefix, or is the JWT alone.
fn looks_like_a_token(password: &SecretString) -> bool {
    let text = password.expose_secret();
    text.starts_with("nvt_") || text.starts_with("ey")
}

/// The netrc file that Determinate Nix is configured with, and writes.
pub const DETERMINATE_NETRC: &str = "/nix/var/determinate/netrc";

/// A failure of marks that somebody has broken.
pub fn marks_failure(file: &TextFile, error: MarkError) -> Failure {
    Failure::new(Exit::Failure, format!("{}: {error}", file.path.display()))
        .hint("delete the lines between `# narvault: begin` and `# narvault: end`, and these, by hand")
}
