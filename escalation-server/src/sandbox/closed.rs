//! What this user may not see, and could: hostile code that runs as it can take a mode away from a directory of
//! its own, have somebody look, and put it back.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, faccessat, geteuid};

use crate::sys::process;

/// Whether what keeps, or has kept, this user from a path is a mode that it can change itself. By descriptors, so
/// that whose mode that is does not change while it is asked.
pub(super) fn is_ours_to_open(path: &Path) -> bool {
    for part in path.ancestors() {
        let opened = CString::new(part.as_os_str().as_bytes()).map(|part| process::open_exactly(&part));
        let Ok(Ok(reached)) = opened else { continue };
        let Ok(found) = fstat(&reached) else { return true };
        let directory = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        let tried = match part == path {
            // Nothing is there to be searched, only to be listed.
            true if directory => {
                openat(&reached, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                    .map(drop)
            }
            true => Ok(()),
            false => faccessat(&reached, "", AccessFlags::X_OK, AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS),
        };
        // What can be reached by now, and could not be before, somebody has opened.
        return tried != Err(Errno::EACCES) || found.st_uid == geteuid().as_raw();
    }
    false
}

/// Whether what keeps, or has kept, this user from making something at a path is a mode that it can change itself.
pub(super) fn is_ours_to_write(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return false };
    let opened = CString::new(parent.as_os_str().as_bytes()).map(|parent| process::open_exactly(&parent));
    let Ok(Ok(reached)) = opened else { return is_ours_to_open(parent) };
    let tried = faccessat(
        &reached,
        "",
        AccessFlags::W_OK | AccessFlags::X_OK,
        AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS,
    );
    tried != Err(Errno::EACCES) || fstat(&reached).is_ok_and(|found| found.st_uid == geteuid().as_raw())
}

/// Whether an error says that nothing is there, for this user: nothing is, or what is there no process of its
/// reaches.
pub(super) fn is_not_there(path: &Path, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => true,
        io::ErrorKind::PermissionDenied => !is_ours_to_open(path),
        _ => false,
    }
}

/// Whether this user reaches what lies in a directory that it cannot list, by its names.
pub(super) fn can_be_searched(directory: &Path) -> bool {
    nix::unistd::access(directory, AccessFlags::X_OK).is_ok()
}
