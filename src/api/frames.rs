//! Frames of a batch of NARs, as bytes: written by clients, read by servers piece by piece.
//!
//! Never holds more than one line beside what it was handed, and never believes a length that no batch has.

use bytes::{Buf as _, Bytes};

use super::push::{BATCH_FILES_MAX, BATCH_SIZE_BYTES_MAX, FRAME_LINE_BYTES_MAX, NarFrame};

/// Why a body is no batch of NARs. All that can be said of what follows is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("what stands before file {file} of the batch is not a line of JSON with `file` and `size_bytes`")]
    Line { file: usize },
    #[error("the line before file {file} of the batch is longer than {FRAME_LINE_BYTES_MAX} bytes")]
    LineTooLong { file: usize },
    #[error("the batch is larger than {BATCH_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the batch holds more than {BATCH_FILES_MAX} files")]
    TooMany,
    #[error("the batch ends within file {file} or the line before it")]
    Truncated { file: usize },
}

/// A piece of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A file begins; its bytes follow, and the next file is not before they are all there.
    File(NarFrame),
    /// Bytes of the file that began last, never empty.
    Data(Bytes),
}

/// Reads a batch as it arrives. After an error nothing more is read.
#[derive(Debug, Default)]
pub struct FrameReader {
    line: Vec<u8>,
    /// Files that began.
    files: usize,
    /// Bytes of the file that began last, still to come.
    left: u64,
    /// Bytes handed in, and how many of them are not read yet.
    size_bytes: u64,
    ready: Bytes,
}

impl FrameReader {
    /// Hands in the next bytes of the body: to be called when [`FrameReader::read`] found nothing more.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.ready.is_empty(), "read to the end first");
        self.size_bytes += bytes.len() as u64;
        self.ready = bytes;
    }

    /// The next piece of what was handed in; `None`: it needs more.
    pub fn read(&mut self) -> Result<Option<Piece>, FrameError> {
        if self.size_bytes > BATCH_SIZE_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        if self.ready.is_empty() {
            return Ok(None);
        }
        if self.left > 0 {
            let length =
                usize::try_from(self.left).map_or(self.ready.len(), |left| left.min(self.ready.len()));
            self.left -= length as u64;
            return Ok(Some(Piece::Data(self.ready.split_to(length))));
        }
        let room = FRAME_LINE_BYTES_MAX - self.line.len();
        let end = self.ready.iter().take(room).position(|byte| *byte == b'\n');
        let length = end.unwrap_or(self.ready.len().min(room));
        self.line.extend_from_slice(&self.ready[..length]);
        self.ready.advance(length);
        if end.is_none() {
            let too_long = self.line.len() == FRAME_LINE_BYTES_MAX;
            return if too_long { Err(FrameError::LineTooLong { file: self.files + 1 }) } else { Ok(None) };
        }
        self.ready.advance(1);
        self.begin_file().map(Some)
    }

    fn begin_file(&mut self) -> Result<Piece, FrameError> {
        if self.files == BATCH_FILES_MAX {
            return Err(FrameError::TooMany);
        }
        self.files += 1;
        let frame: NarFrame =
            serde_json::from_slice(&self.line).map_err(|_| FrameError::Line { file: self.files })?;
        self.line.clear();
        // Said before its bytes come, so that nobody has to make room for them.
        let read = self.size_bytes - self.ready.len() as u64;
        if frame.size_bytes > BATCH_SIZE_BYTES_MAX - read {
            return Err(FrameError::TooLarge);
        }
        self.left = frame.size_bytes;
        Ok(Piece::File(frame))
    }

    /// Whether the body may end here.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.left > 0 {
            Err(FrameError::Truncated { file: self.files })
        } else if !self.line.is_empty() || !self.ready.is_empty() {
            Err(FrameError::Truncated { file: self.files + 1 })
        } else {
            Ok(())
        }
    }
}

impl NarFrame {
    /// The line that stands before the file's bytes.
    pub fn line(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("a text and a number: declared beside");
        line.push(b'\n');
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (file, bytes) in files {
            let frame = NarFrame { file: file.clone(), size_bytes: bytes.len() as u64 };
            body.extend_from_slice(&frame.line());
            body.extend_from_slice(bytes);
        }
        body
    }

