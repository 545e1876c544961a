//! What this user may not see, and could: hostile code that runs as it can take a mode away from a directory of
//! its own, have somebody look, and put it back.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether what keeps this user from a path is a mode that it can change itself.
pub(super) fn is_ours_to_open(path: &Path) -> bool {
    let mut seen = path.ancestors().filter_map(|part| part.symlink_metadata().ok());
    seen.next().is_some_and(|found| found.uid() == nix::unistd::geteuid().as_raw())
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
