//! What the allocator keeps of memory that was given back.
//!
//! Beside the vault's locked pages the only unsafe code of the crate: one call into the C library.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "settings of the C library's allocator are one of its functions")
)]

/// From now on gives blocks of 256 KiB and more back to the system as soon as they are free.
///
/// By itself glibc raises that size to the largest such block that was ever freed, up to 32 MiB, and keeps what is
/// smaller in arenas, one for each thread. A program whose threads pass buffers of many sizes around then holds some 50 MiB
/// that it does not use (`docs/performance.md`). For the whole process and for ever; for programs that push, not for
/// the server, whose buffers are few and all alike. Where the C library is another one, nothing is done.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes two numbers, may be called at any time, and locks the allocator while it changes it. It
        // refuses by an answer of 0, which leaves everything as it was: nothing depends on it.
        let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_FROM_BYTES) };
    }
}

/// Above every block that is made often: pieces read from Nix are 128 KiB, the tables of a compressor that lives for one
/// NAR more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GIVEN_BACK_FROM_BYTES: libc::c_int = 256 * 1024;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own: the setting holds for all of it.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "no configuration: whether this is that process")]
    fn a_large_block_that_is_free_is_not_kept() {
        const BLOCK_BYTES: usize = 8 << 20;
        if std::env::var_os(INSIDE).is_none() {
            let test = "heap::tests::a_large_block_that_is_free_is_not_kept";
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--test-threads", "1"])
                .env(INSIDE, "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        give_large_blocks_back();
        // Were the threshold raised by the first, the next would come from an arena and stay there below the last one.
        drop(vec![1_u8; 2 * BLOCK_BYTES]);
        let before = resident_bytes();
        let large = vec![1_u8; BLOCK_BYTES];
        let above = vec![1_u8; 200 * 1024];
        assert!(resident_bytes() >= before + BLOCK_BYTES);

        drop(large);

        assert!(resident_bytes() < before + BLOCK_BYTES / 2);
        drop(above);
    }

    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }

    const INSIDE: &str = "NARVAULT_TEST_HEAP";
}
