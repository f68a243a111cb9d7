//! What lies where caches are served from, held against the leaves of their log: narinfos, build trace entries, and
//! whether the NARs are there.
//!
//! Never writes, and never reads a NAR. What does not agree is looked at once more against the newest checkpoint, because
//! a server goes on meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::super::Context;
use super::super::failure::{Exit, Failure};
use super::place::{LogPlace, Named, in_folder_or_none};
use crate::client::audit::{Auditor, Fault, FindingKind};
use crate::client::{Client, ErrorKind};
use crate::nix::narinfo::NARINFO_SIZE_BYTES_MAX;
use crate::nix::store_path::StorePathHash;
use crate::storage::{CacheObject, Folder, ObjectKey, Prefix, Storage, StorageError};

/// Where caches are served from.
pub enum Objects {
    Bucket(Storage),
    Folder(PathBuf),
    /// A server, which does not tell what it has: only what leaves tell of is asked for, of public caches that lie
    /// below their names.
    Server(Client),
}

impl Objects {
    /// What `text` names.
    pub async fn open(text: &str, context: &Context) -> Result<Self, Failure> {
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Self::Server(context.session_of(context.server(Some(text))?)?.client));
        }
        match Named::open(text).await? {
            Named::Bucket(storage) => Ok(Self::Bucket(storage)),
            Named::Folder(path) if path.is_dir() => Ok(Self::Folder(path)),
            Named::Folder(path) => {
                Err(Failure::new(Exit::Usage, format!("there is no folder at {}", path.display())))
            }
        }
    }

    /// The storage that the log lies in, where that is one.
    pub fn around(place: &LogPlace) -> Option<Self> {
        match place {
            LogPlace::Bucket(storage) => Some(Self::Bucket(storage.clone())),
            LogPlace::StorageFolder(path) => Some(Self::Folder(path.clone())),
            LogPlace::Server(_) | LogPlace::Web(_) | LogPlace::Folder(_) => None,
        }
    }

    /// Names and sizes of all objects, where they can be listed.
    async fn list(&self) -> Result<Option<Vec<(String, u64)>>, Failure> {
        match self {
            Self::Server(_) => Ok(None),
            Self::Folder(path) => {
                let (root, failed) = (path.clone(), failed_in(path));
                let listed = tokio::task::spawn_blocking(move || list_folder(&root)).await;
                let listed = listed.map_err(io::Error::other).and_then(|listed| listed);
                listed.map(Some).map_err(failed)
            }
            Self::Bucket(storage) => {
                let entries = storage.list(&Folder::Cache(Prefix::empty()));
                let listed = entries.map_ok(|entry| (entry.name, entry.size_bytes)).try_collect().await;
                listed.map(Some).map_err(unreachable)
            }
        }
    }

    /// An object as it is.
    async fn read(&self, name: &str) -> Result<Object, Failure> {
        let read = match self {
            Self::Server(client) => match client.cache_file(name).await {
                Err(error) if error.kind() == ErrorKind::NotAuthorised => return Ok(Object::Hidden),
                read => read?,
            },
            Self::Folder(path) => match self.size(name).await? {
                Some(size) if size > OBJECT_SIZE_BYTES_MAX as u64 => Some(too_large()),
                Some(_) => in_folder_or_none(&path.join(name)).await?,
                None => None,
            },
            Self::Bucket(storage) => {
                let Ok(key) = name.parse() else { return Ok(Object::Absent) };
                match storage.read(&key, OBJECT_SIZE_BYTES_MAX).await {
                    Ok(read) => read.map(Vec::from),
                    Err(StorageError::Damaged(_)) => Some(too_large()),
                    Err(error) => return Err(unreachable(error)),
                }
            }
        };
        Ok(read.map_or(Object::Absent, Object::There))
    }

    /// The size of an object, as it is now.
    async fn size(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self {
            Self::Server(_) => Ok(None),
            Self::Folder(path) => match tokio::fs::symlink_metadata(path.join(name)).await {
                Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failed_in(path)(error)),
            },
            Self::Bucket(storage) => match name.parse() {
                Ok(key) => storage.size(&key).await.map_err(unreachable),
                Err(_) => Ok(None),
            },
        }
    }
}

