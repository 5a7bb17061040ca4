//! The control socket as a file (`spec: control` §1.2), where others may be at work in the same
//! directory.
//!
//! 1. The directory is locked while the path is looked at and taken, so that of two programs that
//!    start at once one finds the other.
//! 2. A socket that somebody listens on stays his; one that nobody listens on is removed.
//! 3. The socket has its mode before it has a name: it is set on the descriptor, and `bind` takes it
//!    from there. Bits that the umask took away are added afterwards, to the file that was made and
//!    to no other.
//! 4. At the end the path is removed only if it still names this socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::http::Listener;
use crate::error::{Error, ErrorKind, Result};

/// Connections that wait to be accepted. Whoever comes when they are as many is refused by the system, so
/// it is as large as systems allow; each is answered or shown out by `http`.
const BACKLOG: i32 = 4096;
/// Bits of `permissions` that count.
const MODE_MASK: u32 = 0o777;
/// Others than the owner may connect.
const OTHERS: u32 = 0o066;

/// A socket that is listened on.
#[derive(Debug)]
pub(super) struct ControlSocket {
    listener: UnixListener,
    /// Whether the file's mode lets anybody but the owner in.
    shared: bool,
    name: Name,
}

/// The path, for as long as it names the socket.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    /// Keeps the inode from being given to another file, which would then be taken for ours.
    file: OwnedFd,
}

impl ControlSocket {
    /// Makes the socket. Must be called inside the runtime.
    ///
    /// # Errors
    /// Somebody else's socket or file is there, or it cannot be made.
    pub(super) fn bind(path: &Path, permissions: u32) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("socket path required"));
        }
        let _lock = lock_directory(path)?;
        make_way(path)?;
        let mode = permissions & MODE_MASK;
        let listener = listen(path, mode)
            .map_err(|err| Error::io(format!("listen on unix socket: listen unix {}: bind", path.display()), err))?;
        let name = complete(path, mode).map_err(|err| Error::io("chmod socket", err.into()))?;
        let listener = UnixListener::from_std(StdListener::from(listener)).map_err(|err| Error::io("listen", err))?;
        Ok(Self { listener, shared: mode & OTHERS != 0, name })
    }

    /// The listener, and what removes its path.
    pub(super) fn split(self) -> (Owners, Name) {
        (Owners { listener: self.listener, shared: self.shared }, self.name)
    }
}

/// Holds others off who do the same. Whoever may not read the directory goes without.
fn lock_directory(path: &Path) -> Result<Option<OwnedFd>> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let Ok(dir) = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::new(ErrorKind::Busy, "another program is making a socket in the same directory")
                .at(path.display()))
        }
        _ => Ok(Some(dir)),
    }
}

/// Removes a socket that nobody listens on.
fn make_way(path: &Path) -> Result<()> {
    let stat = match rustix::fs::lstat(path) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(err) => return Err(Error::io("check socket path", err.into()).at(path.display())),
        Ok(stat) => stat,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Error::invalid(format!("socket path exists but is not a socket: {}", path.display())));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(Error::io("check socket path", err).at(path.display())),
        Ok(_) => {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("socket is in use by another process: {}", path.display()),
            )
            .hint("stop the other daemon, or give this one another socket.path"));
        }
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(err) => Err(Error::io("remove stale socket", err.into()).at(path.display())),
    }
}

fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    // A path that is too long is what `bind` would call an invalid argument.
    let address = SocketAddrUnix::new(path).map_err(|_| io::Error::from(rustix::io::Errno::INVAL))?;
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Adds what the umask took away, and remembers which file it is.
fn complete(path: &Path, mode: u32) -> rustix::io::Result<Name> {
    // Of the file itself, whatever the path comes to name.
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(rustix::io::Errno::EXIST);
    }
    if stat.st_mode & MODE_MASK != mode {
        // `fchmod` does not take such a descriptor, its name in `/proc` does.
        let by_descriptor = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        rustix::fs::chmodat(CWD, by_descriptor, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(Name { path: path.to_owned(), file })
}

impl Name {
    /// Whether the path still names the socket.
    fn holds(&self) -> bool {
        let same = |at_path: Stat, ours: Stat| (at_path.st_dev, at_path.st_ino) == (ours.st_dev, ours.st_ino);
        matches!((rustix::fs::lstat(&self.path), rustix::fs::fstat(&self.file)), (Ok(a), Ok(b)) if same(a, b))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if self.holds()
            && let Err(err) = rustix::fs::unlink(&self.path)
        {
            warn!(path = %self.path.display(), error = %io::Error::from(err), "cannot remove control socket");
        }
    }
}

/// Connections of those who may.
#[derive(Debug)]
pub(super) struct Owners {
    listener: UnixListener,
    shared: bool,
}

impl Listener for Owners {
    type Stream = UnixStream;

    /// The file's mode decides who gets here. If it lets only the owner in, so do we, whatever
    /// became of the file meanwhile.
    async fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?.uid();
        if self.shared || peer == 0 || peer == rustix::process::geteuid().as_raw() {
            return Ok(Some(stream));
        }
        warn!(system = "server", uid = peer, "refused a connection to the control socket from another user");
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        (dir, path)
    }

    fn refusal(path: &Path) -> String {
        ControlSocket::bind(path, 0o600).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn the_mode_is_what_was_asked_for_whatever_the_umask() {
        for mode in [0o600, 0o660, 0o666, 0o777, 0o130] {
            let (_dir, path) = scratch();
            let socket = ControlSocket::bind(&path, mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn a_live_socket_is_not_taken_and_a_dead_one_is_replaced() {
        let (_dir, path) = scratch();
        let first = ControlSocket::bind(&path, 0o600).unwrap();
        assert_eq!(refusal(&path), format!("socket is in use by another process: {}", path.display()));
        let (owners, name) = first.split();
        drop(owners);
        let second = ControlSocket::bind(&path, 0o600).unwrap();
        // The first one's end does not remove the second one's name.
        drop(name);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn links_and_files_are_left_alone() {
        let (dir, path) = scratch();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "x").unwrap();
        let before = std::fs::metadata(&victim).unwrap().permissions().mode();
        for target in ["victim", "nowhere"] {
            symlink(target, &path).unwrap();
            assert_eq!(refusal(&path), format!("socket path exists but is not a socket: {}", path.display()));
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(refusal(&victim), format!("socket path exists but is not a socket: {}", victim.display()));
        assert_eq!(std::fs::metadata(&victim).unwrap().permissions().mode(), before);
        assert_eq!(std::fs::read(&victim).unwrap(), b"x");
    }

    #[tokio::test]
    async fn what_cannot_be_is_said_as_litestream_says_it() {
        let (dir, _) = scratch();
        assert_eq!(refusal(Path::new("")), "socket path required");
        let long = dir.path().join("x".repeat(120));
        let want = format!("listen on unix socket: listen unix {}: bind: invalid argument", long.display());
        assert_eq!(refusal(&long), want);
        let nowhere = dir.path().join("no/s.sock");
        let want = format!("listen on unix socket: listen unix {}: bind: no such file or directory", nowhere.display());
        assert_eq!(refusal(&nowhere), want);
    }
}
