//! Keeps what is covered covered. A mount goes away when somebody outside replaces or removes what
//! it covers; the kernel says so at `/proc/self/mountinfo` (proc_pid_mountinfo(5)), and the
//! sandbox's first process, which has the capabilities for it, covers what is there now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::apply::cover;
use super::plan::{Mount, Plan};

/// The covers of one sandbox, seen from inside.
#[derive(Debug)]
pub(crate) struct Watch {
    mountinfo: File,
    covers: BTreeMap<PathBuf, Mount>,
    /// Since when a cover has been gone.
    gone: BTreeMap<PathBuf, Instant>,
    /// Those of them of which it was said that they cannot be covered.
    open: BTreeSet<PathBuf>,
}

/// Whether something changes in the mounts of a sandbox, as seen from outside.
#[derive(Debug)]
pub(crate) struct Changes(File);

impl Changes {
    /// In the sandbox of this first process.
    pub(crate) fn of(init: i32) -> io::Result<Self> {
        File::open(format!("/proc/{init}/mountinfo")).map(Self)
    }

    /// Since this was asked last, or since ever.
    pub(crate) fn any(&self) -> bool {
        let mut polls = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
        poll(&mut polls, PollTimeout::ZERO).is_ok_and(|changed| changed > 0)
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
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
            covers: BTreeMap::new(),
            gone: BTreeMap::new(),
            open: BTreeSet::new(),
        };
        for mount in &plan.mounts {
            if let Mount::ReadOnly(path) | Mount::Mask(path, _) = mount {
                watch.covers.insert(path.clone(), mount.clone());
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
        Ok(())
    }

    /// Whether something is not there to be covered, so that nobody tells when it is.
    pub(crate) fn waits(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Covers again what is not covered any more, as far as it is there.
    pub(crate) fn restore(&mut self) -> Vec<Change> {
        let Ok(mounted) = self.mounted() else { return Vec::new() };
        let now = Instant::now();
        let mut changes = Vec::new();
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
                }
                Err(error) if error.error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    if self.open.insert(path.clone()) {
                        changes.push(Change::Open { path: path.clone(), what: error.to_string() });
                    }
                }
            }
        }
        changes
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
fn unescaped(field: &[u8]) -> PathBuf {
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

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mountinfo.as_fd()
    }
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
