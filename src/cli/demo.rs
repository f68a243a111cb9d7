//! `narvault demo`: the whole story by itself, on a server of its own in a temporary folder.
//!
//! Each step tells what happened and which command a person would type for it. A step that does not turn out as
//! promised ends the demo with exit code 1. Reads no configuration, and touches nothing outside its folder.

mod nix;
mod packages;
mod wire;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::Args;
use secrecy::SecretString;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::nix::{Direction, NixUser};
use self::packages::{Package, Packages};
use self::wire::Wire;
use super::failure::{Exit, Failure};
use super::folder::TemporaryFolder;
use super::hardening::harden;
use super::output::Printer;
use super::server::Server;
use super::{Context, logging};
use crate::api::{
    ClaimRequest, ContributorCreate, ContributorKind, PathView, RevokeRequest, TokenCreate, TokenIssued,
};
use crate::client::{Client, ServerUrl};
use crate::config::{Config, Flags, LogFormat, variable};
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::storage::CacheObject;
use crate::vault::random;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault demo --keep")]
pub struct DemoArgs {
    /// Leave the demo's folder behind, and say where it is
    #[arg(long)]
    pub keep: bool,
}

pub async fn run(args: DemoArgs, context: &Context) -> Result<(), Failure> {
    // The story is on stdout; what the server logs would only stand between its lines.
    if variable("RUST_LOG").is_some() {
        logging::set_up(LogFormat::Text);
    }
    harden()?;
    crate::vault::random::check()
        .map_err(|error| Failure::caused("there is no source of randomness".into(), error))?;
    let failed = |error| Failure::caused("cannot wait for signals".into(), error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let folder = TemporaryFolder::make("demo", args.keep)
        .map_err(|error| Failure::caused("cannot make a temporary folder".into(), error))?;

    let mut teller = Teller { printer: context.printer, told: 0, now: "start a server" };
    let told = tokio::select! {
        told = perform(&mut teller, folder.path(), context) => told,
        () = stopped => Err(Carried(Failure::new(Exit::Failure, "interrupted")).into()),
    };
    let now = teller.now;
    if args.keep {
        context.printer.note(&format!(
            "the demo's folder is {}; its tokens are of no use without its server",
            folder.path().display()
        ));
    }
    told.map_err(|error| match error.downcast::<Carried>() {
        Ok(Carried(failure)) => failure,
        Err(error) => Failure::Told {
            exit: Exit::Failure,
            error: anyhow::anyhow!("the demo did not turn out as promised at `{now}`: {error:#}"),
            hint: Some("`RUST_LOG=info narvault demo --keep` shows more and leaves everything there".into()),
        },
    })
}

/// Starts the server, tells the story, and stops the server however it ended.
async fn perform(teller: &mut Teller, folder: &Path, context: &Context) -> anyhow::Result<()> {
    let flags = Flags {
        config: None,
        data: Some(folder.join("data").to_string_lossy().into_owned()),
        listen: Some("127.0.0.1:0".into()),
    };
    // Neither this machine's file nor its variables: the demo is the same everywhere.
    let absent = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    let config = Config::load(&flags, [], absent)?;
    let server = Server::start(config, context.clock.clone()).await?;
    let told = async { Story::begin(&server, folder, context).await?.tell(teller).await }.await;
    server.shut_down().await.context("the server did not stop in order")?;
    told
}

/// A step as it is told.
#[derive(Serialize)]
struct Step<'a> {
    step: u32,
    title: &'a str,
    /// What a person would type.
    commands: &'a [String],
    outcome: &'a str,
}

/// Prints steps as they end.
struct Teller {
    printer: Printer,
    told: u32,
    /// The step under way: named if it fails.
    now: &'static str,
}

impl Teller {
    fn begin(&mut self, title: &'static str) {
        self.now = title;
    }

    /// The step under way has turned out as promised.
    fn end(&mut self, commands: &[String], outcome: &str) -> anyhow::Result<()> {
        self.told += 1;
        let step = Step { step: self.told, title: self.now, commands, outcome };
        let told = self.printer.answer(&step, |step| {
            let mut text = format!("{}. {}\n", step.step, capitalised(step.title));
            for command in step.commands {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "   $ {command}");
            }
            for line in step.outcome.lines() {
                let _ = writeln!(text, "     {line}");
            }
            text.push('\n');
            text
        });
        told.map_err(|failure| Carried(failure).into())
    }
}

