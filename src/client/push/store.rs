//! A Nix store on this machine: which paths it has, what its database says of them, where their files lie.
//!
//! Never changes it, and never asks a substituter. What Nix says is read by [`crate::nix::path_info`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::process::Command;

use crate::nix::path_info::{self, PathInfo, PathInfoError};
use crate::nix::store_path::{ParseStorePathError, STORE_DIR, StorePath};

/// Why a store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no Nix here: the command `nix` was not found")]
    NoNix,
    #[error("cannot run `nix`")]
    Run(#[source] io::Error),
    /// In the words of Nix.
    #[error("`nix path-info` failed: {said}")]
    Refused { said: String },
    #[error("cannot understand what `nix path-info` printed")]
    Output(#[source] PathInfoError),
    #[error("{} is not in the Nix store, and no link into it", path.display())]
    Outside { path: PathBuf },
    #[error("{} is not a store path: {reason}", path.display())]
    Name { path: PathBuf, reason: ParseStorePathError },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Why a text does not name a store on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a store is a folder, `local?root=FOLDER`, `local`, `daemon` or `auto`: only one on this machine can be pushed from"
)]
pub struct ParseStoreError;

/// A Nix store on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalStore {
    /// What `nix --store` gets; nothing is Nix's own choice.
    uri: Option<String>,
    /// The folder that the store takes for `/`.
    root: PathBuf,
}

/// The one that Nix uses by itself.
impl Default for LocalStore {
    fn default() -> Self {
        Self { uri: None, root: PathBuf::from("/") }
    }
}

impl FromStr for LocalStore {
    type Err = ParseStoreError;

    fn from_str(text: &str) -> Result<Self, ParseStoreError> {
        let at_root = |root: PathBuf| {
            let folder = root.to_str().ok_or(ParseStoreError)?;
            let uri = Some(format!("local?root={}", utf8_percent_encode(folder, NON_ALPHANUMERIC)));
            Ok(Self { uri, root })
        };
        if matches!(text, "auto" | "daemon" | "local") {
            return Ok(Self { uri: Some(text.to_owned()), root: PathBuf::from("/") });
        }
        if let Some(query) = text.strip_prefix("local?") {
            let folder = query.strip_prefix("root=").filter(|folder| !folder.contains('&'));
            let folder = percent_decode_str(folder.ok_or(ParseStoreError)?).decode_utf8();
            let folder = folder.map_err(|_| ParseStoreError)?;
            return at_root(absolute(Path::new(&*folder)).ok_or(ParseStoreError)?);
        }
        if text.is_empty() || text.contains("://") || text.contains('?') {
            return Err(ParseStoreError);
        }
        at_root(absolute(Path::new(text)).ok_or(ParseStoreError)?)
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.as_deref().unwrap_or("auto"))
    }
}

impl LocalStore {
    /// Where the files of a path lie.
    pub fn real(&self, path: &StorePath) -> PathBuf {
        self.root.join(path.to_string().trim_start_matches('/'))
    }

    /// The store path that `path` is, lies in, or leads to by symbolic links, as `./result` does.
    pub fn resolve(&self, path: &Path) -> Result<StorePath, StoreError> {
        let outside = || StoreError::Outside { path: path.to_owned() };
        let mut rest = absolute(path).ok_or_else(outside)?;
        for _ in 0..LINKS_MAX {
            if let Some(found) = self.within(&rest) {
                return StorePath::from_base_name(&found)
                    .map_err(|reason| StoreError::Name { path: path.to_owned(), reason });
            }
            rest = match first_link(&rest)? {
                Some(followed) => followed,
                None => return Err(outside()),
            };
        }
        Err(outside())
    }

    /// What the store's database says of these paths, and of all that they refer to if `closure`; each path once, in
    /// the order of their names.
    pub async fn path_infos(&self, paths: &[StorePath], closure: bool) -> Result<Vec<PathInfo>, StoreError> {
        let mut found = BTreeMap::new();
        // To Nix, a derivation's path stands for its outputs unless it is told otherwise.
        let (derivations, others): (Vec<_>, Vec<_>) = paths.iter().partition(|path| path.is_derivation());
        for (paths, is_derivation) in [(derivations, true), (others, false)] {
            for some in paths.chunks(ARGUMENTS_MAX) {
                for info in self.ask(some, closure, is_derivation).await? {
                    found.insert(info.claim.path.clone(), info);
                }
            }
        }
        Ok(found.into_values().collect())
    }

    async fn ask(
        &self,
        paths: &[&StorePath],
        closure: bool,
        is_derivation: bool,
    ) -> Result<Vec<PathInfo>, StoreError> {
        let output = match self.path_info(paths, closure, is_derivation, &[]).await {
            // Announced by Nix 2.34: some day the format has to be named.
            Err(StoreError::Refused { said }) if said.contains("--json-format") => {
                self.path_info(paths, closure, is_derivation, &["--json-format", "2"]).await?
            }
            answer => answer?,
        };
        path_info::parse(&output).map_err(|error| match error {
            PathInfoError::NotValid { .. } => StoreError::Refused { said: error.to_string() },
            error => StoreError::Output(error),
        })
    }

    async fn path_info(
        &self,
        paths: &[&StorePath],
        closure: bool,
        is_derivation: bool,
        more: &[&str],
    ) -> Result<Vec<u8>, StoreError> {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command", "path-info", "--json"]);
        // An unknown path is an error at once, not after asking every substituter.
        command.args(["--option", "substituters", ""]).args(more);
        if let Some(uri) = &self.uri {
            command.args(["--store", uri]);
        }
        if closure {
            command.arg("--recursive");
        }
        if is_derivation {
            command.arg("--derivation");
        }
        command.args(paths.iter().map(ToString::to_string));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NoNix,
            _ => StoreError::Run(error),
        })?;
        if output.status.success() { Ok(output.stdout) } else { Err(refused(&output.stderr)) }
    }

    /// The base name of the store path that `path` lies in, by its name alone.
    fn within(&self, path: &Path) -> Option<String> {
        let below = STORE_DIR.trim_start_matches('/');
        let inner =
            path.strip_prefix(STORE_DIR).or_else(|_| path.strip_prefix(self.root.join(below))).ok()?;
        match inner.components().next()? {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        }
    }
}

