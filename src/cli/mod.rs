//! The command line: one file per group of commands.
//!
//! Each file parses its arguments, calls [`crate::client`] (or starts the server), and prints. Never decides what is
//! allowed, and never prints a secret that was not asked for.

mod admin;
mod affected;
mod args;
mod ask;
mod audit;
mod backup;
mod cache;
mod check;
mod child;
mod completions;
mod contributor;
mod demo;
mod doctor;
mod failure;
mod folder;
mod hardening;
mod hook;
mod host;
mod key;
mod list;
mod local_nix;
mod log;
mod logging;
mod login;
mod output;
mod path;
mod push;
mod push_queued;
mod quarantine;
mod queue;
mod recover;
mod restore;
mod root;
mod serve;
pub mod server;
mod session;
mod signals;
mod storage;
mod takedown;
mod text;
mod token;
mod use_cache;
mod vault;
mod verify;
mod watch_exec;
mod watch_store;
mod webhook;
mod who;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use secrecy::SecretString;

pub use failure::{Exit, Failure};
pub use session::Context;

/// Key management for Nix binary caches
#[derive(Debug, Parser)]
#[command(name = "narvault", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print answers as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Speak to this server [default: the one last logged in to]
    #[arg(long, global = true, value_name = "URL", env = "NARVAULT_URL", hide_env_values = true, help_heading = GLOBAL)]
    pub url: Option<String>,
    /// Send secrets over plain http too
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub insecure_http: bool,
    /// Only errors and warnings on stderr
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
    /// Only here so that NARVAULT_TOKEN is read: [`parse`] refuses it on the command line.
    #[arg(long, global = true, hide = true, env = "NARVAULT_TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<SecretString>,
    /// Where `narvault/login.json` lies.
    #[arg(long, global = true, hide = true, env = "XDG_CONFIG_HOME")]
    pub config_home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Show the whole story on a server of its own
    Demo(demo::DemoArgs),
    /// Keep a token for a server
    Login(login::LoginArgs),
    /// Forget the token for a server
    Logout(login::LogoutArgs),
    /// Show whose token is in use
    Whoami(login::WhoamiArgs),
    /// Push store paths to a cache
    Push(push::PushArgs),
    /// Binary caches
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Signing keys of a cache
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Root keys: kept away from every server, for the day on which a signing key is stolen
    #[command(subcommand)]
    Root(root::RootCommand),
    /// People, CI jobs and builders
    #[command(subcommand)]
    Contributor(contributor::ContributorCommand),
    /// Tokens: who may do what, until when
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Let Nix pull from a cache: edits nix.conf, and netrc for a private one
    Use(use_cache::UseArgs),
    /// Take a cache out of nix.conf again
    Unuse(use_cache::UnuseArgs),
    /// Store paths in a cache
    #[command(subcommand)]
    Path(path::PathCommand),
    /// What was taken down, by whose word, and what came back
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Who signed a path, with which token, from where
    Who(who::WhoArgs),
    /// Queue what Nix builds, and push it in the background
    Hook(hook::HookArgs),
    /// Push every path that becomes valid in the local store
    WatchStore(watch_store::WatchStoreArgs),
    /// Run a command, and push what it builds
    WatchExec(watch_exec::WatchExecArgs),
    /// Who did what, refusals included
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The signature log: every signature, by whom and when
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Check a path or a narinfo against the signature log, without a server
    Verify(verify::VerifyArgs),
    /// Servers that are told what happens
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// The vault that holds the signing keys
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// Things done on the server's own host
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// What lies in a server's storage, looked at on its own host
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Write the whole database into one sealed file, on the server's own host
    Backup(Box<backup::BackupArgs>),
    /// Put a backup into an empty database
    Restore(Box<restore::RestoreArgs>),
    /// Bring a database that was restored from an older backup up to the published log
    Recover(recover::RecoverArgs),
    /// Check a server's configuration, database, storage and vault
    Check(check::CheckArgs),
    /// Find out why Nix does not pull from a cache, and what helps
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// Parses a command line. A usage error ends with clap's words and number.
pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(args)?;
    if matches.value_source("token") == Some(ValueSource::CommandLine) {
        return Err(command.error(
            ErrorKind::ArgumentConflict,
            "a token on the command line can be read by everybody on this machine\n\
             hint: set NARVAULT_TOKEN, or run `narvault login --token-stdin`",
        ));
    }
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Does what the command line says, and tells failures on stderr.
pub async fn run(cli: Cli) -> ExitCode {
    match dispatch(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::to_stderr(&failure.to_string());
            failure.exit_code()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let context = Context::new(cli.global);
    match cli.command {
        Command::Serve(args) => serve::run(args, &context).await,
        Command::Demo(args) => demo::run(args, &context).await,
        Command::Login(args) => login::login(args, &context).await,
        Command::Logout(args) => login::logout(args, &context).await,
        Command::Whoami(args) => login::whoami(args, &context).await,
        Command::Push(args) => push::run(args, &context).await,
        Command::Cache(command) => cache::run(command, &context).await,
        Command::Key(command) => key::run(command, &context).await,
        Command::Root(command) => root::run(command, &context).await,
        Command::Contributor(command) => contributor::run(command, &context).await,
        Command::Token(command) => token::run(command, &context).await,
        Command::Use(args) => use_cache::use_cache(args, &context).await,
        Command::Unuse(args) => use_cache::unuse_cache(args, &context).await,
        Command::Path(command) => path::run(command, &context).await,
        Command::Quarantine(command) => quarantine::run(command, &context).await,
        Command::Who(args) => who::run(args, &context).await,
        Command::Hook(args) => hook::run(args, &context).await,
        Command::WatchStore(args) => watch_store::run(args, &context).await,
        Command::WatchExec(args) => watch_exec::run(args, &context).await,
        Command::Audit(command) => audit::run(command, &context).await,
        Command::Log(command) => log::run(command, &context).await,
        Command::Verify(args) => verify::run(args, &context).await,
        Command::Webhook(command) => webhook::run(command, &context).await,
        Command::Vault(command) => vault::run(command, &context).await,
        Command::Admin(command) => admin::run(command, &context).await,
        Command::Storage(command) => storage::run(command, &context).await,
        Command::Backup(args) => backup::run(*args, &context).await,
        Command::Restore(args) => restore::run(*args, &context).await,
        Command::Recover(args) => recover::run(args, &context).await,
        Command::Check(args) => check::run(args, &context).await,
        Command::Doctor(args) => doctor::run(args, &context).await,
        Command::Completions(args) => completions::run(args, &context),
    }
}

/// Keeps a secret argument out of every debug output.
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(text.into())
}

