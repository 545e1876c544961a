//! Processes: creating, identifying, signalling, confining, waiting.

use std::ffi::CStr;
use std::io::{self, Read};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::socket::check;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    Child,
    Parent(i32),
}

/// fork(2), for a process with one thread: another's locks would stay taken in the child for ever.
///
/// # Errors
/// If there is a second thread, besides what the kernel says.
pub(crate) fn fork() -> io::Result<Fork> {
    // unshare(2): with one thread it changes nothing, with more it fails. A filter may refuse the call.
    // SAFETY: no pointer is passed.
    let alone = match check(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Ok(_) => true,
        Err(_) => std::fs::read_dir("/proc/self/task")?.count() == 1,
    };
    if !alone {
        return Err(io::Error::other("a process with threads must not fork"));
    }
    // SAFETY: one thread.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// clone(2) with `CLONE_PARENT`: a sibling, whose stops and end our parent is told. Only for
/// a process with one thread.
pub(crate) fn fork_sibling() -> io::Result<Fork> {
    // Not clone3(2), which is absent under the sandbox's filters. The signal at its end is this process's own.
    const FLAGS: libc::c_long = libc::CLONE_PARENT as libc::c_long;
    // SAFETY: no stack is given, so this is a fork of a process with one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, FLAGS, 0, 0, 0, 0) };
    match check(pid as libc::c_int)? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// setns(2) with a pidfd: mount, PID and IPC namespaces, and user and network ones if the sandbox
/// has its own. PID takes effect for the next child.
pub(crate) fn enter_namespaces(init: impl AsFd, user: bool, net: bool) -> io::Result<()> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    flags |= if user { libc::CLONE_NEWUSER } else { 0 };
    flags |= if net { libc::CLONE_NEWNET } else { 0 };
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setns(init.as_fd().as_raw_fd(), flags) }).map(drop)
}

/// _exit(2).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; a forked child must not run its parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// kill(2), for signals that have a number only.
pub(crate) fn kill_by_number(pid: i32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A pidfd of a thread, whose table of descriptors may be its own (`PIDFD_THREAD`, Linux 6.9).
pub(crate) fn pidfd_open_thread(thread: i32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, thread, PIDFD_THREAD) };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: without siginfo no pointer is read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result as libc::c_int).map(drop)
}

/// `struct pidfd_info` (linux/pidfd.h), as far as Linux 6.13 had it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    creds: [u32; 8],
    exit_code: i32,
}

/// What the kernel tells of a pidfd's process, if it tells `wanted`.
fn pidfd_info(pidfd: impl AsFd, wanted: u64) -> Option<PidfdInfo> {
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b; // _IOWR(0xff, 11, 64 bytes)
    const { assert!(size_of::<PidfdInfo>() == 64) };
    let mut info = PidfdInfo { mask: wanted, ..PidfdInfo::default() };
    // SAFETY: the structure has the size that the request's number states.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & wanted != 0).then_some(info)
}

/// The wait status of a process that its parent has reaped, from its pidfd (Linux 6.15).
pub(crate) fn pidfd_exit_status(pidfd: impl AsFd) -> Option<i32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    pidfd_info(pidfd, PIDFD_INFO_EXIT).map(|info| info.exit_code)
}

/// Whether a process has ended, reaped or not: a pidfd can be read then (pidfd_open(2)). So it is taken for where
/// that cannot be seen.
pub(crate) fn pidfd_ended(pidfd: impl AsFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
}

/// The parent of a process, from its pidfd (Linux 6.13).
pub(crate) fn pidfd_parent(pidfd: impl AsFd) -> Option<i32> {
    const PIDFD_INFO_PID: u64 = 1;
    let parent = pidfd_info(pidfd, PIDFD_INFO_PID)?.ppid;
    i32::try_from(parent).ok().filter(|parent| *parent > 0)
}

/// What wait4(2) told of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Exited(i32),
    Signaled(i32),
    Stopped(i32),
    Continued,
}

