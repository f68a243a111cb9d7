//! When to look at a store again: when its database was written, where the system tells, else every few seconds.
//!
//! Never says what is new: a wake-up too many costs a look, and one that is missed is made up for by the next.

use std::path::Path;
use std::time::Duration;

/// Waits for changes of a store.
pub struct Wake {
    #[cfg(target_os = "linux")]
    notify: Option<linux::Notify>,
}

impl Wake {
    /// Of the store whose database lies in `folder`. One that cannot be watched, or is not there, is polled.
    pub fn of(folder: &Path) -> Self {
        #[cfg(target_os = "linux")]
        return Self { notify: linux::Notify::on(folder).ok() };
        #[cfg(not(target_os = "linux"))]
        {
            let _ = folder;
            Self {}
        }
    }

    /// Whether the system tells of changes.
    pub fn is_told(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.notify.is_some();
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// Returns when something may have changed since the call before.
    pub async fn wait(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(notify) = &mut self.notify {
            let told = tokio::time::timeout(LOOK_AGAIN_AFTER, notify.written()).await;
            if let Ok(Err(_)) = told {
                self.notify = None;
            }
            return;
        }
        tokio::time::sleep(POLL_AFTER).await;
    }
}

/// How often a store is looked at that nobody tells of.
const POLL_AFTER: Duration = Duration::from_secs(5);

/// How long nothing is believed to have happened because nothing was told: file systems over a network do not tell.
#[cfg(target_os = "linux")]
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    /// Tells of writes to Nix's database.
    pub struct Notify {
        descriptor: AsyncFd<OwnedFd>,
    }

    impl Notify {
        pub fn on(folder: &Path) -> io::Result<Self> {
            let descriptor = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            add_watch(&descriptor, folder, WatchFlags::MODIFY | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
            #[expect(
                deprecated,
                reason = "unsound for types that change their descriptor; an `OwnedFd` keeps its own"
            )]
            let descriptor = AsyncFd::new(descriptor)?;
            Ok(Self { descriptor })
        }

        /// Returns at the next write of the database or its log, or of one since the call before.
        pub async fn written(&mut self) -> io::Result<()> {
            loop {
                let mut ready = self.descriptor.readable().await?;
                let read = ready.try_io(|descriptor| drain(descriptor.get_ref()));
                match read {
                    Ok(Ok(true)) => return Ok(()),
                    Ok(Err(error)) => return Err(error),
                    // Other files, or no event after all.
                    Ok(Ok(false)) | Err(_) => {}
                }
            }
        }
    }

    /// Reads all events that are there. Whether one of them is a write of the database; "would block" if there is none.
    fn drain(descriptor: &OwnedFd) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(descriptor, &mut buffer);
        let (mut any, mut written) = (false, false);
        loop {
            match reader.next() {
                Ok(event) => {
                    any = true;
                    // An overflow tells nothing, so something may have happened.
                    let overflow = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let name = event.file_name().map(|name| name.to_bytes());
                    written |= overflow || matches!(name, Some(b"db.sqlite" | b"db.sqlite-wal"));
                }
                Err(Errno::WOULDBLOCK) if any => return Ok(written),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