const GLOBAL: &str = "Everywhere";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failure, 2 usage, 3 not authorised, 4 conflict or policy refusal, 5 server unreachable.

Example:
  narvault serve";

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `check` with every command that does something itself, and the words that lead to it.
    fn each_leaf(
        command: &clap::Command,
        words: &mut Vec<String>,
        check: &mut dyn FnMut(&clap::Command, &[String]),
    ) {
        words.push(command.get_name().to_owned());
        let mut is_leaf = true;
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            is_leaf = false;
            each_leaf(inner, words, check);
        }
        if is_leaf {
            check(command, words);
        }
        words.pop();
    }

    /// The arguments of an example line; what a shell does with the rest of it is left out.
    fn words_of(line: &str) -> Vec<String> {
        let own = line.split([';', '<', '>', '|']).next().unwrap_or_default();
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in own.trim().chars() {
            match character {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(character),
            }
        }
        words
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_that_parses() {
        let mut count = 0;

        each_leaf(&Cli::command(), &mut Vec::new(), &mut |command, words| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.split_once("Example:\n  ").map(|(_, example)| example.trim().to_owned());
            let example = example.unwrap_or_else(|| panic!("{words:?} has no example"));
            let from = example.find("narvault").unwrap_or_else(|| panic!("{words:?}: {example}"));

            let example_words = words_of(&example[from..]);

            assert!(!example.contains('\n'), "{words:?} has more than one example");
            assert_eq!(&example_words[..words.len()], words, "the example is of another command");
            if let Err(error) = parse(&example_words) {
                panic!("{example}: {error}");
            }
            count += 1;
        });

        assert!(count >= 35, "{count}");
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        each_leaf(&Cli::command(), &mut Vec::new(), &mut |command, words| {
            assert!(command.get_about().is_some(), "{words:?}");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{words:?} {}", argument.get_id());
            }
        });
    }

    #[test]
    fn global_arguments_may_stand_anywhere() {
        for line in [
            "narvault --json --url https://a.example whoami",
            "narvault whoami --json --url https://a.example",
        ] {
            let cli = parse(line.split(' ')).unwrap();

            assert!(cli.global.json, "{line}");
            assert_eq!(cli.global.url.as_deref(), Some("https://a.example"), "{line}");
        }
    }

    #[test]
    fn a_token_is_refused_as_an_argument_without_repeating_it() {
        for line in [
            "narvault --token nvt_secret whoami",
            "narvault whoami --token nvt_secret",
            "narvault whoami --token=nvt_secret",
        ] {
            let error = parse(line.split(' ')).unwrap_err();

            assert_eq!(error.exit_code(), 2, "{line}");
            let told = error.to_string();
            assert!(told.contains("hint: set NARVAULT_TOKEN") && !told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn a_cache_or_a_file_may_have_the_name_of_a_command() {
        for line in ["narvault hook -- run", "narvault hook --push -- status", "narvault backup -- verify"] {
            let cli = parse(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));

            assert!(format!("{:?}", cli.command).contains("command: None"), "{line}: {cli:?}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "narvault",
            "narvault frobnicate",
            "narvault cache",
            "narvault cache create",
            "narvault cache create main --public --private",
            "narvault cache create main --upstream https://a.example",
            "narvault cache edit main",
            "narvault cache delete",
            "narvault contributor add alice",
            "narvault contributor add alice --kind robot",
            "narvault contributor edit alice",
            "narvault key import main",
            "narvault key succession main --key main-1",
            "narvault root set --server --threshold 1",
            "narvault root set main alice:AA==",
            "narvault root sign ./draft",
            "narvault root show",
            "narvault use",
            "narvault use --refresh --print nixos",
            "narvault use --from https://a.example main",
            "narvault token issue alice",
            "narvault token issue alice --scope push:main --expires 30",
            "narvault token issue alice --scope push:main --expires 0d",
            "narvault token revoke 0192",
            "narvault token list --limit 0",
            "narvault token list --all --limit 5",
            "narvault path show main hello",
            "narvault path delete main mmjhp110f3wf5kp5q70rc7p49yln4qzy",
            "narvault path list main --since yesterday",
            "narvault path affected main",
            "narvault path affected main --since 7d --store daemon",
            "narvault path quarantine main mmjhp110f3wf5kp5q70rc7p49yln4qzy",
            "narvault path restore main mmjhp110f3wf5kp5q70rc7p49yln4qzy",
            "narvault contributor quarantine alice --since 7d",
            "narvault contributor quarantine alice --reason x",
            "narvault contributor quarantine alice --reason x --since tomorrow",
            "narvault contributor restore alice",
            "narvault token quarantine 019aabcd-1234-7abc-8def-0123456789ab",
            "narvault quarantine",
            "narvault login https://a.example --claim nvb_x --token-stdin",
            "narvault completions csh",
            "narvault hook",
            "narvault hook run main",
            "narvault hook flush --timeout soon",
            "narvault watch-store",
            "narvault watch-exec main",
            "narvault watch-exec main nix build",
            "narvault watch-exec main --push-failures maybe -- nix build",
            "narvault backup",
            "narvault backup verify",
            "narvault backup verify a --from-storage newest",
            "narvault backup a --key-file k --passphrase-file p",
            "narvault restore",
            "narvault restore a --from-storage newest",
            "narvault push",
            "narvault push main",
            "narvault push main ./result --jobs 0",
            "narvault push main ./result --compression gzip",
            "narvault push main ./result --store https://a.example",
        ] {
            let error = parse(line.split(' ')).err().unwrap_or_else(|| panic!("{line}"));

            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn debug_output_of_a_command_line_holds_no_token() {
        let mut cli = parse(["narvault", "whoami"]).unwrap();
        cli.global.token = Some("nvt_secret".into());

        assert!(!format!("{cli:?}").contains("secret"));
    }
}
