//! System calls for code that runs in other people's processes: no heap, no locks, errno values as
//! errors. With `hook`, the only place of this crate that is unsafe.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::{self, MaybeUninit};
use core::ptr;

/// An errno value.
pub(crate) type Errno = c_int;

/// A descriptor that is closed with its owner.
#[derive(Debug)]
pub(crate) struct Fd(c_int);

impl Fd {
    pub(crate) fn raw(&self) -> c_int {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and used by nobody after this.
        unsafe { libc::close(self.0) };
    }
}

/// What fstat(2) tells of a descriptor's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) kind: u32,
}

pub(crate) fn errno() -> Errno {
    // SAFETY: the location is this thread's own and always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: Errno) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}

fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// open(2) with `O_PATH`: a handle on what a path names, without opening it.
pub(crate) fn open_path(path: &CStr, flags: c_int) -> Result<Fd, Errno> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC | flags) }).map(Fd)
}

pub(crate) fn identity(fd: c_int) -> Result<Identity, Errno> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the buffer is large enough; it is read only after success.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    Ok(Identity { dev: stat.st_dev, ino: stat.st_ino, kind: stat.st_mode & libc::S_IFMT })
}

/// Whether this process may execute the file; faccessat2(2) on the descriptor itself.
pub(crate) fn executable(fd: &Fd) -> Result<(), Errno> {
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; no pointer is written.
    let result = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            fd.raw(),
            c"".as_ptr(),
            libc::X_OK,
            libc::AT_EMPTY_PATH | libc::AT_EACCESS,
        )
    };
    match check(result as c_int) {
        // Before Linux 5.8 the kernel's answer to execve itself has to do.
        Err(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

pub(crate) fn seqpacket_pair() -> Result<(Fd, Fd), Errno> {
    let mut pair = [-1; 2];
    // SAFETY: the array holds two descriptors.
    check(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr())
    })?;
    Ok((Fd(pair[0]), Fd(pair[1])))
}

/// The context's request socket, for a process that has closed the inherited one. Inside a session
/// the server answers this call; anywhere else the kernel knows no such protocol.
pub(crate) fn request_socket() -> Result<Fd, Errno> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::socket(libc::AF_UNIX, kind, crate::wire::REQUEST_PROTOCOL) }).map(Fd)
}

/// `SO_PEERCRED` (unix(7)): pid and uid of who made the other end.
pub(crate) fn peer(fd: c_int) -> Result<(i32, u32), Errno> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the buffer is as long as stated.
    check(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast::<c_void>(),
            &raw mut length,
        )
    })?;
    Ok((cred.pid, cred.uid))
}

/// Sends one message with at most [`crate::wire::MAX_FDS`] descriptors; waits where the socket is
/// full, even if somebody who shares it made it non-blocking.
pub(crate) fn send(fd: c_int, data: &[u8], fds: &[c_int]) -> Result<(), Errno> {
    #[repr(C, align(8))]
    struct Control([u8; 1040]);
    let mut control = Control([0; 1040]);
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast::<c_void>(), iov_len: data.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        if fds.len() > crate::wire::MAX_FDS {
            return Err(libc::EINVAL);
        }
        let bytes = size_of_val(fds);
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute; 253 descriptors need 1032 bytes.
        let (space, length) = unsafe { (libc::CMSG_SPACE(bytes as u32), libc::CMSG_LEN(bytes as u32)) };
        message.msg_control = control.0.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = space as usize;
        // SAFETY: the control buffer has room for one header and `bytes` of data, as computed.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = length as usize;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes);
        }
    }
    loop {
        // SAFETY: the message points at live buffers of the stated lengths.
        let sent = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) };
        match check(sent as c_int) {
            Ok(_) => return Ok(()),
            Err(libc::EINTR) => {}
            Err(libc::EAGAIN) => wait(fd, libc::POLLOUT)?,
            Err(error) => return Err(error),
        }
    }
}

/// Sends nothing more: the other end sees the end, and may still answer (shutdown(2)).
pub(crate) fn finish(fd: &Fd) {
    // SAFETY: takes numbers.
    unsafe { libc::shutdown(fd.raw(), libc::SHUT_WR) };
}

/// Receives one message into `buffer`; 0 is the end. `wait` false gives `EAGAIN` if none is there.
pub(crate) fn receive(fd: c_int, buffer: &mut [u8], wait: bool) -> Result<usize, Errno> {
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    let (mut reset, mut ended) = (false, false);
    loop {
        // SAFETY: the buffer is as long as stated.
        let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast::<c_void>(), buffer.len(), flags) };
        match check(got as c_int) {
            // The kernel looks whether something came and then whether the other end was closed: where both happened
            // in between, it says so, and what came is still there.
            Ok(0) if !ended => ended = true,
            Ok(got) => return Ok(got as usize),
            Err(libc::EINTR) => {}
            // The peer closed without reading our last notice. Reported once, before what it had
            // sent; that is still there.
            Err(libc::ECONNRESET) if !reset => reset = true,
            Err(error) => return Err(error),
        }
    }
}

