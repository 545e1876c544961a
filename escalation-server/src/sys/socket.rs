//! `AF_UNIX` sockets with descriptors (unix(7)), and memfds.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_shim::wire::MAX_FDS;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Who made the other end of a socket, from `SO_PEERCRED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// What came with a message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) fds: Vec<OwnedFd>,
    /// Who sent it, by the kernel's word: told on a socket of [`tell_senders`].
    pub(crate) sender: Option<i32>,
    /// The data or the descriptors did not all arrive.
    pub(crate) truncated: bool,
}

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A connected pair of `SOCK_SEQPACKET` sockets, close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the array holds two descriptors.
    check(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    })?;
    // SAFETY: both are fresh and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

#[repr(C, align(8))]
struct Control([u8; 1088]);

/// Sends one message. Never waits: whoever shares the socket may have filled it.
pub(crate) fn send(fd: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = Control([0; 1088]);
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        if fds.len() > MAX_FDS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let bytes = (fds.len() * size_of::<RawFd>()) as u32;
        // SAFETY: these only compute; 253 descriptors need 1032 bytes.
        let (space, length) = unsafe { (libc::CMSG_SPACE(bytes), libc::CMSG_LEN(bytes)) };
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = space as usize;
        // SAFETY: the control buffer has room for one header and its data, as computed.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = length as usize;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, fd) in fds.iter().enumerate() {
                ptr::write_unaligned(data.add(at), fd.as_raw_fd());
            }
        }
    }
    // SAFETY: the message points at live buffers of the stated lengths.
    let sent = unsafe {
        libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    check(sent as libc::c_int).map(drop)
}

/// Receives one message without waiting, as much of it as `buffer` has room for; nothing and no
/// descriptors is the end.
///
/// The room is not written before: after a fork each page of it would be a copy.
pub(crate) fn receive(fd: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<Message> {
    let first = receive_once(&fd, buffer)?;
    if !buffer.is_empty() || !first.fds.is_empty() {
        return Ok(first);
    }
    // The kernel looks whether something came and then whether the other end was closed: where both happened in
    // between, it says so, and what came is still there.
    receive_once(&fd, buffer).or_else(|_| {
        buffer.clear();
        Ok(first)
    })
}

fn receive_once(fd: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<Message> {
    buffer.clear();
    let mut control = Control([0; 1088]);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.capacity() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the message points at live buffers of the stated lengths.
    let got = unsafe {
        libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
    };
    let length = check(got as libc::c_int)? as usize;
    // SAFETY: the kernel has written that much, and no more than there is room for.
    unsafe { buffer.set_len(length) };
    let mut fds = Vec::new();
    let mut sender = None;
    // SAFETY: the kernel filled the control buffer up to msg_controllen; every descriptor in an
    // SCM_RIGHTS message is fresh and ours, and is taken exactly once; SCM_CREDENTIALS holds a ucred.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for at in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(at))));
                }
            }
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_CREDENTIALS {
                let credentials = libc::CMSG_DATA(header).cast::<libc::ucred>();
                sender = Some(ptr::read_unaligned(credentials).pid).filter(|pid| *pid > 0);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let truncated = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Message { fds, sender, truncated })
}

fn option<T>(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the buffer is as long as stated.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut length)
    })?;
    // SAFETY: callers ask only for integers, ucred and timeval, of which every bit pattern is valid.
    Ok(unsafe { value.assume_init() })
}

/// connect(2) to an address as the kernel wants it.
pub(crate) fn connect(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: the address is as long as stated; the kernel copies it.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// How long a send or a connect may take, `SO_SNDTIMEO` (socket(7)); zero is for ever.
pub(crate) fn send_timeout(fd: impl AsFd) -> io::Result<Duration> {
    let time: libc::timeval = option(fd.as_fd(), libc::SO_SNDTIMEO)?;
    Ok(Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs()))
}

/// Sets [`send_timeout`].
pub(crate) fn set_send_timeout(fd: impl AsFd, time: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(time.subsec_micros()),
    };
    let length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the value is as long as stated.
    check(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const time).cast(),
            length,
        )
    })
    .map(drop)
}

