//! The tokens of a NAR, appended to a buffer: whoever walks a tree calls these in its order.
//!
//! Never holds contents, and never checks a name, a target or an order: [`super::Checker`] judges.
//! Format: `nix:src/libutil/archive.cc`.

use super::MAGIC;

/// What stands before the root.
pub fn begin(nar: &mut Vec<u8>) {
    write_token(nar, MAGIC);
}

/// A regular file up to its contents, of which `size` bytes must follow, then [`end_regular`].
pub fn regular(nar: &mut Vec<u8>, executable: bool, size: u64) {
    write_tokens(nar, &[b"(", b"type", b"regular"]);
    if executable {
        write_tokens(nar, &[b"executable", b""]);
    }
    write_token(nar, b"contents");
    nar.extend_from_slice(&size.to_le_bytes());
}

/// What follows `size` bytes of contents.
pub fn end_regular(nar: &mut Vec<u8>, size: u64) {
    nar.extend_from_slice(&[0; 8][..super::padding_of(size)]);
    write_token(nar, b")");
}

/// A whole symbolic link.
pub fn symlink(nar: &mut Vec<u8>, target: &[u8]) {
    write_tokens(nar, &[b"(", b"type", b"symlink", b"target", target, b")"]);
}

/// A directory up to its entries: for each [`entry`], the node, [`end_entry`]; then [`end_directory`].
pub fn directory(nar: &mut Vec<u8>) {
    write_tokens(nar, &[b"(", b"type", b"directory"]);
}

/// What stands before the node of an entry. Entries come sorted bytewise by name.
pub fn entry(nar: &mut Vec<u8>, name: &[u8]) {
    write_tokens(nar, &[b"entry", b"(", b"name", name, b"node"]);
}

/// What follows the node of an entry.
pub fn end_entry(nar: &mut Vec<u8>) {
    write_token(nar, b")");
}

/// What follows the last entry.
pub fn end_directory(nar: &mut Vec<u8>) {
    write_token(nar, b")");
}

/// Appends one token: its length, its bytes, zeros up to a multiple of eight.
pub fn write_token(nar: &mut Vec<u8>, token: &[u8]) {
    nar.extend_from_slice(&(token.len() as u64).to_le_bytes());
    nar.extend_from_slice(token);
    nar.extend_from_slice(&[0; 8][..super::padding_of(token.len() as u64)]);
}

fn write_tokens(nar: &mut Vec<u8>, tokens: &[&[u8]]) {
    for token in tokens {
        write_token(nar, token);
    }
}
