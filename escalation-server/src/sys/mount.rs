//! Mounts (mount(2), mount_setattr(2)), for a mount namespace of one's own.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use super::socket::check;

const RECURSIVE: libc::c_uint = 0x8000; // AT_RECURSIVE
const RDONLY: u64 = 1; // MOUNT_ATTR_RDONLY
const NODEV: u64 = 4; // MOUNT_ATTR_NODEV

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is NULL or NUL-terminated.
    check(unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data).cast::<libc::c_void>(),
        )
    })
    .map(drop)
}

/// From here on no mount of this namespace is seen outside, nor one of the outside here.
pub(crate) fn make_private() -> io::Result<()> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Mounts a fresh filesystem.
pub(crate) fn fresh(kind: &CStr, target: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    mount(Some(kind), target, Some(kind), flags, Some(data))
}

/// The number of the mount that a path leads into, as proc_pid_mountinfo(5) has it (statx(2), Linux 5.8).
///
/// # Errors
/// As statx(2); `Unsupported` where the kernel does not tell.
pub(crate) fn id_at(path: &Path) -> io::Result<u64> {
    const STATX_MNT_ID: libc::c_uint = 0x1000;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is NUL-terminated and the buffer large enough.
    check(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, STATX_MNT_ID, found.as_mut_ptr()) })?;
    // SAFETY: it was zeroed, and all of its fields are numbers.
    let found = unsafe { found.assume_init() };
    if found.stx_mask & STATX_MNT_ID == 0 {
        Err(io::ErrorKind::Unsupported.into())
    } else {
        Ok(found.stx_mnt_id)
    }
}

/// A detached copy of what is mounted at and below a handle (open_tree(2)).
pub(crate) fn copy(at: impl AsFd) -> io::Result<OwnedFd> {
    const CLONE: libc::c_uint = 1;
    let flags = CLONE | RECURSIVE | libc::AT_EMPTY_PATH as libc::c_uint | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, at.as_fd().as_raw_fd(), c"".as_ptr(), flags) };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Mounts a detached copy over what a handle names (move_mount(2)).
pub(crate) fn attach(copy: impl AsFd, at: impl AsFd) -> io::Result<()> {
    const BOTH_EMPTY: libc::c_uint = 0x04 | 0x40; // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    // SAFETY: empty paths name the descriptors.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            copy.as_fd().as_raw_fd(),
            c"".as_ptr(),
            at.as_fd().as_raw_fd(),
            c"".as_ptr(),
            BOTH_EMPTY,
        )
    };
    check(result as libc::c_int).map(drop)
}

/// [`set_read_only`] for a detached copy and everything below it.
pub(crate) fn set_read_only_copy(copy: impl AsFd, read_only: bool) -> io::Result<()> {
    let fd = copy.as_fd().as_raw_fd();
    let attr = MountAttr::read_only(read_only);
    let below = set_attr(fd, c"", &attr, RECURSIVE | libc::AT_EMPTY_PATH as libc::c_uint);
    match below {
        // Somewhere below lies a mount that was read-only before us, and stays so.
        Err(error) if !read_only && error.raw_os_error() == Some(libc::EPERM) => {
            set_attr(fd, c"", &attr, libc::AT_EMPTY_PATH as libc::c_uint)
        }
        other => other,
    }
}

/// Makes the first mount of a detached copy read-only, and none below it.
pub(crate) fn set_read_only_top(copy: impl AsFd) -> io::Result<()> {
    let attr = MountAttr::read_only(true);
    set_attr(copy.as_fd().as_raw_fd(), c"", &attr, libc::AT_EMPTY_PATH as libc::c_uint)
}

/// From here on device nodes in whatever is mounted are none, and cannot be opened.
pub(crate) fn refuse_devices() -> io::Result<()> {
    set_attr(libc::AT_FDCWD, c"/", &MountAttr { set: NODEV, ..MountAttr::default() }, RECURSIVE)
}

/// But for the one that a detached copy is of, unless it could not be opened before either.
pub(crate) fn allow_device(copy: impl AsFd) -> io::Result<()> {
    let attr = MountAttr { clear: NODEV, ..MountAttr::default() };
    match set_attr(copy.as_fd().as_raw_fd(), c"", &attr, libc::AT_EMPTY_PATH as libc::c_uint) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

/// Makes a mount, and with `below` everything under it, read-only or writable. Writable only where
/// this namespace itself made it read-only.
pub(crate) fn set_read_only(target: &CStr, read_only: bool, below: bool) -> io::Result<()> {
    set_attr(libc::AT_FDCWD, target, &MountAttr::read_only(read_only), if below { RECURSIVE } else { 0 })
}

impl MountAttr {
    fn read_only(so: bool) -> Self {
        let (set, clear) = if so { (RDONLY, 0) } else { (0, RDONLY) };
        Self { set, clear, ..Self::default() }
    }
}

fn set_attr(at: RawFd, path: &CStr, attr: &MountAttr, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated and the attribute as long as stated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(result as libc::c_int).map(drop)
}