/// As [`receive`] with waiting, for a message that comes soon. At first the processor is given up only to who wants it:
/// whoever sleeps is woken late, and where another processor idles mostly there, with nothing of his in its caches.
pub(crate) fn receive_soon(fd: c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    // Nanoseconds: twice what an answer takes that needs nobody to be asked, and more than it takes to find that nobody
    // else wants the processor.
    const SOON: i64 = 200_000;
    const ALONE: i64 = 20_000;
    let began = monotonic();
    let mut last = began;
    loop {
        match receive(fd, buffer, false) {
            Err(libc::EAGAIN) => {}
            received => return received,
        }
        // SAFETY: takes nothing.
        unsafe { libc::sched_yield() };
        let now = monotonic();
        if now - began > SOON || now - last > ALONE {
            return receive(fd, buffer, true);
        }
        last = now;
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, clock_gettime(2).
fn monotonic() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live variable. It fails for no clock that there is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn wait(fd: c_int, events: i16) -> Result<(), Errno> {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one pollfd.
    match check(unsafe { libc::poll(&raw mut poll, 1, -1) }) {
        Err(libc::EINTR) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until one of two descriptors can be read; tells which.
pub(crate) fn wait_either(first: &Fd, second: &Fd) -> Result<(bool, bool), Errno> {
    let mut polls = [first, second].map(|fd| libc::pollfd { fd: fd.raw(), events: libc::POLLIN, revents: 0 });
    // SAFETY: two pollfds.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) }) {
        Err(libc::EINTR) => Ok((false, false)),
        Err(error) => Err(error),
        Ok(_) => Ok((polls[0].revents != 0, polls[1].revents != 0)),
    }
}

/// Anonymous memory of its own, given back when dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    start: *mut c_void,
    length: usize,
}

impl Memory {
    pub(crate) fn new(length: usize) -> Result<Self, Errno> {
        // SAFETY: a fresh private mapping touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if ptr::eq(start, libc::MAP_FAILED) { Err(errno()) } else { Ok(Self { start, length }) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `length` bytes, zeroed, and borrowed as long as the slice.
        unsafe { core::slice::from_raw_parts_mut(self.start.cast::<u8>(), self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; no slice of it outlives us.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// A memfd with this content and every seal: what the reader copies is what was written.
pub(crate) fn sealed_memfd(content: &[u8]) -> Result<Fd, Errno> {
    // SAFETY: the name is NUL-terminated.
    let fd = check(unsafe {
        libc::memfd_create(c"postern-request".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })
    .map(Fd)?;
    let mut rest = content;
    while !rest.is_empty() {
        // SAFETY: the slice is valid for its length.
        let wrote = unsafe { libc::write(fd.raw(), rest.as_ptr().cast::<c_void>(), rest.len()) };
        rest = match usize::try_from(wrote) {
            Ok(wrote) => rest.get(wrote..).unwrap_or_default(),
            Err(_) if errno() == libc::EINTR => continue,
            Err(_) => return Err(errno()),
        };
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an int.
    check(unsafe { libc::fcntl(fd.raw(), libc::F_ADD_SEALS, seals) })?;
    Ok(fd)
}

/// Calls `each` for every descriptor of this process, which has one thread, that an exec would keep.
///
/// Mostly their numbers are small, and each is tried until as many are found as there are. A list is read only where
/// that does not do: the kernel makes an entry for each descriptor in it, which whoever waits for this process takes
/// away before it goes on.
pub(crate) fn each_inherited(mut each: impl FnMut(c_int)) -> Result<(), Errno> {
    const TRIED: c_int = 256;
    let mut kept = [0u64; TRIED as usize / 64];
    let mut left = open_descriptors();
    for fd in 0..TRIED {
        if left == 0 {
            break;
        }
        let Some(inherited) = inherited(fd) else { continue };
        left -= 1;
        kept[fd as usize / 64] |= u64::from(inherited) << (fd % 64);
    }
    if left != 0 {
        return each_listed(each);
    }
    (0..TRIED).filter(|fd| kept[*fd as usize / 64] >> (fd % 64) & 1 == 1).for_each(&mut each);
    Ok(())
}

/// How many descriptors this process has: the size of proc_pid_fd(5), from Linux 6.2 on. More than there can be if
/// that is not known.
fn open_descriptors() -> u64 {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is NUL-terminated, the buffer large enough; it is read only after success.
    let known = unsafe {
        check(libc::stat(c"/proc/self/fd".as_ptr(), stat.as_mut_ptr())).map(|_| stat.assume_init().st_size)
    };
    known.ok().and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(u64::MAX)
}

/// As [`each_inherited`], by the list that the kernel makes.
fn each_listed(mut each: impl FnMut(c_int)) -> Result<(), Errno> {
    #[repr(C, align(8))]
    struct Entries([u8; 4096]);
    // SAFETY: the path is NUL-terminated.
    let directory = check(unsafe {
        libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
    })
    .map(Fd)?;
    let mut entries = Entries([0; 4096]);
    loop {
        // SAFETY: the buffer is as long as stated; getdents64(2) writes whole records into it.
        let got = unsafe {
            libc::syscall(libc::SYS_getdents64, directory.raw(), entries.0.as_mut_ptr(), entries.0.len())
        };
        let got = check(got as c_int)? as usize;
        if got == 0 {
            return Ok(());
        }
        let mut records = &entries.0[..got];
        // d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name
        while let Some(length) = records.get(16..18) {
            let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
            let name = records.get(19..length).unwrap_or_default();
            if let Some(fd) = decimal(name)
                && fd != directory.raw()
                && inherited(fd) == Some(true)
            {
                each(fd);
            }
            records = records.get(length.max(1)..).unwrap_or_default();
        }
    }
}

/// Whether an exec would keep a descriptor; none if there is none of this number.
fn inherited(fd: c_int) -> Option<bool> {
    // SAFETY: F_GETFD takes no argument.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    (flags >= 0).then_some(flags & libc::FD_CLOEXEC == 0)
}

fn decimal(name: &[u8]) -> Option<c_int> {
    let digits = name.split(|&byte| byte == 0).next()?;
    parse_decimal(digits)
}

/// A descriptor's number as it stands in a variable or a directory.
pub(crate) fn parse_decimal(digits: &[u8]) -> Option<c_int> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |value: c_int, &digit| {
        digit.is_ascii_digit().then(|| value * 10 + c_int::from(digit - b'0'))
    })
}

/// Every signal blocked; the mask that was is put back by [`Blocked::restore`].
#[derive(Debug)]
pub(crate) struct Blocked {
    before: libc::sigset_t,
    all: libc::sigset_t,
}

impl Blocked {
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: sigset_t is plain memory, filled before use.
        unsafe {
            let mut all = mem::zeroed();
            let mut before = mem::zeroed();
            libc::sigfillset(&raw mut all);
            check(libc::sigprocmask(libc::SIG_BLOCK, &raw const all, &raw mut before))?;
            Ok(Self { before, all })
        }
    }

    /// The mask that was, bit n-1 for signal n.
    pub(crate) fn before(&self) -> u64 {
        // SAFETY: any valid number may be asked for.
        let was = |signal: &c_int| unsafe { libc::sigismember(&raw const self.before, *signal) == 1 };
        (1..=64).filter(was).fold(0, |mask, signal| mask | 1 << (signal - 1))
    }

    pub(crate) fn restore(&self) {
        // SAFETY: a mask that sigprocmask itself gave.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }

    pub(crate) fn listen(&self) -> Result<Fd, Errno> {
        // SAFETY: a filled set.
        check(unsafe { libc::signalfd(-1, &raw const self.all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
            .map(Fd)
    }
}

/// A signal that came: number, whether the kernel itself sent it, the sender's pid (0 if outside).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    pub(crate) signal: c_int,
    pub(crate) by_kernel: bool,
    pub(crate) sender: u32,
}

pub(crate) fn next_signal(listener: &Fd) -> Option<Came> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is one signalfd_siginfo.
    let got = unsafe { libc::read(listener.raw(), info.as_mut_ptr().cast::<c_void>(), size) };
    if usize::try_from(got) != Ok(size) {
        return None;
    }
    // SAFETY: a whole record was read.
    let info = unsafe { info.assume_init() };
    Some(Came { signal: info.ssi_signo as c_int, by_kernel: info.ssi_code > 0, sender: info.ssi_pid })
}

/// Whether this process ignores a signal. One that is blocked waits to be read all the same.
pub(crate) fn ignores(signal: c_int) -> bool {
    // SAFETY: sigaction is plain memory, filled by the call if that succeeds.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The signals that this process ignores, bit n-1 for signal n.
pub(crate) fn ignored() -> u64 {
    (1..=64).filter(|signal| ignores(*signal)).fold(0, |mask, signal| mask | 1 << (signal - 1))
}

/// The umask of this process, which has one thread: to be read it is set, and set back.
pub(crate) fn umask() -> u32 {
    // SAFETY: takes and returns numbers.
    unsafe {
        let mask = libc::umask(0o777);
        libc::umask(mask);
        mask
    }
}

/// Lets `signal` have its default effect on this process; returns when it continues, if ever.
pub(crate) fn suffer(signal: c_int) {
    // SAFETY: plain system calls on this process; SIG_DFL is a valid disposition and the set is
    // initialised before use.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if !matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            // The command has left its core, if any; the waiter must not leave a second one.
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        }
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
        let mut only: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::kill(libc::getpid(), signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, ptr::null_mut());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const only, ptr::null_mut());
    }
}

/// _exit(2).
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: ends the process without running anything of its owner's.
    unsafe { libc::_exit(code) }
}

/// Writes as much as the descriptor takes; a message to people has no better recourse.
pub(crate) fn complain(parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: the slice is valid for its length.
        let wrote = unsafe { libc::write(2, part.as_ptr().cast::<c_void>(), part.len()) };
        if wrote < 0 {
            return;
        }
    }
}

/// execve(2). Returns its errno.
///
/// # Safety
/// `argv` and `envp` are NULL-terminated arrays of NUL-terminated strings.
pub(crate) unsafe fn execve(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    // SAFETY: the caller's promise.
    unsafe { libc::execve(path.as_ptr(), argv, envp) };
    errno()
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}