/// A failure of the command line on its way through the story.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Carried(Failure);

/// Somebody who pushes.
struct Pusher {
    name: &'static str,
    token: TokenIssued,
    /// With `hello` in its store.
    nix: Option<NixUser>,
}

struct Story<'a> {
    folder: &'a Path,
    context: &'a Context,
    url: String,
    host: String,
    cache: String,
    claim: String,
    key: PublicKey,
    wire: Wire,
    nix_version: Option<String>,
    packages: Packages,
}

impl<'a> Story<'a> {
    async fn begin(server: &Server, folder: &'a Path, context: &'a Context) -> anyhow::Result<Self> {
        let first = server.first.as_ref().context("a new server has no first start to show")?;
        let url = server.config.server.public_url.as_str().to_owned();
        Ok(Self {
            folder,
            context,
            host: url.parse::<ServerUrl>()?.host(),
            cache: first.cache.to_string(),
            claim: first.claim.expose().to_owned(),
            key: first.public_key.clone(),
            wire: Wire::new(&url)?,
            nix_version: nix::version().await,
            packages: Packages::make(&random::text::<16>())?,
            url,
        })
    }

    async fn tell(self, teller: &mut Teller) -> anyhow::Result<()> {
        self.server_is_there(teller)?;
        let admin = self.become_admin(teller).await?;
        let [alice, bob] = self.add_contributors(teller, &admin).await?;
        let early = self.look_too_early(teller, &bob).await?;
        self.push(teller, &alice).await?;
        self.pull(teller).await?;
        self.push_the_same(teller, &admin, &bob, early.is_some()).await?;
        self.push_another(teller, &admin, &bob, early).await?;
        self.revoke(teller, &admin, &alice).await?;
        self.show(teller, &admin, &alice, &bob).await
    }

    fn server_is_there(&self, teller: &mut Teller) -> anyhow::Result<()> {
        teller.begin("start a server");
        let outcome = format!(
            "It listens at {}, with a database, a vault and a cache `{}`.\n\
             Clients trust the cache's public key:\n{}",
            self.url, self.cache, self.key
        );
        teller.end(&["narvault serve".to_owned()], &outcome)
    }

    async fn become_admin(&self, teller: &mut Teller) -> anyhow::Result<Client> {
        teller.begin("become its administrator");
        let url: ServerUrl = self.url.parse()?;
        let claim = ClaimRequest { claim: self.claim.clone() };
        let stranger = self.client(&url, None)?;

        let token = stranger.claim(&claim).await?;
        let again = stranger.claim(&claim).await;

        ensure!(again.is_err(), "the claim worked a second time");
        let command = format!("narvault login {} --claim {}", self.url, shortened(&self.claim));
        teller.end(
            &[command],
            "The one-time secret that `serve` printed is spent; a second try was refused.",
        )?;
        self.client(&url, Some(&SecretString::from(token.token)))
    }

    async fn add_contributors(&self, teller: &mut Teller, admin: &Client) -> anyhow::Result<[Pusher; 2]> {
        teller.begin("let two contributors push");
        let mut commands = Vec::new();
        let mut pushers = Vec::new();
        for (name, kind, word) in
            [("alice", ContributorKind::Person, "person"), ("bob", ContributorKind::Ci, "ci")]
        {
            let scope = format!("push:{}", self.cache);
            admin.contributor_create(&ContributorCreate { name: name.into(), kind, group: None }).await?;
            let wanted = TokenCreate {
                contributor: name.into(),
                scopes: vec![scope.clone()],
                expires_in_seconds: Some(TOKEN_SECONDS),
                note: Some("demo".into()),
            };
            let token = admin.token_issue(&wanted).await?;
            commands.push(format!("narvault contributor add {name} --kind {word}"));
            commands.push(format!("narvault token issue {name} --scope {scope} --expires 1d"));
            let nix = self.nix_user(name, &token).await?;
            pushers.push(Pusher { name, token, nix });
        }
        let [alice, bob] = <[Pusher; 2]>::try_from(pushers).ok().context("two were made")?;
        let how = match (&self.nix_version, &alice.nix) {
            (Some(version), Some(_)) => format!("They push with the Nix of this machine: {version}."),
            (Some(version), None) => {
                format!(
                    "{version} cannot keep a store of its own here, so the demo sends what Nix would send."
                )
            }
            (None, _) => "Nix is not installed here, so the demo sends what Nix would send.".into(),
        };
        let outcome =
            format!("Each has a token of their own, shown once. Nobody was handed a private key.\n{how}");
        teller.end(&commands, &outcome)?;
        Ok([alice, bob])
    }