    /// The files of a body that comes in pieces of these sizes, over and over.
    fn read(body: &[u8], sizes: &[usize]) -> Result<Vec<(String, Vec<u8>)>, FrameError> {
        let (mut reader, mut files, mut rest) = (FrameReader::default(), Vec::new(), body);
        let mut sizes = sizes.iter().cycle();
        while !rest.is_empty() {
            let (bytes, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
            rest = after;
            reader.push(Bytes::copy_from_slice(bytes));
            while let Some(piece) = reader.read()? {
                match piece {
                    Piece::File(frame) => files.push((frame.file, Vec::new())),
                    Piece::Data(bytes) => {
                        assert!(!bytes.is_empty());
                        files.last_mut().unwrap().1.extend_from_slice(&bytes);
                    }
                }
                assert!(reader.line.len() <= FRAME_LINE_BYTES_MAX);
            }
        }
        reader.finish()?;
        Ok(files)
    }

    fn refused(body: impl AsRef<[u8]>, expected: FrameError) {
        for sizes in [&[1][..], &[7, 300], &[usize::MAX]] {
            let body = body.as_ref();
            assert_eq!(read(body, sizes), Err(expected), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn lines_that_are_no_frames_are_refused() {
        for line in [
            "",
            " ",
            "{}",
            "[]",
            "null",
            r#"{"file":"a"}"#,
            r#"{"size_bytes":1}"#,
            r#"{"file":"a","size_bytes":-1}"#,
            r#"{"file":"a","size_bytes":1.0}"#,
            r#"{"file":"a","size_bytes":"1"}"#,
            r#"{"file":1,"size_bytes":1}"#,
            r#"{"file":"a","size_bytes":18446744073709551616}"#,
            r#"{"file":"a","size_bytes":1,"more":1}"#,
            r#"{"file":"a","size_bytes":1,"size_bytes":1}"#,
            r#"{"file":"a","size_bytes":1}{"file":"a","size_bytes":1}"#,
            r#"{"file":"a","size_bytes":1"#,
        ] {
            refused(format!("{line}\nx"), FrameError::Line { file: 1 });
        }
        refused("{\"file\":\"a\",\"size_bytes\":1}\nxx\n", FrameError::Line { file: 2 });
    }

    #[test]
    fn a_line_has_an_end() {
        refused("x".repeat(FRAME_LINE_BYTES_MAX), FrameError::LineTooLong { file: 1 });
        refused(" ".repeat(1 << 20), FrameError::LineTooLong { file: 1 });
        let name = "n".repeat(FRAME_LINE_BYTES_MAX - r#"{"file":"","size_bytes":0}"#.len());
        let frame = NarFrame { file: name.clone(), size_bytes: 0 };
        assert_eq!(frame.line().len(), FRAME_LINE_BYTES_MAX + 1);
        refused(frame.line(), FrameError::LineTooLong { file: 1 });
        let frame = NarFrame { file: name[1..].to_owned(), size_bytes: 0 };
        assert!(read(&frame.line(), &[1]).is_ok());
    }

    #[test]
    fn a_batch_ends_with_its_last_file() {
        let whole = batch(&[("a".into(), b"12".to_vec()), ("b".into(), b"345".to_vec())]);
        for length in 1..whole.len() {
            let at = batch(&[("a".into(), b"12".to_vec())]).len();
            if length == at {
                assert!(read(&whole[..length], &[3]).is_ok());
                continue;
            }
            assert!(
                matches!(read(&whole[..length], &[3]), Err(FrameError::Truncated { .. })),
                "{length} of {}",
                whole.len()
            );
        }
        assert_eq!(read(b"", &[1]), Ok(vec![]));
    }

    #[test]
    fn a_size_that_no_batch_has_is_refused_before_its_bytes() {
        let line = |size_bytes| NarFrame { file: "a".into(), size_bytes }.line();
        refused(line(u64::MAX), FrameError::TooLarge);
        refused(line(BATCH_SIZE_BYTES_MAX), FrameError::TooLarge);
        let fits = BATCH_SIZE_BYTES_MAX - line(BATCH_SIZE_BYTES_MAX).len() as u64;
        assert_eq!(read(&line(fits), &[9]), Err(FrameError::Truncated { file: 1 }));
        let mut body = line(fits).to_vec();
        body.resize(BATCH_SIZE_BYTES_MAX as usize, 0);
        assert!(read(&body, &[1 << 16]).is_ok());
        body.push(b'{');
        assert_eq!(read(&body, &[1 << 16]), Err(FrameError::TooLarge));
    }

    #[test]
    fn a_batch_holds_so_many_files_and_no_more() {
        let line = NarFrame { file: String::new(), size_bytes: 0 }.line();
        let most = line.repeat(BATCH_FILES_MAX);
        assert_eq!(read(&most, &[1000]).unwrap().len(), BATCH_FILES_MAX);
        refused([most, line.to_vec()].concat(), FrameError::TooMany);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            files in prop::collection::vec(("[ -~]{0,60}", prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            sizes in prop::collection::vec(1usize..500, 1..10),
        ) {
            prop_assert_eq!(read(&batch(&files), &sizes), Ok(files));
        }

        #[test]
        fn no_bytes_panic_and_all_cuts_agree(body: Vec<u8>, near in "(\\{\"file\":\"[a-z]{0,3}\",\"size_bytes\":[0-9]{1,3}\\}\n?[a-z]{0,9}){0,5}") {
            for body in [body, near.into_bytes()] {
                prop_assert_eq!(read(&body, &[1]), read(&body, &[usize::MAX]));
            }
        }
    }
}
