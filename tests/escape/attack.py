# Runs each attack of a list in a process of its own, and says what came of each: done, refused, or
# broken, which is neither. Attacks are written as if everything were theirs; what stops them is an
# error of a system call.
import array, ctypes, errno, fcntl, json, mmap, os, resource, select, shutil, signal, socket, stat, struct, subprocess, sys
import tempfile, termios, threading, time, traceback

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
# x86-64's.
NUMBERS = dict(
    adjtimex=159, clone=56, ptrace=101, syslog=103, pivot_root=155, chroot=161, mount=165, umount2=166, add_key=248,
    request_key=249, keyctl=250, linkat=265, unshare=272, setns=308, prlimit64=302, name_to_handle_at=303,
    open_by_handle_at=304, process_vm_readv=310, process_vm_writev=311, kcmp=312, renameat2=316, bpf=321,
    userfaultfd=323, pidfd_send_signal=424, io_uring_setup=425, io_uring_enter=426, io_uring_register=427,
    open_tree=428, move_mount=429, fsopen=430, fspick=433, pidfd_open=434, clone3=435, pidfd_getfd=438,
    mount_setattr=442, open_tree_attr=467, shmget=29, shmat=30, shmctl=31, semget=64, semop=65, semctl=66, msgget=68, msgsnd=69,
    msgrcv=70, mq_open=240, tgkill=234, rt_sigqueueinfo=129, perf_event_open=298, fanotify_init=300)
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
# What says that an attack was wrong in itself, and not that something stopped it.
MISTAKES = (errno.EEXIST, errno.EINVAL, errno.EFAULT, errno.EBADF, errno.ENOTTY, errno.E2BIG, errno.ENOEXEC)


def call(name, *arguments):
    number = NUMBERS[name] if isinstance(name, str) else name
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return need(result != -1, ctypes.get_errno()) and result


def need(condition, number=errno.EPERM):
    if not condition:
        raise OSError(number, os.strerror(number))
    return True


def mapped(change):
    """Where a user does not exist, nobody can become it, which is no mistake."""
    try:
        change()
    except OSError:
        need(False)


def followed(link, name):
    """link(2) of what a symbolic link leads to, which Python's own does not do everywhere."""
    AT_SYMLINK_FOLLOW = 0x400
    call('linkat', -100, link.encode(), -100, name.encode(), AT_SYMLINK_FOLLOW)


def own_namespaces(flags=0):
    """Leaves for namespaces where it has every capability, if it can."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(NEWUSER | flags) == 0:
        for name, text in [('setgroups', 'deny'), ('uid_map', f'0 {uid} 1'), ('gid_map', f'0 {gid} 1')]:
            open(f'/proc/self/{name}', 'w').write(text)


def child(code):
    """What a child process comes to, as an exit status or a negative signal."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            code()
            os._exit(0)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2 if error.errno in MISTAKES else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    while True:
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        # It lets itself be traced, and a signal has come.
        libc.ptrace(7, pid, 0, os.WSTOPSIG(status))  # PTRACE_CONT


if __name__ == '__main__':
    signal.alarm(55)
    order = json.load(open(sys.argv[1]))
    for name, code in order['attacks']:
        unique = os.urandom(4).hex()
        # A directory of the attack's own in the workspace, and a name outside that nobody has.
        own = tempfile.mkdtemp(prefix='own-', dir='.')
        names = dict(globals(), **order['given'], own=own, new=f"{order['given']['outside']}/new-{unique}")
        print(f'-- {name}', file=sys.stderr, flush=True)
        came = child(lambda: exec(code, names))
        print(name, {0: 'done', 1: 'refused', -signal.SIGSYS: 'refused'}.get(came, f'broken {came}'), sep='\t', flush=True)
        shutil.rmtree(own, ignore_errors=True)
