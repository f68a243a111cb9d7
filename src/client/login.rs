//! Which servers somebody is logged in to: `narvault/login.json` in the user's configuration folder.
//!
//! The file holds tokens: it is written with mode 0600 in a folder of mode 0700, replaced whole, and never read while
//! others could read it too. Never asks a server.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::server_url::ServerUrl;

/// Why the login state cannot be read or written. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} holds tokens and can be read by others", path = path.display())]
    Exposed { path: PathBuf },
    #[error("{path} is not a login file of this version", path = path.display())]
    Form { path: PathBuf },
}

impl LoginError {
    /// The next thing to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path } => Some(format!("run `chmod 600 {}`", path.display())),
            Self::Form { path } => Some(format!("remove {} and run `narvault login` again", path.display())),
            Self::Read { .. } | Self::Write { .. } => None,
        }
    }
}

/// A token for one server, and whose it is.
#[derive(Clone, Serialize, Deserialize)]
pub struct Login {
    #[serde(with = "exposed")]
    pub token: SecretString,
    pub token_id: String,
    pub contributor: String,
    /// RFC 3339, as the server said it.
    pub expires_at: String,
}

/// All logins, by the server's address.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logins {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    servers: BTreeMap<String, Login>,
}

impl Logins {
    /// The server that commands speak to unless told: the last one logged in to, or the only one.
    pub fn current(&self) -> Option<&str> {
        let only = || if self.servers.len() == 1 { self.servers.keys().next() } else { None };
        self.current.as_ref().or_else(only).map(String::as_str)
    }

    /// The login for a server.
    pub fn of(&self, server: &ServerUrl) -> Option<&Login> {
        self.servers.get(&server.to_string())
    }

    /// Keeps a login, and makes its server the current one.
    pub fn insert(&mut self, server: &ServerUrl, login: Login) {
        self.current = Some(server.to_string());
        self.servers.insert(server.to_string(), login);
    }

    /// Forgets a login; gives it back if there was one.
    pub fn remove(&mut self, server: &ServerUrl) -> Option<Login> {
        if self.current.as_deref() == Some(&server.to_string()) {
            self.current = None;
        }
        self.servers.remove(&server.to_string())
    }
}

impl Default for Logins {
    fn default() -> Self {
        Self { version: FORMAT_VERSION, current: None, servers: BTreeMap::new() }
    }
}

/// Where the logins lie.
#[derive(Debug, Clone)]
pub struct LoginStore {
    folder: PathBuf,
}

impl LoginStore {
    /// The store in a configuration folder such as `~/.config`.
    pub fn in_config_home(config_home: &Path) -> Self {
        Self { folder: config_home.join("narvault") }
    }

    /// The file's place.
    pub fn path(&self) -> PathBuf {
        self.folder.join("login.json")
    }

