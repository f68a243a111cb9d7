//! The configuration: one table of keys, read from flags, environment and file, checked as a whole before anything
//! starts.
//!
//! Never holds a secret but a password written into `database.url`, which is redacted wherever it is shown. Secrets
//! come from files that this only names. No other module reads the environment.

mod setting;
mod source;
mod urls;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use secrecy::SecretString;

use self::setting::Setting;
pub use self::setting::{ByteSize, Deliver, LogFormat, ValueError};
use self::source::Values;
pub use self::source::{Problem, Problems, Source, environment, variable};
pub use self::urls::{
    DatabaseUrl, DatabaseUrlError, PublicUrl, PublicUrlError, S3Location, StorageUrl, StorageUrlError,
};
use crate::kms::{KmsKeyId, KmsRegion};
use crate::witness::Witness;

/// Where the file is looked for if no `--config` and no `NARVAULT_CONFIG` names one. It need not be there.
pub const CONFIG_FILE_DEFAULT: &str = "/etc/narvault/narvault.toml";

/// One key of the configuration, as it is documented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDoc {
    /// Its path in the file: `database.url`.
    pub key: &'static str,
    /// Its environment variable: `NARVAULT_DATABASE_URL`.
    pub environment: String,
    /// What kind of value it takes, in words.
    pub kind: &'static str,
    /// The value that holds if none is given; `<listen>` and `<data>` stand for those keys. Empty: none.
    pub default: &'static str,
    /// What it does.
    pub doc: String,
}

/// Declares a section once: its struct, its keys, their defaults and their documentation.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $name:ident, $prefix:literal,
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:literal,)+
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl $name {
            fn keys() -> Vec<KeyDoc> {
                vec![$(KeyDoc {
                    key: concat!($prefix, stringify!($field)),
                    environment: source::variable_name(concat!($prefix, stringify!($field))),
                    kind: <$type as Setting>::KIND,
                    default: $default,
                    doc: [$($doc.trim()),+].join(" "),
                }),+]
            }

            fn read(values: &Values, problems: &mut Vec<Problem>) -> Option<Self> {
                // Each is read before the first `?`, so that all problems are told at once.
                $(let $field = values.read(concat!($prefix, stringify!($field)), problems);)+
                Some(Self { $($field: $field?),+ })
            }

            fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$((concat!($prefix, stringify!($field)), self.$field.show())),+]
            }
        }
    };
}

section! {
    /// Where the server listens, and under which URL the world knows it.
    Server, "",
    /// Address and port to listen on.
    listen: SocketAddr = "127.0.0.1:8750",
    /// URL under which clients reach this server: scheme, host and port, nothing more.
    public_url: PublicUrl = "http://<listen>",
    /// Allows a `public_url` that is plain http beyond this machine, where anyone on the way can read tokens.
    insecure_http: bool = "false",
    /// Folder of the embedded database, the disk storage and the key file.
    data: PathBuf = "./narvault-data",
    /// Networks of the proxies whose `X-Forwarded-For` is believed.
    trusted_proxies: Vec<IpNet> = "",
}

section! {
    /// The database.
    Database, "database.",
    /// `sqlite://<path>` or `postgres://user@host/name`. A password in it is accepted, and redacted when shown.
    url: DatabaseUrl = "sqlite://<data>/narvault.db",
    /// File that holds the password of the Postgres user.
    password_file: Option<PathBuf> = "",
    /// Most connections open at once.
    connections_max: u64 = "10",
}

section! {
    /// Where NARs and narinfos lie.
    Storage, "storage.",
    /// `file://<path>` or `s3://bucket/prefix?endpoint=https://host&region=name&path_style=true`. Credentials come
    /// by the usual AWS chain.
    url: StorageUrl = "file://<data>/storage",
    /// How long S3 is waited for to take a connection.
    connect_timeout_seconds: u64 = "3",
    /// How long S3 is waited for to begin its answer to a request without a large body.
    answer_timeout_seconds: u64 = "30",
    /// How long a call to S3 may take, its body and all its attempts included, and a narinfo on its way to the disk: what
    /// a server that died was about to write waits for so long. The same on every replica.
    timeout_seconds: u64 = "150",
    /// How often S3 is asked where it fails in passing.
    attempts_max: u64 = "5",
}

section! {
    /// What opens the vault, each of them by itself. Neither file given, nor `vault.kms.key_id`: a key file in `data`.
    Vault, "vault.",
    /// File of 32 random bytes that opens the vault.
    key_file: Option<PathBuf> = "",
    /// File that holds the passphrase that opens the vault.
    passphrase_file: Option<PathBuf> = "",
}

