//! Who wins, what is refused, and what is told about it.

use std::collections::BTreeSet;

use secrecy::ExposeSecret as _;

use super::*;

const FILE: &str = "/etc/narvault/narvault.toml";

/// Loads with a file at the usual place, if one is given.
fn load_with(flags: &Flags, environment: &[(&str, &str)], file: Option<&str>) -> Result<Config, Problems> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(flags, environment, |path| match file {
        Some(text) if path == Path::new(FILE) => Ok(text.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

fn load(environment: &[(&str, &str)], file: &str) -> Result<Config, Problems> {
    load_with(&Flags::default(), environment, Some(file))
}

fn refusal(environment: &[(&str, &str)], file: &str) -> String {
    match load(environment, file) {
        Err(problems) => problems.to_string(),
        Ok(_) => panic!("accepted: {environment:?} {file}"),
    }
}

fn effective(config: &Config, key: &str) -> (String, String) {
    let line = config.effective().into_iter().find(|line| line.key == key).unwrap();
    (line.value, line.source.to_string())
}

#[test]
fn nothing_at_all_is_a_good_configuration() {
    let config = load_with(&Flags::default(), &[], None).unwrap();

    let shown: Vec<String> =
        config.effective().iter().map(|line| format!("{} = {}", line.key, line.value)).collect();
    assert_eq!(
        shown.join("\n"),
        "\
listen = 127.0.0.1:8750
public_url = http://127.0.0.1:8750
insecure_http = false
data = ./narvault-data
trusted_proxies = 
database.url = sqlite://./narvault-data/narvault.db
database.password_file = 
database.connections_max = 10
storage.url = file://./narvault-data/storage
storage.connect_timeout_seconds = 3
storage.answer_timeout_seconds = 30
storage.timeout_seconds = 150
storage.attempts_max = 5
vault.key_file = 
vault.passphrase_file = 
vault.kms.key_id = 
vault.kms.region = 
vault.kms.endpoint = 
nars.deliver = proxy
nars.redirect_private = false
uploads.direct = false
keys.resign_paths_per_second = 500
keys.rotation_publish_days = 7
keys.rotation_wait_days = 30
webhooks.allow_private = false
webhooks.allow_http = false
log.format = text
signature_log.witnesses = 
backup.every_hours = 
backup.keep = 7
limits.nar_size_bytes = 64 GiB
limits.narinfo_size_bytes = 1 MiB
limits.auxiliary_size_bytes = 16 MiB
limits.upload_memory_bytes = 1 GiB
limits.uploads_per_token = 8
limits.admission_wait_seconds = 120
limits.upload_min_bytes_per_second = 1024
limits.unpublished_nar_hours = 168
limits.upload_session_hours = 24
limits.withdrawn_days = 90
limits.takedown_answer_seconds = 60
limits.shutdown_seconds = 30
limits.rate_per_minute = 10"
    );
    assert!(config.effective().iter().all(|line| line.source == Source::Default));
    assert_eq!(config.key_file_default(), Path::new("./narvault-data/vault.key"));
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = "# comment\nlisten = '127.0.0.1:2'\ndata = '/file'\n[limits]\nwithdrawn_days = 7\n";
    let environment = [("NARVAULT_LISTEN", "127.0.0.1:3"), ("NARVAULT_DATA", "/variable")];
    let flags = Flags { listen: Some("127.0.0.1:4".into()), ..Flags::default() };

    let config = load_with(&flags, &environment, Some(file)).unwrap();

    assert_eq!(effective(&config, "listen"), ("127.0.0.1:4".into(), "--listen".into()));
    assert_eq!(effective(&config, "data"), ("/variable".into(), "NARVAULT_DATA".into()));
    assert_eq!(effective(&config, "limits.withdrawn_days"), ("7".into(), format!("{FILE}:5")));
    assert_eq!(effective(&config, "nars.deliver"), ("proxy".into(), "default".into()));
    // What follows from them follows from the winner.
    assert_eq!(effective(&config, "public_url").0, "http://127.0.0.1:4");
    assert_eq!(effective(&config, "storage.url").0, "file:///variable/storage");
}

const WITNESSES: &str = "https://w.example \
    witness.example/one+0347265d+BOo9mw6IeyIgxro8TPPOyBJoNYKZBsaHulvAVtJ3KRnX,\
    https://x.example witness.example/two+cce0cbf3+BJACaN4qL+f92SqhGnPzdQJPZiM0uIDv7ZeNeUBxyYxS";

#[test]
fn every_key_is_read_from_the_file_and_from_its_variable() {
    let values = [
        ("listen", "127.0.0.1:1"),
        ("public_url", "https://cache.example.org"),
        ("insecure_http", "true"),
        ("data", "/srv"),
        ("trusted_proxies", "10.0.0.0/8,::1/128"),
        ("database.url", "postgres://narvault@db/narvault"),
        ("database.password_file", "/run/password"),
        ("database.connections_max", "3"),
        ("storage.url", "s3://bucket/nix?region=garage"),
        ("storage.connect_timeout_seconds", "8"),
        ("storage.answer_timeout_seconds", "9"),
        ("storage.timeout_seconds", "10"),
        ("storage.attempts_max", "11"),
        ("vault.key_file", "/run/key"),
        ("vault.passphrase_file", "/run/passphrase"),
        ("vault.kms.key_id", "alias/narvault"),
        ("vault.kms.region", "eu-central-1"),
        ("vault.kms.endpoint", "https://kms.example.org"),
        ("nars.deliver", "redirect"),
        ("nars.redirect_private", "true"),
        ("uploads.direct", "true"),
        ("keys.resign_paths_per_second", "13"),
        ("keys.rotation_publish_days", "14"),
        ("keys.rotation_wait_days", "15"),
        ("webhooks.allow_private", "true"),
        ("webhooks.allow_http", "true"),
        ("log.format", "json"),
        ("signature_log.witnesses", WITNESSES),
        ("backup.every_hours", "13"),
        ("backup.keep", "14"),
        ("limits.nar_size_bytes", "2 GiB"),
        ("limits.narinfo_size_bytes", "2 MiB"),
        ("limits.auxiliary_size_bytes", "3 MiB"),
        ("limits.upload_memory_bytes", "256 MiB"),
        ("limits.uploads_per_token", "1"),
        ("limits.admission_wait_seconds", "2"),
        ("limits.upload_min_bytes_per_second", "3"),
        ("limits.unpublished_nar_hours", "4"),
        ("limits.upload_session_hours", "12"),
        ("limits.withdrawn_days", "5"),
        ("limits.takedown_answer_seconds", "16"),
        ("limits.shutdown_seconds", "6"),
        ("limits.rate_per_minute", "7"),
    ];
    let known: Vec<&str> = reference().iter().map(|known| known.key).collect();
    assert_eq!(known, values.map(|(key, _)| key));

    let file: String = values
        .iter()
        .map(|(key, value)| match (*key, *value) {
            ("trusted_proxies", _) => format!("{key} = ['10.0.0.0/8', '::1']\n"),
            ("signature_log.witnesses", _) => format!("{key} = ['{}']\n", value.replace(',', "', '")),
            (_, "true") => format!("{key} = true\n"),
            (_, digits) if digits.parse::<u64>().is_ok() => format!("{key} = {digits}\n"),
            (_, text) => format!("{key} = '{text}'\n"),
        })
        .collect();
    let variables: Vec<(String, &str)> =
        values.iter().map(|(key, value)| (source::variable_name(key), *value)).collect();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for config in [load(&[], &file).unwrap(), load(&variables, "").unwrap()] {
        for (key, value) in values {
            let (found, place) = effective(&config, key);
            assert_eq!(found, value, "{key}");
            assert_ne!(place, "default", "{key}");
        }
    }
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_the_nearest_one() {
    for (file, expected) in [
        ("lsten = 'x'", "1: unknown key `lsten`; the nearest one is `listen`"),
        ("\n\npublic-url = 'x'", "3: unknown key `public-url`; the nearest one is `public_url`"),
        ("[database]\nurk = 'x'", "2: unknown key `database.urk`; the nearest one is `database.url`"),
        ("[databse]\nurl = 'x'", "1: unknown key `databse`; the nearest one is `database.url`"),
        (
            "connections_max = 1",
            "1: unknown key `connections_max`; the nearest one is `database.connections_max`",
        ),
        (
            "limits.nar_size = 1",
            "1: unknown key `limits.nar_size`; the nearest one is `limits.nar_size_bytes`",
        ),
        ("'database.url' = 'x'", "1: unknown key `database.url`; the nearest one is `database.url`"),
        ("database = 'x'", "1: `database` is a section; write `[database]` and its keys below"),
        ("[[database]]\nurl = 'x'", "1: `database` is a section; write `[database]` and its keys below"),
        ("\"listem\\u001b\" = 1", "1: unknown key `listem\\u{1b}`; the nearest one is `listen`"),
    ] {
        assert_eq!(refusal(&[], file), format!("{FILE}:{expected}"), "{file}");
    }
}

#[test]
fn unknown_variables_are_refused_and_foreign_ones_left_alone() {
    assert_eq!(
        refusal(&[("NARVAULT_DATABSE_URL", "hunter2")], ""),
        "unknown variable NARVAULT_DATABSE_URL; the nearest one is NARVAULT_DATABASE_URL"
    );
    assert_eq!(
        refusal(&[("NARVAULT_LIMITS", "x")], "").split(';').next(),
        Some("unknown variable NARVAULT_LIMITS")
    );
    let foreign = [
        ("NARVAULT_TOKEN", "nvt_x"),
        ("NARVAULT_URL", "https://x"),
        ("NARVAULT_TEST_POSTGRES", "x"),
        ("PATH", "/bin"),
        ("narvault_listen", "x"),
    ];
    assert!(load(&foreign, "").is_ok());
}

#[test]
fn values_of_the_wrong_kind_are_refused_without_being_repeated() {
    for (file, expected) in [
        ("listen = 'hunter2'", "`listen` is not an IP address and port, such as 127.0.0.1:8750 or [::]:8750"),
        ("listen = 8750", "`listen` is not written as address"),
        ("listen = ''", "`listen` is empty; leave it out instead"),
        ("data = ''", "`data` is empty; leave it out instead"),
        ("vault.key_file = ''", "`vault.key_file` is empty; leave it out instead"),
        ("vault.kms = 'alias/a'", "`vault.kms` is a section; write `[vault.kms]` and its keys below"),
        (
            "vault.kms.key_id = 'hunter2 x'",
            "`vault.kms.key_id` is neither the ARN nor the id of a KMS key, nor an alias that begins with `alias/`",
        ),
        ("vault.kms.region = 'EU'", "`vault.kms.region` is not a region such as eu-central-1"),
        (
            "vault.kms.endpoint = 'http://10.0.0.1:4566'",
            "`vault.kms.endpoint` is plain http beyond this machine, where anyone on the way can read the key to the \
             vault; give an https URL, or set `insecure_http = true` to accept that",
        ),
        ("insecure_http = 'true'", "`insecure_http` is not written as true or false"),
        ("insecure_http = 1", "`insecure_http` is not written as true or false"),
        ("trusted_proxies = '10.0.0.0/8'", "`trusted_proxies` is not written as list of networks"),
        ("trusted_proxies = [1]", "`trusted_proxies` is not written as list of networks"),
        ("limits.withdrawn_days = '7'", "`limits.withdrawn_days` is not written as number"),
        ("limits.withdrawn_days = 7.5", "`limits.withdrawn_days` is not written as number"),
        ("limits.withdrawn_days = -7", "`limits.withdrawn_days` is not a whole number"),
        ("limits.withdrawn_days = 2026-01-01", "`limits.withdrawn_days` is not written as number"),
        ("limits.nar_size_bytes = true", "`limits.nar_size_bytes` is not written as size"),
        ("nars.deliver = 'hunter2'", "`nars.deliver` is not one of: `proxy` or `redirect`"),
        (
            "signature_log.witnesses = ['https://w.example']",
            "`signature_log.witnesses` holds an entry that is no witness",
        ),
        ("listen.x = 1", "`listen` is not written as address"),
        (
            "database.url = 'hunter2'",
            "`database.url` is neither `sqlite://<path>` nor `postgres://user@host/name`",
        ),
    ] {
        assert_eq!(refusal(&[], file), format!("{FILE}:1: {expected}"), "{file}");
    }
    let expected = "NARVAULT_LOG_FORMAT: `log.format` is not one of: `text` or `json`";
    assert_eq!(refusal(&[("NARVAULT_LOG_FORMAT", "hunter2")], ""), expected);
    assert!(refusal(&[("NARVAULT_LISTEN", "")], "").starts_with("NARVAULT_LISTEN: `listen` is empty"));
}

#[test]
fn a_kms_is_reached_in_clear_on_this_machine_only() {
    for endpoint in
        ["http://127.0.0.1:4566", "http://localhost:4566", "http://[::1]:1", "https://kms.example.org"]
    {
        assert!(load(&[("NARVAULT_VAULT_KMS_ENDPOINT", endpoint)], "").is_ok(), "{endpoint}");
    }
    let exposed = [("NARVAULT_VAULT_KMS_ENDPOINT", "http://kms.example.org")];
    assert!(refusal(&exposed, "").contains("plain http beyond this machine"));
    assert!(load(&exposed, "insecure_http = true").is_ok());
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert_eq!(
        refusal(&[], "\nlimits.uploads_per_token = 0"),
        format!("{FILE}:2: `limits.uploads_per_token` is not within 1 and 1000")
    );
    for file in [
        "limits.nar_size_bytes = 0",
        "limits.nar_size_bytes = '17 TiB'",
        "limits.narinfo_size_bytes = '1 GiB'",
        "limits.auxiliary_size_bytes = 1",
        "limits.upload_memory_bytes = '64 MiB'",
        "limits.admission_wait_seconds = 0",
        "limits.upload_min_bytes_per_second = 0",
        "limits.unpublished_nar_hours = 0",
        "limits.withdrawn_days = 3651",
        "limits.takedown_answer_seconds = 101",
        "keys.resign_paths_per_second = 0",
        "keys.rotation_publish_days = 366",
        "keys.rotation_wait_days = 366",
        "limits.shutdown_seconds = 0",
        "limits.rate_per_minute = 0",
        "storage.connect_timeout_seconds = 0",
        "storage.answer_timeout_seconds = 301",
        "storage.timeout_seconds = 4",
        "storage.attempts_max = 0",
        "database.connections_max = 0",
        "database.connections_max = 9223372036854775807",
    ] {
        assert!(refusal(&[], file).contains("is not within"), "{file}");
    }
}

#[test]
fn a_text_that_is_not_toml_is_refused_with_its_line_and_nothing_of_it() {
    let refusal = refusal(&[], "listen = '127.0.0.1:1'\ndatabase.url = postgres://u:hunter2@db/x\n");

    assert!(refusal.starts_with(&format!("{FILE}:2: not TOML: ")), "{refusal}");
    assert!(!refusal.contains("hunter2"), "{refusal}");
    assert!(self::refusal(&[], "listen = '127.0.0.1:1'\nlisten = '127.0.0.1:2'").contains("not TOML"));
}

#[test]
fn all_problems_are_told_at_once() {
    let file = "lsten = 'x'\ninsecure_http = 1\nlimits.withdrawn_days = 'x'";

    let refusal = refusal(&[("NARVAULT_X", "y"), ("NARVAULT_LOG_FORMAT", "z")], file);

    assert_eq!(refusal.lines().count(), 5, "{refusal}");
}

#[test]
fn a_file_that_is_named_must_be_there_and_the_usual_one_need_not() {
    let flags = Flags { config: Some("/missing.toml".into()), ..Flags::default() };

    assert!(load_with(&Flags::default(), &[], None).is_ok());
    let refusal = load_with(&flags, &[], None).unwrap_err().to_string();
    assert!(refusal.starts_with("cannot read /missing.toml: "), "{refusal}");
    assert!(load_with(&Flags::default(), &[("NARVAULT_CONFIG", "/missing.toml")], None).is_err());
    // The flag wins over the variable, and over the usual place.
    let flags = Flags { config: Some(FILE.into()), ..Flags::default() };
    let config = load_with(&flags, &[("NARVAULT_CONFIG", "/missing.toml")], Some("data = '/x'")).unwrap();
    assert_eq!(config.server.data, Path::new("/x"));
}

#[test]
fn a_file_that_cannot_be_read_or_is_too_large_is_refused() {
    let denied = Config::load(&Flags::default(), [], |_| Err(io::ErrorKind::PermissionDenied.into()));
    let large = load(&[], &"#".repeat(source::FILE_SIZE_BYTES_MAX + 1));

    assert!(denied.unwrap_err().to_string().starts_with(&format!("cannot read {FILE}: ")));
    assert_eq!(large.unwrap_err().to_string(), format!("{FILE} is larger than 1048576 bytes"));
}

#[test]
fn plain_http_beyond_this_machine_needs_to_be_accepted() {
    let exposed = "public_url = 'http://cache.example.org'";

    assert!(refusal(&[], exposed).starts_with(&format!("{FILE}:1: `public_url` is plain http")));
    assert!(refusal(&[], "listen = '0.0.0.0:8750'").starts_with("`listen` reaches beyond this machine"));
    assert!(load(&[], &format!("insecure_http = true\n{exposed}")).is_ok());
    assert!(load(&[], "listen = '0.0.0.0:8750'\npublic_url = 'https://cache.example.org'").is_ok());
    assert!(load(&[], "listen = '0.0.0.0:8750'\npublic_url = 'http://localhost:8750'").is_ok());
}

#[test]
fn a_public_url_that_nobody_gave_follows_the_port_that_was_bound() {
    let mut default = load(&[], "listen = '127.0.0.1:0'").unwrap();
    let mut given = load(&[], "listen = '127.0.0.1:0'\npublic_url = 'https://cache.example.org'").unwrap();

    default.bound_to("127.0.0.1:4711".parse().unwrap());
    given.bound_to("127.0.0.1:4711".parse().unwrap());

    assert_eq!(default.server.public_url.as_str(), "http://127.0.0.1:4711");
    assert_eq!(given.server.public_url.as_str(), "https://cache.example.org");
}

#[test]
fn a_data_folder_of_any_name_makes_good_default_urls() {
    for (data, storage, sqlite) in [
        ("/srv/n", "file:///srv/n/storage", "sqlite:///srv/n/narvault.db"),
        ("data", "file://./data/storage", "sqlite://./data/narvault.db"),
        ("../data", "file://../data/storage", "sqlite://../data/narvault.db"),
        ("/a b/50%?#", "file:///a%20b/50%25%3F%23/storage", "sqlite:///a%20b/50%25%3F%23/narvault.db"),
    ] {
        let flags = Flags { data: Some(data.into()), ..Flags::default() };

        let config = load_with(&flags, &[], None).unwrap();

        assert_eq!(config.server.data, Path::new(data));
        assert_eq!(effective(&config, "storage.url").0, storage);
        assert_eq!(effective(&config, "database.url").0, sqlite);
        let folder = if data == "data" { "./data" } else { data };
        assert_eq!(config.storage.url, StorageUrl::Disk { path: Path::new(folder).join("storage") });
    }
}

#[test]
fn a_database_password_is_redacted_wherever_the_configuration_is_shown() {
    let config = load(&[("NARVAULT_DATABASE_URL", "postgres://u:hunter2@db/x")], "").unwrap();

    assert_eq!(effective(&config, "database.url").0, "postgres://u:[redacted]@db/x");
    assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
    let connection = config.database.connection_url(|_| panic!("no file is named")).unwrap();
    assert_eq!(connection.expose_secret(), "postgres://u:hunter2@db/x");
}

#[test]
fn a_database_password_comes_from_its_file_without_the_line_end() {
    let config = load(&[], "[database]\nurl = 'postgres://u@db/x'\npassword_file = '/run/p'").unwrap();

    for (text, password) in [("a b", "a%20b"), ("ab\n", "ab"), ("ab\r\n", "ab"), ("ab\n\n", "ab%0A")] {
        let connection = config.database.connection_url(|path| {
            assert_eq!(path, Path::new("/run/p"));
            Ok(text.to_owned())
        });
        assert_eq!(connection.unwrap().expose_secret(), format!("postgres://u:{password}@db/x"));
    }
    for text in ["", "\n", "\r\n"] {
        let refusal = config.database.connection_url(|_| Ok(text.to_owned())).unwrap_err();
        assert_eq!(refusal.to_string(), "/run/p holds no password");
    }
    let refusal = config.database.connection_url(|_| Err(io::ErrorKind::NotFound.into())).unwrap_err();
    assert_eq!(refusal.to_string(), "cannot read /run/p");
}

#[test]
fn a_password_file_that_would_be_ignored_is_refused() {
    let file = "[database]\npassword_file = '/run/p'\n";

    assert!(refusal(&[], file).contains("no use for a password"));
    assert!(refusal(&[], &format!("{file}url = 'postgres://u:x@db/x'")).contains("keep one"));
}

#[test]
fn keys_and_variables_are_one_to_one() {
    let keys = reference();
    let variables: BTreeSet<&str> = keys.iter().map(|known| known.environment.as_str()).collect();

    assert_eq!(variables.len(), keys.len());
    for foreign in ["NARVAULT_TOKEN", "NARVAULT_URL", "NARVAULT_CONFIG"] {
        assert!(!variables.contains(foreign), "{foreign}");
    }
    assert!(!variables.iter().any(|name| name.starts_with("NARVAULT_TEST_")));
}

#[test]
fn every_key_is_documented_in_one_row() {
    let table = reference_markdown();

    assert_eq!(table.lines().count(), reference().len() + 2);
    assert!(reference().iter().all(|known| known.doc.ends_with('.') && !known.doc.contains('|')));
    let row = "| `limits.withdrawn_days` | `NARVAULT_LIMITS_WITHDRAWN_DAYS` | number | `90` | How long the NARs of \
               withdrawn paths are kept, unserved. |";
    assert!(table.lines().any(|line| line == row), "{table}");
}
