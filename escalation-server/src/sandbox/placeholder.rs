//! Stand-ins for protected names that do not exist and must not be created by what may write beside
//! them: a directory of agents' configuration would be believed by the next program that looks, and
//! git would take its hooks, its configuration or another directory's from there. Each means what
//! its absence means.
//!
//! Sessions share a stand-in: each holds a lease on it, a shared flock(2) on a file in the state
//! directory that names it, and the last one to let go takes it away. A lease that nobody holds is
//! what a crash has left, and is swept.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::closed::is_ours_to_write;
use crate::profile::packed;
use crate::sys::process;

/// Where the leases of a user's sessions are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leases(#[serde(with = "packed")] PathBuf);

/// A lease on a stand-in; the last one takes it away when dropped, if it is still that and empty.
#[derive(Debug)]
pub(crate) struct Placeholder {
    leases: Leases,
    path: PathBuf,
    file: PathBuf,
    /// None only while it is dropped.
    held: Option<Flock<File>>,
}

/// What a lease says.
struct Named {
    dev: u64,
    ino: u64,
    path: PathBuf,
}

impl Leases {
    /// Those in a state directory, which must exist.
    ///
    /// # Errors
    /// If its subdirectory cannot be made.
    pub(crate) fn within(state: &Path) -> io::Result<Self> {
        let directory = state.join("placeholders");
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self(directory)),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    /// Only one process at a time looks, makes or takes away, as long as it holds the result.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub(super) fn exclusively(&self) -> io::Result<Flock<File>> {
        let file = self.open(&self.0.join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
    }

    fn file_of(&self, path: &Path) -> PathBuf {
        let name = blake3::hash(path.as_os_str().as_bytes()).to_hex();
        self.0.join(format!("{}.lease", name.get(..32).unwrap_or_default()))
    }

    /// Whether what was found at a path is a stand-in.
    pub(super) fn stand_for(&self, path: &Path, found: &Metadata) -> bool {
        File::open(self.file_of(path)).and_then(|lease| read(&lease)).is_ok_and(|named| named.is(found))
    }

    /// Takes stand-ins away that nobody holds any more.
    pub(crate) fn sweep(&self) {
        let Ok(_alone) = self.exclusively() else { return };
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let file = entry.path();
            if file.extension().is_some_and(|extension| extension == REMOVED) {
                let _later = fs::remove_dir(&file);
            } else if file.extension().is_some_and(|extension| extension == "lease")
                && let Ok(lease) = self.open(&file)
                && let Ok(lease) = Flock::lock(lease, FlockArg::LockExclusiveNonblock)
            {
                take_away(&lease, &file);
            }
        }
    }
}

impl Placeholder {
    /// Puts stand-ins where nothing is, and joins the leases of those that are there. None where this
    /// user may not create anything: then nobody inside can, who has no more rights, unless by a mode that
    /// is its own to change.
    ///
    /// # Errors
    /// As for creating files; and if something else is there by now.
    pub(crate) fn place(leases: &Leases, paths: &[PathBuf]) -> io::Result<Vec<Self>> {
        let alone = leases.exclusively()?;
        let mut placed = Vec::new();
        for path in paths {
            match Self::place_one(leases, path) {
                Ok(one) => placed.extend(one),
                Err(error) => {
                    // Each of those that are taken away again waits for its turn.
                    drop(alone);
                    return Err(error);
                }
            }
        }
        Ok(placed)
    }

    /// The descriptor that holds the lease.
    pub(crate) fn fd(&self) -> Option<i32> {
        self.held.as_ref().map(|held| std::os::fd::AsRawFd::as_raw_fd(&**held))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn place_one(leases: &Leases, path: &Path) -> io::Result<Option<Self>> {
        let file = leases.file_of(path);
        let lease = leases.open(&file)?;
        let lease = Flock::lock(lease, FlockArg::LockSharedNonblock).map_err(|(_, error)| error)?;
        let joined = read(&lease).is_ok_and(|named| named.is_there());
        if !joined {
            if let Err(error) = make(path) {
                drop(fs::remove_file(&file));
                let at = path.display();
                return match error.raw_os_error() {
                    Some(libc::EACCES) if is_ours_to_write(path) => Err(io::Error::new(
                        error.kind(),
                        format!(
                            "{at}: {error}; a mode of your own forbids it: give yourself the \
                            right to write there (chmod u+wx), or let no profile write it"
                        ),
                    )),
                    Some(libc::EACCES | libc::EPERM | libc::EROFS) => Ok(None),
                    _ => Err(io::Error::new(error.kind(), format!("{at}: {error}"))),
                };
            }
            let metadata = path.symlink_metadata()?;
            let says =
                [format!("{} {} ", metadata.dev(), metadata.ino()).as_bytes(), path.as_os_str().as_bytes()]
                    .concat();
            // A new file is not cut: ext4 writes what was cut to disk as soon as it is closed, and
            // whoever removes it waits for that.
            if lease.metadata()?.len() > 0 {
                lease.set_len(0)?;
            }
            (&*lease).write_all(&says)?;
        }
        Ok(Some(Self { leases: leases.clone(), path: path.to_path_buf(), file, held: Some(lease) }))
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let (Ok(_alone), Some(held)) = (self.leases.exclusively(), self.held.take()) else { return };
        // Converting a shared lock lets go of it first, which is what happens next anyway.
        if held.relock(FlockArg::LockExclusiveNonblock).is_ok() {
            take_away(&held, &self.file);
        }
    }
}

fn read(lease: &File) -> io::Result<Named> {
    // Two numbers and a path: each of them is read whenever somebody looks what is protected.
    let mut says = vec![0; 2 * 21 + libc::PATH_MAX as usize];
    let length = lease.read_at(&mut says, 0)?;
    says.truncate(length);
    let mut fields = says.splitn(3, |&byte| byte == b' ');
    let mut number = || {
        let field = fields.next().and_then(|field| std::str::from_utf8(field).ok());
        field.and_then(|field| field.parse().ok()).ok_or(io::ErrorKind::InvalidData)
    };
    let (dev, ino) = (number()?, number()?);
    let path = fields.next().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Named { dev, ino, path: std::ffi::OsString::from_vec(path.to_vec()).into() })
}

