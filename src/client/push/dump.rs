//! The NAR of a path, straight from the file system, as Nix dumps it.
//!
//! Never follows a symbolic link, never holds more than one buffer and the names of the open directories, and never
//! passes over what no NAR can hold. That the bytes are the right ones is checked by whoever hashes them.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::nix::nar::encode;

/// Why there is no NAR.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no file, folder or symbolic link, and cannot be in a NAR", path.display())]
    Kind { path: PathBuf },
    #[error("{} changed while it was read", path.display())]
    Changed { path: PathBuf },
    #[error("{} lies deeper than {DEPTH_MAX} folders, which Nix refuses", path.display())]
    Depth { path: PathBuf },
    /// Whoever takes the bytes has given up.
    #[error("cannot pass the NAR on")]
    Sink(#[source] io::Error),
}

/// Deepest nesting, the root counting as 1: what Nix and the server take.
const DEPTH_MAX: usize = 64;

/// How many bytes are read and passed on at once: large enough that neither calls nor checks count.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes the NAR of the file, folder or link at `root` into `sink`.
pub fn dump(root: &Path, sink: &mut impl Write) -> Result<(), DumpError> {
    let metadata = fs::symlink_metadata(root).map_err(|source| unreadable(root, source))?;
    let mut dump = Dump { buffer: Vec::with_capacity(2 * BUFFER_BYTES), sink };
    encode::begin(&mut dump.buffer);
    dump.node(root, metadata.file_type(), 1)?;
    dump.flush()
}

struct Dump<'a, W> {
    buffer: Vec<u8>,
    sink: &'a mut W,
}

impl<W: Write> Dump<'_, W> {
    fn node(&mut self, path: &Path, kind: FileType, depth: usize) -> Result<(), DumpError> {
        if depth > DEPTH_MAX {
            return Err(DumpError::Depth { path: path.to_owned() });
        }
        if kind.is_file() {
            self.file(path)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| unreadable(path, source))?;
            encode::symlink(&mut self.buffer, target.as_os_str().as_bytes());
            Ok(())
        } else if kind.is_dir() {
            self.directory(path, depth)
        } else {
            Err(DumpError::Kind { path: path.to_owned() })
        }
    }

    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), DumpError> {
        encode::directory(&mut self.buffer);
        for (name, kind) in entries(path).map_err(|source| unreadable(path, source))? {
            encode::entry(&mut self.buffer, &name);
            self.node(&path.join(OsString::from_vec(name)), kind, depth + 1)?;
            encode::end_entry(&mut self.buffer);
            self.flush_if_full()?;
        }
        encode::end_directory(&mut self.buffer);
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<(), DumpError> {
        let unreadable = |source| unreadable(path, source);
        let mut file = open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(DumpError::Changed { path: path.to_owned() });
        }
        let size = metadata.len();
        encode::regular(&mut self.buffer, metadata.mode() & OWNER_MAY_EXECUTE != 0, size);
        let mut left = size;
        while left > 0 {
            let start = self.buffer.len();
            let wanted = left.min(BUFFER_BYTES as u64) as usize;
            self.buffer.resize(start + wanted, 0);
            let read = read_up_to(&mut file, &mut self.buffer[start..]).map_err(unreadable)?;
            if read < wanted {
                return Err(DumpError::Changed { path: path.to_owned() });
            }
            left -= wanted as u64;
            self.flush_if_full()?;
        }
        if read_up_to(&mut file, &mut [0]).map_err(unreadable)? > 0 {
            return Err(DumpError::Changed { path: path.to_owned() });
        }
        encode::end_regular(&mut self.buffer, size);
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), DumpError> {
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), DumpError> {
        self.sink.write_all(&self.buffer).map_err(DumpError::Sink)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Names and kinds of a folder's entries, sorted bytewise.
fn entries(path: &Path) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.push((entry.file_name().into_vec(), entry.file_type()?));
    }
    entries.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    Ok(entries)
}

fn open(path: &Path) -> io::Result<File> {
    // What was a file a moment ago must not lead out of the store now, nor wait for a writer.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Fills `buffer` as far as the file goes.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn unreadable(path: &Path, source: io::Error) -> DumpError {
    DumpError::Read { path: path.to_owned(), source }
}

