//! Small files on their way, many in one request.
//!
//! Never larger than the wire allows, and never sends a file again that the server has accepted.

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use super::super::error::{Error, is_passing};
use super::super::http::Client;
use super::News;
use super::pack::{ALONE_BYTES_MIN, Packed, batch_bytes_max};
use super::plan::Index;
use super::retry::{Patience, Retry, Waits, persist};
use crate::api::{BATCH_FILES_MAX, NarFrame, NarsStored, Refused};

/// A file for a batch, and the paths whose NAR it is.
pub struct Small {
    pub group: Vec<Index>,
    pub packed: Packed,
    frame: Bytes,
}

impl Small {
    /// The bytes that it takes in a batch.
    pub fn size(&self) -> usize {
        self.frame.len() + self.bytes().len()
    }

    fn bytes(&self) -> &Bytes {
        self.packed.whole.as_ref().map_or(&NOTHING, |part| &part.bytes)
    }
}

/// Files that wait for a batch.
pub struct Gathered {
    files: Vec<Small>,
    size: usize,
    batch_bytes_max: usize,
}

impl Gathered {
    /// None yet, of a push whose parts have this size.
    pub fn new(part_size_bytes: usize) -> Self {
        Self { files: Vec::new(), size: 0, batch_bytes_max: batch_bytes_max(part_size_bytes) }
    }

    /// Adds the file of a NAR.
    pub fn push(&mut self, group: Vec<Index>, packed: Packed) {
        let frame = NarFrame { file: packed.stored.file.to_string(), size_bytes: packed.stored.file_size };
        let small = Small { group, packed, frame: frame.line() };
        self.size += small.size();
        self.files.push(small);
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a batch is worth sending though more may come.
    pub fn is_enough(&self) -> bool {
        self.size >= ENOUGH_BYTES || self.files.len() >= ENOUGH_FILES
    }

    /// The next batch: at most what the wire and the size of parts allow.
    pub fn take(&mut self) -> Vec<Small> {
        let (mut count, mut size) = (0, 0);
        for small in self.files.iter().take(BATCH_FILES_MAX) {
            if size + small.size() > self.batch_bytes_max {
                break;
            }
            size += small.size();
            count += 1;
        }
        self.size -= size;
        self.files.drain(..count).collect()
    }
}

/// Sends a batch. Gives for each file, in their order, why it was refused, or nothing if it is stored.
pub async fn send(
    client: &Client,
    cache: &str,
    files: &[Small],
    news: &UnboundedSender<News>,
) -> Result<Vec<Option<Refused>>, Error> {
    let mut outcomes: Vec<Option<Refused>> = vec![None; files.len()];
    let mut left: Vec<usize> = (0..files.len()).collect();
    let mut waits = Waits::new(Patience::LONG);
    loop {
        let body = body(left.iter().map(|&at| &files[at]));
        let post = || client.nars(cache, body.clone());
        let (NarsStored { results }, _) =
            persist(Patience::LONG, |retry| News::retry(news, retry), post).await?;
        if results.len() != left.len() {
            return Err(client.answer_of_another_form());
        }
        let mut again = Vec::new();
        for (at, result) in left.into_iter().zip(results) {
            match result.refused {
                None => {
                    outcomes[at] = None;
                    let _ = news.send(News::Sent(files[at].packed.stored.file_size));
                }
                Some(refused) => {
                    if is_passing(refused.status, &refused.kind) {
                        again.push(at);
                    }
                    outcomes[at] = Some(refused);
                }
            }
        }
        let passing = || again.iter().filter_map(|&at| outcomes[at].as_ref());
        let asked_seconds = passing().filter_map(|refused| refused.retry_after_seconds).max();
        let (Some(&first), Some(wait)) = (again.first(), waits.next(asked_seconds)) else {
            return Ok(outcomes);
        };
        let reason = outcomes[first].as_ref().map_or(String::new(), |refused| refused.detail.clone());
        News::retry(news, Retry { reason, wait });
        tokio::time::sleep(wait).await;
        left = again;
    }
}

/// The pieces of a batch: nothing is copied together.
fn body<'a>(files: impl Iterator<Item = &'a Small>) -> Vec<Bytes> {
    files.flat_map(|small| [small.frame.clone(), small.bytes().clone()]).collect()
}

/// A batch of this size keeps a connection busy; larger ones would leave the server idle at the beginning and the
/// client idle at the end.
const ENOUGH_BYTES: usize = ALONE_BYTES_MIN;

static NOTHING: Bytes = Bytes::new();

/// As many tiny files as make the time of a round trip worth while.
const ENOUGH_FILES: usize = 250;

#[cfg(test)]
mod tests {
    use super::super::pack::{PART_SIZE_BYTES, Part};
    use super::super::plan::Stored;
    use super::*;
    use crate::nix::compression::{Compression, NarFileName};
    use crate::nix::hash::{FileHash, Sha256Digest};

    fn gathered(sizes: &[usize]) -> Gathered {
        gathered_in(PART_SIZE_BYTES, sizes)
    }

    fn gathered_in(part_size_bytes: usize, sizes: &[usize]) -> Gathered {
        let mut gathered = Gathered::new(part_size_bytes);
        for (index, &size) in sizes.iter().enumerate() {
            let bytes = Bytes::from(vec![0; size]);
            let file = NarFileName {
                hash: FileHash(Sha256Digest::of(&index.to_le_bytes())),
                extension: Compression::Zstd.extension(),
            };
            let stored = Stored { file, compression: Compression::Zstd, file_size: size as u64 };
            gathered.push(vec![index], Packed { stored, whole: Some(Part::of(bytes)), parts: 0 });
        }
        gathered
    }

    #[test]
    fn no_batch_is_larger_than_the_wire_allows() {
        let mut gathered = gathered(&[10 << 20, 5 << 20, 5 << 20, 1]);

        let first = gathered.take();
        let second = gathered.take();

        let groups = |files: &[Small]| files.iter().map(|small| small.group[0]).collect::<Vec<_>>();
        assert_eq!((groups(&first), groups(&second)), (vec![0, 1], vec![2, 3]));
        assert!(gathered.is_empty() && gathered.size == 0);
    }

    #[test]
    fn no_batch_is_larger_than_a_part() {
        let mut gathered = gathered_in(5 << 20, &[4 << 20, 2 << 20, 2 << 20]);

        let sizes: Vec<usize> = (0..2).map(|_| gathered.take().iter().map(Small::size).sum()).collect();

        assert!(gathered.is_empty() && sizes.iter().all(|size| *size <= 5 << 20), "{sizes:?}");
        assert_eq!(gathered_in(64 << 20, &[9 << 20, 9 << 20]).take().len(), 1, "the wire allows no more");
    }

    #[test]
    fn no_batch_holds_more_files_than_the_wire_allows() {
        let mut gathered = gathered(&[1; BATCH_FILES_MAX + 1]);

        assert_eq!(gathered.take().len(), BATCH_FILES_MAX);
        assert_eq!(gathered.take().len(), 1);
    }

    #[test]
    fn a_batch_is_worth_sending_by_size_or_by_number() {
        assert!(!gathered(&[1; ENOUGH_FILES - 1]).is_enough());
        assert!(gathered(&[1; ENOUGH_FILES]).is_enough());
        assert!(gathered(&[ENOUGH_BYTES]).is_enough());
    }
}
