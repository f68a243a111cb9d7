//! What the Nix of this machine says about its store. Nix alone decides what is valid.
//!
//! Never changes anything, and asks no substituter.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::nix::hash::NarHash;
use crate::nix::store_path::StorePath;

/// The Nix of this machine, and one of its stores.
#[derive(Debug, Clone)]
pub struct LocalNix {
    store: String,
}

/// Why Nix did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    #[error("cannot run `{program}`; is Nix installed, and in the PATH?")]
    Start { program: &'static str, source: io::Error },
    #[error("`{program}` failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("`{program}` answered what this version does not know")]
    Answer { program: &'static str },
}

impl LocalNix {
    /// Of the store at a URL, such as `local?root=/mnt`; `auto` is the one that Nix uses by itself.
    pub fn new(store: impl ToString) -> Self {
        Self { store: store.to_string() }
    }

    /// The store's URL.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Where the store's database lies: it is written whenever a path becomes valid.
    pub fn database_folder(&self) -> PathBuf {
        let query = self.store.split_once('?').map_or("", |(_, query)| query);
        let root = query.split('&').find_map(|pair| pair.strip_prefix("root=")).unwrap_or("/");
        let root = percent_encoding::percent_decode_str(root).decode_utf8_lossy();
        Path::new(&*root).join("nix/var/nix/db")
    }

    /// The outputs of a derivation, built or not.
    pub async fn outputs(&self, derivation: &StorePath) -> Result<Vec<StorePath>, NixError> {
        let said = self.ask("nix-store", &["--query", "--outputs"], &[derivation]).await?;
        Ok(paths(&said))
    }

    /// Those of `paths` that are not valid now.
    pub async fn invalid(&self, asked: &[&StorePath]) -> Result<HashSet<StorePath>, NixError> {
        let mut invalid = HashSet::new();
        for some in asked.chunks(PATHS_PER_CALL) {
            let said = self.ask("nix-store", &["--check-validity", "--print-invalid"], some).await?;
            invalid.extend(paths(&said));
        }
        Ok(invalid)
    }

    /// The NAR hashes of `paths`, all valid, in their order.
    pub async fn nar_hashes(&self, asked: &[&StorePath]) -> Result<Vec<NarHash>, NixError> {
        let mut hashes = Vec::with_capacity(asked.len());
        for some in asked.chunks(PATHS_PER_CALL) {
            let said = self.ask("nix-store", &["--query", "--hash"], some).await?;
            let read = said.lines().filter_map(|line| line.trim().strip_prefix("sha256:"));
            hashes.extend(read.filter_map(|text| NarHash::from_base32(text).ok()));
        }
        // What was answered otherwise would be taken for the answer to something else.
        if hashes.len() == asked.len() { Ok(hashes) } else { Err(NixError::Answer { program: "nix-store" }) }
    }

    /// Every valid path. What Nix accepts and narvault does not is left out: no cache would take it.
    pub async fn all(&self) -> Result<Vec<StorePath>, NixError> {
        Ok(paths(&self.ask("nix", &["path-info", "--all"], &[]).await?))
    }

    /// Those of `paths`, all valid, that were built on this machine, not fetched or added.
    pub async fn built_here(&self, asked: &[&StorePath]) -> Result<HashSet<StorePath>, NixError> {
        let mut built = HashSet::new();
        for some in asked.chunks(PATHS_PER_CALL) {
            let said = self.ask("nix", &["path-info", "--json"], some).await?;
            let json = serde_json::from_str(&said).map_err(|_| NixError::Answer { program: "nix" })?;
            built.extend(ultimate(&json));
        }
        Ok(built)
    }

    /// The program that Nix runs after each build, if one is configured.
    pub async fn post_build_hook(&self) -> Result<Option<String>, NixError> {
        let said = self.ask("nix", &["show-config", "--json"], &[]).await?;
        let json: Value = serde_json::from_str(&said).map_err(|_| NixError::Answer { program: "nix" })?;
        let hook = json["post-build-hook"]["value"].as_str().unwrap_or_default();
        Ok(Some(hook.to_owned()).filter(|hook| !hook.is_empty()))
    }

    async fn ask(
        &self,
        program: &'static str,
        arguments: &[&str],
        paths: &[&StorePath],
    ) -> Result<String, NixError> {
        let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        if program == "nix" {
            arguments.extend(["--extra-experimental-features".to_owned(), "nix-command".to_owned()]);
        }
        arguments.extend(["--store".to_owned(), self.store.clone()]);
        arguments.extend(paths.iter().map(|path| path.to_string()));
        let output = run(program, &arguments).await.map_err(|source| NixError::Start { program, source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            // The last lines hold the error; what comes before are warnings.
            let said = said.trim().lines().rev().take(2).collect::<Vec<_>>();
            let said = said.into_iter().rev().collect::<Vec<_>>().join(" ");
            return Err(NixError::Failed { program, said });
        }
        String::from_utf8(output.stdout).map_err(|_| NixError::Answer { program })
    }
}

/// Runs a program of Nix. A daemon's hook may have a PATH without Nix, so its usual places are tried too.
async fn run(program: &'static str, arguments: &[String]) -> io::Result<std::process::Output> {
    let output = |program: String| {
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output()
    };
    let mut found = output(program.to_owned()).await;
    for folder in USUAL_PLACES {
        match &found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                found = output(format!("{folder}/{program}")).await;
            }
            _ => break,
        }
    }
    found
}

