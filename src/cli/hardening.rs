//! Keeping what a command reads from core dumps and debuggers.

use super::failure::Failure;
use crate::vault::memory::harden_process;

/// Keeps this process' memory from core dumps and debuggers, for as long as it lives. To be called before a secret is
/// read: by every command that opens the vault, and by whatever takes a secret from a file, from stdin or from a
/// terminal. Not by commands that start others for somebody, which would inherit it without need.
pub fn harden() -> Result<(), Failure> {
    harden_process().map_err(|error| Failure::caused("cannot keep secrets out of core dumps".into(), error))
}
