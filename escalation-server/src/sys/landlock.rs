//! Landlock (landlock(7)): three system calls and the rights of each ABI.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::socket::check;

/// Rights on files, `LANDLOCK_ACCESS_FS_*`.
pub(crate) mod fs {
    pub(crate) const EXECUTE: u64 = 1;
    pub(crate) const WRITE_FILE: u64 = 1 << 1;
    pub(crate) const READ_FILE: u64 = 1 << 2;
    pub(crate) const READ_DIR: u64 = 1 << 3;
    pub(crate) const TRUNCATE: u64 = 1 << 14;
    pub(crate) const IOCTL_DEV: u64 = 1 << 15;
    /// What has a meaning on a file that is no directory.
    pub(crate) const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
    pub(crate) const READ: u64 = EXECUTE | READ_FILE | READ_DIR;

    /// Every right that this ABI knows.
    pub(crate) const fn all(abi: u32) -> u64 {
        match abi {
            0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        }
    }
}

const NET_ALL: u64 = 0b11; // bind and connect, TCP
const SCOPE_ALL: u64 = 0b11; // abstract sockets and signals

/// The first ABI that scopes them.
pub(crate) const SCOPES: u32 = 6;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// The kernel's ABI; 0 where Landlock is not to be had.
pub(crate) fn abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the pointer is not read.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<RulesetAttr>(), 0usize, VERSION)
    };
    u32::try_from(abi).unwrap_or(0)
}

/// A ruleset that denies whatever `abi` knows of files, signals and abstract sockets outside the
/// sandbox, and of TCP if `network` is off, until rules allow it.
pub(crate) fn ruleset(abi: u32, network: bool) -> io::Result<OwnedFd> {
    let attr = RulesetAttr {
        handled_access_fs: fs::all(abi),
        handled_access_net: if abi >= 4 && !network { NET_ALL } else { 0 },
        scoped: if abi >= SCOPES { SCOPE_ALL } else { 0 },
    };
    // Older kernels want the structure as they know it.
    let size = match abi {
        0..=3 => 8,
        4 | 5 => 16,
        _ => size_of::<RulesetAttr>(),
    };
    // SAFETY: the attribute lives through the call and is at least `size` long.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0) };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Allows `access` on the file or below the directory that `at` is a handle on.
pub(crate) fn allow(ruleset: impl AsFd, at: impl AsFd, access: u64) -> io::Result<()> {
    const PATH_BENEATH: libc::c_int = 1;
    let attr = PathBeneathAttr { allowed_access: access, parent_fd: at.as_fd().as_raw_fd() };
    // SAFETY: the attribute lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_fd().as_raw_fd(),
            PATH_BENEATH,
            &raw const attr,
            0,
        )
    };
    check(result as libc::c_int).map(drop)
}

/// Restricts this thread for ever; `no_new_privs` must be set.
pub(crate) fn restrict(ruleset: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_fd().as_raw_fd(), 0) };
    check(result as libc::c_int).map(drop)
}
