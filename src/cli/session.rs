//! Which server a command speaks to, and with which token.
//!
//! Never sends one server's token to another: a stored token goes only to the address that it was stored for.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::Global;
use super::failure::{Exit, Failure};
use super::output::Printer;
use super::text::ends_within;
use crate::client::login::LoginStore;
use crate::client::{Client, ServerUrl};
use crate::time::Clock;

/// What every command is handed.
pub struct Context {
    pub printer: Printer,
    pub clock: Clock,
    url: Option<String>,
    token: Option<SecretString>,
    config_home: Option<PathBuf>,
    insecure_http: bool,
}

/// Where the token of a session comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFrom {
    Environment,
    Login,
    Nowhere,
}

/// A client, and where its token comes from.
pub struct Session {
    pub client: Client,
    pub token_from: TokenFrom,
}

impl Context {
    /// From the arguments that every command understands. An empty environment variable counts as none.
    pub fn new(global: Global) -> Self {
        Self {
            printer: Printer { json: global.json, quiet: global.quiet },
            clock: Clock::System,
            url: global.url.filter(|url| !url.is_empty()),
            token: global.token.filter(|token| !token.expose_secret().is_empty()),
            config_home: global.config_home,
            insecure_http: global.insecure_http,
        }
    }

    /// A client of the chosen server, with the token that is known for it, if any.
    pub fn client(&self) -> Result<Client, Failure> {
        self.session().map(|session| session.client)
    }

    /// As [`Context::client`], and where the token comes from.
    pub fn session(&self) -> Result<Session, Failure> {
        self.session_of(self.server(None)?)
    }

    /// As [`Context::session`], with the server at `url`.
    pub fn session_of(&self, url: ServerUrl) -> Result<Session, Failure> {
        if self.token.is_some() {
            let client = Client::new(url, self.token.as_ref(), self.insecure_http)?;
            return Ok(Session { client, token_from: TokenFrom::Environment });
        }
        let logins = self.logins()?.load()?;
        let login = logins.of(&url);
        if let Some(login) = login {
            self.warn_of_end(&login.expires_at);
        }
        let client = Client::new(url, login.map(|login| &login.token), self.insecure_http)?;
        let token_from = if login.is_some() { TokenFrom::Login } else { TokenFrom::Nowhere };
        Ok(Session { client, token_from })
    }

    /// A client of `url` with `token` or none, whatever is stored.
    pub fn client_of(&self, url: ServerUrl, token: Option<&SecretString>) -> Result<Client, Failure> {
        Ok(Client::new(url, token, self.insecure_http)?)
    }

    /// The token given in the environment.
    pub fn token_given(&self) -> Result<SecretString, Failure> {
        self.token.clone().ok_or_else(|| Failure::new(Exit::Usage, "NARVAULT_TOKEN is not set"))
    }

    /// The address given on the command line or in the environment.
    pub fn url_given(&self) -> Result<Option<ServerUrl>, Failure> {
        self.url.as_deref().map(parse_url).transpose()
    }

    /// The server to speak to: the command's own argument, else `--url`, else NARVAULT_URL, else the last login.
    pub fn server(&self, argument: Option<&str>) -> Result<ServerUrl, Failure> {
        if let Some(text) = argument.or(self.url.as_deref()) {
            return parse_url(text);
        }
        match self.logins()?.load()?.current() {
            Some(text) => parse_url(text),
            None => Err(Failure::new(Exit::Usage, "no server is known")
                .hint("run `narvault login URL`, or give `--url URL`")),
        }
    }

    /// Where logins are kept.
    pub fn logins(&self) -> Result<LoginStore, Failure> {
        // A relative XDG_CONFIG_HOME is to be ignored, says the XDG base directory specification.
        let given = self.config_home.clone().filter(|path| path.is_absolute());
        let home = || std::env::home_dir().filter(|path| path.is_absolute()).map(|path| path.join(".config"));
        given.or_else(home).map(|path| LoginStore::in_config_home(&path)).ok_or_else(|| {
            Failure::new(Exit::Failure, "no home folder is known to keep logins in")
                .hint("set XDG_CONFIG_HOME, or NARVAULT_URL and NARVAULT_TOKEN")
        })
    }

    /// Warns of a token that ends within a week. A text that is no moment warns of nothing.
    pub fn warn_of_end(&self, expires_at: &str) {
        if let Ok(Some(left)) = ends_within(expires_at, self.clock.now(), WARNING_DAYS) {
            self.printer.warning(&format!("this token ends in {left}"), "run `narvault token renew`");
        }
    }
}

pub fn parse_url(text: &str) -> Result<ServerUrl, Failure> {
    text.parse().map_err(|error: crate::client::ParseServerUrlError| {
        Failure::new(Exit::Usage, error).hint("give it as in `--url https://cache.example.org`")
    })
}

/// How long before its end a token is warned of, in days.
const WARNING_DAYS: i64 = 7;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::client::login::Login;

    fn context(home: &Path, url: Option<&str>, token: Option<&str>) -> Context {
        Context::new(Global {
            json: false,
            url: url.map(str::to_owned),
            insecure_http: false,
            quiet: true,
            token: token.map(SecretString::from),
            config_home: Some(home.to_owned()),
        })
    }

    fn logged_in_to(home: &Path, url: &str) {
        let login = Login {
            token: "nvt_stored".into(),
            token_id: "t-1".into(),
            contributor: "alice".into(),
            expires_at: "2999-01-01T00:00:00Z".into(),
        };
        let store = LoginStore::in_config_home(home);
        store.update(|logins| logins.insert(&url.parse().unwrap(), login)).unwrap();
    }

    fn exit(failure: Failure) -> Exit {
        match failure {
            Failure::Told { exit, .. } => exit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_login_is_spoken_to() {
        let home = tempfile::tempdir().unwrap();
        logged_in_to(home.path(), "https://a.example");

        let session = context(home.path(), None, None).session().unwrap();

        assert_eq!(session.client.url().to_string(), "https://a.example");
        assert_eq!(session.token_from, TokenFrom::Login);
    }

    #[test]
    fn a_stored_token_does_not_go_to_another_server() {
        let home = tempfile::tempdir().unwrap();
        logged_in_to(home.path(), "https://a.example");

        let session = context(home.path(), Some("https://b.example"), None).session().unwrap();

        assert_eq!(session.token_from, TokenFrom::Nowhere);
        assert_eq!(exit(session.client.require_token().unwrap_err().into()), Exit::NotAuthorised);
    }

    #[test]
    fn the_environment_goes_before_the_login() {
        let home = tempfile::tempdir().unwrap();
        logged_in_to(home.path(), "https://a.example");

        let session = context(home.path(), None, Some("nvt_given")).session().unwrap();
        let empty = context(home.path(), Some(""), Some("")).session().unwrap();

        assert_eq!(session.token_from, TokenFrom::Environment);
        assert_eq!(empty.token_from, TokenFrom::Login);
    }

    #[test]
    fn without_a_server_the_next_command_is_named() {
        let home = tempfile::tempdir().unwrap();

        let failure = context(home.path(), None, None).session().err().unwrap();

        assert!(failure.to_string().contains("hint: run `narvault login URL`"), "{failure}");
        assert_eq!(exit(failure), Exit::Usage);
    }

    #[test]
    fn an_address_with_a_password_is_refused_without_repeating_it() {
        let home = tempfile::tempdir().unwrap();

        let failure =
            context(home.path(), Some("https://me:secret@a.example"), None).session().err().unwrap();

        assert!(!failure.to_string().contains("secret"), "{failure}");
        assert_eq!(exit(failure), Exit::Usage);
    }
}
