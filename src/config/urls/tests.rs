//! Which URLs are taken, what they come to, and what is refused or hidden.

use proptest::prelude::*;

use super::*;

fn s3(
    bucket: &str,
    prefix: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    path_style: bool,
) -> StorageUrl {
    StorageUrl::S3(S3Location {
        bucket: bucket.into(),
        prefix: prefix.into(),
        endpoint: endpoint.map(Into::into),
        region: region.map(Into::into),
        path_style,
    })
}

#[test]
fn storage_urls_come_to_folders_and_buckets() {
    let disk = |path: &str| StorageUrl::Disk { path: path.into() };
    let table = [
        ("file:///srv/cache", disk("/srv/cache")),
        ("file://./data/storage", disk("./data/storage")),
        ("file://../x", disk("../x")),
        ("file:///srv/a%20b%3F", disk("/srv/a b?")),
        ("s3://bucket", s3("bucket", "", None, None, false)),
        ("s3://bucket/", s3("bucket", "", None, None, false)),
        ("s3://my.bucket-1/a/b_c/", s3("my.bucket-1", "a/b_c", None, None, false)),
        ("s3://bucket?region=eu-central-1", s3("bucket", "", None, Some("eu-central-1"), false)),
        (
            "s3://bucket/nix?endpoint=http://127.0.0.1:3900&region=garage&path_style=true",
            s3("bucket", "nix", Some("http://127.0.0.1:3900"), Some("garage"), true),
        ),
        (
            "s3://bucket?endpoint=https%3A%2F%2FS3.Example.org%2F&path_style=false",
            s3("bucket", "", Some("https://s3.example.org"), None, false),
        ),
        ("s3://bucket?endpoint=http://[::1]:9000", s3("bucket", "", Some("http://[::1]:9000"), None, false)),
    ];
    for (text, expected) in table {
        let parsed: StorageUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed, expected, "{text}");
        assert_eq!(parsed.to_string().parse(), Ok(expected), "{text} printed as {parsed}");
    }
}

#[test]
fn other_storage_urls_are_refused() {
    use StorageUrlError::*;
    let table = [
        ("", Form),
        ("/srv/cache", Form),
        ("http://bucket", Form),
        ("S3://bucket", Form),
        ("s3:bucket", Form),
        ("file:/srv", Form),
        ("file://srv/cache", FileHost),
        ("file://localhost/srv", FileHost),
        ("file://.hidden", FileHost),
        ("file://", FilePath),
        ("file:///", FilePath),
        ("file:///%00", FilePath),
        ("file:///%ff", FilePath),
        ("file:///srv?x=1", FileQuery),
        ("file:///srv#x", FileQuery),
        ("s3://", Bucket),
        ("s3:///prefix", Bucket),
        ("s3://ab", Bucket),
        ("s3://Bucket", Bucket),
        ("s3://bucket-", Bucket),
        ("s3://.bucket", Bucket),
        ("s3://buck..et", Bucket),
        ("s3://buck_et", Bucket),
        ("s3://bucket:9000", Bucket),
        ("s3://key:secret@bucket", Credentials),
        ("s3://bucket?endpoint=https://key:secret@host", Credentials),
        ("s3://bucket//a", Prefix),
        ("s3://bucket/a//b", Prefix),
        ("s3://bucket/../b", Prefix),
        ("s3://bucket/a/./b", Prefix),
        ("s3://bucket/a b", Prefix),
        ("s3://bucket/a%2fb", Prefix),
        ("s3://bucket#x", Fragment),
        ("s3://bucket?region=a#x", Fragment),
        ("s3://bucket?regoin=x", UnknownOption),
        ("s3://bucket?access_key=x", UnknownOption),
        ("s3://bucket?region", Region),
        ("s3://bucket?region=", Region),
        ("s3://bucket?region=EU", Region),
        ("s3://bucket?region=a&region=b", RepeatedOption("region")),
        ("s3://bucket?path_style=yes", PathStyle),
        ("s3://bucket?path_style=true&path_style=true", RepeatedOption("path_style")),
        ("s3://bucket?endpoint=garage:3900", Endpoint),
        ("s3://bucket?endpoint=ftp://host", Endpoint),
        ("s3://bucket?endpoint=http://host/path", Endpoint),
        ("s3://bucket?endpoint=http://host?x", Endpoint),
        ("s3://bucket?endpoint=http://", Endpoint),
    ];
    for (text, expected) in table {
        assert_eq!(text.parse::<StorageUrl>(), Err(expected), "{text}");
    }
    assert_eq!(format!("s3://bucket/{}", "a".repeat(513)).parse::<StorageUrl>(), Err(Prefix));
}