section! {
    /// A key management service that opens the vault: AWS KMS, or what speaks its protocol.
    VaultKms, "vault.kms.",
    /// Key whose slot opens the vault: its ARN, its id, or an alias. Credentials come by the usual AWS chain.
    key_id: Option<KmsKeyId> = "",
    /// Region of the key, where its name does not tell it; else it is that of the AWS chain.
    region: Option<KmsRegion> = "",
    /// Server to ask instead of AWS's own; plain http only on this machine, unless `insecure_http` is set.
    endpoint: Option<PublicUrl> = "",
}

section! {
    /// How NARs reach clients.
    Nars, "nars.",
    /// `proxy`: through this server. `redirect`: clients fetch from the storage by URLs that hold for 300 s.
    deliver: Deliver = "proxy",
    /// Redirects for private caches too; such a URL outlives the revocation of a token by its 300 s.
    redirect_private: bool = "false",
}

section! {
    /// Uploads in parts, of clients of narvault's own.
    Uploads, "uploads.",
    /// Parts go straight to the bucket by URLs that hold for 900 s, where storage is S3. Each file is still read back and
    /// verified whole.
    direct: bool = "false",
}

section! {
    /// Rotations of signing keys.
    Keys, "keys.",
    /// Most paths in a second that get another signature while a key is rotated.
    resign_paths_per_second: u64 = "500",
    /// How many days a new key is published before it signs, unless the rotation says otherwise.
    rotation_publish_days: u64 = "7",
    /// How many days the old key signs on after all has the new signature; clients remember a narinfo for up to 30.
    rotation_wait_days: u64 = "30",
}

section! {
    /// Messages to other servers about what happened.
    Webhooks, "webhooks.",
    /// Webhooks may lead to private and loopback addresses: whoever may add one reaches what this server reaches.
    allow_private: bool = "false",
    /// Webhooks may be plain http, where anyone on the way can read what they say.
    allow_http: bool = "false",
}

section! {
    /// The log on stderr.
    Log, "log.",
    /// Lines for people, or one JSON object per line. `RUST_LOG` chooses what is logged.
    format: LogFormat = "text",
}

section! {
    /// The signature log, and who watches it.
    SignatureLog, "signature_log.",
    /// Witnesses that are asked to cosign each checkpoint: `URL KEY`, with the key as `name+hash+base64`.
    witnesses: Vec<Witness> = "",
}

section! {
    /// Backups of the database to storage, sealed.
    Backup, "backup.",
    /// How often the database is backed up to storage, in hours; unset: not at all.
    every_hours: Option<u64> = "",
    /// How many of these backups stay; older ones are removed once a newer one is there.
    keep: u64 = "7",
}

section! {
    /// The largest, longest and most of everything.
    Limits, "limits.",
    /// Largest NAR, uncompressed.
    nar_size_bytes: ByteSize = "64 GiB",
    /// Largest narinfo.
    narinfo_size_bytes: ByteSize = "1 MiB",
    /// Largest listing, build log, realisation or debug-info file.
    auxiliary_size_bytes: ByteSize = "16 MiB",
    /// Memory for all uploads together.
    upload_memory_bytes: ByteSize = "1 GiB",
    /// Uploads at once with one token.
    uploads_per_token: u64 = "8",
    /// How long an upload waits for its turn before its body is read.
    admission_wait_seconds: u64 = "120",
    /// Slowest upload, measured over 60 s; a slower one is cut.
    upload_min_bytes_per_second: u64 = "1024",
    /// How long an uploaded NAR is kept without a narinfo.
    unpublished_nar_hours: u64 = "168",
    /// How long an upload in parts is kept after its last part.
    upload_session_hours: u64 = "24",
    /// How long the NARs of withdrawn paths are kept, unserved.
    withdrawn_days: u64 = "90",
    /// How long a takedown, or the end of one, is waited for before the call answers with what is left.
    takedown_answer_seconds: u64 = "60",
    /// How long running requests may go on after the signal to stop.
    shutdown_seconds: u64 = "30",
    /// Attempts per minute from one address to claim, unseal, report a token or exchange an OIDC token.
    rate_per_minute: u64 = "10",
}

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: Server,
    pub database: Database,
    pub storage: Storage,
    pub vault: Vault,
    pub vault_kms: VaultKms,
    pub nars: Nars,
    pub uploads: Uploads,
    pub keys: Keys,
    pub webhooks: Webhooks,
    pub log: Log,
    pub signature_log: SignatureLog,
    pub backup: Backup,
    pub limits: Limits,
    sources: BTreeMap<&'static str, Source>,
}

/// What the command line says. A flag wins over everything else.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`: the file, which then must be there.
    pub config: Option<PathBuf>,
    /// `--data`.
    pub data: Option<String>,
    /// `--listen`.
    pub listen: Option<String>,
}