/// Times and memory of a child that ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) user_us: u64,
    pub(crate) sys_us: u64,
    pub(crate) maxrss_kb: u64,
}

/// Takes a wait status apart.
pub(crate) fn change(status: i32) -> Option<Change> {
    if libc::WIFEXITED(status) {
        Some(Change::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Some(Change::Signaled(libc::WTERMSIG(status)))
    } else if libc::WIFSTOPPED(status) {
        Some(Change::Stopped(libc::WSTOPSIG(status)))
    } else if libc::WIFCONTINUED(status) {
        Some(Change::Continued)
    } else {
        None
    }
}

/// The file behind a descriptor of another process, pidfd_getfd(2); by ptrace(2)'s rules.
pub(crate) fn take_fd(pidfd: impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), number, 0) };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Copies memory of a thread's process, process_vm_readv(2), by ptrace(2)'s rules: as many bytes as
/// could be had, which are fewer where the pages end.
pub(crate) fn read_memory(thread: u32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: the kernel writes no more than the buffer's length to it; the other address is not ours, and
    // is not looked at here.
    let got =
        unsafe { libc::process_vm_readv(thread.cast_signed(), &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Waits for a child to end; none if there is no such child.
pub(crate) fn wait_for(child: i32) -> Option<Change> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live variable.
        match check(unsafe { libc::waitpid(child, &raw mut status, 0) }) {
            Ok(_) => return change(status),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// The next change of any child, without waiting; none if nothing changed. `ECHILD` without any.
pub(crate) fn wait_any(stops: bool) -> io::Result<Option<(i32, i32, Usage)>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let flags = libc::WNOHANG | if stops { libc::WUNTRACED | libc::WCONTINUED } else { 0 };
    // SAFETY: both pointers are to live variables.
    let pid = check(unsafe { libc::wait4(-1, &raw mut status, flags, usage.as_mut_ptr()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: filled by the kernel; zero bits are valid too.
    let usage = unsafe { usage.assume_init() };
    let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
    let usage = Usage {
        user_us: micros(usage.ru_utime),
        sys_us: micros(usage.ru_stime),
        maxrss_kb: usage.ru_maxrss as u64,
    };
    Ok(Some((pid, status, usage)))
}

/// Every limit of a process, prlimit(2).
pub(crate) type Limits = [libc::rlimit; 16]; // RLIM_NLIMITS of every Linux so far

pub(crate) fn limits(pid: i32) -> io::Result<Limits> {
    let mut limits = [libc::rlimit { rlim_cur: 0, rlim_max: 0 }; 16];
    for (resource, limit) in limits.iter_mut().enumerate() {
        // SAFETY: the old value goes to a live variable; no new one is given.
        check(unsafe {
            libc::prlimit(pid, resource as libc::__rlimit_resource_t, ptr::null(), &raw mut *limit)
        })?;
    }
    Ok(limits)
}

pub(crate) fn set_limit(resource: libc::__rlimit_resource_t, limit: libc::rlimit) -> io::Result<()> {
    // SAFETY: the value lives through the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Raises the soft limit of open files to the hard one; returns what it was.
pub(crate) fn raise_open_files() -> io::Result<libc::rlimit> {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live variable.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) })?;
    set_limit(libc::RLIMIT_NOFILE, libc::rlimit { rlim_cur: before.rlim_max, ..before })?;
    Ok(before)
}

/// The nice value of a process, getpriority(2).
pub(crate) fn nice(pid: i32) -> i32 {
    // SAFETY: no pointers; -1 is a legal answer, and a stale one does no harm.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, pid as libc::id_t) }
}

/// How the kernel schedules a process, 0 for this one: sched_getattr(2), sched_getaffinity(2) and
/// ioprio_get(2) as bytes, to be compared.
pub(crate) fn scheduling(pid: i32) -> io::Result<Vec<u8>> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const ATTRIBUTES: usize = 56; // SCHED_ATTR_SIZE_VER1
    let mut bytes = vec![0u8; ATTRIBUTES];
    // SAFETY: the buffer is as long as stated.
    let (attributes, io) = unsafe {
        (
            libc::syscall(libc::SYS_sched_getattr, pid, bytes.as_mut_ptr(), ATTRIBUTES, 0),
            libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid),
        )
    };
    for result in [attributes, io] {
        check(result as libc::c_int)?;
    }
    bytes.extend(affinity(pid)?);
    bytes.extend(io.to_le_bytes());
    Ok(bytes)
}

/// Bits of the processors that a mask has room for.
const PROCESSORS: usize = 1024;

/// The processors on which a process may run, 0 for this one, as a mask (sched_getaffinity(2)).
fn affinity(pid: i32) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; PROCESSORS / 8];
    // SAFETY: the buffer is as long as stated.
    let got = unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, mask.len(), mask.as_mut_ptr()) };
    check(got as libc::c_int)?;
    Ok(mask)
}