    /// Reads the logins; a file that is not there means none.
    pub fn load(&self) -> Result<Logins, LoginError> {
        let path = self.path();
        let read = |source| LoginError::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Logins::default()),
            Err(error) => return Err(read(error)),
        };
        if file.metadata().map_err(read)?.permissions().mode() & 0o077 != 0 {
            return Err(LoginError::Exposed { path });
        }
        let mut text = String::new();
        file.take(FILE_SIZE_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
        // The parser's message would quote the text around the mistake, which may be a token.
        match serde_json::from_str::<Logins>(&text) {
            Ok(logins) if logins.version == FORMAT_VERSION => Ok(logins),
            _ => Err(LoginError::Form { path }),
        }
    }

    /// Changes the logins. Two commands at once do it one after the other.
    pub fn update<T>(&self, change: impl FnOnce(&mut Logins) -> T) -> Result<T, LoginError> {
        let write = |source| LoginError::Write { path: self.path(), source };
        self.make_folder().map_err(write)?;
        let lock =
            OpenOptions::new().create(true).append(true).mode(0o600).open(self.folder.join("login.lock"));
        let lock = lock.map_err(write)?;
        lock.lock().map_err(write)?;

        let mut logins = self.load()?;
        let result = change(&mut logins);
        self.replace(&logins).map_err(write)?;
        Ok(result)
    }

    fn make_folder(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        if fs::metadata(&self.folder)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(&self.folder, Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// Writes beside the file, then renames: a reader sees the old text or the new one. Called under the lock.
    fn replace(&self, logins: &Logins) -> io::Result<()> {
        let draft = self.folder.join("login.json.new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made anew, so that neither a link nor an older file's mode decides where the tokens go.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let mut text = serde_json::to_vec_pretty(logins).map_err(io::Error::other)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, self.path())?;
        File::open(&self.folder)?.sync_all()
    }
}

/// The file's `version`.
const FORMAT_VERSION: u32 = 1;

/// Largest login file that is read: a login is below 2 KiB.
const FILE_SIZE_BYTES_MAX: u64 = 1024 * 1024;

/// The only place where a stored token is turned into text and back.
mod exposed {
    use secrecy::{ExposeSecret, SecretString};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose_secret())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
        String::deserialize(deserializer).map(SecretString::from)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn login(token: &str) -> Login {
        Login {
            token: token.into(),
            token_id: "t-1".into(),
            contributor: "alice".into(),
            expires_at: "2026-11-22T13:10:00Z".into(),
        }
    }

    fn server(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn logins_are_kept_by_server_and_nobody_else_can_read_them() {
        let home = tempfile::tempdir().unwrap();
        let store = LoginStore::in_config_home(&home.path().join("not/yet/there"));
        let (a, b) = (server("https://a.example"), server("https://b.example/x/"));

        store.update(|logins| logins.insert(&a, login("nvt_a"))).unwrap();
        store.update(|logins| logins.insert(&b, login("nvt_b"))).unwrap();

        let logins = store.load().unwrap();
        assert_eq!(logins.of(&a).unwrap().token.expose_secret(), "nvt_a");
        assert_eq!(logins.of(&b).unwrap().token.expose_secret(), "nvt_b");
        assert_eq!(logins.current(), Some("https://b.example/x"));
        assert_eq!((mode(&store.path()), mode(&store.folder)), (0o600, 0o700));
    }

    #[test]
    fn logging_out_leaves_the_other_servers() {
        let home = tempfile::tempdir().unwrap();
        let store = LoginStore::in_config_home(home.path());
        let (a, b) = (server("https://a.example"), server("https://b.example"));
        store.update(|logins| logins.insert(&a, login("nvt_a"))).unwrap();
        store.update(|logins| logins.insert(&b, login("nvt_b"))).unwrap();

        let removed = store.update(|logins| logins.remove(&b)).unwrap();
        let removed_again = store.update(|logins| logins.remove(&b)).unwrap();

        assert_eq!((removed.is_some(), removed_again.is_some()), (true, false));
        assert_eq!(store.load().unwrap().current(), Some("https://a.example"));
        assert!(!fs::read_to_string(store.path()).unwrap().contains("nvt_b"));
    }

    #[test]
    fn no_file_means_no_login() {
        let home = tempfile::tempdir().unwrap();

        let logins = LoginStore::in_config_home(home.path()).load().unwrap();

        assert_eq!(logins.current(), None);
        assert!(logins.of(&server("https://a.example")).is_none());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let store = LoginStore::in_config_home(home.path());
        store.update(|logins| logins.insert(&server("https://a.example"), login("nvt_a"))).unwrap();

        for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(store.path(), Permissions::from_mode(mode)).unwrap();

            assert!(matches!(store.load(), Err(LoginError::Exposed { .. })), "{mode:o}");
        }
    }

    #[test]
    fn an_open_folder_is_closed_and_a_planted_draft_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let store = LoginStore::in_config_home(home.path());
        fs::create_dir(&store.folder).unwrap();
        fs::set_permissions(&store.folder, Permissions::from_mode(0o755)).unwrap();
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        std::os::unix::fs::symlink(&elsewhere, store.folder.join("login.json.new")).unwrap();

        store.update(|logins| logins.insert(&server("https://a.example"), login("nvt_a"))).unwrap();

        assert_eq!((mode(&store.path()), mode(&store.folder)), (0o600, 0o700));
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "untouched");
    }

    #[test]
    fn other_files_are_refused_without_repeating_them() {
        for text in [
            "",
            "nvt_secret",
            r#"{"version":2,"servers":{}}"#,
            r#"{"version":1}"#,
            r#"{"version":1,"servers":{},"extra":1}"#,
            r#"{"version":1,"servers":{"https://a.example":{"token":["nvt_secret"]}}}"#,
        ] {
            let home = tempfile::tempdir().unwrap();
            let store = LoginStore::in_config_home(home.path());
            fs::create_dir(&store.folder).unwrap();
            fs::write(store.path(), text).unwrap();
            fs::set_permissions(store.path(), Permissions::from_mode(0o600)).unwrap();

            let error = store.load().err().unwrap();

            assert!(matches!(error, LoginError::Form { .. }), "{text}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
            assert!(store.update(|_| ()).is_err(), "an unknown file is not overwritten: {text}");
            assert_eq!(fs::read_to_string(store.path()).unwrap(), text);
        }
    }

    #[test]
    fn logins_at_the_same_time_are_all_kept() {
        let home = tempfile::tempdir().unwrap();
        let store = LoginStore::in_config_home(home.path());

        std::thread::scope(|scope| {
            for index in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    let url = server(&format!("https://{index}.example"));
                    store.update(|logins| logins.insert(&url, login("nvt_x"))).unwrap();
                });
            }
        });

        assert_eq!(store.load().unwrap().servers.len(), 8);
    }
}