/// The one bit of the mode that a NAR keeps.
const OWNER_MAY_EXECUTE: u32 = 0o100;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::nix::nar::build::Node;
    use crate::nix::nar::{Checker, NarLimits};

    fn nar(path: &Path) -> Result<Vec<u8>, DumpError> {
        let mut nar = Vec::new();
        dump(path, &mut nar).map(|()| nar)
    }

    /// A tree with every kind of node and with names that sort differently by bytes than by letters.
    fn lay_down(folder: &Path) -> Node {
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::create_dir(folder.join("empty")).unwrap();
        let large: Vec<u8> = (0..3 * BUFFER_BYTES + 5).map(|index| (index % 251) as u8).collect();
        let odd = OsString::from_vec(b"\xff\xfe odd\n".to_vec());
        for (name, contents) in [("Z", &b"upper"[..]), ("a", b"lower"), ("a.b", b""), ("large", &large)] {
            fs::write(folder.join(name), contents).unwrap();
        }
        fs::write(folder.join(&odd), "odd").unwrap();
        fs::write(folder.join("bin/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.join("bin/run"), fs::Permissions::from_mode(0o555)).unwrap();
        // Executable for others only is not executable.
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o455)).unwrap();
        symlink("bin/run", folder.join("link")).unwrap();
        symlink("/nowhere", folder.join("dangling")).unwrap();
        Node::directory([
            (b"Z".to_vec(), Node::file("upper")),
            (b"a".to_vec(), Node::file("lower")),
            (b"a.b".to_vec(), Node::file("")),
            (b"bin".to_vec(), Node::directory([("run", Node::executable("#!/bin/sh\n"))])),
            (b"dangling".to_vec(), Node::symlink("/nowhere")),
            (b"empty".to_vec(), Node::directory([] as [(&str, Node); 0])),
            (b"large".to_vec(), Node::file(large)),
            (b"link".to_vec(), Node::symlink("bin/run")),
            (odd.into_vec(), Node::file("odd")),
        ])
    }

    #[test]
    fn a_tree_is_dumped_as_the_format_says() {
        let folder = tempfile::tempdir().unwrap();
        let node = lay_down(&folder.path().join("tree"));

        let nar = nar(&folder.path().join("tree")).unwrap();

        assert!(nar == node.to_nar(), "{} bytes", nar.len());
        let mut checker = Checker::new(NarLimits::default());
        checker.push(&nar).unwrap();
        checker.finish().unwrap();
    }

    #[test]
    fn a_tree_is_dumped_as_nix_dumps_it() {
        let folder = tempfile::tempdir().unwrap();
        lay_down(&folder.path().join("tree"));
        symlink("elsewhere", folder.path().join("link")).unwrap();
        for name in ["tree", "tree/bin/run", "tree/a", "tree/empty", "link"] {
            let path = folder.path().join(name);
            let said = Command::new("nix-store").arg("--dump").arg(&path).stdin(Stdio::null()).output();
            let Ok(said) = said else { return println!("skipped: there is no Nix here") };
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));

            assert!(nar(&path).unwrap() == said.stdout, "{name}");
        }
    }

    #[test]
    fn what_no_nar_can_hold_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();

        let error = nar(folder.path()).unwrap_err();
        assert!(matches!(&error, DumpError::Kind { path } if *path == socket), "{error}");

        let error = nar(&folder.path().join("absent")).unwrap_err();
        assert!(matches!(error, DumpError::Read { .. }), "{error}");
    }

    #[test]
    fn folders_within_folders_have_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut deepest = folder.path().join("root");
        for _ in 1..DEPTH_MAX {
            deepest.push("d");
        }
        fs::create_dir_all(&deepest).unwrap();
        assert!(nar(&folder.path().join("root")).is_ok());

        fs::write(deepest.join("file"), "").unwrap();

        let error = nar(&folder.path().join("root")).unwrap_err();
        assert!(matches!(&error, DumpError::Depth { path } if *path == deepest.join("file")), "{error}");
    }

    /// Does something to a file once the first bytes have passed.
    struct Meddler<F: FnMut()>(F);

    impl<F: FnMut()> Write for Meddler<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            (self.0)();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_that_changes_its_size_underneath_is_refused() {
        for new_size in [0, 2 * BUFFER_BYTES as u64, 10 * BUFFER_BYTES as u64] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            fs::write(&path, vec![7; 4 * BUFFER_BYTES]).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();

            let error = dump(&path, &mut Meddler(|| file.set_len(new_size).unwrap())).unwrap_err();

            assert!(matches!(error, DumpError::Changed { .. }), "{new_size}: {error}");
        }
    }

    #[test]
    fn a_taker_that_gave_up_ends_the_dump() {
        struct Deaf;
        impl Write for Deaf {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();

        assert!(matches!(dump(folder.path(), &mut Deaf), Err(DumpError::Sink(_))));
    }
}