/// The last thing that Nix said before it gave up, without its colours.
fn refused(stderr: &[u8]) -> StoreError {
    let text = String::from_utf8_lossy(stderr);
    let mut plain = String::new();
    let mut rest = text.as_ref();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    let lines: Vec<&str> = plain.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from =
        lines.iter().rposition(|line| line.starts_with("error:")).unwrap_or(lines.len().saturating_sub(1));
    let said = lines[from..].join(" ");
    let said = said.strip_prefix("error:").unwrap_or(&said).trim();
    StoreError::Refused { said: said.to_owned() }
}

/// The path with the first symbolic link in it followed; `None` if there is none.
fn first_link(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let mut walked = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        match component {
            // Whatever was walked so far is no link, so its parent is what is meant.
            Component::ParentDir => {
                walked.pop();
                continue;
            }
            component => walked.push(component),
        }
        let read = |source| StoreError::Read { path: walked.clone(), source };
        if walked.symlink_metadata().map_err(read)?.is_symlink() {
            let target = walked.read_link().map_err(read)?;
            walked.pop();
            return Ok(Some(walked.join(target).join(components.as_path())));
        }
    }
    Ok(None)
}

fn absolute(path: &Path) -> Option<PathBuf> {
    std::path::absolute(path).ok()
}

/// Most links that are followed, as the kernel does.
const LINKS_MAX: usize = 40;

/// Most paths that one `nix` is asked about: with 245 bytes each, far below the 2 MiB that a command line may have.
const ARGUMENTS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const BASE: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy-hello-2.12";

    #[test]
    fn a_store_is_a_folder_or_one_of_nixs_names() {
        for (text, uri, root) in [
            ("/srv/x y", "local?root=%2Fsrv%2Fx%20y", "/srv/x y"),
            ("local?root=/srv/store", "local?root=%2Fsrv%2Fstore", "/srv/store"),
            ("local?root=%2Fsrv%2Fa%26b", "local?root=%2Fsrv%2Fa%26b", "/srv/a&b"),
            ("local", "local", "/"),
            ("daemon", "daemon", "/"),
            ("auto", "auto", "/"),
        ] {
            let store: LocalStore = text.parse().unwrap();

            assert_eq!((store.uri.as_deref(), store.root.as_path()), (Some(uri), Path::new(root)), "{text}");
        }
        let here: LocalStore = "somewhere".parse().unwrap();
        assert!(here.root.is_absolute() && here.root.ends_with("somewhere"));
    }

    #[test]
    fn a_store_elsewhere_is_refused() {
        for text in [
            "",
            "ssh://host",
            "https://a.example",
            "s3://bucket",
            "file:///x",
            "local?",
            "local?real=/x",
            "local?root=/a&real=/b",
            "x?y=z",
        ] {
            assert_eq!(text.parse::<LocalStore>(), Err(ParseStoreError), "{text:?}");
        }
    }

    #[test]
    fn links_are_followed_into_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink(format!("/nix/store/{BASE}"), at("result")).unwrap();
        symlink("result", at("again")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink("../again", at("folder/up")).unwrap();
        let store = LocalStore::default();

        for path in
            [at("result"), at("again"), at("folder/up"), at("result/bin/hello"), at("folder/../result")]
        {
            assert_eq!(store.resolve(&path).unwrap().base_name(), BASE, "{}", path.display());
        }
        for text in [format!("/nix/store/{BASE}"), format!("/nix/store/{BASE}/bin/hello")] {
            assert_eq!(store.resolve(Path::new(&text)).unwrap().base_name(), BASE);
        }
    }

    #[test]
    fn the_real_place_of_another_stores_path_is_that_path() {
        let folder = tempfile::tempdir().unwrap();
        let store: LocalStore = folder.path().to_str().unwrap().parse().unwrap();
        let path = StorePath::from_base_name(BASE).unwrap();

        assert_eq!(store.real(&path), folder.path().join("nix/store").join(BASE));
        assert_eq!(store.resolve(&store.real(&path)).unwrap(), path);
        assert_eq!(store.resolve(Path::new(&path.to_string())).unwrap(), path);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/nix/store", at("whole")).unwrap();
        symlink("/nix/store/nonsense", at("nonsense")).unwrap();
        let resolve = |path: &Path| LocalStore::default().resolve(path).unwrap_err();

        assert!(matches!(resolve(&at("file")), StoreError::Outside { .. }));
        assert!(matches!(resolve(&at("loop")), StoreError::Outside { .. }));
        assert!(matches!(resolve(&at("nonsense")), StoreError::Name { .. }));
        assert!(matches!(resolve(&at("absent")), StoreError::Read { .. }));
        assert!(!matches!(resolve(&at("whole")), StoreError::Name { .. }));
    }

    #[test]
    fn the_last_error_of_nix_is_told() {
        for (stderr, expected) in [
            ("warning: x\n\u{1b}[31;1merror:\u{1b}[0m path '/x' is not valid\n", "path '/x' is not valid"),
            ("don't know\nerror: a\n       b\n", "a b"),
            ("killed\n", "killed"),
            ("", ""),
        ] {
            let StoreError::Refused { said } = refused(stderr.as_bytes()) else { panic!("{stderr}") };
            assert_eq!(said, expected);
        }
    }
}