impl Named {
    fn is_there(&self) -> bool {
        self.path.symlink_metadata().is_ok_and(|found| self.is(&found))
    }

    fn is(&self, found: &Metadata) -> bool {
        (found.dev(), found.ino()) == (self.dev, self.ino)
    }
}

/// What a file that stands for nothing says: a common git directory that is the directory itself.
const OWN_DIRECTORY: &[u8] = b".\n";

fn make(path: &Path) -> io::Result<()> {
    // Not through a link: the sandbox may have put one there.
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = process::open_exactly(&std::ffi::CString::new(parent.as_os_str().as_bytes())?)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let at = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&parent))).join(name);
    match name.to_str() {
        Some("commondir") => File::create_new(&at)?.write_all(OWN_DIRECTORY),
        Some("config" | "config.worktree") => File::create_new(&at).map(drop),
        _ => fs::create_dir(&at),
    }
}

/// Takes what a lease names out of the way, unless somebody has put something else there or into
/// it.
fn take_away(lease: &File, file: &Path) {
    if let Ok(named) = read(lease)
        && named.is_there()
        && let Ok(found) = named.path.symlink_metadata()
    {
        let _stays = if found.is_dir() {
            move_out(&named.path, &file.with_extension(REMOVED))
        } else if fs::read(&named.path).is_ok_and(|content| content.is_empty() || content == OWN_DIRECTORY) {
            fs::remove_file(&named.path)
        } else {
            Ok(())
        };
    }
    let _left = fs::remove_file(file);
}

/// Of a directory that was moved out and is still to be removed.
const REMOVED: &str = "removed";

/// Moves an empty directory away. Removing it would have to take the sandbox's mount off it first,
/// which is slow; somebody waits for this, and nobody for the sweep.
fn move_out(directory: &Path, to: &Path) -> io::Result<()> {
    let is_empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty(directory) {
        return Ok(());
    }
    if fs::rename(directory, to).is_err() {
        // Another filesystem.
        return fs::remove_dir(directory);
    }
    // Somebody outside may have put something into it just now.
    if is_empty(to) { Ok(()) } else { fs::rename(to, directory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands(leases: &Leases, path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|found| leases.stand_for(path, &found))
    }

    fn world() -> (tempfile::TempDir, Leases, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let leases = Leases::within(directory.path()).unwrap();
        let path = directory.path().join(".codex");
        (directory, leases, path)
    }

    #[test]
    fn the_last_one_takes_it_away() {
        let (_directory, leases, path) = world();
        let one = Placeholder::place(&leases, std::slice::from_ref(&path)).unwrap();
        let other = Placeholder::place(&leases, std::slice::from_ref(&path)).unwrap();
        assert!(path.is_dir() && stands(&leases, &path));
        drop(one);
        assert!(path.is_dir());
        drop(other);
        assert!(!path.exists() && !stands(&leases, &path));
    }

    #[test]
    fn what_somebody_filled_stays() {
        let (_directory, leases, path) = world();
        let one = Placeholder::place(&leases, std::slice::from_ref(&path)).unwrap();
        fs::write(path.join("config.toml"), "").unwrap();
        drop(one);
        assert!(path.join("config.toml").exists());
    }

    #[test]
    fn a_crash_is_swept_and_what_is_held_is_not() {
        let (_directory, leases, path) = world();
        let one = Placeholder::place(&leases, std::slice::from_ref(&path)).unwrap();
        leases.sweep();
        assert!(path.is_dir());
        for mut placeholder in one {
            // What a kill does: the lock goes, the stand-in stays.
            drop(placeholder.held.take());
        }
        assert!(path.is_dir());
        leases.sweep();
        assert!(!path.exists());
    }

    #[test]
    fn something_of_somebody_elses_is_an_error() {
        let (_directory, leases, path) = world();
        fs::create_dir(&path).unwrap();
        let other = path.with_file_name(".other");
        assert!(Placeholder::place(&leases, &[other.clone(), path.clone()]).is_err());
        assert!(!other.exists());
        assert!(!stands(&leases, &path) && path.is_dir());
    }
}
