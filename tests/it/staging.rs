//! Uploads in parts, as storage keeps them: durable, out of sight, replaced part by part, and copied whole.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use narvault::nix::hash::Sha256Digest;
use narvault::storage::{Folder, ObjectKey, Stage, StagedPart, Storage, Target};
use uuid::Uuid;

use crate::support::storage::{TestStorage, on_each_storage};

/// The smallest part that S3 takes.
const PART: usize = 5 << 20;

const NAR: &str = "main/nar/073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7.nar.xz";

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn far_future() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 36)
}

fn part(number: u32, len: usize) -> Bytes {
    (0..len as u32).map(|at| (at.wrapping_mul(number) >> 3) as u8).collect()
}

async fn put(storage: &Storage, stage: &Stage, number: u32, bytes: &Bytes) -> StagedPart {
    let sha256 = Sha256Digest::of(bytes);
    let tag = storage.put_part(stage, number, sha256, bytes.clone()).await.unwrap();
    StagedPart { number, size_bytes: bytes.len() as u64, sha256, tag }
}

async fn read(storage: &Storage, stage: &Stage, parts: &[StagedPart]) -> Bytes {
    let mut whole = BytesMut::new();
    let mut body = storage.read_staged(stage, parts).await.unwrap();
    while let Some(bytes) = body.try_next().await.unwrap() {
        whole.extend_from_slice(&bytes);
    }
    whole.freeze()
}

async fn count(storage: &Storage) -> usize {
    storage.list(&Folder::Uploads).try_fold(0, async |count, _| Ok(count + 1)).await.unwrap()
}

on_each_storage! {
    async fn parts_become_one_object_in_the_order_of_their_numbers(storage: TestStorage) {
        let stage = storage.stage(Uuid::now_v7()).await.unwrap();
        let (one, two, three) = (part(1, PART), part(2, PART), part(3, 1000));
        let third = put(&storage, &stage, 3, &three).await;
        let replaced = put(&storage, &stage, 1, &two).await;
        let second = put(&storage, &stage, 2, &two).await;
        let first = put(&storage, &stage, 1, &one).await;
        storage.remove_part(&stage, &replaced).await.unwrap();
        let parts = [first, second, third];

        storage.close_staged(&stage, &parts).await.unwrap();
        // The answer may have been lost.
        storage.close_staged(&stage, &parts).await.unwrap();

        let whole = [one, two, three].concat();
        assert!(read(&storage, &stage, &parts).await == whole);
        assert_eq!(storage.size(&key(NAR)).await.unwrap(), None);
        match storage.target_of_staged(&key(NAR)).await.unwrap() {
            Target::Written(upload) => upload.abort().await,
            Target::Copied => {
                storage.copy_staged(&stage, whole.len() as u64, &key(NAR)).await.unwrap();
                let object = storage.get(&key(NAR), None).await.unwrap().unwrap();
                let copied: Vec<Bytes> = object.body.try_collect().await.unwrap();
                assert!(copied.concat() == whole);
            }
        }
        storage.remove_staged(&stage, &parts).await.unwrap();
        assert_eq!((count(&storage).await, storage.open_uploads()), (0, 0));
    }

    async fn what_no_row_knows_is_swept_once_it_is_old(storage: TestStorage) {
        let (known, forgotten) =
            (storage.stage(Uuid::now_v7()).await.unwrap(), storage.stage(Uuid::now_v7()).await.unwrap());
        let kept = put(&storage, &known, 1, &part(1, 1000)).await;
        put(&storage, &forgotten, 1, &part(1, 1000)).await;
        let rows = HashSet::from([known.id]);

        assert_eq!(storage.abort_stale_uploads(far_future()).await.unwrap(), 0);
        assert_eq!(storage.sweep_staged(&rows, SystemTime::UNIX_EPOCH).await.unwrap(), 0);
        let swept = storage.sweep_staged(&rows, far_future()).await.unwrap();

        // The server in this process lists no uploads that are open, and is left to its own rule for them.
        assert!(swept == 1 || storage.open_uploads() > 0, "{swept}");
        storage.close_staged(&known, std::slice::from_ref(&kept)).await.unwrap();
        assert!(read(&storage, &known, std::slice::from_ref(&kept)).await == part(1, 1000));
        assert_eq!(storage.sweep_staged(&HashSet::new(), far_future()).await.unwrap(), 1);
        assert_eq!(count(&storage).await, 0);
    }

    async fn many_objects_are_written_at_once_each_whole(storage: TestStorage) {
        let names: Vec<String> = (0..70).map(|n| format!("_log/tile/{}/{n}", n % 3)).collect();
        let objects = names.iter().zip(1..).map(|(name, number)| (key(name), part(number, 100)));

        let results = storage.put_all(objects.collect()).await;

        assert_eq!(results.len(), names.len());
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        for (name, number) in names.iter().zip(1..) {
            assert_eq!(storage.read(&key(name), 100).await.unwrap().unwrap(), part(number, 100), "{name}");
        }
        assert!(storage.put_all(Vec::new()).await.is_empty());
    }
}

#[tokio::test]
async fn of_many_objects_each_fails_by_itself() {
    let storage = TestStorage::disk().await;
    std::fs::create_dir_all(storage.root().join("_log")).unwrap();
    // A file where a folder should be.
    std::fs::write(storage.root().join("_log/tile"), "x").unwrap();

    let results = storage.put_all(vec![
        (key("_log/checkpoint"), part(1, 9)),
        (key("_log/tile/0/000"), part(2, 9)),
        (key("_log/other"), part(3, 9)),
    ]);

    let results = results.await;
    assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok(), "{results:?}");
    assert_eq!(storage.read(&key("_log/other"), 9).await.unwrap().unwrap(), part(3, 9));
}
