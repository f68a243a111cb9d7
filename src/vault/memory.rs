//! Where secrets lie: one locked page for each, left out of core dumps and of forked children, wiped when dropped.
//!
//! Never locks more than those pages: `mlockall` would make every buffer of every upload count (OpenBao's mistake).
//! With one call in `heap` the only `unsafe` code of the crate.

#![expect(unsafe_code, reason = "mapping, locking and unmapping pages are system calls on raw addresses")]

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, Rlimit};
use zeroize::Zeroize as _;

/// Size of every secret of the vault: ROOT, a KEK, a seed, a slot key.
pub const SECRET_BYTES: usize = 32;

/// Makes this process unreadable to its own user's debuggers and core dumps. To be called before the first secret
/// is read; what it sets holds for the life of the process.
pub fn harden_process() -> Result<(), HardenError> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| HardenError::CoreLimit(error.into()))?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| HardenError::Dumpable(error.into()))?;
    Ok(())
}

/// Whether the system has refused to lock a page so far, which `narvault check` reports: such pages may be swapped.
pub fn lock_was_refused() -> bool {
    LOCK_REFUSED.load(Ordering::Relaxed)
}

/// 32 secret bytes in a page of their own.
///
/// A page each, so that unlocking one never unlocks a neighbour. Linux' usual limit of 8 MiB locked memory then
/// holds 2048 of them; past the limit the page is used unlocked, and a warning is logged once.
pub struct LockedBytes {
    page: NonNull<[u8; SECRET_BYTES]>,
    locked: bool,
}

impl LockedBytes {
    /// A new page that holds zeros, to be written through [`LockedBytes::expose_mut`].
    pub fn zeroed() -> Result<Self, MemoryError> {
        let bytes = Self::map(|page| {
            // SAFETY: the page was mapped by the caller and is not shared yet.
            unsafe { rustix::mm::mlock(page, SECRET_BYTES) }
        })?;
        if !bytes.locked && !LOCK_REFUSED.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the system refuses to lock memory: keys may reach swap space; raise RLIMIT_MEMLOCK (LimitMEMLOCK=)"
            );
        }
        Ok(bytes)
    }

    /// A new page with random content.
    pub fn random() -> Result<Self, MemoryError> {
        let mut bytes = Self::zeroed()?;
        super::random::fill(bytes.expose_mut());
        Ok(bytes)
    }

    /// A new page with a copy of `secret`; wiping the source is the caller's duty.
    pub fn copy_of(secret: &[u8; SECRET_BYTES]) -> Result<Self, MemoryError> {
        let mut bytes = Self::zeroed()?;
        bytes.expose_mut().copy_from_slice(secret);
        Ok(bytes)
    }

    /// Whether the system agreed to keep this page out of swap.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// The secret. Whoever copies it wipes the copy.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        // SAFETY: `page` points to a live mapping of at least 32 readable bytes until `drop`; every bit pattern is
        // a `[u8; 32]`, and the borrow of `self` keeps writers out.
        unsafe { self.page.as_ref() }
    }

    /// The secret, to be written.
    pub fn expose_mut(&mut self) -> &mut [u8; SECRET_BYTES] {
        // SAFETY: as in `expose`; the unique borrow of `self` is the only way to the page.
        unsafe { self.page.as_mut() }
    }

    fn map(lock: impl FnOnce(*mut c_void) -> rustix::io::Result<()>) -> Result<Self, MemoryError> {
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                SECRET_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(MemoryError)?;
        let page = NonNull::new(address.cast()).ok_or(MemoryError(rustix::io::Errno::NOMEM))?;

        // Best effort: a kernel built without one of these still runs, with the process not dumpable at all.
        #[cfg(target_os = "linux")]
        for advice in [rustix::mm::Advice::LinuxDontDump, rustix::mm::Advice::LinuxDontFork] {
            // SAFETY: the advice changes what dumps and children see of our own page, not what is in it.
            let _ = unsafe { rustix::mm::madvise(address, SECRET_BYTES, advice) };
        }
        let locked = lock(address).is_ok();
        Ok(Self { page, locked })
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        self.expose_mut().zeroize();
        // SAFETY: the mapping was made in `map` with this address and length, and nothing borrows it any more.
        // Unmapping unlocks. It can only fail for a bad address, and there is nobody to tell.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), SECRET_BYTES) };
    }
}

impl fmt::Debug for LockedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

// SAFETY: the page belongs to this value alone, like the content of a `Box`; nothing about it is tied to a thread.
unsafe impl Send for LockedBytes {}
// SAFETY: `&LockedBytes` only reads.
unsafe impl Sync for LockedBytes {}

/// The system has no page of memory left.
#[derive(Debug, thiserror::Error)]
#[error("the system has no page of memory left")]
pub struct MemoryError(#[source] rustix::io::Errno);

/// Which protection of the process could not be set.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    #[error("core dumps could not be switched off")]
    CoreLimit(#[source] std::io::Error),
    #[error("process could not be made undumpable")]
    Dumpable(#[source] std::io::Error),
}

static LOCK_REFUSED: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core() {
        harden_process().unwrap();

        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        #[cfg(target_os = "linux")]
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            rustix::process::DumpableBehavior::NotDumpable
        );
    }

    #[test]
    fn a_page_keeps_what_is_written_to_it() {
        let mut bytes = LockedBytes::zeroed().unwrap();
        assert_eq!(bytes.expose(), &[0; 32]);

        bytes.expose_mut().copy_from_slice(&[7; 32]);

        assert_eq!(bytes.expose(), &[7; 32]);
        assert_eq!(LockedBytes::copy_of(&[9; 32]).unwrap().expose(), &[9; 32]);
        assert_ne!(LockedBytes::random().unwrap().expose(), LockedBytes::random().unwrap().expose());
    }

    #[test]
    fn a_page_may_move_between_threads() {
        let bytes = LockedBytes::copy_of(&[3; 32]).unwrap();

        let first = std::thread::spawn(move || bytes.expose()[0]).join().unwrap();

        assert_eq!(first, 3);
    }

    #[test]
    fn a_refused_lock_leaves_a_usable_page() {
        let mut bytes = LockedBytes::map(|_| Err(rustix::io::Errno::NOMEM)).unwrap();

        bytes.expose_mut().copy_from_slice(&[1; 32]);

        assert!(!bytes.is_locked());
        assert_eq!(bytes.expose(), &[1; 32]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_page_is_left_out_of_dumps_and_children() {
        let bytes = LockedBytes::zeroed().unwrap();
        let address = bytes.expose().as_ptr() as usize;

        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();

        // Neighbouring mappings with equal flags are shown as one.
        let holds_page = |line: &str| {
            let (start, end) = line.split_once(' ').unwrap_or_default().0.split_once('-')?;
            let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
            range.contains(&address).then_some(())
        };
        let mut lines = maps.lines().skip_while(|line| holds_page(line).is_none());
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        for flag in ["dd", "dc"] {
            assert!(flags.split_whitespace().any(|found| found == flag), "{flag} not in {flags}");
        }
        assert_eq!(flags.split_whitespace().any(|found| found == "lo"), bytes.is_locked());
    }

    #[test]
    fn a_page_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", LockedBytes::copy_of(&[65; 32]).unwrap()), "[redacted]");
    }
}
