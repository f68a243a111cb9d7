//! `Content-Encoding` of bodies that Nix may compress on the way: narinfos, listings and logs, since 2.32.

use std::io::{self, Read};

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::error::Refusal;
use crate::service::Error;

/// The body without its encoding, at most `max` bytes of it.
pub(super) async fn decoded(headers: &HeaderMap, body: Bytes, max: u64) -> Result<Vec<u8>, Refusal> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(body.into()) };
    let encoding = encoding.to_str().unwrap_or_default().to_ascii_lowercase();
    if !ACCEPTED.contains(&encoding.as_str()) {
        return Err(Refusal::content_encoding(ACCEPTED));
    }
    let decoded = tokio::task::spawn_blocking(move || decode(&encoding, &body, max));
    let decoded = decoded.await.map_err(|panic| Error::Internal(panic.into()))?;
    let decoded = decoded.map_err(|_| Refusal::damaged_encoding())?;
    if decoded.len() as u64 > max {
        return Err(Error::TooLarge { what: "the decoded body", max }.into());
    }
    Ok(decoded)
}

/// Decodes at most one byte more than `max`.
fn decode(encoding: &str, body: &[u8], max: u64) -> io::Result<Vec<u8>> {
    let reader: Box<dyn Read + '_> = match encoding {
        "gzip" | "x-gzip" => Box::new(flate2::read::MultiGzDecoder::new(body)),
        "deflate" => Box::new(flate2::read::ZlibDecoder::new(body)),
        "br" => Box::new(brotli::Decompressor::new(body, 4096)),
        "zstd" => {
            let mut decoder = zstd::Decoder::new(body)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        "xz" => {
            let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_MAX, xz2::stream::CONCATENATED)
                .map_err(io::Error::other)?;
            Box::new(xz2::read::XzDecoder::new_stream(body, stream))
        }
        "bzip2" => Box::new(bzip2::read::MultiBzDecoder::new(body)),
        _ => Box::new(body),
    };
    let mut decoded = Vec::new();
    reader.take(max + 1).read_to_end(&mut decoded)?;
    Ok(decoded)
}

/// Nix sends the names of its own compressions; `identity` says that there is none.
const ACCEPTED: &[&str] = &["gzip", "x-gzip", "deflate", "br", "zstd", "xz", "bzip2", "identity"];

/// 8 MiB: more than any of these bodies needs.
const WINDOW_LOG_MAX: u32 = 23;

/// The default level of xz needs 9 MiB to decode.
const XZ_MEMORY_MAX: u64 = 72 << 20;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_accepted_encoding_is_decoded() {
        let body = b"StorePath: /nix/store/x\n".repeat(50);
        let mut brotli_body = Vec::new();
        brotli::BrotliCompress(&mut &body[..], &mut brotli_body, &Default::default()).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&body).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&body).unwrap();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&body).unwrap();

        for (encoding, encoded) in [
            ("gzip", gzip(&body)),
            ("deflate", zlib.finish().unwrap()),
            ("br", brotli_body),
            ("zstd", zstd::encode_all(&body[..], 3).unwrap()),
            ("xz", xz.finish().unwrap()),
            ("bzip2", bzip2.finish().unwrap()),
            ("identity", body.clone()),
        ] {
            assert_eq!(decode(encoding, &encoded, 1 << 20).unwrap(), body, "{encoding}");
        }
    }

    #[test]
    fn decoding_stops_right_after_the_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);

        assert_eq!(decode("gzip", &bomb, 1000).unwrap().len(), 1001);
    }

    #[test]
    fn damaged_bodies_are_refused() {
        for encoding in ["gzip", "deflate", "br", "zstd", "xz", "bzip2"] {
            assert!(decode(encoding, b"this is none of them", 1000).is_err(), "{encoding}");
        }
    }
}