    /// A user of this machine's Nix with `hello` in a store of their own; `None` where Nix cannot do that.
    async fn nix_user(&self, name: &str, token: &TokenIssued) -> anyhow::Result<Option<NixUser>> {
        if self.nix_version.is_none() {
            return Ok(None);
        }
        let user = NixUser::make(self.folder, name, Some((&self.host, &token.token)), None)?;
        let Packages { greeting, hello, late, .. } = &self.packages;
        let imported = user.import(&[greeting, hello, late]).await?;
        if !imported.ok {
            tracing::warn!(said = imported.said, "Nix did not import the packages");
        }
        Ok(imported.ok.then_some(user))
    }

    /// Bob's Nix asks before the path is there, and so believes for an hour that it is not; a second machine of his,
    /// where the same path has another content, does so too. Gives that machine; `None` without Nix.
    async fn look_too_early(&self, teller: &mut Teller, bob: &Pusher) -> anyhow::Result<Option<NixUser>> {
        let Some(nix) = &bob.nix else { return Ok(None) };
        teller.begin("look for a path too early");
        let Packages { greeting, hello, other_hello, .. } = &self.packages;
        let machine = NixUser::make(self.folder, "bob-2", Some((&self.host, &bob.token.token)), None)?;
        let imported = machine.import(&[greeting, other_hello]).await?;
        ensure!(imported.ok, "Nix said: {}", imported.said);

        for user in [nix, &machine] {
            let looked = user.look_up(&self.push_url(), &hello.path).await?;
            ensure!(!looked.ok, "the path is there before it was pushed");
        }

        let command = format!("nix path-info --store {} {}", self.push_url(), hello.path);
        let outcome = "bob's Nix did not find it, and remembers that for an hour, whatever happens meanwhile:\n\
                       its negative cache. `nix --refresh …` asks again.";
        teller.end(&[command], outcome)?;
        Ok(Some(machine))
    }

    async fn push(&self, teller: &mut Teller, alice: &Pusher) -> anyhow::Result<()> {
        teller.begin("push as alice");
        let Packages { greeting, hello, .. } = &self.packages;
        match &alice.nix {
            Some(nix) => {
                let pushed = nix.copy(Direction::Push, &self.nix_push_url(), &hello.path).await?;
                ensure!(pushed.ok, "Nix said: {}", pushed.said);
            }
            None => {
                for package in [greeting, hello] {
                    self.push_by_hand(alice, package).await?;
                }
            }
        }
        let command = self.push_command(&hello.path);
        let outcome = "narvault measured every byte of both paths, checked the claims, signed, and wrote down who\n\
                       it was: alice, with which token.";
        teller.end(&[command], outcome)
    }

