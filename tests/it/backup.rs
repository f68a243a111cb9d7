//! Backups on the command line: what is refused, with which words, and what is left behind.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::server::{Backend, Ended, Site, TestServer};

/// A server that ran once, and a backup of it.
struct BackedUp {
    site: Site,
    folder: TempDir,
}

impl BackedUp {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
        site.start_here(narvault::time::Clock::System, settings).await.shut_down().await.unwrap();
        let it = Self { site, folder: tempfile::tempdir().unwrap() };
        let mut command = it.site.command(settings);
        command.arg("backup").arg(it.path("a.backup"));
        Ran(Ended::of(command).await).succeeded();
        it
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.site.command(&[]);
        command.args(arguments);
        Ran(Ended::of(command).await)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

struct Ran(Ended);

impl Ran {
    fn succeeded(self) -> String {
        assert_eq!(self.0.code, Some(0), "{}", self.0.stderr);
        self.0.stdout
    }

    fn refused(self, words: &str) {
        assert_eq!(self.0.code, Some(1), "{}", self.0.stdout);
        assert!(self.0.stderr.contains(words), "{words:?} is not in {}", self.0.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_for_its_owner_alone_and_replaces_nothing_unasked() {
    let it = BackedUp::new().await;
    let file = it.file("a.backup");
    let before = std::fs::read(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    it.run(&["backup", &file]).await.refused("is there already\nhint: name another file, or add --overwrite");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    it.run(&["backup", &file, "--overwrite"]).await.succeeded();

    assert_ne!(std::fs::read(&file).unwrap(), before);
    it.run(&["backup", &it.file("absent/a.backup")]).await.refused("cannot write");
    assert_eq!(it.files(), ["a.backup"], "something partial was left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_a_database_makes_no_backup_and_no_database() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = site.command(&[]);
    command.arg("backup").arg(folder.path().join("a.backup"));

    Ran(Ended::of(command).await).refused("there is no database at");

    assert!(!site.data().exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_backup_is_said_in_a_sentence_of_its_own() {
    let it = BackedUp::new().await;
    let whole = std::fs::read(it.path("a.backup")).unwrap();
    let mut damaged = whole.clone();
    let middle = whole.len() - 100;
    damaged[middle] ^= 1;
    std::fs::write(it.path("damaged"), damaged).unwrap();
    std::fs::write(it.path("cut"), &whole[..whole.len() - 1]).unwrap();
    std::fs::write(it.path("longer"), [&whole, b"x".as_slice()].concat()).unwrap();
    std::fs::write(it.path("later"), [b"narvault-backup/2\n", &whole[18..]].concat()).unwrap();
    std::fs::write(it.path("other"), "something else\n").unwrap();

    for (name, words) in [
        ("damaged", "the backup is damaged: its chunk 0 (or its header) was altered"),
        ("cut", "the backup is cut off: it ends before its chunk 0 does"),
        ("longer", "bytes follow the end of the backup"),
        ("later", "the backup has format 2, and this version of narvault reads format 1"),
        ("other", "this is no backup of narvault"),
        ("absent", "cannot read"),
    ] {
        it.run(&["backup", "verify", &it.file(name)]).await.refused(words);
        it.run(&["restore", &it.file(name)]).await.refused(words);
    }
    let said = it.run(&["backup", "verify", &it.file("a.backup")]).await.succeeded();
    assert!(said.contains("whole, not altered, and can be restored"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_opens_by_every_secret_of_its_vault_and_by_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let passphrase = folder.path().join("passphrase");
    std::fs::write(&passphrase, "correct horse battery\n").unwrap();
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, "correct horse batterz\n").unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let [passphrase, wrong, key] = [passphrase, wrong, key].map(|path| path.display().to_string());

    let it = BackedUp::with(&[("NARVAULT_VAULT_PASSPHRASE_FILE", &passphrase)]).await;
    let file = it.file("a.backup");

    it.run(&["backup", "verify", &file, "--passphrase-file", &passphrase]).await.succeeded();
    it.run(&["backup", "verify", &file, "--passphrase-file", &wrong]).await.refused(
        "the backup does not open: this passphrase opens no slot of the vault\nhint: name what opened the vault",
    );
    it.run(&["backup", "verify", &file, "--key-file", &key])
        .await
        .refused("the backup does not open: vault has no key-file slot");
    it.run(&["restore", &file]).await.refused("hint: name what opens the vault with --key-file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_rows_is_never_restored_into() {
    let it = BackedUp::new().await;
    let before = std::fs::read(it.site.data().join("narvault.db")).unwrap();

    it.run(&["restore", &it.file("a.backup")])
        .await
        .refused("the database is not empty: table `cluster` has rows");

    assert_eq!(std::fs::read(it.site.data().join("narvault.db")).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_sealed_by_hand_is_backed_up_with_a_secret_only() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let key = server.site.data().join("vault.key").display().to_string();
    server.admin().vault_seal().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.backup").display().to_string();
    let run = async |arguments: &[&str]| {
        let mut command = server.site.command(&[]);
        command.args(arguments);
        Ran(Ended::of(command).await)
    };

    run(&["backup", &file]).await.refused("the vault is sealed here");
    run(&["backup", &file, "--key-file", &key]).await.succeeded();

    run(&["backup", "verify", &file]).await.succeeded();
}