fn set_affinity(pid: i32, mask: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer is as long as stated.
    let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, mask.len(), mask.as_ptr()) };
    check(set as libc::c_int).map(drop)
}

/// Keeps another process off the processor that this one is on. Returned is where this one may run, for the other
/// to go back to by [`run_on`]; none where there is no other processor, and nothing was changed.
///
/// # Errors
/// As sched_setaffinity(2): nothing was changed then either.
pub(crate) fn keep_off(pid: i32) -> io::Result<Option<Vec<u8>>> {
    let allowed = affinity(0)?;
    let mut others = allowed.clone();
    // SAFETY: takes nothing.
    let here = check(unsafe { libc::sched_getcpu() })?.unsigned_abs() as usize;
    if let Some(byte) = others.get_mut(here / 8) {
        *byte &= !(1 << (here % 8));
    }
    if others.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    set_affinity(pid, &others)?;
    Ok(Some(allowed))
}

/// Lets this process run on these processors, as [`keep_off`] returned them.
///
/// # Errors
/// As sched_setaffinity(2).
pub(crate) fn run_on(processors: &[u8]) -> io::Result<()> {
    // What is asked for here the kernel remembers, and never gives more, also where the cpuset does later
    // (cpuset(7)): so all, and only what was allowed where that is not all that is to be had.
    set_affinity(0, &[0xff; PROCESSORS / 8])?;
    if affinity(0)? == processors { Ok(()) } else { set_affinity(0, processors) }
}

/// Sets this process's nice value. Lowering it may be refused, which is no loss.
pub(crate) fn set_nice(value: i32) {
    // SAFETY: no pointers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) };
}

/// prctl(2) with one number.
fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take numbers only.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }).map(drop)
}

/// Orphaned descendants become this process's children.
pub(crate) fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// This process gets `signal` when its parent dies.
pub(crate) fn die_with_parent(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)
}

/// No process of the same user can look into this one, and it leaves no core.
pub(crate) fn hide_memory() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

pub(crate) fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// The name that `ps` shows of this process.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: a NUL-terminated string; longer than 15 bytes is cut.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Gives up what an exec could give of capabilities, and keeps those that this process has.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: no pointers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability as libc::c_ulong, 0, 0, 0) }) {
            // To drop one costs more than to look whether it is there.
            Ok(0) => continue,
            Ok(_) => {}
            // The first number that the kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // Without CAP_SETPCAP there is nothing that a bounding set could hand out under
            // no_new_privs.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives up every capability that this process has: ambient, permitted, effective, inheritable.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: version 3 reads a header and two times three words.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check(result as libc::c_int).map(drop)
}

/// One instruction of a classic BPF program (`struct sock_filter`).
pub(crate) type Instruction = seccompiler::sock_filter;

/// Installs a seccomp filter on this thread; `no_new_privs` must be set.
pub(crate) fn seccomp(program: &[Instruction]) -> io::Result<()> {
    install(program, 0).map(drop)
}