    async fn pull(&self, teller: &mut Teller) -> anyhow::Result<()> {
        teller.begin("pull as anybody");
        let Packages { greeting, hello, .. } = &self.packages;
        for package in [greeting, hello] {
            let nar = self.wire.pull(&self.cache, &package.path, &self.key).await?;
            ensure!(nar == package.nar, "{} is not what was pushed", package.path);
        }
        let mut outcome = "Signature, hashes and sizes hold: checked by the demo itself.".to_owned();
        if self.nix_version.is_none() {
            outcome.push_str(
                "\nA Nix that looked before the push believes for an hour that the path is missing, its negative\n\
                 cache: `nix --refresh …` asks again.",
            );
        }
        let pull_url = format!("{}/{}", self.url, self.cache);
        if self.nix_version.is_some() {
            let reader = NixUser::make(self.folder, "reader", None, Some(&self.key.to_string()))?;
            let pulled = reader.copy(Direction::Pull, &pull_url, &hello.path).await?;
            ensure!(pulled.ok, "Nix said: {}", pulled.said);
            let script = std::fs::read(reader.file_of(&hello.path, "bin/hello"))?;
            ensure!(!script.is_empty(), "Nix pulled an empty file");
            let stranger = NixUser::make(self.folder, "stranger", None, Some(OTHER_KEY))?;
            let refused = stranger.copy(Direction::Pull, &pull_url, &hello.path).await?;
            ensure!(!refused.ok, "a Nix that trusts another key took the path");
            outcome.push_str(
                "\nNix took both paths with require-sigs; a Nix that trusts another key refused them.",
            );
        }
        let command = format!(
            "nix copy --from {pull_url} --option trusted-public-keys {} {}",
            shortened_key(&self.key),
            hello.path
        );
        teller.end(&[command], &outcome)
    }

    async fn push_the_same(
        &self,
        teller: &mut Teller,
        admin: &Client,
        bob: &Pusher,
        bob_looked: bool,
    ) -> anyhow::Result<()> {
        teller.begin("push the same path as bob");
        let hello = &self.packages.hello;
        let mut by_nix = false;
        if let (Some(nix), true) = (&bob.nix, bob_looked) {
            let pushed = nix.copy(Direction::Push, &self.nix_push_url(), &hello.path).await?;
            ensure!(pushed.ok, "Nix said: {}", pushed.said);
            by_nix = self.has_evidence_of(admin, bob).await?;
        }
        if !by_nix {
            self.push_by_hand(bob, hello).await?;
            ensure!(self.has_evidence_of(admin, bob).await?, "bob's push is not recorded");
        }
        let why = if by_nix {
            "bob's Nix believed that the path was missing, so it pushed."
        } else {
            "Nix skips what is there; two machines that push at the same moment do not know."
        };
        let command = self.push_command(&hello.path);
        let outcome =
            format!("{why}\nThe same claim by another contributor is further evidence, and is recorded.");
        teller.end(&[command], &outcome)
    }

    async fn push_another(
        &self,
        teller: &mut Teller,
        admin: &Client,
        bob: &Pusher,
        machine: Option<NixUser>,
    ) -> anyhow::Result<()> {
        teller.begin("push another content for that path as bob");
        let Packages { hello, other_hello, .. } = &self.packages;
        if let Some(machine) = machine {
            machine.copy(Direction::Push, &self.nix_push_url(), &other_hello.path).await?;
        }
        let answer = self.wire.push(&self.cache, &bob.token.token, other_hello).await?;
        ensure!(answer.status == 409, "answered {} {}", answer.status, answer.text());
        let view = self.hello(admin).await?;
        ensure!(view.nar_hash == hello.claim().nar_hash.to_string(), "the published content changed");
        ensure!(
            view.conflicts.iter().any(|conflict| conflict.contributor == bob.name),
            "no conflict is recorded"
        );
        let command = self.push_command(&other_hello.path);
        let outcome = format!("Refused with 409: {}", answer.text());
        teller.end(&[command], &outcome)
    }

    async fn revoke(&self, teller: &mut Teller, admin: &Client, alice: &Pusher) -> anyhow::Result<()> {
        teller.begin("revoke alice's token");
        let Packages { hello, late, .. } = &self.packages;
        let why = RevokeRequest { reason: "laptop stolen".into(), keep_issued: false };

        let revoked = admin.token_revoke(&alice.token.id, &why).await?;

        ensure!(revoked.revoked.contains(&alice.token.id), "the token is not among the revoked ones");
        let answer = self.wire.push(&self.cache, &alice.token.token, late).await?;
        ensure!(answer.status == 401, "a push with the revoked token was answered {}", answer.status);
        if let Some(nix) = &alice.nix {
            let pushed = nix.copy(Direction::Push, &self.nix_push_url(), &late.path).await?;
            ensure!(!pushed.ok, "Nix pushed with a revoked token");
        }
        let absent = self.wire.get(&self.cache, &CacheObject::Narinfo(late.path.hash())).await?;
        ensure!(absent.status == 404, "the refused path is answered {}", absent.status);
        self.wire.pull(&self.cache, &hello.path, &self.key).await?;
        let commands = [
            format!("narvault token revoke {} --reason 'laptop stolen'", alice.token.id),
            self.push_command(&late.path),
        ];
        let outcome = format!(
            "The next push was refused with 401: {}.\n\
             What alice pushed before is still served; clients keep the key that they trust.",
            answer.text().trim_end_matches('.')
        );
        teller.end(&commands, &outcome)
    }