#[test]
fn database_urls_keep_their_password_to_themselves() {
    for text in [
        "postgres://narvault:hunter2@db.example.org:5432/narvault?sslmode=require",
        "postgresql://narvault:hunter2@db/narvault",
        "postgres://:hunter2@db/narvault",
        "postgres://redacted:hunter2@db/hunter",
    ] {
        let url: DatabaseUrl = text.parse().unwrap();

        assert!(url.has_password(), "{text}");
        assert_eq!(url.expose().expose_secret(), text);
        for shown in [url.to_string(), format!("{url:?}"), format!("{url:#?}")] {
            assert!(!shown.contains("hunter2") && shown.contains(":[redacted]@db"), "{shown}");
        }
    }
}

#[test]
fn database_urls_without_a_password_are_shown_whole_and_take_one() {
    let url: DatabaseUrl = "postgres://narvault@db/narvault".parse().unwrap();

    assert!(!url.has_password());
    assert_eq!(url.to_string(), "postgres://narvault@db/narvault");
    let with_password = url.with_password("p@ss/w:rd").unwrap();
    assert_eq!(with_password.expose_secret(), "postgres://narvault:p%40ss%2Fw%3Ard@db/narvault");
    let socket: DatabaseUrl = "postgres:///narvault?host=/run/postgresql".parse().unwrap();
    assert!(socket.with_password("x").is_none());
}

#[test]
fn a_sqlite_url_comes_to_a_path() {
    for (text, path, connect) in [
        ("sqlite:///srv/narvault.db", "/srv/narvault.db", "sqlite:///srv/narvault.db"),
        ("sqlite://./data/narvault.db", "./data/narvault.db", "sqlite:./data/narvault.db"),
        ("sqlite://../../narvault.db", "../../narvault.db", "sqlite:../../narvault.db"),
        ("sqlite://data.db", "data.db", "sqlite:data.db"),
        ("sqlite:///srv/a%20b%25.db", "/srv/a b%.db", "sqlite:///srv/a%20b%25.db"),
    ] {
        let url: DatabaseUrl = text.parse().unwrap();
        assert!(matches!(&url, DatabaseUrl::Sqlite(found) if found.as_os_str() == path), "{text}: {url}");
        assert_eq!(url.to_string(), text);
        assert_eq!(url.expose().expose_secret(), connect);
        assert_eq!(Url::parse(connect).unwrap().as_str(), connect);
    }
}

#[test]
fn other_database_urls_are_refused() {
    use DatabaseUrlError::*;
    for (text, expected) in [
        ("", Form),
        ("mysql://db/narvault", Form),
        ("postgres:db", Form),
        ("Postgres://db", Form),
        ("postgres://db:port/x", Form),
        ("sqlite:narvault.db", Form),
        ("sqlite::memory:", SqlitePath),
        ("sqlite://:memory:", SqlitePath),
        ("sqlite://", SqlitePath),
        ("sqlite:///srv/", SqlitePath),
        ("sqlite:///srv/a%00", SqlitePath),
        ("sqlite:///srv/a.db?mode=memory", SqliteQuery),
        ("postgres://db/x?password=hunter2", PasswordInQuery),
        ("postgres://db/x?sslmode=require&pass%77ord=hunter2", PasswordInQuery),
        ("postgres://u:pass#word@db/x", Form),
        ("postgres://db/x#y", Fragment),
    ] {
        assert_eq!(text.parse::<DatabaseUrl>().map(|url| url.to_string()), Err(expected), "{text}");
    }
}

