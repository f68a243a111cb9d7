//! Caches and keys: names and places are given once, keys have one meaning each.

use super::super::testing::{TestService, anonymous, new_cache};
use super::*;
use crate::db::log;
use crate::db::testing::{self as rows, PUBLIC_KEY, TestDb, on_each_database};
use crate::service::KeySource;
use crate::vault::NixSecretKey;

/// From `nix key generate-secret --key-name cache.example-1`.
const NIX_KEY: &str = "cache.example-1:uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK+zqxgwYQw==";

fn new(name: &str, prefix: Option<&str>) -> NewCache {
    NewCache { public: false, prefix: prefix.map(str::to_owned), ..new_cache(name) }
}

fn upstream(url: &str, key: &str) -> Upstream {
    Upstream { url: url.to_owned(), public_keys: vec![format!("{key}:{PUBLIC_KEY}").parse().unwrap()] }
}

on_each_database! {
    async fn places_in_storage_do_not_overlap(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;

        for (name, prefix, allowed) in [
            ("team", Some("team/one"), true),
            ("dev", None, true),
            ("a", Some("team"), false),
            ("b", Some("team/one/more"), false),
            ("c", Some("main"), false),
            ("d", Some("MAIN"), false),
            ("e", Some(""), false),
            ("f", Some("_log"), false),
            ("g", Some("../x"), false),
            ("h", Some("h/"), false),
            ("team-two", Some("team/two"), true),
        ] {
            let made = server.service.create_cache(&admin, &new(name, prefix)).await;
            assert_eq!(made.is_ok(), allowed, "{name} {prefix:?}: {made:?}");
        }
    }

    async fn a_deleted_cache_takes_its_name_along(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        server.service.create_cache(&admin, &new("dev", None)).await.unwrap();
        let name = "dev".parse().unwrap();

        server.service.delete_cache(&admin, &name, false).await.unwrap();

        assert!(matches!(server.service.show_cache(&admin, &name).await, Err(Error::NotFound(_))));
        assert!(matches!(server.service.delete_cache(&admin, &name, true).await, Err(Error::NotFound(_))));
        let again = server.service.create_cache(&admin, &new("dev", Some("elsewhere"))).await;
        assert!(matches!(again, Err(Error::Conflict(Conflict::NameTaken(_)))), "{again:?}");
    }

    async fn a_cache_with_paths_is_deleted_only_by_a_purge_which_logs_each(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let cache = server.service.create_cache(&admin, &new("dev", None)).await.unwrap().row;
        let paths = u64::try_from(PURGE_BATCH).unwrap() + 1;
        let mut tx = test.db.begin(Gate::Shared).await.unwrap();
        for number in 0..paths {
            rows::published_path(&mut tx, cache.id, number, 10).await;
        }
        tx.commit().await.unwrap();
        let shown = server.service.show_cache(&admin, &cache.name).await.unwrap();
        assert_eq!((shown.paths, shown.bytes), (paths, 10 * paths));

        let refused = server.service.delete_cache(&admin, &cache.name, false).await;
        let holds = matches!(refused, Err(Error::Conflict(Conflict::CacheNotEmpty { paths: found })) if found == paths);
        assert!(holds, "{refused:?}");
        server.service.delete_cache(&admin, &cache.name, true).await.unwrap();

        let mut connection = test.db.read().await.unwrap();
        assert_eq!(caches::standing_paths(&mut connection, cache.id, 10).await.unwrap(), []);
        let leaves = log::leaves(&mut connection, 0, 1000).await.unwrap();
        let named = |event: &str| {
            let line = format!("\nevent {event}\n");
            leaves.iter().filter(|(_, leaf)| leaf.contains(&line)).count()
        };
        assert_eq!((named("delete"), named("cache-delete")), (usize::try_from(paths).unwrap(), 1));
    }

    async fn a_private_cache_looks_like_none(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        server.service.create_cache(&admin, &new("secret", None)).await.unwrap();
        let ci = server.contributor("ci", "push:main").await;
        let reader = server.contributor("reader", "pull:secret").await;
        let (ci, reader) = (server.call(&ci).await, server.call(&reader).await);

        for name in ["secret", "absent"] {
            let name = name.parse().unwrap();
            assert!(matches!(server.service.show_cache(&ci, &name).await, Err(Error::Forbidden)));
            assert!(matches!(server.service.list_keys(&ci, &name).await, Err(Error::Forbidden)));
            let refused = server.service.show_cache(&anonymous(), &name).await;
            assert!(matches!(refused, Err(Error::Unauthenticated(_))));
        }
        assert!(server.service.show_cache(&reader, &"secret".parse().unwrap()).await.is_ok());
        let refused = server.service.create_cache(&ci, &new("x", None)).await;
        assert!(matches!(refused, Err(Error::Forbidden)));
    }

    async fn a_change_is_seen_by_the_next_reader(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let name: CacheName = "main".parse().unwrap();
        let change = CacheChange {
            public: Some(false),
            priority: Some(30),
            upstreams: Some(vec![upstream("https://mirror.example/x", "mirror-1")]),
            upstream_paths: Some(UpstreamPaths::Skip),
            undeclared_references: Some(UndeclaredReferences::Refuse),
        };

        let after = server.service.edit_cache(&admin, &name, &change).await.unwrap().row;

        assert_eq!((after.public, after.priority), (false, 30));
        assert_eq!(Some(after.upstreams.clone()), change.upstreams);
        assert_eq!(*server.service.cache(&name).await.unwrap().unwrap(), after);
    }

    async fn a_keys_name_means_one_source(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let main: CacheName = "main".parse().unwrap();
        let ours = server.service.list_keys(&admin, &main).await.unwrap()[0].public_key.name().to_string();
        server.contributor("alice", "push:main").await;
        let alice = "alice".parse().unwrap();
        let key = |name: &str| format!("{name}:{PUBLIC_KEY}").parse::<PublicKey>().unwrap();
        server.service.add_contributor_key(&admin, &alice, &key("alice-1")).await.unwrap();

        for name in [ours.as_str(), "cache.nixos.org-1", "alice-1"] {
            let added = server.service.add_contributor_key(&admin, &alice, &key(name)).await;
            assert!(added.is_err(), "{name}");
        }
        for name in [ours.as_str(), "alice-1"] {
            let upstreams = Some(vec![upstream("https://x.example", name)]);
            let change = CacheChange { upstreams, ..CacheChange::default() };
            let edited = server.service.edit_cache(&admin, &main, &change).await;
            assert!(matches!(edited, Err(Error::Rejected(_))), "{name}");
        }
        for name in [ours.as_str(), "cache.nixos.org-1", "alice-1"] {
            let source = KeySource::New { name: Some(name.parse().unwrap()) };
            let made = server.service.create_key(&admin, &main, &source).await;
            assert!(matches!(made, Err(Error::Conflict(Conflict::NameTaken(_)))), "{name}");
        }
        let shown = server.service.show_contributor(&admin, &alice).await.unwrap();
        assert_eq!(shown.public_keys, [key("alice-1")]);
        server.service.remove_contributor_key(&admin, &alice, key("alice-1").name()).await.unwrap();
        let again = server.service.remove_contributor_key(&admin, &alice, key("alice-1").name()).await;
        assert!(matches!(again, Err(Error::NotFound(_))));
    }

    async fn upstreams_that_cannot_be_meant_are_refused(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let none = Upstream { public_keys: Vec::new(), ..upstream("https://a.example", "a-1") };

        for upstreams in [
            vec![upstream("ftp://a.example", "a-1")],
            vec![upstream("a.example", "a-1")],
            vec![upstream("https://user:secret@a.example", "a-1")],
            vec![upstream(&format!("https://a.example/{}", "x".repeat(1024)), "a-1")],
            vec![none],
            vec![upstream("https://a.example", "a-1"); 17],
        ] {
            let new = NewCache { upstreams: Some(upstreams), ..new("dev", None) };
            let made = server.service.create_cache(&admin, &new).await;
            assert!(matches!(made, Err(Error::Rejected(_))), "{made:?}");
        }
    }

    async fn keys_are_numbered_and_imported_ones_stay_marked(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let main: CacheName = "main".parse().unwrap();
        let cluster = &server.service.cluster_id()[..6];

        let second = server.service.create_key(&admin, &main, &KeySource::New { name: None }).await.unwrap();
        let imported = KeySource::Imported(NixSecretKey::parse(NIX_KEY).unwrap());
        let imported = server.service.create_key(&admin, &main, &imported).await.unwrap();

        assert_eq!(second.public_key.name().as_str(), format!("main-{cluster}-2"));
        assert!(imported.imported && !second.imported);
        assert_eq!(
            imported.public_key.to_string(),
            "cache.example-1:qbpTc1CV7zZtvHQogvObKwO8kHojKd+CSCvs6sYMGEM="
        );
        let twice = KeySource::Imported(NixSecretKey::parse(NIX_KEY).unwrap());
        let twice = server.service.create_key(&admin, &main, &twice).await;
        assert!(matches!(twice, Err(Error::Conflict(Conflict::NameTaken(_)))), "{twice:?}");
        assert_eq!(server.service.list_keys(&anonymous(), &main).await.unwrap().len(), 3);
        let absent = "absent".parse().unwrap();
        let made = server.service.create_key(&admin, &absent, &KeySource::New { name: None }).await;
        assert!(matches!(made, Err(Error::NotFound(_))));
    }
}
