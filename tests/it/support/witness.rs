//! Witnesses: one in this process that can be told to misbehave, its proofs checked by the crate `tlog_tiles`, and the
//! stock one of torchwood where it is at hand.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use ed25519_dalek::{Signer as _, SigningKey};
use narvault::tlog::checkpoint::Checkpoint;
use narvault::tlog::hash::NodeHash;
use narvault::tlog::note::{Note, NoteSignature};
use narvault::tlog::verifier_key::{Algorithm, VerifierKey};
use sqlx::Connection as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{until, variable};

/// What a witness in this process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Honest,
    /// Answers 503.
    Away,
    /// Cosigns another checkpoint.
    Forging,
}

/// A witness in this process.
pub struct TestWitness {
    /// As the setting has it.
    pub setting: String,
    pub key: VerifierKey,
    state: Shared,
}

type Shared = Arc<Mutex<Seen>>;

struct Seen {
    size: u64,
    root: NodeHash,
    mood: Mood,
    /// Sizes and statuses of what was asked.
    answers: Vec<(u64, u16)>,
}

fn secret(name: &str) -> SigningKey {
    let mut seed = [3; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_bytes(&seed)
}

impl TestWitness {
    /// `name` is at most 32 bytes.
    pub async fn start(name: &'static str) -> Self {
        let key = secret(name).verifying_key();
        let key = VerifierKey::new(name.parse().unwrap(), Algorithm::Cosignature, key.as_bytes()).unwrap();
        let seen = Seen { size: 0, root: NodeHash::empty(), mood: Mood::Honest, answers: Vec::new() };
        let state: Shared = Arc::new(Mutex::new(seen));
        let (own, shared) = (key.clone(), state.clone());
        let answer = move |State(state): State<Shared>, body: String| {
            let (size, response) = witness(&state, &own, &body);
            state.lock().unwrap().answers.push((size, response.status().as_u16()));
            std::future::ready(response)
        };
        let router = Router::new().route("/w/add-checkpoint", post(answer)).with_state(shared);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let setting = format!("http://{}/w {key}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { setting, key, state }
    }

    pub fn set_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// Pretends to have seen a tree of this size.
    pub fn saw(&self, size: u64) {
        self.state.lock().unwrap().size = size;
    }

    /// The size that it cosigned last.
    pub fn size(&self) -> u64 {
        self.state.lock().unwrap().size
    }

    /// Sizes and statuses of what it was asked so far.
    pub fn answers(&self) -> Vec<(u64, u16)> {
        self.state.lock().unwrap().answers.clone()
    }
}

/// The size of the checkpoint that was shown, and what is answered.
fn witness(state: &Shared, key: &VerifierKey, body: &str) -> (u64, Response) {
    let mut seen = state.lock().unwrap();
    let (head, note) = body.split_once("\n\n").expect("a proof, an empty line, a checkpoint");
    let mut lines = head.lines();
    let old: u64 = lines.next().unwrap().strip_prefix("old ").unwrap().parse().unwrap();
    let proof: Vec<_> = lines.map(|line| theirs(line.parse().unwrap())).collect();
    let note = Note::parse(note.as_bytes()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    let refused = |status: StatusCode| (checkpoint.size, status.into_response());
    if seen.mood == Mood::Away {
        return refused(StatusCode::SERVICE_UNAVAILABLE);
    }
    if old != seen.size || old > checkpoint.size {
        let size = format!("{}\n", seen.size);
        let kind = [("content-type", "text/x.tlog.size")];
        return (checkpoint.size, (StatusCode::CONFLICT, kind, size).into_response());
    }
    if old > 0 && old < checkpoint.size {
        let (new_root, old_root) = (theirs(checkpoint.root), theirs(seen.root));
        if tlog_tiles::check_tree(&proof, checkpoint.size, new_root, old, old_root).is_err() {
            return refused(StatusCode::UNPROCESSABLE_ENTITY);
        }
    } else if !proof.is_empty() || (old > 0 && seen.root != checkpoint.root) {
        return refused(StatusCode::UNPROCESSABLE_ENTITY);
    }
    (seen.size, seen.root) = (checkpoint.size, checkpoint.root);
    let text = if seen.mood == Mood::Forging { "another text\n" } else { note.text() };
    let time = 1_795_353_000u64;
    let signed = format!("cosignature/v1\ntime {time}\n{text}");
    let secret = secret(key.name().as_str());
    let bytes = [&time.to_be_bytes()[..], &secret.sign(signed.as_bytes()).to_bytes()[..]].concat();
    let line = NoteSignature { name: key.name().clone(), id: key.id(), bytes };
    (checkpoint.size, format!("{line}\n").into_response())
}

fn theirs(hash: NodeHash) -> tlog_tiles::Hash {
    tlog_tiles::Hash(*hash.bytes())
}

/// `litewitness` of filippo.io/torchwood, and the agent that has its key. Both end with this value.
pub struct StockWitness {
    pub setting: String,
    pub key: VerifierKey,
    folder: tempfile::TempDir,
    _processes: [Child; 2],
}

impl StockWitness {
    /// Knows the log of this key. `None` where `NARVAULT_TEST_WITNESS` does not name the program.
    pub async fn start(log: &VerifierKey) -> Option<Self> {
        let program = PathBuf::from(variable("NARVAULT_TEST_WITNESS")?);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let done = async |program: PathBuf, arguments: &[&str], agent: &str| {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(folder.path()).env("SSH_AUTH_SOCK", agent);
            let output = command.stdin(Stdio::null()).output().await.unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let agent_socket = path("agent");
        let agent = Command::new("ssh-agent")
            .args(["-D", "-a", &agent_socket])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        until("the agent", async || folder.path().join("agent").exists().then_some(())).await;
        done("ssh-keygen".into(), &["-q", "-t", "ed25519", "-N", "", "-f", "key"], "").await;
        done("ssh-add".into(), &["-q", "key"], &agent_socket).await;
        let shown = done("ssh-keygen".into(), &["-l", "-f", "key.pub"], "").await;
        let fingerprint = shown.split(' ').nth(1).unwrap().to_owned();

        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listen = port.to_string();
        let mut command = Command::new(program);
        command.args(["-db", "witness.db", "-name", "stock.example/witness", "-key", &fingerprint]);
        command.args(["-ssh-agent", &agent_socket, "-listen", &listen]).current_dir(folder.path());
        let mut witness = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(witness.stderr.take().unwrap()).lines();
        let key = loop {
            let line = lines.next_line().await.unwrap().expect("it names its key");
            if let Some((_, key)) = line.split_once("vkey=") {
                break key.trim_matches('"').parse::<VerifierKey>().unwrap();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let setting = format!("http://{listen} {key}");
        let stock = Self { setting, key, folder, _processes: [agent, witness] };
        stock.knows(log).await;
        Some(stock)
    }

    /// Makes it know a log, as `witnessctl add-log` and `add-key` do.
    async fn knows(&self, log: &VerifierKey) {
        let url = format!("sqlite://{}", self.folder.path().join("witness.db").display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("INSERT INTO log (origin, tree_size, tree_hash) VALUES ($1, 0, $2)")
            .bind(log.name().as_str())
            .bind(NodeHash::empty().to_string())
            .execute(&mut connection)
            .await
            .unwrap();
        sqlx::query("INSERT INTO key (origin, key) VALUES ($1, $2)")
            .bind(log.name().as_str())
            .bind(log.to_string())
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }
}