pub(crate) fn is_nonblocking(fd: impl AsFd) -> bool {
    super::process::open_flags(fd).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// `SO_DOMAIN`: `AF_*`.
pub(crate) fn domain(fd: impl AsFd) -> io::Result<libc::c_int> {
    option(fd.as_fd(), libc::SO_DOMAIN)
}

/// Whether this is a stream with a peer. (A TCP one could be given another by connect(2), which the
/// filters refuse where that would matter.)
pub(crate) fn is_connected_stream(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    let stream = option::<libc::c_int>(fd, libc::SO_TYPE)
        .is_ok_and(|kind| matches!(kind, libc::SOCK_STREAM | libc::SOCK_SEQPACKET));
    let mut length = 0;
    // SAFETY: of no address nothing is written; the kernel writes how long it would be.
    let peer = unsafe { libc::getpeername(fd.as_raw_fd(), ptr::null_mut(), &raw mut length) };
    stream && peer == 0
}

/// Whether this is a connected `AF_UNIX` `SOCK_SEQPACKET` socket.
pub(crate) fn is_seqpacket(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    domain(fd).ok() == Some(libc::AF_UNIX)
        && option::<libc::c_int>(fd, libc::SO_TYPE).ok() == Some(libc::SOCK_SEQPACKET)
}

/// Who made the other end.
pub(crate) fn peer(fd: impl AsFd) -> io::Result<Peer> {
    let cred: libc::ucred = option(fd.as_fd(), libc::SO_PEERCRED)?;
    Ok(Peer { pid: cred.pid, uid: cred.uid })
}

/// A pidfd of who made the other end, `SO_PEERPIDFD` (Linux 6.5): safe against reuse of its pid.
pub(crate) fn peer_pidfd(fd: impl AsFd) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let pidfd: RawFd = option(fd.as_fd(), SO_PEERPIDFD)?;
    // SAFETY: a fresh descriptor that is ours.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Whether from now on each message says which process sent it: `SO_PASSCRED`, unix(7). What sends while it is
/// told is given an address, which everybody sees.
pub(crate) fn tell_senders(fd: impl AsFd, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: the value is as long as stated.
    check(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// shutdown(2) for writing: the other end reads what was sent, then the end.
pub(crate) fn finish(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Whether nobody can send on the other end any more.
pub(crate) fn hung_up(fd: impl AsFd) -> bool {
    look(fd).is_none_or(|found| found.contains(PollFlags::POLLHUP))
}

/// Whether something can be read now.
pub(crate) fn readable(fd: impl AsFd) -> bool {
    look(fd).is_some_and(|found| found.contains(PollFlags::POLLIN))
}

/// Waits until something can be read; false once nobody can send on the other end any more.
pub(crate) fn wait_readable(fd: impl AsFd) -> bool {
    loop {
        let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        let found = match poll(&mut polls, PollTimeout::NONE) {
            Ok(_) => polls[0].revents(),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => None,
        };
        return found.is_some_and(|found| found.contains(PollFlags::POLLIN));
    }
}

fn look(fd: impl AsFd) -> Option<PollFlags> {
    let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polls, PollTimeout::ZERO).ok()?;
    polls[0].revents()
}

/// Lets the runtime say when something can be read from a descriptor.
pub(crate) fn watch<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    watch_for(fd, Interest::READABLE)
}

/// Lets the runtime say when a descriptor is ready for something.
pub(crate) fn watch_for<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: by `AsFd` it is open and the same as long as `T` lives, and the result owns `T`.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}

/// An empty memfd, close-on-exec, named for `/proc/PID/maps` and `comm`.
pub(crate) fn memfd(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated.
    let fd =
        check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a memfd immutable.
pub(crate) fn seal(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an int.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_ADD_SEALS, ALL_SEALS) }).map(drop)
}

/// Whether nobody can change the memfd any more. False for anything that is no memfd.
pub(crate) fn is_sealed(fd: impl AsFd) -> bool {
    // SAFETY: F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & ALL_SEALS == ALL_SEALS
}

const ALL_SEALS: libc::c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_end_is_not_taken_for_it() {
        let (there, here) = std::sync::mpsc::channel();
        let (to, from) = std::sync::mpsc::channel::<OwnedFd>();
        let sender = std::thread::spawn(move || {
            for end in from {
                there.send(()).unwrap();
                send(&end, b"last", &[]).unwrap();
            }
        });
        let mut buffer = Vec::with_capacity(16);
        for _ in 0..100_000 {
            let (ours, theirs) = pair().unwrap();
            to.send(theirs).unwrap();
            here.recv().unwrap();
            while receive(&ours, &mut buffer).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {}
            assert_eq!(buffer, b"last");
        }
        drop(to);
        sender.join().unwrap();
    }
}