fn paths(said: &str) -> Vec<StorePath> {
    said.lines().filter_map(|line| StorePath::from_absolute(line.trim()).ok()).collect()
}

/// The paths marked `ultimate`, in each shape that some Nix has: a list, a map by path, a map by base name below
/// `info`.
fn ultimate(json: &Value) -> Vec<StorePath> {
    let is_ultimate = |entry: &Value| entry["ultimate"] == Value::Bool(true);
    match json {
        Value::Array(list) => {
            let found =
                list.iter().filter(|entry| is_ultimate(entry)).filter_map(|entry| entry["path"].as_str());
            found.filter_map(|path| StorePath::from_absolute(path).ok()).collect()
        }
        Value::Object(map) => {
            let entries = map.get("info").and_then(Value::as_object).unwrap_or(map);
            let found = entries.iter().filter(|(_, entry)| is_ultimate(entry));
            let path =
                |text: &str| StorePath::from_absolute(text).or_else(|_| StorePath::from_base_name(text)).ok();
            found.filter_map(|(text, _)| path(text)).collect()
        }
        _ => Vec::new(),
    }
}

/// Paths of one call of Nix: 500 of the longest are 125 KB of arguments, of the 2 MB that Linux takes.
const PATHS_PER_CALL: usize = 500;

/// Where Nix's programs are, beside the PATH.
const USUAL_PLACES: [&str; 2] = ["/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "/nix/store/3sprlmfy5qih7ss1iq6w87830aqbm0sj-a";

    #[test]
    fn the_database_lies_below_the_stores_root() {
        for (store, expected) in [
            ("auto", "/nix/var/nix/db"),
            ("daemon", "/nix/var/nix/db"),
            ("local?root=/mnt/x", "/mnt/x/nix/var/nix/db"),
            ("local?root=%2Fmnt%2Fa%20b", "/mnt/a b/nix/var/nix/db"),
            ("local?require-sigs=false&root=/mnt", "/mnt/nix/var/nix/db"),
        ] {
            assert_eq!(LocalNix::new(store).database_folder(), Path::new(expected), "{store}");
        }
    }

    #[test]
    fn what_was_built_here_is_read_from_every_shape() {
        let base = A.strip_prefix("/nix/store/").unwrap();
        let other = "/nix/store/kr9bi5xcjd6akw6bax8z921hfx4xfkfp-b";
        for text in [
            format!(r#"[{{"path":"{A}","narSize":1,"ultimate":true}},{{"path":"{other}","narSize":2}}]"#),
            format!(r#"{{"{A}":{{"ultimate":true}},"{other}":{{"ultimate":false}}}}"#),
            format!(r#"{{"version":2,"storeDir":"/nix/store","info":{{"{base}":{{"ultimate":true}}}}}}"#),
        ] {
            let json = serde_json::from_str(&text).unwrap();

            assert_eq!(ultimate(&json), [StorePath::from_absolute(A).unwrap()], "{text}");
        }
        assert_eq!(ultimate(&Value::Null), []);
    }
}
