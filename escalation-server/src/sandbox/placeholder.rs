//! Stand-ins for names of a git directory that do not exist yet and must not be created by a
//! command that may write beside them: git would take its hooks, its configuration or another
//! directory's from there. Each means to git what its absence means.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::profile::{Access, Resolved};
use crate::sys::process;

/// Something that was put where nothing was; taken away again when dropped, if it is still that.
#[derive(Debug)]
pub(crate) struct Placeholder {
    /// A handle on the directory, so that it is this one whatever its path comes to mean.
    directory: OwnedFd,
    name: String,
    identity: (u64, u64),
}

fn within(directory: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Puts stand-ins where a profile wants names of a git directory read-only that do not exist.
///
/// # Errors
/// As for creating files.
pub(crate) fn place(profile: &Resolved) -> io::Result<Vec<Placeholder>> {
    let mut placed = Vec::new();
    for (path, access) in &profile.entries {
        let Some(parent) = path.parent().filter(|parent| parent.ends_with(".git")) else { continue };
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if *access != Access::Read || profile.access(parent) != Some(Access::Write) {
            continue;
        }
        // Not through a link: the sandbox may have put one there.
        let Ok(directory) = process::open_exactly(&CString::new(parent.as_os_str().as_bytes())?) else {
            continue;
        };
        let at = within(&directory, name);
        if at.symlink_metadata().is_ok() || !within(&directory, ".").is_dir() {
            continue;
        }
        match name {
            // A common directory that is the directory itself.
            "commondir" => std::fs::File::create_new(&at)?.write_all(b".\n")?,
            "config" | "config.worktree" => drop(std::fs::File::create_new(&at)?),
            _ => std::fs::create_dir(&at)?,
        }
        let metadata = at.symlink_metadata()?;
        placed.push(Placeholder {
            directory,
            name: name.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        });
    }
    Ok(placed)
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let at = within(&self.directory, &self.name);
        let Ok(metadata) = at.symlink_metadata() else { return };
        if (metadata.dev(), metadata.ino()) != self.identity {
            return;
        }
        // A directory that somebody has filled meanwhile stays.
        let _stays = if metadata.is_dir() { std::fs::remove_dir(&at) } else { std::fs::remove_file(&at) };
    }
}