/// Installs a filter with `SECCOMP_RET_USER_NOTIF` in it: the result listens to what it asks about
/// (seccomp_unotify(2)). `EBUSY` where another filter of this thread has a listener.
pub(crate) fn seccomp_listener(program: &[Instruction]) -> io::Result<OwnedFd> {
    // A signal that is not deadly does not interrupt a call that is being answered.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd = install(program, flags)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn install(program: &[Instruction], flags: libc::c_ulong) -> io::Result<libc::c_int> {
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the program lives through the call; both structures are laid out as the kernel's.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result as libc::c_int)
}

/// The errno of a system call, 0 if it succeeds. A child that it makes ends at once.
///
/// For the tests of filters, in a process of its own: it may do anything to that.
#[cfg(test)]
pub(crate) fn attempt(number: libc::c_long, [a, b, c, d, e, f]: [u64; 6]) -> i32 {
    // SAFETY: callers pass no address that anything lies at, in a process that does nothing else.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if number == libc::SYS_clone && result == 0 {
        exit_now(0);
    }
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// What a process becomes: a file by descriptor, or a script, which the kernel wants by path.
#[derive(Debug)]
pub(crate) enum Image<'a> {
    File(BorrowedFd<'a>),
    Path(&'a CStr),
}

/// execveat(2) with strings that each have a NUL after them. Returns why it did not happen.
pub(crate) fn execute(image: &Image<'_>, argv: &[u8], env: &[u8]) -> io::Error {
    let pointers = |strings: &[u8]| {
        let each = strings.split_inclusive(|&byte| byte == 0);
        let each = each.map(|string| CStr::from_bytes_with_nul(string).map(CStr::as_ptr));
        each.chain([Ok(ptr::null())]).collect::<Result<Vec<_>, _>>()
    };
    let (Ok(argv), Ok(env)) = (pointers(argv), pointers(env)) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let (fd, path, flags) = match image {
        Image::File(fd) => (fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH),
        Image::Path(path) => (libc::AT_FDCWD, path.as_ptr(), 0),
    };
    // SAFETY: both arrays are NULL-terminated and point into live slices, at strings that end in them.
    unsafe { libc::syscall(libc::SYS_execveat, fd, path, argv.as_ptr(), env.as_ptr(), flags) };
    io::Error::last_os_error()
}

/// Gives every signal its default disposition. What cannot be changed (KILL, STOP, the C library's
/// own) stays.
pub(crate) fn default_signals() {
    (1..=64).for_each(default_signal);
}

/// The same for one.
pub(crate) fn default_signal(signal: i32) {
    dispose(signal, libc::SIG_DFL);
}

/// Ignores a signal.
pub(crate) fn ignore_signal(signal: i32) {
    dispose(signal, libc::SIG_IGN);
}

/// Ignores and blocks these signals, bit n-1 for signal n, and no others; of a process whose
/// dispositions are the default ones.
pub(crate) fn set_signals(ignored: u64, blocked: u64) {
    let among = |set: u64| (1..=64).filter(move |signal| set & (1u64 << (signal - 1)) != 0);
    for signal in among(ignored) {
        dispose(signal, libc::SIG_IGN);
    }
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        for signal in among(blocked) {
            libc::sigaddset(&raw mut mask, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());
    }
}

/// Lets a program start with no signal blocked, whatever its starter blocks.
pub(crate) fn unblock_signals(command: &mut std::process::Command) {
    // SAFETY: the closure makes one system call, which is async-signal-safe, and allocates nothing.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, || {
            set_signals(0, 0);
            Ok(())
        });
    }
}

fn dispose(signal: i32, how: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN are valid dispositions; one that cannot be set fails without effect.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = how;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// `/proc/PID/status`, proc_pid_status(5), in one read.
pub(crate) fn status(pid: &str) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    // A file's own `read_to_string` would begin with small reads, for a size of which it knows nothing.
    let file = std::fs::File::open(format!("/proc/{pid}/status"))?;
    file.take(1 << 16).read_to_string(&mut text)?;
    Ok(text)
}