/// What is found where an object belongs.
enum Object {
    There(Vec<u8>),
    Absent,
    /// The cache is private, and this machine may not pull from it.
    Hidden,
}

/// What does not agree so far, and is to be looked at again.
pub struct Held<'a> {
    objects: &'a Objects,
    /// Of NARs, while the listing is fresh.
    sizes: HashMap<String, u64>,
    suspects: BTreeSet<String>,
    /// Prefixes of caches that may not be read.
    hidden: BTreeSet<String>,
}

impl<'a> Held<'a> {
    /// Holds everything that lies there against the leaves that `auditor` has seen.
    pub async fn look(objects: &'a Objects, auditor: &mut Auditor) -> Result<Self, Failure> {
        let (sizes, suspects, hidden) = (HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut held = Self { objects, sizes, suspects, hidden };
        let mut names = Vec::new();
        let listed = objects.list().await?;
        let can_list = listed.is_some();
        for (name, size) in listed.unwrap_or_default() {
            match name.parse() {
                Ok(ObjectKey::Cache(_, CacheObject::Nar(_))) => {
                    held.sizes.insert(name, size);
                }
                Ok(ObjectKey::Cache(_, CacheObject::Narinfo(_) | CacheObject::Realisation(_))) => {
                    names.push(name);
                }
                _ => {}
            }
        }
        if !can_list {
            names = auditor.awaited().iter().map(|one| narinfo(&one.cache, one.hash)).collect();
        }
        let looked = held.judge_all(names, auditor).await?;
        held.suspects = looked.into_iter().map(|(name, _)| name).collect();
        held.sizes.clear();
        Ok(held)
    }

    /// Whether anything does not agree.
    pub fn is_suspicious(&self, auditor: &Auditor) -> bool {
        !self.suspects.is_empty() || !auditor.awaited().is_empty()
    }

    /// Looks once more at what did not agree, after more leaves.
    pub async fn look_again(&mut self, auditor: &mut Auditor) -> Result<(), Failure> {
        self.suspects = self.judge_suspects(auditor).await?.into_iter().map(|(name, _)| name).collect();
        Ok(())
    }

    /// Tells the auditor what still does not agree.
    pub async fn tell(&mut self, auditor: &mut Auditor) -> Result<(), Failure> {
        for (name, fault) in self.judge_suspects(auditor).await? {
            auditor.finding(fault.kind, fault.leaf, format!("{name}: {}", fault.what));
        }
        let mut hidden: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for one in auditor.awaited() {
            if self.hidden.contains(&one.cache) {
                hidden.entry(one.cache).or_insert((one.leaf, 0)).1 += 1;
                continue;
            }
            let what = format!("{}: it is not there", narinfo(&one.cache, one.hash));
            auditor.finding(FindingKind::NarinfoMissing, Some(one.leaf), what);
        }
        for (cache, (leaf, paths)) in hidden {
            let what = format!(
                "{cache}: {paths} paths were not looked at: the cache is private now; log in with a token that may pull from it"
            );
            auditor.finding(FindingKind::CacheHidden, Some(leaf), what);
        }
        Ok(())
    }

    async fn judge_suspects(&mut self, auditor: &mut Auditor) -> Result<Vec<(String, Fault)>, Failure> {
        let mut names = self.suspects.clone();
        // What may not be read is not asked for again.
        let awaited = auditor.awaited().into_iter().filter(|one| !self.hidden.contains(&one.cache));
        names.extend(awaited.map(|one| narinfo(&one.cache, one.hash)));
        self.judge_all(names, auditor).await
    }

    /// Reads objects, many at once, and judges one after the other.
    async fn judge_all(
        &mut self,
        names: impl IntoIterator<Item = String>,
        auditor: &mut Auditor,
    ) -> Result<Vec<(String, Fault)>, Failure> {
        let objects = self.objects;
        let read = async |name: String| {
            let object = objects.read(&name).await?;
            Ok::<_, Failure>((name, object))
        };
        let mut read = stream::iter(names.into_iter().map(read)).buffer_unordered(READS_AT_ONCE);
        let mut found = Vec::new();
        while let Some((name, object)) = read.try_next().await? {
            let body = match object {
                Object::There(body) => body,
                // What is gone meanwhile is nobody's, unless it is awaited.
                Object::Absent => continue,
                Object::Hidden => {
                    if let Ok(ObjectKey::Cache(prefix, _)) = name.parse() {
                        self.hidden.insert(prefix.to_string());
                    }
                    continue;
                }
            };
            let faults = self.judge(&name, &body, auditor).await?;
            found.extend(faults.into_iter().map(|fault| (name.clone(), fault)));
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    async fn judge(&self, name: &str, body: &[u8], auditor: &mut Auditor) -> Result<Vec<Fault>, Failure> {
        let (prefix, object) = match name.parse() {
            Ok(ObjectKey::Cache(prefix, object)) => (prefix, object),
            _ => return Ok(Vec::new()),
        };
        match object {
            CacheObject::Realisation(key) => Ok(auditor.entry(key, body)),
            CacheObject::Narinfo(hash) => {
                let judged = auditor.narinfo(prefix.as_str(), hash, body);
                let mut faults = judged.faults;
                if let Some((file, expected)) = judged.nar {
                    let nar = ObjectKey::Cache(prefix, CacheObject::Nar(file)).to_string();
                    faults.extend(self.judge_nar(&nar, expected).await?);
                }
                Ok(faults)
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn judge_nar(&self, nar: &str, expected: u64) -> Result<Option<Fault>, Failure> {
        if matches!(self.objects, Objects::Server(_)) {
            return Ok(None);
        }
        let size = match self.sizes.get(nar) {
            Some(size) => Some(*size),
            // It may have come after its folder was listed.
            None => self.objects.size(nar).await?,
        };
        let fault = |kind, what| Some(Fault { kind, leaf: None, what });
        Ok(match size {
            None => fault(FindingKind::NarMissing, format!("its NAR {nar} is not there")),
            Some(size) if size == expected => None,
            Some(size) => {
                fault(FindingKind::NarDiffers, format!("its NAR {nar} has {size} bytes, not {expected}"))
            }
        })
    }
}

/// Where the narinfo of a path lies, in a cache that lies below its name.
fn narinfo(cache: &str, hash: StorePathHash) -> String {
    let object = CacheObject::Narinfo(hash);
    match cache.parse() {
        Ok(prefix) => ObjectKey::Cache(prefix, object).to_string(),
        Err(_) => object.to_string(),
    }
}

/// In place of what is larger than anything that belongs there: whoever parses it finds that.
fn too_large() -> Vec<u8> {
    vec![0; OBJECT_SIZE_BYTES_MAX]
}

/// Every file below a folder, by its path in it. Links are not followed.
fn list_folder(root: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new())];
    while let Some((folder, path)) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(file_name) = entry.file_name().into_string() else { continue };
            let name = format!("{path}{file_name}");
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // The server's own folders begin with `_`, and no cache's does.
            let is_own = path.is_empty() && file_name.starts_with('_');
            if metadata.is_dir() && !is_own {
                folders.push((entry.path(), format!("{name}/")));
            } else if metadata.is_file() {
                found.push((name, metadata.len()));
            }
        }
    }
    Ok(found)
}

fn failed_in(path: &Path) -> impl Fn(io::Error) -> Failure + use<> {
    let path = path.to_owned();
    move |error| Failure::caused(format!("cannot read {}", path.display()), error)
}

fn unreachable(error: StorageError) -> Failure {
    Failure::Told { exit: Exit::Unreachable, error: error.into(), hint: None }
}

/// Most that is read of an object, in bytes: one more than a narinfo, or a build trace entry, may have.
const OBJECT_SIZE_BYTES_MAX: usize = NARINFO_SIZE_BYTES_MAX + 1;

/// Requests under way at once.
const READS_AT_ONCE: usize = 16;