/// One line of what `narvault check` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    pub key: &'static str,
    /// Without any secret.
    pub value: String,
    pub source: Source,
}

/// Every key, in the order of the sections: the table in the README, and what is accepted.
pub fn reference() -> Vec<KeyDoc> {
    let sections = [
        Server::keys(),
        Database::keys(),
        Storage::keys(),
        Vault::keys(),
        VaultKms::keys(),
        Nars::keys(),
        Uploads::keys(),
        Keys::keys(),
        Webhooks::keys(),
        Log::keys(),
        SignatureLog::keys(),
        Backup::keys(),
        Limits::keys(),
    ];
    sections.concat()
}

/// [`reference()`] as a Markdown table.
pub fn reference_markdown() -> String {
    let mut table = String::from("| key | environment | type | default | meaning |\n|---|---|---|---|---|\n");
    for KeyDoc { key, environment, kind, default, doc } in reference() {
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
        table.push_str(&format!("| `{key}` | `{environment}` | {kind} | {default} | {doc} |\n"));
    }
    table
}

impl Config {
    /// Reads the configuration of this process: its environment, and the file.
    pub fn load_from_system(flags: &Flags) -> Result<Self, Problems> {
        Self::load(flags, environment()?, |path| std::fs::read_to_string(path))
    }

    /// Reads flags, then `environment`, then the file, then defaults: the first that has a key wins. All problems are
    /// told at once.
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let values = Values::collect(flags, environment, read_file, &mut problems);
        let config = Self::read(values, &mut problems);
        match config {
            Some(config) if problems.is_empty() => {
                config.check(&mut problems);
                if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
            }
            _ => Err(Problems(problems)),
        }
    }

    fn read(values: Values, problems: &mut Vec<Problem>) -> Option<Self> {
        let server = Server::read(&values, problems);
        let database = Database::read(&values, problems);
        let storage = Storage::read(&values, problems);
        let vault = Vault::read(&values, problems);
        let vault_kms = VaultKms::read(&values, problems);
        let nars = Nars::read(&values, problems);
        let uploads = Uploads::read(&values, problems);
        let keys = Keys::read(&values, problems);
        let webhooks = Webhooks::read(&values, problems);
        let log = Log::read(&values, problems);
        let signature_log = SignatureLog::read(&values, problems);
        let backup = Backup::read(&values, problems);
        let limits = Limits::read(&values, problems);
        Some(Self {
            server: server?,
            database: database?,
            storage: storage?,
            vault: vault?,
            vault_kms: vault_kms?,
            nars: nars?,
            uploads: uploads?,
            keys: keys?,
            webhooks: webhooks?,
            log: log?,
            signature_log: signature_log?,
            backup: backup?,
            limits: limits?,
            sources: values.into_sources(),
        })
    }

    /// What holds between values that are each right by themselves.
    fn check(&self, problems: &mut Vec<Problem>) {
        self.server.check(self.source("public_url"), problems);
        self.database.check(problems);
        let exposed = self.vault_kms.endpoint.as_ref().is_some_and(PublicUrl::is_exposed);
        if exposed && !self.server.insecure_http {
            problems.push(Problem::PlainKms { place: self.source("vault.kms.endpoint") });
        }
        let ranges = self.database.ranges().into_iter().chain(self.storage.ranges());
        let ranges = ranges.chain(self.keys.ranges()).chain(self.backup.ranges());
        let ranges = ranges.chain(self.limits.ranges());
        for (key, found, min, max) in ranges {
            if !(min..=max).contains(&found) {
                problems.push(Problem::Range { key, place: self.source(key), min, max });
            }
        }
    }

    /// Where the value of `key` came from.
    fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Every key with its value and where that came from, without secrets.
    pub fn effective(&self) -> Vec<Effective> {
        let sections = [
            self.server.shown(),
            self.database.shown(),
            self.storage.shown(),
            self.vault.shown(),
            self.vault_kms.shown(),
            self.nars.shown(),
            self.uploads.shown(),
            self.keys.shown(),
            self.webhooks.shown(),
            self.log.shown(),
            self.signature_log.shown(),
            self.backup.shown(),
            self.limits.shown(),
        ];
        let shown = sections.into_iter().flatten();
        shown.map(|(key, value)| Effective { key, value, source: self.source(key) }).collect()
    }

    /// Tells the address that was really bound (the port may have been 0): a `public_url` that nobody gave follows it.
    pub fn bound_to(&mut self, address: SocketAddr) {
        self.server.listen = address;
        if self.source("public_url") == Source::Default {
            self.server.public_url = PublicUrl::http(address);
        }
    }

    /// The key file that is used if nothing else is given that opens the vault.
    pub fn key_file_default(&self) -> PathBuf {
        self.server.data.join("vault.key")
    }
}

