//! A publisher that dies between any two of its writes, and after each of those of whoever goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use ed25519_dalek::{Signer as _, SigningKey};

use super::references::{append_listed, has_list, lose_list};
use super::*;
use crate::tlog::note::NoteSignature;
use crate::tlog::proof::Consistency;
use crate::witness::Witness;

/// A witness that cosigns whatever goes on from what it saw, as far as sizes tell, and remembers it.
#[derive(Clone)]
struct Onlooker {
    secret: SigningKey,
    key: VerifierKey,
    is_away: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Checkpoint>>>,
}

impl Onlooker {
    async fn start() -> (Self, Witness) {
        let secret = SigningKey::from_bytes(&[9; 32]);
        let name = "onlooker.example".parse().unwrap();
        let key = VerifierKey::new(name, Algorithm::Cosignature, secret.verifying_key().as_bytes()).unwrap();
        let onlooker = Self { secret, key, is_away: Arc::default(), seen: Arc::default() };
        let answer = async |State(onlooker): State<Self>, body: String| onlooker.answer(&body);
        let router = Router::new().route("/add-checkpoint", post(answer)).with_state(onlooker.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let setting = format!("http://{} {}", listener.local_addr().unwrap(), onlooker.key);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (onlooker, setting.parse().unwrap())
    }

    fn answer(&self, body: &str) -> Response {
        if self.is_away.load(Ordering::SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let (head, note) = body.split_once("\n\n").unwrap();
        let old: u64 = head.lines().next().unwrap().strip_prefix("old ").unwrap().parse().unwrap();
        let note = Note::parse(note.as_bytes()).unwrap();
        let checkpoint = Checkpoint::parse(note.text()).unwrap();
        let mut seen = self.seen.lock().unwrap();
        let last = seen.last().map_or(0, |last| last.size);
        if old != last {
            return (StatusCode::CONFLICT, format!("{last}\n")).into_response();
        }
        if seen.last() != Some(&checkpoint) {
            seen.push(checkpoint);
        }
        let time = 1_795_353_000u64;
        let signed = format!("cosignature/v1\ntime {time}\n{}", note.text());
        let bytes = [&time.to_be_bytes()[..], &self.secret.sign(signed.as_bytes()).to_bytes()[..]].concat();
        let line = NoteSignature { name: self.key.name().clone(), id: self.key.id(), bytes };
        format!("{line}\n").into_response()
    }
}

/// Reads what is published under `checkpoint`, as a stranger does, who has seen `seen` before.
async fn goes_on_from_all(service: &Service, checkpoint: &Checkpoint, seen: &[Checkpoint]) {
    let mut tiles = BTreeMap::new();
    for tile in Tile::added(0, checkpoint.size) {
        tiles.insert(tile, service.log_tile(tile).await.unwrap());
    }
    let fetch = |tile: Tile| {
        let there = tiles[&tile].as_ref().map(|bytes| bytes.to_vec());
        there.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    let mut reader = TileReader::open(checkpoint.size, checkpoint.root, fetch).unwrap();
    let bundles = checkpoint.size.div_ceil(256);
    let texts: Vec<_> = (0..bundles).flat_map(|index| reader.entries(index).unwrap()).collect();
    let size = usize::try_from(checkpoint.size).unwrap();
    assert!(leaves(service).await[..size].iter().map(String::as_bytes).eq(texts.iter().map(Vec::as_slice)));
    for old in seen.iter().filter(|old| old.size <= checkpoint.size) {
        let proof = reader.consistency(old.size).unwrap();
        let way = Consistency::new(old.size, checkpoint.size).unwrap();
        assert_eq!(way.verify(old.root, checkpoint.root, &proof), Ok(()), "{} {}", old.size, checkpoint.size);
    }
}

/// Looks at both checkpoints that a stranger may be shown, and remembers them.
async fn look(service: &Service, seen: &mut Vec<Checkpoint>) {
    let key = service.log_verifier_key().await.unwrap();
    let row = service.log_checkpoint().await.unwrap().map(|row| row.note.into_bytes());
    let object = stored(service, "checkpoint").await.map(|bytes| bytes.to_vec());
    // The object follows the row.
    assert!(object.is_none() || row.is_some());
    for note in [object, row].into_iter().flatten() {
        let (checkpoint, _) = Checkpoint::open(&note, &key).unwrap();
        goes_on_from_all(service, &checkpoint, seen).await;
        if !seen.contains(&checkpoint) {
            seen.push(checkpoint);
        }
    }
}

/// A publisher that dies before the write after `writes` ones. False: it died; if it does not, it has done all there is.
async fn live(service: &Service, writes: usize) -> bool {
    service.inner.log_cut.after(writes);
    let mut published = Published::default();
    // In its second round it asks witnesses that have not cosigned what it found.
    for _ in 0..2 {
        match service.publish_round(&mut published).await {
            Ok(()) => {}
            Err(PublishError::Fork(fork)) => panic!("{fork}"),
            Err(PublishError::Service(_)) => return false,
        }
    }
    !service.inner.log_cut.is_dead()
}

on_each_database! {
    async fn whoever_dies_between_two_writes_is_taken_up_from_there_and_nobody_sees_a_contradiction(test: &TestDb) {
        let server = TestService::start(test).await;
        let (onlooker, witness) = Onlooker::start().await;
        let mut seen = Vec::new();
        for writes in 0.. {
            // Full and partial tiles of both levels, and a list of references, which is among the first to be written.
            append_listed(&server.service, writes).await;
            append(&server.service, 259).await;
            if writes > 1 {
                lose_list(&server.service, 0).await;
            }
            // Who answers only later gives a cosignature that is written by itself.
            onlooker.is_away.store(writes % 2 == 0, Ordering::SeqCst);
            let witnesses = vec![witness.clone()];
            let others = testing::Others { witnesses, ..testing::Others::default() };
            let replica = testing::open_with(test, &Clock::fixed(NOON), testing::vault(test), others).await.0;

            let is_whole = live(&replica, writes).await;

            look(&replica, &mut seen).await;
            onlooker.is_away.store(false, Ordering::SeqCst);
            let size = leaves(&replica).await.len() as u64;
            // Nobody lives for more than two writes.
            loop {
                let lived = live(&replica, 3).await;
                look(&replica, &mut seen).await;
                let references = log::references_to(&mut test.db.read().await.unwrap()).await.unwrap();
                if lived && references == Some((size as i64, size as i64)) {
                    break;
                }
            }
            let row = replica.log_checkpoint().await.unwrap().unwrap();
            assert_eq!(row.size as u64, size);
            assert_eq!(stored(&replica, "checkpoint").await.unwrap(), row.note.as_bytes());
            assert!(crate::tlog::cosignature::verify(&Note::parse(row.note.as_bytes()).unwrap(), &onlooker.key).is_ok());
            for number in 0..=writes {
                assert!(has_list(&replica, number).await, "{number}");
            }
            let cosigned = onlooker.seen.lock().unwrap().clone();
            let last = seen.last().unwrap().clone();
            goes_on_from_all(&replica, &last, &cosigned).await;
            replica.shut_down().await;
            if is_whole {
                // It had tiles, a list, two checkpoints, and a cosignature to write.
                assert!(writes > 8, "{writes}");
                break;
            }
        }
    }
}
