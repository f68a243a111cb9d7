//! Objects are visible whole or not at all, on every storage, whatever the network does.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use narvault::storage::{
    Checksums, DiskSettings, Entry, Folder, ObjectKey, Patience, Prefix, S3Settings, Settings, Storage,
    StorageError,
};
use uuid::Uuid;

use crate::support::chaos::{Call, Chaos, Fault};
use crate::support::no_temporary_file;
use crate::support::s3::S3Server;
use crate::support::storage::{TestStorage, on_each_storage};

const PART: usize = 8 << 20;
const NAR: &str = "main/nar/073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7.nar.xz";
const NARINFO: &str = "main/mmjhp110f3wf5kp5q70rc7p49yln4qzy.narinfo";

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

/// Bytes that repeat nowhere near a part's size, so that a part in the wrong place shows.
fn noise(len: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = BytesMut::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.freeze()
}

async fn upload(storage: &Storage, name: &str, bytes: &Bytes) -> Result<(), StorageError> {
    let mut upload = storage.upload(&key(name)).await?;
    // As bodies come: in pieces that fit no part.
    for piece in bytes.chunks(1_000_003) {
        upload.write(bytes.slice_ref(piece)).await?;
    }
    upload.seal().await?.complete().await
}

async fn whole(storage: &Storage, name: &str) -> Option<Bytes> {
    let object = storage.get(&key(name), None).await.unwrap()?;
    let size_bytes = object.size_bytes;
    let bytes = object.body.try_fold(BytesMut::new(), append).await.unwrap();
    assert_eq!(bytes.len() as u64, size_bytes);
    Some(bytes.freeze())
}

async fn append(mut whole: BytesMut, bytes: Bytes) -> Result<BytesMut, StorageError> {
    whole.extend_from_slice(&bytes);
    Ok(whole)
}

async fn listing(storage: &Storage, folder: Folder) -> BTreeMap<String, u64> {
    let entries: Vec<Entry> = storage.list(&folder).try_collect().await.unwrap();
    entries.into_iter().map(|entry| (entry.name, entry.size_bytes)).collect()
}

fn far_future() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 36)
}