    async fn show(
        &self,
        teller: &mut Teller,
        admin: &Client,
        alice: &Pusher,
        bob: &Pusher,
    ) -> anyhow::Result<()> {
        teller.begin("show who signed what");
        let view = self.hello(admin).await?;
        let has = |pusher: &Pusher| {
            view.evidence.iter().any(|act| act.token_id.as_deref() == Some(pusher.token.id.as_str()))
        };
        ensure!(has(alice) && has(bob), "a push is not attributed");
        let signed = view.signatures.iter().find(|signature| signature.key == self.key.name().as_str());
        let signed = signed.context("the signature is not listed")?;
        let index = signed.log_index.context("the signature has no place in the log")?;

        let mut outcome =
            format!("{}\nsigned by {}, entry {index} of the log\n", view.store_path, signed.key);
        for act in &view.evidence {
            let token = act.token_id.as_deref().unwrap_or("-");
            let _ = writeln!(outcome, "pushed by {}, token {token}", act.source);
        }
        for conflict in &view.conflicts {
            let _ = writeln!(outcome, "refused: another content by {}", conflict.contributor);
        }
        let command = format!("narvault path show {} {}", self.cache, self.packages.hello.path);
        teller.end(&[command], &outcome)
    }

    fn client(&self, url: &ServerUrl, token: Option<&SecretString>) -> anyhow::Result<Client> {
        self.context.client_of(url.clone(), token).map_err(|failure| Carried(failure).into())
    }

    async fn push_by_hand(&self, pusher: &Pusher, package: &Package) -> anyhow::Result<()> {
        let answer = self.wire.push(&self.cache, &pusher.token.token, package).await?;
        ensure!(
            matches!(answer.status, 200 | 201 | 204),
            "{} was answered {} {}",
            package.path,
            answer.status,
            answer.text()
        );
        Ok(())
    }

    async fn hello(&self, admin: &Client) -> anyhow::Result<PathView> {
        Ok(admin.path(&self.cache, self.packages.hello.path.hash().as_str()).await?)
    }

    async fn has_evidence_of(&self, admin: &Client, pusher: &Pusher) -> anyhow::Result<bool> {
        let view = self.hello(admin).await?;
        Ok(view.evidence.iter().any(|act| act.source == pusher.name))
    }

    /// What a person types to push, with the token in a file of their own.
    fn push_command(&self, path: &StorePath) -> String {
        format!("nix copy --to {} --option netrc-file $PWD/netrc {path}", self.push_url())
    }

    fn push_url(&self) -> String {
        format!("{}/push/{}", self.url, self.cache)
    }

    /// As `push_url`, in the compression that the demo itself can read.
    fn nix_push_url(&self) -> String {
        format!("{}?compression=zstd", self.push_url())
    }
}

/// The first word with a capital letter.
fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| format!("{}{}", first.to_uppercase(), characters.as_str()))
}

/// Enough of a secret to recognise it, too little to use it.
fn shortened(secret: &str) -> String {
    let shown: String = secret.chars().take(8).collect();
    format!("{shown}…")
}

/// The public key without its end, so that the line stays readable.
fn shortened_key(key: &PublicKey) -> String {
    format!("{}:…", key.name())
}

/// The demo's tokens die with its server in any case.
const TOKEN_SECONDS: u64 = 24 * 60 * 60;

/// A key that signs nothing here: cache.nixos.org's.
const OTHER_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