#[test]
fn plain_http_is_exposed_unless_it_stays_on_this_machine() {
    for (text, exposed) in [
        ("https://cache.example.org", false),
        ("http://127.0.0.1:8750", false),
        ("http://127.8.9.1", false),
        ("http://[::1]:8750", false),
        ("http://localhost:8750", false),
        ("http://nar.localhost", false),
        ("http://cache.example.org", true),
        ("http://0.0.0.0:8750", true),
        ("http://[::]:8750", true),
        ("http://10.0.0.1", true),
        ("http://localhost.example.org", true),
        ("http://notlocalhost", true),
        ("http://127.0.0.1.example.org", true),
    ] {
        let url: PublicUrl = text.parse().unwrap();
        assert_eq!(url.is_exposed(), exposed, "{text}");
        assert_eq!(url.as_str(), text);
    }
    assert_eq!(
        "https://Cache.Example.org/".parse::<PublicUrl>().unwrap().as_str(),
        "https://cache.example.org"
    );
}

#[test]
fn other_public_urls_are_refused() {
    use PublicUrlError::*;
    for (text, expected) in [
        ("", Form),
        ("cache.example.org", Form),
        ("https:cache.example.org", Form),
        ("https:\\\\cache", Form),
        ("https://", Form),
        ("https://a b", Form),
        ("https://cache\n", Form),
        (" https://cache", Form),
        ("ftp://cache", Form),
        ("https://cache:99999", Form),
        ("https://user@cache", Credentials),
        ("https://user:hunter2@cache", Credentials),
        ("https://:hunter2@cache", Credentials),
        ("https://cache/nix", More),
        ("https://cache?x", More),
        ("https://cache#x", More),
    ] {
        assert_eq!(text.parse::<PublicUrl>(), Err(expected), "{text:?}");
    }
}

proptest! {
    #[test]
    fn storage_urls_are_printed_as_they_are_read(
        bucket in "[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", prefix in "([A-Za-z0-9_-]{1,8}/){0,3}[A-Za-z0-9_-]{0,8}",
        region in proptest::option::of("[a-z0-9-]{1,12}"), path_style: bool, folder in "/[^\0]{0,30}x",
    ) {
        let region = region.map(|region| format!("&region={region}")).unwrap_or_default();
        let text = format!("s3://{bucket}/{prefix}?path_style={path_style}{region}");
        let url: StorageUrl = text.parse().unwrap();
        prop_assert_eq!(url.to_string().parse(), Ok(url));

        let disk = StorageUrl::Disk { path: folder.into() };
        prop_assert_eq!(disk.to_string().parse(), Ok(disk));
    }

    #[test]
    fn no_password_is_ever_shown(password in "[a-zA-Z0-9@:/?#%é \\[\\]-]{8,30}", user in "[a-z]{1,7}") {
        let url: DatabaseUrl = format!("postgres://{user}@db/x").parse().unwrap();
        let with_password = url.with_password(&password).unwrap();
        let url: DatabaseUrl = with_password.expose_secret().parse().unwrap();

        prop_assert!(url.has_password());
        prop_assert_eq!(url.to_string(), format!("postgres://{user}:[redacted]@db/x"));
    }

    #[test]
    fn no_text_panics(text: String, near in "(s3|file|sqlite|postgres|https?)(://|:)[a-z.:/?#@%=&\\[\\]-]{0,30}") {
        for text in [text, near] {
            let storage = text.parse::<StorageUrl>().map(|url| url.to_string());
            let database = text.parse::<DatabaseUrl>().map(|url| (url.to_string(), url.with_password("x").is_some()));
            let public = text.parse::<PublicUrl>().map(|url| url.is_exposed());
            let _ = (storage, database, public);
        }
    }
}