/// The error with all its causes, as it goes to the log.
fn told(error: &StorageError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    format!("{} {error:?}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

on_each_storage! {
    async fn what_is_put_is_read_whole_and_by_range(storage: TestStorage) {
        let bytes = noise(700_000);

        storage.put(&key(NARINFO), bytes.clone()).await.unwrap();

        assert_eq!(whole(&storage, NARINFO).await.unwrap(), bytes);
        assert_eq!(storage.size(&key(NARINFO)).await.unwrap(), Some(700_000));
        for range in [0..1, 0..700_000, 5..6, 300_000..699_999, 699_999..700_000] {
            let object = storage.get(&key(NARINFO), Some(range.clone())).await.unwrap().unwrap();
            assert_eq!(object.size_bytes, 700_000);
            let part = object.body.try_fold(BytesMut::new(), append).await.unwrap();
            assert_eq!(part, bytes[range.start as usize..range.end as usize], "{range:?}");
        }
    }

    async fn ranges_that_the_object_does_not_have_are_refused(storage: TestStorage) {
        storage.put(&key(NARINFO), noise(10)).await.unwrap();

        for range in [0..11, 10..11, 9..11, 5..5, 10..10, u64::MAX - 1..u64::MAX] {
            let refused = storage.get(&key(NARINFO), Some(range.clone())).await;
            assert!(
                matches!(refused, Err(StorageError::Range { size_bytes: 10, .. })),
                "{range:?} {:?}",
                refused.err()
            );
        }
        assert!(storage.get(&key(NAR), Some(0..1)).await.unwrap().is_none());
        assert!(storage.get(&key(NAR), Some(0..0)).await.unwrap().is_none());
    }

    async fn an_absent_object_is_no_error(storage: TestStorage) {
        assert!(whole(&storage, NAR).await.is_none());
        assert_eq!(storage.size(&key(NAR)).await.unwrap(), None);
        assert_eq!(storage.read(&key(NAR), 10).await.unwrap(), None);
        storage.delete(&key(NAR), Duration::from_secs(10)).await.unwrap();
        assert!(listing(&storage, Folder::Cache("main".parse().unwrap())).await.is_empty());
    }

    async fn a_put_replaces_and_a_deletion_removes(storage: TestStorage) {
        storage.put(&key(NARINFO), noise(100)).await.unwrap();
        storage.put(&key(NARINFO), noise(7)).await.unwrap();
        assert_eq!(whole(&storage, NARINFO).await.unwrap(), noise(7));

        storage.delete(&key(NARINFO), Duration::from_secs(10)).await.unwrap();

        assert!(whole(&storage, NARINFO).await.is_none());
    }

    async fn a_deletion_without_time_left_deletes_nothing(storage: TestStorage) {
        storage.put(&key(NARINFO), noise(1)).await.unwrap();

        let refused = storage.delete(&key(NARINFO), Duration::ZERO).await.unwrap_err();

        assert!(refused.is_retryable(), "{refused:?}");
        assert_eq!(storage.size(&key(NARINFO)).await.unwrap(), Some(1));
    }

    async fn uploads_of_every_size_arrive_unchanged(storage: TestStorage) {
        for size in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 12_345] {
            let bytes = noise(size);

            upload(&storage, NAR, &bytes).await.unwrap();

            assert!(whole(&storage, NAR).await.unwrap() == bytes, "{size}");
        }
        assert_eq!(storage.buffered().now_bytes, 0);
        assert_eq!(storage.open_uploads(), 0);
    }

    async fn an_upload_is_invisible_until_it_is_complete(storage: TestStorage) {
        for (size, extension) in [(10, "xz"), (PART + 10, "zst")] {
            let name = NAR.replace("nar.xz", &format!("nar.{extension}"));
            let mut upload = storage.upload(&key(&name)).await.unwrap();
            upload.write(noise(size)).await.unwrap();
            assert_eq!(storage.size(&key(&name)).await.unwrap(), None);

            let sealed = upload.seal().await.unwrap();
            assert_eq!(sealed.size_bytes(), size as u64);
            assert_eq!(storage.size(&key(&name)).await.unwrap(), None);
            assert!(listing(&storage, Folder::Cache(Prefix::empty())).await.keys().all(|key| *key != name));

            sealed.complete().await.unwrap();
            assert_eq!(storage.size(&key(&name)).await.unwrap(), Some(size as u64));
        }
    }

    async fn an_aborted_upload_leaves_the_old_object_and_nothing_else(storage: TestStorage) {
        storage.put(&key(NAR), noise(3)).await.unwrap();
        for size in [10, PART + 10, 3 * PART] {
            let mut begun = storage.upload(&key(NAR)).await.unwrap();
            begun.write(noise(size)).await.unwrap();
            begun.abort().await;
            let mut sealed = storage.upload(&key(NAR)).await.unwrap();
            sealed.write(noise(size)).await.unwrap();
            sealed.seal().await.unwrap().abort().await;
        }

        assert_eq!(storage.open_uploads(), 0);
        assert_eq!(storage.abort_stale_uploads(far_future()).await.unwrap(), 0);
        assert_eq!(storage.buffered().now_bytes, 0);
        assert_eq!(whole(&storage, NAR).await.unwrap(), noise(3));
    }

    async fn a_listing_shows_each_object_of_its_folder(storage: TestStorage) {
        let trace = "main/build-trace-v2/mmjhp110f3wf5kp5q70rc7p49yln4qzy-a.drv/out.doi";
        for (name, size) in [(NAR, 5), (NARINFO, 6), (trace, 7), ("maine/nix-cache-info", 8), ("nix-cache-info", 9)] {
            storage.put(&key(name), noise(size)).await.unwrap();
        }
        storage.put(&key("_log/checkpoint"), noise(1)).await.unwrap();
        storage.put(&key("_log/tile/0/x001/067.p/8"), noise(2)).await.unwrap();
        let sizes = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
        };
        let main: Prefix = "main".parse().unwrap();

        assert_eq!(listing(&storage, Folder::Nars(main.clone())).await, sizes(&[(NAR, 5)]));
        assert_eq!(
            listing(&storage, Folder::Cache(main)).await,
            sizes(&[(NAR, 5), (NARINFO, 6), (trace, 7)])
        );
        assert_eq!(
            listing(&storage, Folder::Log).await,
            sizes(&[("_log/checkpoint", 1), ("_log/tile/0/x001/067.p/8", 2)])
        );
        assert_eq!(
            listing(&storage, Folder::Cache(Prefix::empty())).await,
            sizes(&[(NAR, 5), (NARINFO, 6), (trace, 7), ("maine/nix-cache-info", 8), ("nix-cache-info", 9)])
        );
    }

    async fn a_listing_says_what_an_object_is_and_when_it_was_written(storage: TestStorage) {
        storage.put(&key(NAR), noise(1)).await.unwrap();

        let entries: Vec<Entry> =
            storage.list(&Folder::Cache("main".parse().unwrap())).try_collect().await.unwrap();

        assert_eq!(entries[0].key(), Some(key(NAR)));
        // 2024: the clock of whoever stored it.
        assert!(entries[0].modified > SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    }

    async fn a_listing_of_many_pages_is_complete(storage: TestStorage) {
        // S3 answers with 1000 at a time.
        let names: Vec<String> = (0..1_010).map(|n| format!("_log/tile/entries/{n}")).collect();
        let puts = names.iter().map(|name| {
            let (storage, key) = (&storage, key(name));
            async move { storage.put(&key, Bytes::new()).await.unwrap() }
        });
        stream::iter(puts).buffer_unordered(16).collect::<()>().await;

        let listed = listing(&storage, Folder::Log).await;

        assert_eq!(listed.len(), names.len());
        assert!(names.iter().all(|name| listed.contains_key(name)));
    }

    async fn names_that_urls_and_shells_fear_are_kept(storage: TestStorage) {
        let realisation = format!("realisations/sha256:{}!out.doi", "0a".repeat(32));
        let log = "log/mmjhp110f3wf5kp5q70rc7p49yln4qzy-c++?x=1.drv";

        for name in [realisation.as_str(), log] {
            storage.put(&key(name), noise(4)).await.unwrap();

            assert_eq!(whole(&storage, name).await.unwrap(), noise(4), "{name}");
            assert_eq!(storage.size(&key(name)).await.unwrap(), Some(4), "{name}");
        }
        let listed = listing(&storage, Folder::Cache(Prefix::empty())).await;
        assert_eq!(listed.keys().collect::<Vec<_>>(), [log, &realisation]);
    }

    async fn a_small_object_is_read_within_its_limit(storage: TestStorage) {
        storage.put(&key(NARINFO), noise(10)).await.unwrap();

        assert_eq!(storage.read(&key(NARINFO), 10).await.unwrap().unwrap(), noise(10));
        assert!(matches!(storage.read(&key(NARINFO), 9).await, Err(StorageError::Damaged(_))));
    }

    async fn a_check_passes_and_leaves_nothing(storage: TestStorage) {
        storage.check().await.unwrap();
        storage.check().await.unwrap();

        assert!(listing(&storage, Folder::Cache(Prefix::empty())).await.is_empty());
    }

    async fn a_second_cluster_is_refused(storage: TestStorage) {
        storage.claim_cluster("abc-1").await.unwrap();
        storage.claim_cluster("abc-1").await.unwrap();

        let refused = storage.open_again().await.claim_cluster("abd-2").await.unwrap_err();

        assert!(matches!(&refused, StorageError::OtherCluster { found, .. } if found == "abc-1"), "{refused:?}");
        storage.claim_cluster("abc-1").await.unwrap();
        for name in ["", "a b", "a\n", &"a".repeat(65)] {
            assert!(matches!(storage.claim_cluster(name).await, Err(StorageError::Setting { .. })));
        }
    }

    async fn a_mark_that_nobody_can_have_written_is_not_taken_over(storage: TestStorage) {
        for mark in [&b""[..], b"\n", b"a b", b"\xff", &[b'a'; 66]] {
            storage.put(&ObjectKey::Owner, Bytes::copy_from_slice(mark)).await.unwrap();

            assert!(matches!(storage.claim_cluster("abc").await, Err(StorageError::Damaged(_))), "{mark:?}");
        }
    }

    async fn writers_of_one_object_never_mix(storage: TestStorage) {
        let sizes = [1usize, 1_000, 300_000, 2_000_000];
        let writers = sizes.map(|size| {
            let storage = storage.storage.clone();
            tokio::spawn(async move { storage.put(&key(NARINFO), noise(size)).await })
        });
        for _ in 0..20 {
            if let Some(bytes) = whole(&storage, NARINFO).await {
                assert!(sizes.contains(&bytes.len()) && bytes == noise(bytes.len()));
            }
        }
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
    }

    async fn an_upload_given_up_midway_cannot_go_on(storage: TestStorage) {
        let mut upload = storage.upload(&key(NAR)).await.unwrap();
        upload.write(noise(10)).await.unwrap();
        // Two parts are full, so this would have to wait for the network or the disk.
        let given_up = tokio::time::timeout(Duration::ZERO, upload.write(noise(3 * PART))).await.is_err();

        if given_up {
            assert!(upload.write(noise(1)).await.is_err());
            assert!(upload.seal().await.is_err());
            assert_eq!(storage.size(&key(NAR)).await.unwrap(), None);
        }
    }

    async fn living_uploads_survive_a_sweep_of_older_ones(storage: TestStorage) {
        let mut upload = storage.upload(&key(NAR)).await.unwrap();
        upload.write(noise(PART + 1)).await.unwrap();

        let aborted = storage.abort_stale_uploads(SystemTime::UNIX_EPOCH).await.unwrap();

        assert_eq!(aborted, 0);
        upload.seal().await.unwrap().complete().await.unwrap();
        assert_eq!(storage.size(&key(NAR)).await.unwrap(), Some(PART as u64 + 1));
    }

    async fn a_presigned_url_is_readable_without_credentials(storage: TestStorage) {
        storage.put(&key(NAR), noise(10)).await.unwrap();

        let url = storage.presign_get(&key(NAR), Duration::from_secs(60)).await.unwrap();

        if let Some(url) = url {
            assert_eq!(reqwest::get(url).await.unwrap().bytes().await.unwrap(), noise(10));
        }
    }
}

mod on_disk {
    use super::*;

    #[tokio::test]
    async fn the_folder_is_a_plain_binary_cache() {
        let storage = TestStorage::disk().await;
        storage.put(&key(NARINFO), noise(5)).await.unwrap();
        upload(&storage, NAR, &noise(PART + 5)).await.unwrap();

        assert_eq!(std::fs::read(storage.root().join(NARINFO)).unwrap(), noise(5));
        assert_eq!(std::fs::read(storage.root().join(NAR)).unwrap().len(), PART + 5);
        let mut names: Vec<_> = std::fs::read_dir(storage.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["_narvault", "main"]);
    }

    #[tokio::test]
    async fn what_is_begun_and_given_up_leaves_no_trace() {
        let storage = TestStorage::disk().await;
        drop(storage.begin_put(&key(NARINFO), noise(5)));
        no_temporary_file(&storage.root()).await;
        assert_eq!(storage.size(&key(NARINFO)).await.unwrap(), None);

        let begun = storage.begin_put(&key(NARINFO), noise(7));
        storage.end_put(begun).await.unwrap();
        assert_eq!(storage.size(&key(NARINFO)).await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn what_others_wait_for_no_longer_is_not_made_an_object_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            DiskSettings { put_time_max: Duration::ZERO, ..DiskSettings::new(folder.path().into()) };
        let storage = Storage::open(Settings::Disk(settings), Uuid::now_v7()).await.unwrap();
        storage.put(&key(NARINFO), noise(5)).await.unwrap();

        let late = storage.put_soon(&key(NARINFO), noise(7)).await;
        assert!(late.is_err_and(|error| error.is_retryable()));
        let late = storage.put_all(vec![(key(NARINFO), noise(7)), (key(NAR), noise(7))]).await;
        assert!(late.iter().all(Result::is_err), "{late:?}");

        assert_eq!(storage.size(&key(NARINFO)).await.unwrap(), Some(5));
        assert_eq!(storage.size(&key(NAR)).await.unwrap(), None);
        no_temporary_file(folder.path()).await;
    }

    #[tokio::test]
    async fn strangers_cannot_enter_a_folder_that_was_made_here() {
        let storage = TestStorage::disk().await;
        storage.put(&key(NARINFO), noise(5)).await.unwrap();
        let mode = |path: &str| storage.root().join(path).metadata().unwrap().permissions().mode() & 0o777;

        assert_eq!(mode("") & 0o007, 0);
        assert_eq!(mode("_narvault/tmp") & 0o077, 0);
        assert_eq!(mode(NARINFO) & 0o022, 0);
    }

    #[tokio::test]
    async fn symbolic_links_are_not_followed() {
        let storage = TestStorage::disk().await;
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(storage.root().join("main")).unwrap();
        symlink(outside.path().join("secret"), storage.root().join(NARINFO)).unwrap();
        symlink(outside.path(), storage.root().join("main/nar")).unwrap();

        assert!(storage.get(&key(NARINFO), None).await.is_err());
        assert!(storage.put(&key(NAR), noise(1)).await.is_err());
        assert!(storage.delete(&key(NAR), Duration::from_secs(10)).await.is_err());
        assert!(listing(&storage, Folder::Cache(Prefix::empty())).await.is_empty());
        // A link in an object's own place is replaced, and what it points to is untouched.
        storage.put(&key(NARINFO), noise(1)).await.unwrap();
        assert_eq!(whole(&storage, NARINFO).await.unwrap(), noise(1));
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_is_not_a_plain_file_is_damage() {
        let storage = TestStorage::disk().await;
        std::fs::create_dir_all(storage.root().join(NARINFO)).unwrap();
        let pipe = storage.root().join("main/nix-cache-info");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert!(pipe.metadata().unwrap().file_type().is_fifo());

        for name in [NARINFO, "main/nix-cache-info"] {
            assert!(matches!(storage.get(&key(name), None).await, Err(StorageError::Damaged(_))), "{name}");
            assert!(matches!(storage.size(&key(name)).await, Err(StorageError::Damaged(_))), "{name}");
        }
        assert!(matches!(storage.put(&key(NARINFO), noise(1)).await, Err(StorageError::Damaged(_))));
        assert_eq!(storage.open_uploads(), 0);
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_removed_at_the_next_start() {
        let storage = TestStorage::disk().await;
        let left = storage.root().join("_narvault/tmp/left");
        std::fs::File::create(&left).unwrap().write_all(b"half").unwrap();
        let mut living = storage.upload(&key(NAR)).await.unwrap();
        living.write(noise(10)).await.unwrap();

        let again = storage.open_again().await;

        assert!(!left.exists());
        living.seal().await.unwrap().complete().await.unwrap();
        assert_eq!(whole(&again, NAR).await.unwrap(), noise(10));
    }

    #[tokio::test]
    async fn a_sweep_takes_only_what_nobody_writes() {
        let storage = TestStorage::disk().await;
        let mut living = storage.upload(&key(NAR)).await.unwrap();
        living.write(noise(10)).await.unwrap();
        std::fs::write(storage.root().join("_narvault/tmp/left"), "half").unwrap();

        assert_eq!(storage.open_again().await.abort_stale_uploads(far_future()).await.unwrap(), 0);
        std::fs::write(storage.root().join("_narvault/tmp/left"), "half").unwrap();
        assert_eq!(storage.abort_stale_uploads(SystemTime::UNIX_EPOCH).await.unwrap(), 0);
        assert_eq!(storage.abort_stale_uploads(far_future()).await.unwrap(), 1);

        living.seal().await.unwrap().complete().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_shrinks_while_it_is_read_is_no_short_success() {
        let storage = TestStorage::disk().await;
        storage.put(&key(NAR), noise(2 << 20)).await.unwrap();
        let object = storage.get(&key(NAR), None).await.unwrap().unwrap();

        let file = std::fs::OpenOptions::new().write(true).open(storage.root().join(NAR)).unwrap();
        file.set_len(1).unwrap();

        assert!(matches!(object.body.try_fold(BytesMut::new(), append).await, Err(StorageError::Damaged(_))));
    }

    #[tokio::test]
    async fn a_read_goes_on_while_the_object_is_replaced_or_removed() {
        let storage = TestStorage::disk().await;
        storage.put(&key(NAR), noise(1 << 20)).await.unwrap();
        let object = storage.get(&key(NAR), None).await.unwrap().unwrap();

        storage.put(&key(NAR), noise(1)).await.unwrap();
        storage.delete(&key(NAR), Duration::from_secs(10)).await.unwrap();

        assert_eq!(object.body.try_fold(BytesMut::new(), append).await.unwrap(), noise(1 << 20));
    }
}

mod on_a_real_server {
    use super::*;

    #[tokio::test]
    async fn an_upload_that_nobody_will_complete_is_swept() {
        let Some(storage) = TestStorage::real_s3().await else { return };
        let mut lost = storage.upload(&key(NAR)).await.unwrap();
        lost.write(noise(2 * PART + 1)).await.unwrap();
        std::mem::forget(lost);

        assert_eq!(storage.abort_stale_uploads(SystemTime::UNIX_EPOCH).await.unwrap(), 0);
        assert_eq!(storage.abort_stale_uploads(far_future()).await.unwrap(), 1);
        assert_eq!(storage.abort_stale_uploads(far_future()).await.unwrap(), 0);
        assert_eq!(storage.size(&key(NAR)).await.unwrap(), None);
    }
}

mod on_a_bad_network {
    use super::*;

    /// Seconds where production has minutes: a stall must end within a test.
    const IMPATIENT: Patience = Patience {
        connect: Duration::from_secs(2),
        answer: Duration::from_millis(1500),
        attempt: Duration::from_millis(3000),
        total: Duration::from_secs(30),
        stalled: Duration::from_secs(20),
        attempts_max: 3,
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
    };

    struct Disturbed {
        storage: Storage,
        chaos: Chaos,
        server: S3Server,
        /// Past the proxy.
        direct: Storage,
    }

    async fn disturbed() -> Disturbed {
        disturbed_with(|settings| settings).await
    }

    async fn disturbed_with(change: impl Fn(S3Settings) -> S3Settings) -> Disturbed {
        let server = S3Server::start().await;
        let chaos = Chaos::before(server.address).await;
        let settings = change(S3Settings { patience: IMPATIENT, ..S3Server::settings(chaos.address) });
        let direct = Settings::S3(S3Server::settings(server.address).into());
        Disturbed {
            storage: Storage::open(Settings::S3(settings.into()), Uuid::now_v7()).await.unwrap(),
            direct: Storage::open(direct, Uuid::now_v7()).await.unwrap(),
            chaos,
            server,
        }
    }

    /// Faults that pass by themselves.
    const PASSING: [Fault; 9] = [
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::Answer(503, "ServiceUnavailable"),
        Fault::CutRequest,
        Fault::CutAnswer(0),
        Fault::LoseAnswer,
        Fault::FailAfterSuccess,
        Fault::Stall,
        Fault::LateAnswer,
    ];

    #[tokio::test]
    async fn a_small_put_outlives_each_passing_fault() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, direct, .. } = &network;
        for fault in PASSING {
            chaos.inject(Call::Put, fault, 1);

            storage
                .put(&key(NARINFO), noise(2_000))
                .await
                .unwrap_or_else(|error| panic!("{fault:?} {error:?}"));

            assert_eq!(whole(direct, NARINFO).await.unwrap(), noise(2_000), "{fault:?}");
        }
    }

    #[tokio::test]
    async fn an_upload_outlives_each_passing_fault_of_each_call() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, server, direct } = &network;
        let bytes = noise(PART + 5);
        for call in [Call::CreateUpload, Call::UploadPart, Call::CompleteUpload] {
            for fault in PASSING {
                // The server's own upload that a lost answer to "create" leaves is for the sweep.
                let done_but_unknown = matches!(
                    fault,
                    Fault::CutAnswer(_) | Fault::LoseAnswer | Fault::FailAfterSuccess | Fault::LateAnswer
                );
                let open_before = server.open_uploads();
                direct.delete(&key(NAR), Duration::from_secs(10)).await.unwrap();
                chaos.inject(call, fault, 1);

                upload(storage, NAR, &bytes)
                    .await
                    .unwrap_or_else(|error| panic!("{call:?} {fault:?} {error:?}"));

                assert!(whole(direct, NAR).await.unwrap() == bytes, "{call:?} {fault:?}");
                if !(call == Call::CreateUpload && done_but_unknown) {
                    assert_eq!(server.open_uploads(), open_before, "{call:?} {fault:?}");
                }
            }
        }
        assert_eq!(chaos.seen(Call::AbortUpload), 0);
    }

    #[tokio::test]
    async fn a_fault_that_stays_is_an_error_and_nothing_is_visible_or_left() {
        for call in [Call::UploadPart, Call::CompleteUpload] {
            for fault in
                [Fault::Answer(500, "InternalError"), Fault::CutRequest, Fault::Answer(403, "AccessDenied")]
            {
                let network = disturbed().await;
                let Disturbed { storage, chaos, server, direct } = &network;
                chaos.inject(call, fault, 100);

                let error = upload(storage, NAR, &noise(2 * PART + 5)).await.unwrap_err();

                assert_eq!(
                    error.is_retryable(),
                    fault != Fault::Answer(403, "AccessDenied"),
                    "{call:?} {fault:?} {error:?}"
                );
                chaos.wait_for(Call::AbortUpload, 1).await;
                assert_eq!(server.open_uploads(), 0, "{call:?} {fault:?}");
                assert_eq!(direct.size(&key(NAR)).await.unwrap(), None, "{call:?} {fault:?}");
                assert_eq!(storage.buffered().now_bytes, 0, "{call:?} {fault:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_older_object_of_the_same_size_is_not_taken_for_the_new_one() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, direct, .. } = &network;
        let old = Bytes::from(vec![7; PART + 5]);
        upload(direct, NAR, &old).await.unwrap();
        chaos.inject(Call::CompleteUpload, Fault::Answer(500, "InternalError"), 100);

        upload(storage, NAR, &noise(PART + 5)).await.unwrap_err();

        assert!(whole(direct, NAR).await.unwrap() == old);
    }

    #[tokio::test]
    async fn a_dropped_upload_is_aborted_at_the_server() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, server, direct } = &network;
        let mut begun = storage.upload(&key(NAR)).await.unwrap();
        begun.write(noise(2 * PART + 5)).await.unwrap();
        let mut other = storage.upload(&key(NAR)).await.unwrap();
        other.write(noise(PART + 5)).await.unwrap();
        let sealed = other.seal().await.unwrap();

        drop(begun);
        drop(sealed);

        chaos.wait_for(Call::AbortUpload, 2).await;
        assert_eq!(server.open_uploads(), 0);
        assert_eq!(direct.size(&key(NAR)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn every_part_has_arrived_before_completion_begins() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, .. } = &network;
        let mut upload = storage.upload(&key(NAR)).await.unwrap();
        upload.write(noise(3 * PART + 5)).await.unwrap();

        let sealed = upload.seal().await.unwrap();

        assert_eq!(chaos.seen(Call::UploadPart), 4);
        assert_eq!(storage.buffered().now_bytes, 0);
        sealed.complete().await.unwrap();
        assert_eq!(chaos.seen(Call::UploadPart), 4);
    }

    #[tokio::test]
    async fn a_big_upload_holds_three_parts_at_most() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, .. } = &network;

        upload(storage, NAR, &noise(10 * PART)).await.unwrap();

        assert_eq!(chaos.seen(Call::UploadPart), 10);
        assert_eq!(storage.buffered().peak_bytes, 3 * PART as u64);
        assert_eq!(storage.upload_memory_bytes(), 3 * PART as u64);
    }

    #[tokio::test]
    async fn uploads_with_every_checksum_arrive_unchanged() {
        let network =
            disturbed_with(|settings| S3Settings { checksums: Checksums::WhenSupported, ..settings }).await;
        for size in [0, 10, PART + 5] {
            let bytes = noise(size);

            upload(&network.storage, NAR, &bytes).await.unwrap();

            assert!(whole(&network.storage, NAR).await.unwrap() == bytes, "{size}");
        }
    }

    #[tokio::test]
    async fn an_object_over_the_limit_is_refused_while_it_is_written() {
        let network = disturbed_with(|settings| S3Settings { object_size_bytes_max: 100, ..settings }).await;
        let Disturbed { storage, direct, .. } = &network;

        upload(storage, NAR, &noise(100)).await.unwrap();
        let refused = upload(storage, NAR, &noise(101)).await.unwrap_err();

        assert!(matches!(refused, StorageError::TooLarge { size_bytes_max: 100 }), "{refused:?}");
        assert_eq!(direct.size(&key(NAR)).await.unwrap(), Some(100));
    }

    #[tokio::test]
    async fn a_read_that_is_cut_is_taken_up_where_it_ended() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, .. } = &network;
        let bytes = noise(3_000_000);
        storage.put(&key(NAR), bytes.clone()).await.unwrap();
        for fault in PASSING.into_iter().chain([Fault::CutAnswer(1), Fault::CutAnswer(1_234_567)]) {
            chaos.inject(Call::Get, fault, 1);

            assert!(whole(storage, NAR).await.unwrap() == bytes, "{fault:?}");
        }
        chaos.inject(Call::Get, Fault::CutAnswer(1000), 1);
        let object = storage.get(&key(NAR), Some(5..2_000_000)).await.unwrap().unwrap();
        assert_eq!(object.body.try_fold(BytesMut::new(), append).await.unwrap(), bytes[5..2_000_000]);
    }

    #[tokio::test]
    async fn a_read_that_is_cut_again_and_again_is_an_error() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, .. } = &network;
        storage.put(&key(NAR), noise(3_000_000)).await.unwrap();
        chaos.inject(Call::Get, Fault::CutAnswer(10), 100);

        // The answer's head may be lost with its body.
        let read = match storage.get(&key(NAR), None).await {
            Ok(object) => object.unwrap().body.try_fold(BytesMut::new(), append).await,
            Err(error) => Err(error),
        };

        let error = read.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }

    #[tokio::test]
    async fn two_objects_are_never_read_as_one() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, direct, .. } = &network;
        storage.put(&key(NAR), noise(3_000_000)).await.unwrap();
        chaos.inject(Call::Get, Fault::CutAnswer(1_000_000), 1);
        let object = storage.get(&key(NAR), None).await.unwrap().unwrap();

        direct.put(&key(NAR), Bytes::from(vec![7; 3_000_000])).await.unwrap();

        assert!(matches!(object.body.try_fold(BytesMut::new(), append).await, Err(StorageError::Damaged(_))));
    }

    #[tokio::test]
    async fn a_deletion_ends_when_its_time_is_over_and_is_not_sent_again() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, direct, .. } = &network;
        direct.put(&key(NAR), noise(1)).await.unwrap();
        chaos.inject(Call::Delete, Fault::Stall, 100);

        let error = storage.delete(&key(NAR), Duration::from_millis(300)).await.unwrap_err();

        assert!(error.is_retryable(), "{error:?}");
        assert_eq!(chaos.seen(Call::Delete), 1);
        assert_eq!(direct.size(&key(NAR)).await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn looking_and_deleting_outlive_each_passing_fault() {
        let network = disturbed().await;
        let Disturbed { storage, chaos, direct, .. } = &network;
        for fault in PASSING {
            direct.put(&key(NAR), noise(9)).await.unwrap();
            chaos.inject(Call::Head, fault, 1);
            chaos.inject(Call::Delete, fault, 1);

            assert_eq!(storage.size(&key(NAR)).await.unwrap(), Some(9), "{fault:?}");
            storage.delete(&key(NAR), Duration::from_secs(10)).await.unwrap();
            assert_eq!(direct.size(&key(NAR)).await.unwrap(), None, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_gone_is_a_passing_fault_with_a_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let settings = S3Settings { patience: IMPATIENT, ..S3Server::settings(address) };
        let storage = Storage::open(Settings::S3(settings.into()), Uuid::now_v7()).await.unwrap();

        let error = storage.check().await.unwrap_err();

        assert!(error.is_retryable(), "{error:?}");
        assert!(told(&error).contains("refused"), "{}", told(&error));
    }

    #[tokio::test]
    async fn a_wrong_bucket_or_key_is_refused_and_secrets_are_not_told() {
        let wrong_bucket = disturbed().await;
        // This server makes a bucket that is absent; others say so.
        wrong_bucket.chaos.inject(Call::Put, Fault::Answer(404, "NoSuchBucket"), 1);
        let wrong_secret = disturbed_with(|settings| {
            let mut credentials = settings.credentials.clone().unwrap();
            credentials.secret_access_key = "not-the-word-either".into();
            S3Settings { credentials: Some(credentials), ..settings }
        })
        .await;

        for (disturbed, code) in [(wrong_bucket, "NoSuchBucket"), (wrong_secret, "SignatureDoesNotMatch")] {
            let error = disturbed.storage.check().await.unwrap_err();
            assert!(matches!(error, StorageError::Refused { .. }), "{error:?}");
            let told = told(&error);
            assert!(told.contains(code), "{told}");
            for secret in ["word", "Signature=", "Credential=", "AKTEST"] {
                assert!(!told.contains(secret), "{told}");
            }
        }
    }
}