/// Blocks `signals` and makes them readable instead.
pub(crate) fn signals_as_messages(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        for &signal in signals {
            libc::sigaddset(&raw mut mask, signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const mask, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A signal that came by [`signals_as_messages`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    pub(crate) signal: i32,
    pub(crate) by_kernel: bool,
}

pub(crate) fn next_signal(listener: impl AsFd) -> Option<Came> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is one record.
    let got = unsafe { libc::read(listener.as_fd().as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if usize::try_from(got) != Ok(size) {
        return None;
    }
    // SAFETY: a whole record was read.
    let info = unsafe { info.assume_init() };
    Some(Came { signal: info.ssi_signo as i32, by_kernel: info.ssi_code > 0 })
}

/// Lets a signal have its default effect on this process.
pub(crate) fn suffer(signal: i32) {
    // SAFETY: plain system calls on this process; the set is initialised before use.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
        let mut only: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::kill(libc::getpid(), signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, ptr::null_mut());
    }
}

/// dup2(2) onto a number, kept across an exec.
pub(crate) fn place(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    if fd == number {
        // SAFETY: F_SETFD takes an int.
        return check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: whatever was at `number` is closed; callers place only where nothing of theirs is.
    check(unsafe { libc::dup2(fd, number) }).map(drop)
}

/// Opens `/dev/null` on those of the numbers 0 to 2 that are closed.
pub(crate) fn fill_standard() -> io::Result<()> {
    for number in 0..=2 {
        if open_flags(standard(number)).is_ok() {
            continue;
        }
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        // In order, each takes the lowest number that is free.
        if null.as_raw_fd() == number {
            mem::forget(null);
        } else {
            place(&null, number)?;
        }
    }
    Ok(())
}

/// A descriptor that this process was executed with, close-on-exec from now on.
///
/// # Errors
/// If there is none of this number.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an int.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: open, and whoever executed us opened it for this one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Moves a descriptor to the lowest free number that is at least `least`, close-on-exec.
pub(crate) fn move_up(fd: OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= least {
        return Ok(fd);
    }
    // SAFETY: F_DUPFD_CLOEXEC takes an int.
    let moved = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) })?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Closes every descriptor but those in `keep`.
pub(crate) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut from: libc::c_uint = 0;
    for fd in keep.into_iter().map(|fd| fd as libc::c_uint).chain([libc::c_uint::MAX]) {
        if fd > from {
            // SAFETY: nothing of this process uses those descriptors any more.
            let result = unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
            check(result as libc::c_int)?;
        }
        from = fd.saturating_add(1);
    }
    Ok(())
}

/// The status flags of an open file, `F_GETFL`.
pub(crate) fn open_flags(fd: impl AsFd) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// openat2(2) with `O_PATH`, following no symlink and no magic link: the path is the file's own.
pub(crate) fn open_exactly(path: &CStr) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const NO_MAGICLINKS: u64 = 2;
    const NO_SYMLINKS: u64 = 4;
    let how = OpenHow {
        flags: (libc::O_PATH | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: NO_MAGICLINKS | NO_SYMLINKS,
    };
    // SAFETY: the path is NUL-terminated, the structure as long as stated.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &raw const how, size_of::<OpenHow>())
    };
    check(fd as libc::c_int)?;
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes the foreground of the terminal on `fd` for a process group, without being stopped for it.
pub(crate) fn take_terminal(fd: impl AsFd, group: i32) -> io::Result<()> {
    // SAFETY: the set is initialised before use; SIGTTOU is blocked around the call (tcsetpgrp(3)).
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTTOU);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
        let result = check(libc::tcsetpgrp(fd.as_fd().as_raw_fd(), group)).map(drop);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        result
    }
}

/// A standard descriptor, borrowed. It may be closed, which shows when it is used.
pub(crate) fn standard(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: nothing of this process owns 0 to 2, and what uses the result copes with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}
