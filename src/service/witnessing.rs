//! Asking the configured witnesses for their cosignatures on a checkpoint, before it is published.
//!
//! Never holds a checkpoint back for long: one that a witness did not answer for is published without its cosignature,
//! and the witness is asked again.

use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;

use super::{Result, Service};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::hash::NodeHash;
use crate::tlog::note::{Note, NoteSignature};
use crate::tlog::proof::Consistency;
use crate::witness::{Answer, Witness, WitnessError, Witnesses};

/// The witnesses, and what each has seen of this log.
pub(super) struct Watch {
    http: Witnesses,
    witnesses: Vec<Witness>,
    /// In the order of the witnesses: the size that each saw last, as far as this replica knows.
    sizes: Mutex<Vec<u64>>,
}

impl Watch {
    pub fn new(witnesses: Vec<Witness>) -> std::result::Result<Self, reqwest::Error> {
        Ok(Self { http: Witnesses::new()?, sizes: Mutex::new(vec![0; witnesses.len()]), witnesses })
    }

    fn seen(&self, at: usize) -> u64 {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(at).copied().unwrap_or(0)
    }

    fn note_seen(&self, at: usize, size: u64) {
        if let Some(seen) = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
            *seen = size;
        }
    }

    /// How many witnesses have not cosigned this.
    pub fn missing(&self, note: &Note) -> usize {
        self.witnesses.iter().filter(|witness| !has_cosigned(note, witness)).count()
    }
}

fn has_cosigned(note: &Note, witness: &Witness) -> bool {
    let (name, id) = (witness.key().name(), witness.key().id());
    note.signatures().iter().any(|signature| signature.name == *name && signature.id == id)
}

impl Service {
    /// The checkpoint with a cosignature of each witness that gives one. Its tiles are published already: the proofs
    /// are made of them.
    pub(super) async fn with_cosignatures(&self, mut note: Note, checkpoint: &Checkpoint) -> Note {
        let watch = &self.inner.watch;
        let asked = watch.witnesses.iter().enumerate().filter(|(_, witness)| !has_cosigned(&note, witness));
        let asked = asked.map(|(at, witness)| self.cosignature(at, witness, &note, checkpoint));
        for signature in join_all(asked).await.into_iter().flatten() {
            match note.clone().with(signature) {
                Ok(more) => note = more,
                Err(error) => tracing::warn!(%error, "a cosignature does not fit on the checkpoint"),
            }
        }
        if !watch.witnesses.is_empty() {
            let count = watch.witnesses.len() - watch.missing(&note);
            metrics::gauge!("narvault_log_cosignatures").set(count as f64);
        }
        note
    }

    /// What one witness gives; a failure is told in the server's log.
    async fn cosignature(
        &self,
        at: usize,
        witness: &Witness,
        note: &Note,
        checkpoint: &Checkpoint,
    ) -> Option<NoteSignature> {
        let told = |error: &(dyn std::error::Error + 'static)| {
            tracing::warn!(witness = %witness.key().name(), error, "a witness did not cosign the checkpoint");
        };
        let watch = &self.inner.watch;
        let mut old = watch.seen(at).min(checkpoint.size);
        // It may have seen another replica's checkpoint, or this server have forgotten what it saw: it says so, once.
        for _ in 0..2 {
            let proof = match self.consistency(old, checkpoint).await {
                Ok(proof) => proof,
                Err(error) => {
                    told(&error);
                    return None;
                }
            };
            match watch.http.add_checkpoint(witness, old, &proof, note).await {
                Ok(Answer::Cosigned(signature)) => {
                    watch.note_seen(at, checkpoint.size);
                    return Some(signature);
                }
                Ok(Answer::At { size }) if size <= checkpoint.size && size != old => old = size,
                Ok(Answer::At { size }) => {
                    watch.note_seen(at, size);
                    told(&WitnessError::Refused { status: 409, what: format!("it has seen {size} leaves") });
                    return None;
                }
                Err(error) => {
                    told(&error);
                    return None;
                }
            }
        }
        None
    }

    /// The proof that the tree under `checkpoint` goes on from that of the first `old` leaves, out of published tiles.
    async fn consistency(&self, old: u64, checkpoint: &Checkpoint) -> Result<Vec<NodeHash>> {
        let way = Consistency::new(old, checkpoint.size).map_err(super::proofs::internal)?;
        let mut reader = self.tile_reader(&way.nodes(), checkpoint).await?;
        reader.consistency(old).map_err(super::proofs::internal)
    }
}