impl Server {
    /// `place` is where the `public_url` came from.
    fn check(&self, place: Source, problems: &mut Vec<Problem>) {
        if !self.public_url.is_exposed() || self.insecure_http {
            return;
        }
        problems.push(match place {
            Source::Default => Problem::PlainHttpFromListen,
            place => Problem::PlainHttp { place },
        });
    }
}

impl Database {
    fn check(&self, problems: &mut Vec<Problem>) {
        if self.password_file.is_none() {
            return;
        }
        match &self.url {
            DatabaseUrl::Sqlite(_) => problems.push(Problem::PasswordUnused),
            url if url.has_password() => problems.push(Problem::PasswordTwice),
            DatabaseUrl::Postgres(_) => {}
        }
    }

    fn ranges(&self) -> [(&'static str, u64, u64, u64); 1] {
        [("database.connections_max", self.connections_max, 1, 1000)]
    }

    /// The URL to connect with, the password from `database.password_file` included; one line end at its end is dropped.
    pub fn connection_url(
        &self,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<SecretString, Problem> {
        let Some(path) = &self.password_file else {
            return Ok(self.url.expose());
        };
        let unreadable = |source| Problem::Unreadable { path: path.clone(), source };
        let text = zeroize::Zeroizing::new(read_file(path).map_err(unreadable)?);
        let password =
            text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
        if password.is_empty() {
            return Err(Problem::PasswordEmpty { path: path.clone() });
        }
        self.url.with_password(password).ok_or(Problem::PasswordUnused)
    }
}

impl Storage {
    fn ranges(&self) -> [(&'static str, u64, u64, u64); 4] {
        [
            ("storage.connect_timeout_seconds", self.connect_timeout_seconds, 1, 60),
            ("storage.answer_timeout_seconds", self.answer_timeout_seconds, 1, 300),
            // Leases of the outbox last a little longer, and nobody else writes the object meanwhile.
            ("storage.timeout_seconds", self.timeout_seconds, 5, 600),
            ("storage.attempts_max", self.attempts_max, 1, 20),
        ]
    }
}

impl Keys {
    fn ranges(&self) -> [(&'static str, u64, u64, u64); 3] {
        [
            ("keys.resign_paths_per_second", self.resign_paths_per_second, 1, 100_000),
            ("keys.rotation_publish_days", self.rotation_publish_days, 0, 365),
            ("keys.rotation_wait_days", self.rotation_wait_days, 0, 365),
        ]
    }
}

impl Backup {
    fn ranges(&self) -> impl Iterator<Item = (&'static str, u64, u64, u64)> {
        let every = self.every_hours.map(|hours| ("backup.every_hours", hours, 1, 24 * 365));
        // Each run lists them, and names are sorted in memory.
        every.into_iter().chain([("backup.keep", self.keep, 1, 10_000)])
    }
}

impl Limits {
    /// Least and most of each: the least keeps the server usable, the most keeps sums of them within 63 bits.
    fn ranges(&self) -> [(&'static str, u64, u64, u64); 13] {
        const MIB: u64 = 1 << 20;
        const TIB: u64 = 1 << 40;
        [
            ("limits.nar_size_bytes", self.nar_size_bytes.0, MIB, 16 * TIB),
            // Nix's own longest narinfos have thousands of references; beyond 16 MiB one parse would be a burden.
            ("limits.narinfo_size_bytes", self.narinfo_size_bytes.0, 4096, 16 * MIB),
            ("limits.auxiliary_size_bytes", self.auxiliary_size_bytes.0, 4096, 1024 * MIB),
            // One xz decoder may take 96 MiB; with less than this, no xz upload could ever be admitted.
            ("limits.upload_memory_bytes", self.upload_memory_bytes.0, 128 * MIB, TIB),
            ("limits.uploads_per_token", self.uploads_per_token, 1, 1000),
            ("limits.admission_wait_seconds", self.admission_wait_seconds, 1, 3600),
            ("limits.upload_min_bytes_per_second", self.upload_min_bytes_per_second, 1, 1024 * MIB),
            ("limits.unpublished_nar_hours", self.unpublished_nar_hours, 1, 24 * 365),
            ("limits.upload_session_hours", self.upload_session_hours, 1, 24 * 30),
            ("limits.withdrawn_days", self.withdrawn_days, 1, 3650),
            // narvault's own client waits 120 s for an answer.
            ("limits.takedown_answer_seconds", self.takedown_answer_seconds, 1, 100),
            ("limits.shutdown_seconds", self.shutdown_seconds, 1, 3600),
            ("limits.rate_per_minute", self.rate_per_minute, 1, 100_000),
        ]
    }
}

#[cfg(test)]
mod tests;
