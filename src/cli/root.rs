//! `narvault root`: keys that lie away from every server, whose word counts when a cache's key is in other hands.
//!
//! `keygen` and `sign` need no server and no network. Never prints a secret, and never signs what was not shown.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use super::Context;
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::output::to_stderr;
use super::text::{Fields, moment, plain};
use crate::api::{NoteSubmit, RootKeysView, RootSetDraft};
use crate::client::text_file::{Secrecy, TextFile};
use crate::nix::signature::{KeyName, PublicKey};
use crate::succession::{Document, Draft, Reason, RootScope, Roots, Statement, note_key};
use crate::tlog::note::Note;
use crate::vault::{OfflineKey, OfflineKeyError, Passphrase};

#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Make a root key in a file of its own; prints its public half
    Keygen(KeygenArgs),
    /// Add a root key's signature to a draft, after showing what it says
    Sign(SignArgs),
    /// Draft the next set of root keys of a cache or of the server, to be signed
    Set(SetArgs),
    /// Show the root keys that hold for a cache, or the server's
    Show(ShowArgs),
    /// Hand in what root keys have signed: a set of root keys, or a succession after a compromise
    Submit(SubmitArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault root keygen alice --file ./alice.key")]
pub struct KeygenArgs {
    /// The key's name, never to be used again
    name: String,
    /// The file that is made, which only you can read [default: NAME.key]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Seal the file under a passphrase, which is asked for
    #[arg(long)]
    passphrase: bool,
    /// Seal the file under the passphrase in this file, or on stdin with `-`
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault root sign ./draft --key ./alice.key")]
pub struct SignArgs {
    /// The draft; the signature is added to it
    draft: PathBuf,
    /// The file of the root key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The file that holds the key's passphrase, or `-` for stdin [default: ask for it]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Enough keys of the set in force, and of the new one, have to sign the draft: `narvault root sign`. Then hand it in with
`narvault root submit`.

Example:
  narvault root set main --threshold 1 alice:Xl0l7tQJTqm1YHpQw4a2nCj7mJ7rXzq1rDq6b6v1gRg= --output ./draft")]
pub struct SetArgs {
    /// The cache's name, unless `--server` is given; then the public halves of the root keys, `name:base64`
    #[arg(required = true, value_name = "CACHE|KEY")]
    words: Vec<String>,
    /// For every cache that has none of its own
    #[arg(long)]
    server: bool,
    /// How many of the keys have to sign
    #[arg(long, value_name = "NUMBER")]
    threshold: u64,
    /// Where the draft is written [default: stdout]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault root show main")]
pub struct ShowArgs {
    /// The cache's name
    #[arg(required_unless_present = "server")]
    cache: Option<String>,
    /// The server's own
    #[arg(long, conflicts_with = "cache")]
    server: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault root submit ./draft")]
pub struct SubmitArgs {
    /// The draft with its signatures
    draft: PathBuf,
}

pub async fn run(command: RootCommand, context: &Context) -> Result<(), Failure> {
    match command {
        RootCommand::Keygen(args) => {
            harden()?;
            keygen(args, context)
        }
        RootCommand::Sign(args) => {
            harden()?;
            sign(&args, context)
        }
        RootCommand::Set(args) => set(args, context).await,
        RootCommand::Show(args) => {
            let roots = context.client()?.root_keys(args.cache.as_deref()).await?;
            context.printer.answer(&roots, roots_text)
        }
        RootCommand::Submit(args) => submit(&args, context).await,
    }
}

fn keygen(args: KeygenArgs, context: &Context) -> Result<(), Failure> {
    let name: KeyName = args.name.parse().map_err(|error| Failure::new(Exit::Usage, error))?;
    let path = args.file.unwrap_or_else(|| PathBuf::from(format!("{name}.key")));
    let passphrase = match &args.passphrase_file {
        Some(file) => Some(passphrase_from(file)?),
        None if args.passphrase => Some(new_passphrase()?),
        None => None,
    };
    let key = OfflineKey::create(name, &path, passphrase.as_ref()).map_err(key_failure)?;
    // What signs nothing must not be promised to sign.
    note_key(key.public_key()).map_err(|error| Failure::caused("the name cannot be used".into(), error))?;
    let public = key.public_key().to_string();
    context.printer.answer(&serde_json::json!({ "public_key": public, "file": path }), |_| {
        format!("{}\n", plain(&public))
    })?;
    context.printer.note(&format!(
        "the secret is in {}: keep it where no server can read it, and a copy elsewhere",
        path.display()
    ));
    Ok(())
}

fn sign(args: &SignArgs, context: &Context) -> Result<(), Failure> {
    let (file, draft) = read_draft(&args.draft)?;
    let ask = || match &args.passphrase_file {
        Some(file) => passphrase_from(file),
        None => {
            let question = format!("Passphrase of {}", args.key.display());
            passphrase(ask::prompt_secret(&question)?.expose_secret())
        }
    };
    let key = OfflineKey::read(&args.key, || ask().map_err(Asked::Failure)).map_err(|asked| match asked {
        Asked::Failure(failure) => failure,
        Asked::Key(error) => key_failure(error),
    })?;
    let name = plain(key.public_key().name().as_str());
    // Also with `--quiet`: nobody signs what was not shown.
    to_stderr(&in_words(&draft, key.public_key()));
    ask::confirm(&format!("Sign this with {name}?"), args.yes, Unattended::Refuse)?;
    let verifier = note_key(key.public_key())
        .map_err(|error| Failure::caused("this key cannot sign notes".into(), error))?;
    let note = Note::sign(draft.text().to_owned(), &verifier, |_| key.sign(&draft.content))
        .map_err(|error| Failure::caused("nothing was signed".into(), error))?;
    let signed = draft.with(note).map_err(|error| Failure::caused("nothing was signed".into(), error))?;
    file.write(Some(&signed.encode()), Secrecy::Open)
        .map_err(|error| Failure::caused("the signature was not kept".into(), error))?;
    context.printer.answer(&serde_json::json!({ "signers": signed.signers() }), |_| {
        format!("signed by {}\n", plain(&signed.signers().join(", ")))
    })
}

async fn set(args: SetArgs, context: &Context) -> Result<(), Failure> {
    let mut words = args.words;
    let cache = (!args.server).then(|| words.remove(0));
    if let Some(cache) = cache.as_ref().filter(|cache| cache.contains(':')) {
        return Err(Failure::new(Exit::Usage, format!("{cache} is a key, and no cache is named"))
            .hint("name the cache before the keys, or add `--server`"));
    }
    for key in &words {
        key.parse::<PublicKey>().map_err(|error| {
            Failure::new(Exit::Usage, format!("{}: {error}", plain(key)))
                .hint("give the line that `narvault root keygen` printed")
        })?;
    }
    let body = RootSetDraft { threshold: args.threshold, keys: words };
    let draft = context.client()?.root_keys_draft(cache.as_deref(), &body).await?.draft;
    write_draft(&draft, args.output.as_deref(), context)
}

/// Hands in a signed draft, each kind where it belongs.
async fn submit(args: &SubmitArgs, context: &Context) -> Result<(), Failure> {
    let (_, draft) = read_draft(&args.draft)?;
    let client = context.client()?;
    let body = NoteSubmit { note: draft.encode() };
    match &draft.content {
        Document::Roots(Roots { scope, .. }) => {
            let cache = match scope {
                RootScope::Cache(cache) => Some(cache.name.as_str()),
                RootScope::Server(_) => None,
            };
            let roots = client.root_keys_submit(cache, &body).await?;
            context.printer.answer(&roots, roots_text)?;
            context.printer.note(
                "clients learn of them with `narvault use`, and from the next planned rotation, which names them",
            );
            Ok(())
        }
        Document::Succession(statement) => {
            let told = client.key_succession_submit(&statement.cache.name, &body).await?;
            context.printer.answer(&told, super::key::succession_text)
        }
    }
}

/// Shows a draft, or puts it into a file.
pub fn write_draft(draft: &str, output: Option<&Path>, context: &Context) -> Result<(), Failure> {
    let Some(path) = output else {
        return context.printer.answer(&serde_json::json!({ "draft": draft }), |_| draft.to_owned());
    };
    let written = absolute(path)?;
    written
        .write(Some(draft), Secrecy::Open)
        .map_err(|error| Failure::caused(format!("cannot write {}", path.display()), error))?;
    let path = path.display().to_string();
    let path = plain(&path);
    context.printer.answer(&serde_json::json!({ "file": path }), |_| String::new())?;
    context.printer.note(&format!(
        "{path} is to be signed with `narvault root sign {path} --key FILE`, then handed in with \
         `narvault root submit {path}`"
    ));
    Ok(())
}

fn read_draft(path: &Path) -> Result<(TextFile, Draft), Failure> {
    let file = absolute(path)?;
    let text =
        file.read().map_err(|error| Failure::caused(format!("cannot read {}", path.display()), error))?;
    let text = text.ok_or_else(|| Failure::new(Exit::Failure, format!("there is no {}", path.display())))?;
    let draft = Draft::parse(&text)
        .map_err(|error| Failure::caused(format!("{} is no draft", path.display()), error))?;
    Ok((file, draft))
}

fn absolute(path: &Path) -> Result<TextFile, Failure> {
    let failed = |error: anyhow::Error| Failure::caused(format!("cannot use {}", path.display()), error);
    let absolute = std::path::absolute(path).map_err(|error| failed(error.into()))?;
    TextFile::at(&absolute).map_err(|error| failed(error.into()))
}

/// Everything that the signature would stand for, for whoever is to give it.
fn in_words(draft: &Draft, key: &PublicKey) -> String {
    match &draft.content {
        Document::Roots(roots) => roots_in_words(roots, key),
        Document::Succession(statement) => statement_in_words(statement),
    }
}

fn statement_in_words(statement: &Statement) -> String {
    let why = match statement.reason {
        Reason::Compromise => "others may hold the old key: its word counts no more",
        Reason::Planned => "planned",
    };
    let roots = statement.roots.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    Fields::default()
        .with("what", format!("succession {} of the keys of a cache", statement.seq))
        .with("cache", statement.cache.to_string())
        .with("old key", statement.old.to_string())
        .with("new key", statement.new.to_string())
        .with("why", why)
        .with("root keys", format!("version {roots}"))
        .with("holds from", moment(&statement.not_before.rfc3339()))
        .with_some("old key ends", statement.retire_old.map(|at| moment(&at.rfc3339())).as_deref())
        .with("ends", moment(&statement.expires.rfc3339()))
        .text()
}

fn roots_in_words(roots: &Roots, key: &PublicKey) -> String {
    let scope = match &roots.scope {
        RootScope::Cache(cache) => format!("the cache {cache}"),
        RootScope::Server(cluster) => format!("every cache of the server {cluster} that has none of its own"),
    };
    let mut fields = Fields::default()
        .with("what", format!("root keys, version {}", roots.version))
        .with("for", scope)
        .with("needed", format!("{} of {}", roots.threshold, roots.keys.len()));
    for root in &roots.keys {
        fields = fields.with("key", root.to_string());
    }
    if !roots.keys.contains(key) {
        fields = fields.with("mind", format!("{} is not among them: this gives its word away", key.name()));
    }
    fields.text()
}

fn roots_text(roots: &RootKeysView) -> String {
    let Some(set) = roots.sets.last() else {
        return format!("no root keys for {}\n", plain(&roots.scope));
    };
    let mut fields = Fields::default()
        .with("for", &roots.scope)
        .with("version", set.version.to_string())
        .with("needed", format!("{} of {}", set.threshold, set.keys.len()));
    for key in &set.keys {
        fields = fields.with("key", key);
    }
    fields.text()
}

/// Asks twice: what is mistyped opens nothing.
fn new_passphrase() -> Result<Passphrase, Failure> {
    let (first, again) = (ask::prompt_secret("Passphrase")?, ask::prompt_secret("Once more")?);
    if first.expose_secret() != again.expose_secret() {
        return Err(Failure::new(Exit::Failure, "the two passphrases differ, nothing was made"));
    }
    passphrase(first.expose_secret())
}

fn passphrase_from(file: &Path) -> Result<Passphrase, Failure> {
    passphrase(ask::secret_from_file(file, "passphrase")?.expose_secret())
}

fn passphrase(text: &str) -> Result<Passphrase, Failure> {
    Passphrase::parse(text.as_bytes()).map_err(|error| Failure::new(Exit::Usage, error))
}

/// A key was not read: because of its file, or because nobody could be asked.
enum Asked {
    Key(OfflineKeyError),
    Failure(Failure),
}

impl From<OfflineKeyError> for Asked {
    fn from(error: OfflineKeyError) -> Self {
        Self::Key(error)
    }
}

fn key_failure(error: OfflineKeyError) -> Failure {
    Failure::Told { exit: Exit::Failure, error: error.into(), hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::succession::testing::{self, TestKey};

    #[test]
    fn whoever_signs_sees_everything_that_counts() {
        let set = testing::roots(3, 2, &["alice", "bob", "carol"]);
        let alice = TestKey::named("alice").public;
        let statement = Document::Succession(testing::compromise(7, "main-1", "main-2", &set));

        let shown = in_words(&Draft::new(statement).unwrap(), &alice);
        for part in [
            "succession 7",
            "main 0199a1b2-",
            "main-1:",
            "main-2:",
            "others may hold",
            "version 3 ",
            "2026-11-22",
        ] {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }

        let shown = in_words(&Draft::new(Document::Roots(set.clone())).unwrap(), &alice);
        for part in ["root keys, version 3", "2 of 3", "alice:", "bob:", "carol:", "the cache main"] {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }
        assert!(!shown.contains("not among them"));
        let dave = TestKey::named("dave").public;
        assert!(
            in_words(&Draft::new(Document::Roots(set)).unwrap(), &dave).contains("dave is not among them")
        );
    }
}
