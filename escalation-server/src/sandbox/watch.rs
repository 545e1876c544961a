//! Keeps what is covered covered. A mount goes away when somebody outside replaces or removes what
//! it covers; the kernel says so at `/proc/self/mountinfo` (proc_pid_mountinfo(5)). It goes along when
//! somebody moves that, or a directory above it, elsewhere; that shows in inotify(7) alone. The
//! sandbox's first process, which has the capabilities for it, covers what is there now.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::apply::cover;
use super::plan::{Mount, Plan};

/// The covers of one sandbox, seen from inside.
#[derive(Debug)]
pub(crate) struct Watch {
    mountinfo: File,
    /// None where there are too many of its kind: then it is looked now and then.
    moves: Option<Inotify>,
    covers: BTreeMap<PathBuf, Mount>,
    /// Since when a cover has been gone.
    gone: BTreeMap<PathBuf, Instant>,
    /// Those of them of which it was said that they cannot be covered.
    open: BTreeSet<PathBuf>,
}

/// Whether something changes in the mounts of a sandbox, or where they should be, as seen from
/// outside.
#[derive(Debug)]
pub(crate) struct Changes {
    mountinfo: File,
    covers: Vec<PathBuf>,
    /// What lies there: device and inode.
    found: RefCell<Vec<Option<(u64, u64)>>>,
}

impl Changes {
    /// In the sandbox of this first process, in which these paths are covered.
    pub(crate) fn of(init: i32, covers: Vec<PathBuf>) -> io::Result<Self> {
        let mountinfo = File::open(format!("/proc/{init}/mountinfo"))?;
        let found = RefCell::new(identities(&covers));
        Ok(Self { mountinfo, covers, found })
    }

    /// Since this was asked last, or since ever.
    pub(crate) fn any(&self) -> bool {
        let mut polls = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        let mounts = poll(&mut polls, PollTimeout::ZERO).map_or(true, |changed| changed > 0);
        let now = identities(&self.covers);
        self.found.replace(now.clone()) != now || mounts
    }
}

fn identities(paths: &[PathBuf]) -> Vec<Option<(u64, u64)>> {
    let identity = |path: &PathBuf| path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()));
    paths.iter().map(identity).collect()
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.mountinfo.as_raw_fd()
    }
}

/// What became of a cover that was gone.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is back. It may have been gone a little longer than it was missed.
    Restored { path: PathBuf, gap: Duration },
    /// What is there now cannot be covered; said once.
    Open { path: PathBuf, what: String },
}

impl Watch {
    /// Of a sandbox whose mounts were just made, by its first process.
    ///
    /// # Errors
    /// If the kernel does not tell of mounts.
    pub(crate) fn new(plan: &Plan) -> io::Result<Self> {
        let mut watch = Self {
            mountinfo: File::open("/proc/self/mountinfo")?,
            moves: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok(),
            covers: BTreeMap::new(),
            gone: BTreeMap::new(),
            open: BTreeSet::new(),
        };
        for mount in &plan.mounts {
            if let Mount::ReadOnly(path) | Mount::Mask(path, _) = mount {
                watch.covers.insert(path.clone(), mount.clone());
                watch.look_above(path);
            }
        }
        Ok(watch)
    }

    /// Makes one more path read-only, and keeps it so.
    ///
    /// # Errors
    /// If it cannot be covered now.
    pub(crate) fn cover(&mut self, path: &Path) -> Result<(), super::StepError> {
        let mount = Mount::ReadOnly(path.to_path_buf());
        cover(&mount)?;
        self.covers.insert(path.to_path_buf(), mount);
        self.look_above(path);
        Ok(())
    }

    /// Learns of what is moved out of the directories above a path.
    fn look_above(&mut self, path: &Path) {
        let Some(moves) = &self.moves else { return };
        for directory in path.ancestors().skip(1) {
            match moves.add_watch(directory, AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_ONLYDIR) {
                // What is not there moves nowhere.
                Ok(_) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
                Err(_) => {
                    self.moves = None;
                    return;
                }
            }
        }
    }

    /// Told by the kernel: changes of mounts at the first, as an urgent event, moves at the other.
    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.mountinfo.as_fd(), self.moves.as_ref().map(AsFd::as_fd))
    }

    /// Whether something is not there to be covered, so that nobody tells when it is, or nobody tells
    /// of moves.
    pub(crate) fn waits(&self) -> bool {
        !self.gone.is_empty() || self.moves.is_none()
    }

    /// Covers again what is not covered any more, as far as it is there.
    ///
    /// # Errors
    /// If it cannot be seen what is covered.
    pub(crate) fn restore(&mut self) -> io::Result<Vec<Change>> {
        while self.moves.as_ref().is_some_and(|moves| moves.read_events().is_ok_and(|some| !some.is_empty()))
        {
        }
        let mounted = self.mounted()?;
        let now = Instant::now();
        let (mut changes, mut restored) = (Vec::new(), Vec::new());
        for (path, mount) in &self.covers {
            if mounted.contains(path) {
                continue;
            }
            let since = *self.gone.entry(path.clone()).or_insert(now);
            match cover(mount) {
                Ok(()) => {
                    self.gone.remove(path);
                    self.open.remove(path);
                    changes.push(Change::Restored { path: path.clone(), gap: since.elapsed() });
                    restored.push(path.clone());
                }
                Err(error) if error.error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    if self.open.insert(path.clone()) {
                        changes.push(Change::Open { path: path.clone(), what: error.to_string() });
                    }
                }
            }
        }
        // The directories above may be others now.
        for path in restored {
            self.look_above(&path);
        }
        Ok(changes)
    }

    /// Where something is mounted.
    fn mounted(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let mut text = Vec::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_end(&mut text)?;
        let lines = text.split(|&byte| byte == b'\n');
        Ok(lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(4)).map(unescaped).collect())
    }
}

/// A path as mountinfo writes it: blanks and backslashes in octal.
pub(super) fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn paths_come_back_as_they_are() {
        assert_eq!(unescaped(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescaped("/caf\u{e9}".as_bytes()).as_os_str().as_bytes(), "/caf\u{e9}".as_bytes());
    }
}
