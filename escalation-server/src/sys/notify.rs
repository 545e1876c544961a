//! Answers to the system calls of others, seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::socket::check;

/// A call that waits for its answer: `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Call {
    id: u64,
    /// The thread that calls, as this process sees it.
    pub(crate) thread: u32,
    flags: u32,
    /// `SYS_*`.
    pub(crate) number: i32,
    arch: u32,
    instruction: u64,
    pub(crate) arguments: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

// _IOWR('!', 0, struct seccomp_notif) and so on.
const RECEIVE: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
const RESPOND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
const IS_VALID: libc::Ioctl = 0x4008_2102;
const ADD_FD: libc::Ioctl = 0x4018_2103;
const SET_FLAGS: libc::Ioctl = 0x4008_2104;

/// Lets a caller and whoever answers it take turns on one processor (Linux 6.6): for a thread that does
/// nothing else. Without it all takes longer.
pub(crate) fn take_turns(listener: impl AsFd) {
    const SYNC_WAKE_UP: libc::c_ulong = 1; // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
    // SAFETY: the request takes a number.
    unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
}

/// The next call. Only after poll(2) has said that there is one; `ENOENT` if it is gone again.
pub(crate) fn receive(listener: impl AsFd) -> io::Result<Call> {
    let mut call = Call::default();
    // SAFETY: the structure is as the kernel's, zeroed as it wants, and lives through the call.
    check(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RECEIVE, &raw mut call) })?;
    Ok(call)
}

/// Lets the call return 0, or this errno.
pub(crate) fn respond(listener: impl AsFd, call: &Call, errno: libc::c_int) -> io::Result<()> {
    let response = Response { id: call.id, value: 0, error: -errno, flags: 0 };
    // SAFETY: the structure is laid out as `seccomp_notif_resp`, which the kernel only reads.
    check(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RESPOND, &raw const response) }).map(drop)
}

/// Lets the kernel carry the call out, as its thread has it by then: what was looked at may be something
/// else. Only where nothing depends on what an adversary makes of it.
pub(crate) fn proceed(listener: impl AsFd, call: &Call) -> io::Result<()> {
    const CONTINUE: u32 = 1; // SECCOMP_USER_NOTIF_FLAG_CONTINUE
    let response = Response { id: call.id, value: 0, error: 0, flags: CONTINUE };
    // SAFETY: the structure is laid out as `seccomp_notif_resp`, which the kernel only reads.
    check(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RESPOND, &raw const response) }).map(drop)
}

/// Lets the call return a new descriptor for this file, close-on-exec or not.
pub(crate) fn respond_with(
    listener: impl AsFd,
    call: &Call,
    file: impl AsFd,
    close_on_exec: bool,
) -> io::Result<()> {
    const SEND: u32 = 2; // SECCOMP_ADDFD_FLAG_SEND
    let source = file.as_fd().as_raw_fd().unsigned_abs();
    let target_flags = if close_on_exec { libc::O_CLOEXEC.unsigned_abs() } else { 0 };
    let add = AddFd { id: call.id, flags: SEND, source, target: 0, target_flags };
    // SAFETY: the structure is laid out as `seccomp_notif_addfd`, which the kernel only reads.
    check(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), ADD_FD, &raw const add) }).map(drop)
}

/// Whether the thread still waits: what was opened by its number before is its own then.
pub(crate) fn is_valid(listener: impl AsFd, call: &Call) -> bool {
    // SAFETY: the kernel reads one number.
    unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), IS_VALID, &raw const call.id) == 0 }
}
