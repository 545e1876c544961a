//! System calls that no sandboxed process gets, and those that the server answers in the kernel's
//! place (seccomp_unotify(2)), as data with a reason each, compiled to BPF by `seccompiler`.
//! Everything else is allowed: the filesystem, signals and TCP are Landlock's.

use std::collections::BTreeMap;

use postern_shim::wire::REQUEST_PROTOCOL;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, sock_filter,
};
use serde::{Deserialize, Serialize};

/// When a call is refused.
enum When {
    Always,
    /// An argument has all these bits.
    Bits(u8, u64),
    /// An argument, under a mask, equals a value.
    Masked(u8, u64, u64),
    /// An argument is none of these, and another is this if given.
    Unlike(u8, &'static [u64]),
    /// An argument, which may be a pointer, is not zero.
    NotZero(u8),
    /// The first argument is this, and another is not that.
    IsUnlike(u64, u8, u64),
    /// The first argument is this, and another, under a mask, equals a value.
    IsMasked(u64, u8, u64, u64),
}

/// What becomes of connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Connecting {
    /// There is nothing to connect to.
    Refused,
    /// The server does it: it alone sees which address is meant.
    Served,
    /// No socket can be had whose address would matter.
    Allowed,
}

/// What its filters depend on in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Calls {
    pub(crate) network: bool,
    /// Whether it has any socket of `AF_UNIX` to connect.
    pub(crate) unix: bool,
    pub(crate) connecting: Connecting,
    /// Whether the server answers calls. Not inside another sandbox whose calls somebody answers
    /// already: the kernel gives a process one such.
    pub(crate) served: bool,
    /// Whether modes of files may be changed, and symbolic links made.
    pub(crate) modes: bool,
    /// Whether the server answers how files are found by their names. Its filter then comes last, right
    /// before the exec: whoever installs it asks as well.
    pub(crate) names: bool,
}

/// What else refuses a call to a process without privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// The kernel or Landlock: the entry is a second line.
    Kernel,
    /// The kernel, where a machine's settings say so.
    Settings,
}

struct Entry {
    call: libc::c_long,
    name: &'static str,
    when: When,
    why: &'static str,
    besides: Besides,
}

impl Entry {
    fn besides(self, besides: Besides) -> Self {
        Self { besides, ..self }
    }
}

/// An entry for a call by the name of its number in `libc`.
macro_rules! refuse {
    ($call:ident, $why:expr) => {
        refuse!($call, When::Always, $why)
    };
    ($call:ident, $when:expr, $why:expr) => {
        Entry {
            call: libc::$call,
            name: stringify!($call),
            when: $when,
            why: $why,
            besides: Besides::Nothing,
        }
    };
}

const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

const UNIX: u64 = libc::AF_UNIX as u64;
const REQUEST: u64 = REQUEST_PROTOCOL as u64;
const KIND: u64 = 0xf; // SOCK_TYPE_MASK
const NETLINK: u64 = libc::AF_NETLINK as u64;
// With the network on: TCP and UDP, and what getaddrinfo(3) asks the routing tables by.
const INET: u64 = libc::AF_INET as u64;
const INET6: u64 = libc::AF_INET6 as u64;

fn refused(calls: Calls) -> Vec<Entry> {
    let mut table = vec![
        refuse!(SYS_ptrace, "takes over other processes of the sandbox, waiters among them"),
        refuse!(SYS_process_vm_readv, "as ptrace"),
        refuse!(SYS_process_vm_writev, "as ptrace"),
        refuse!(SYS_pidfd_getfd, "as ptrace, for descriptors"),
        refuse!(SYS_kcmp, "tells kernel pointers apart"),
        refuse!(SYS_io_uring_setup, "its operations pass no filter").besides(Besides::Settings),
        refuse!(SYS_io_uring_enter, "its operations pass no filter").besides(Besides::Settings),
        refuse!(SYS_io_uring_register, "its operations pass no filter").besides(Besides::Settings),
        refuse!(SYS_userfaultfd, "holds the kernel in the middle of a copy").besides(Besides::Settings),
        refuse!(SYS_bpf, "kernel attack surface").besides(Besides::Settings),
        refuse!(SYS_perf_event_open, "kernel attack surface").besides(Besides::Settings),
        refuse!(SYS_add_key, "keyrings are shared by all processes of the user"),
        refuse!(SYS_request_key, "keyrings are shared by all processes of the user"),
        refuse!(SYS_keyctl, "keyrings are shared by all processes of the user"),
        refuse!(SYS_mount, "changes what paths mean"),
        refuse!(SYS_umount2, "uncovers what is masked"),
        refuse!(SYS_move_mount, "changes what paths mean").besides(Besides::Kernel),
        refuse!(SYS_open_tree, "changes what paths mean"),
        newer(OPEN_TREE_ATTR, "open_tree_attr", "changes what paths mean"),
        refuse!(SYS_fsopen, "changes what paths mean").besides(Besides::Kernel),
        refuse!(SYS_fsconfig, "changes what paths mean"),
        refuse!(SYS_fsmount, "changes what paths mean").besides(Besides::Kernel),
        refuse!(SYS_fspick, "changes what paths mean").besides(Besides::Kernel),
        refuse!(SYS_mount_setattr, "makes writable what is read-only"),
        refuse!(SYS_pivot_root, "changes what paths mean").besides(Besides::Kernel),
        refuse!(SYS_chroot, "changes what paths mean"),
        refuse!(SYS_setns, "leaves the sandbox's namespaces"),
        refuse!(SYS_open_by_handle_at, "opens files by number, past every path rule"),
        refuse!(SYS_kexec_load, "replaces the kernel"),
        refuse!(SYS_kexec_file_load, "replaces the kernel"),
        refuse!(SYS_init_module, "kernel code"),
        refuse!(SYS_finit_module, "kernel code"),
        refuse!(SYS_delete_module, "kernel code"),
        refuse!(SYS_settimeofday, "the machine's clock"),
        refuse!(SYS_clock_settime, "the machine's clock"),
        refuse!(SYS_clock_adjtime, "the machine's clock"),
        refuse!(SYS_adjtimex, "the machine's clock"),
        refuse!(SYS_reboot, "the machine").besides(Besides::Kernel),
        refuse!(SYS_swapon, "the machine"),
        refuse!(SYS_swapoff, "the machine").besides(Besides::Kernel),
        refuse!(SYS_acct, "the machine").besides(Besides::Kernel),
        refuse!(SYS_quotactl, "the machine"),
        refuse!(SYS_syslog, "the kernel's log").besides(Besides::Kernel),
        refuse!(SYS_sethostname, "the machine").besides(Besides::Kernel),
        refuse!(SYS_setdomainname, "the machine").besides(Besides::Kernel),
        refuse!(SYS_vhangup, "the operator's terminal").besides(Besides::Kernel),
        refuse!(SYS_fanotify_init, "watches or holds other processes' file accesses")
            .besides(Besides::Kernel),
        refuse!(
            SYS_prlimit64,
            When::NotZero(0),
            "limits of others, pid 1 among them; its own are a process's own"
        ),
        refuse!(
            SYS_setpriority,
            When::Unlike(0, &[libc::PRIO_PROCESS as u64]),
            "a group or a user has processes outside"
        ),
        // 1 is IOPRIO_WHO_PROCESS.
        refuse!(SYS_ioprio_set, When::Unlike(0, &[1]), "a group or a user has processes outside"),
        refuse!(SYS_ioctl, When::Masked(1, 0xffff_ffff, libc::TIOCSTI), "types into the terminal"),
        refuse!(SYS_ioctl, When::Masked(1, 0xffff_ffff, libc::TIOCLINUX), "pastes into the console"),
        refuse!(SYS_socketpair, When::Unlike(0, &[UNIX]), "no other family has any use"),
        refuse!(
            SYS_socketpair,
            When::Masked(1, KIND, libc::SOCK_DGRAM as u64),
            "can be aimed at another address later"
        ),
        refuse!(
            SYS_socketpair,
            When::Masked(1, KIND, libc::SOCK_RAW as u64),
            "a datagram socket under another name"
        ),
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([refuse!(SYS_iopl, "hardware"), refuse!(SYS_ioperm, "hardware")]);
    for flag in NAMESPACES {
        let (bits, why) = (flag as u64, "a namespace of one's own brings capabilities, and lifts masks");
        // With a user namespace come the others, which only privileges give.
        let besides = if flag == libc::CLONE_NEWUSER { Besides::Nothing } else { Besides::Kernel };
        table.push(refuse!(SYS_clone, When::Bits(0, bits), why).besides(besides));
        table.push(refuse!(SYS_unshare, When::Bits(0, bits), why).besides(besides));
    }
    table.extend(refused_sockets(calls));
    if !calls.modes {
        table.extend(refused_modes());
    }
    table
}

/// Whoever changes modes in a git directory can make git take another one for it, further up; and
/// what git writes there by name it would write wherever a link leads.
fn refused_modes() -> Vec<Entry> {
    const WHY: &str = "makes a git directory one that git does not know";
    const LINKS: &str = "leads what git writes in its directory elsewhere";
    let mut table = vec![
        refuse!(SYS_symlinkat, LINKS),
        refuse!(SYS_fchmod, WHY),
        refuse!(SYS_fchmodat, WHY),
        refuse!(SYS_fchmodat2, WHY),
        refuse!(SYS_setxattr, WHY),
        refuse!(SYS_lsetxattr, WHY),
        refuse!(SYS_fsetxattr, WHY),
        newer(SETXATTRAT, "setxattrat", WHY),
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([refuse!(SYS_chmod, WHY), refuse!(SYS_symlink, LINKS)]);
    table
}

// The same numbers on every architecture: of Linux 6.13, and of 6.15.
const SETXATTRAT: libc::c_long = 463;
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Refuses a call that the libc crate does not know.
fn newer(call: libc::c_long, name: &'static str, why: &'static str) -> Entry {
    Entry { call, name, when: When::Always, why, besides: Besides::Nothing }
}

fn refused_sockets(calls: Calls) -> Vec<Entry> {
    let mut table = Vec::new();
    // What the server answers has to pass.
    let families: &[u64] = match (calls.network, calls.served || calls.unix) {
        (false, false) => &[],
        (false, true) => &[UNIX],
        (true, false) => &[INET, INET6, NETLINK],
        (true, true) => &[INET, INET6, NETLINK, UNIX],
    };
    const OTHERS: &str = "other families reach daemons of the machine, its wires or its kernel";
    table.push(if families.is_empty() {
        refuse!(SYS_socket, OTHERS)
    } else {
        refuse!(SYS_socket, When::Unlike(0, families), OTHERS)
    });
    if calls.network {
        table.push(refuse!(
            SYS_socket,
            When::IsUnlike(NETLINK, 2, 0),
            "only the routing tables, not the kernel's other netlink families"
        ));
    }
    if calls.unix {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
            table.push(refuse!(
                SYS_socket,
                When::IsMasked(UNIX, 1, KIND, kind as u64),
                "a datagram goes to an address that no filter sees"
            ));
        }
    } else if calls.served {
        table.push(refuse!(
            SYS_socket,
            When::IsUnlike(UNIX, 2, REQUEST),
            "AF_UNIX reaches daemons of the machine (docker, D-Bus, X11)"
        ));
    }
    if calls.connecting == Connecting::Refused {
        table.push(refuse!(SYS_connect, "there is no socket to connect but what somebody handed in"));
        table.push(refuse!(SYS_sendto, When::NotZero(4), "as connect"));
    }
    table
}

/// What is refused last: whoever becomes a command may be made by it.
fn refused_last() -> Vec<Entry> {
    vec![refuse!(
        SYS_clone,
        When::Bits(0, libc::CLONE_PARENT as u64),
        "a sibling is hidden from the sandbox's first process"
    )]
}

/// What the server answers.
fn served(calls: Calls) -> Vec<Entry> {
    let mut table = Vec::new();
    if calls.served {
        table.push(refuse!(
            SYS_socket,
            When::IsMasked(UNIX, 2, u64::from(u32::MAX), REQUEST),
            "gives the context's request socket to who has closed it"
        ));
        if calls.connecting == Connecting::Served {
            table.push(refuse!(SYS_connect, "is done for it, to the sockets that the profile names"));
        }
    }
    if calls.names {
        table.extend(served_names());
    }
    table
}

/// The calls by which a program gets at a file that it knows by name.
fn served_names() -> Vec<Entry> {
    const OPENS: &str = "reads a script as it was approved";
    const EXECUTES: &str = "would take a script's interpreter from the file as it is now";
    const LEADS: &str = "would look for a script behind a link that was not there";
    let mut table = vec![
        refuse!(SYS_openat, OPENS),
        refuse!(SYS_openat2, OPENS),
        refuse!(SYS_execve, EXECUTES),
        refuse!(SYS_execveat, EXECUTES),
        refuse!(SYS_readlinkat, LEADS),
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([refuse!(SYS_open, OPENS), refuse!(SYS_readlink, LEADS)]);
    table
}

/// What is refused, what served, and why, one line an entry, for people.
pub(super) fn describe(calls: Calls) -> [Vec<String>; 2] {
    let line = |Entry { name, when, why, besides, .. }: &Entry| {
        let condition = match when {
            When::Always => String::new(),
            When::Bits(at, bits) => format!(" with the bits {bits:#x} in argument {at}"),
            When::Masked(at, mask, value) => format!(" where argument {at} & {mask:#x} is {value:#x}"),
            When::NotZero(at) => format!(" unless argument {at} is 0"),
            When::Unlike(at, values) => format!(" unless argument {at} is one of {values:?}"),
            When::IsUnlike(first, at, value) => {
                format!(" where argument 0 is {first} and {at} is not {value:#x}")
            }
            When::IsMasked(first, at, mask, value) => {
                format!(" where argument 0 is {first} and {at} & {mask:#x} is {value:#x}")
            }
        };
        let besides = match besides {
            Besides::Nothing => "",
            Besides::Kernel => " (a second line)",
            Besides::Settings => " (on some machines a second line)",
        };
        format!("{}{condition}: {why}{besides}", name.trim_start_matches("SYS_"))
    };
    let mut lines: Vec<String> = refused(calls).iter().chain(&refused_last()).map(line).collect();
    lines.push("clone3: its flags cannot be seen; absent, so that clone is used".to_owned());
    lines.push("every call of a foreign architecture or x32: killed".to_owned());
    [lines, served(calls).iter().map(line).collect()]
}

/// The programs to install.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(super) refused: BpfProgram,
    /// After it.
    pub(super) last: BpfProgram,
    /// Whether who installs the last one gets a listener to hand to the server.
    pub(super) listens: bool,
}

impl Programs {
    /// # Errors
    /// A table that does not compile, which is a mistake in this file.
    pub(crate) fn compile(calls: Calls, root: bool) -> Result<Self, seccompiler::Error> {
        let mut table = answered(rules(refused(calls))?, libc::EPERM);
        // A filter cannot see clone3's flags; without the call the C library uses clone, whose it can.
        table.extend(answered(always(libc::SYS_clone3), libc::ENOSYS));
        if root {
            // Shells and tools that run as root shed groups and call it an error if they cannot;
            // here root has no capability that could, and no group that gives it more than its user.
            table.extend(answered(always(libc::SYS_setgroups), 0));
        }
        let mut last = answered(rules(refused_last())?, libc::EPERM);
        let served = served(calls);
        let listens = !served.is_empty();
        last.extend(notified(rules(served)?));
        Ok(Self { refused: guarded(table)?, last: notifying(guarded(last)?), listens })
    }

    /// What lets the server answer how files are found by their names, and refuses nothing but ways
    /// around that.
    ///
    /// # Errors
    /// As for [`Self::compile`].
    pub(super) fn names() -> Result<Self, seccompiler::Error> {
        // What a ring opens passes no filter. Programs that would use one do without.
        let absent = answered(always(libc::SYS_io_uring_setup), libc::ENOSYS);
        let last = notifying(guarded(notified(rules(served_names())?))?);
        Ok(Self { refused: guarded(absent)?, last, listens: true })
    }

    /// One that only serves to see whether there can be a listener.
    ///
    /// # Errors
    /// As for [`Self::compile`].
    pub(super) fn listening() -> Result<BpfProgram, seccompiler::Error> {
        Ok(notifying(guarded(notified(always(libc::SYS_socket)))?))
    }
}

/// When which calls match: one without rules always does.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn always(call: libc::c_long) -> Rules {
    BTreeMap::from([(call, Vec::new())])
}

fn rules(table: Vec<Entry>) -> Result<Rules, seccompiler::Error> {
    let mut rules = Rules::new();
    for Entry { call, when, .. } in table {
        let slot = rules.entry(call).or_default();
        let one = |at, op, value| Condition::new(at, Len::Dword, op, value);
        let conditions = match when {
            When::Always => {
                slot.clear();
                continue;
            }
            When::Bits(at, bits) => vec![one(at, Op::MaskedEq(bits), bits)?],
            When::Masked(at, mask, value) => vec![one(at, Op::MaskedEq(mask), value)?],
            When::NotZero(at) => vec![Condition::new(at, Len::Qword, Op::Ne, 0)?],
            When::Unlike(at, values) => {
                values.iter().map(|value| one(at, Op::Ne, *value)).collect::<Result<_, _>>()?
            }
            When::IsUnlike(first, at, value) => vec![one(0, Op::Eq, first)?, one(at, Op::Ne, value)?],
            When::IsMasked(first, at, mask, value) => {
                vec![one(0, Op::Eq, first)?, one(at, Op::MaskedEq(mask), value)?]
            }
        };
        slot.push(SeccompRule::new(conditions)?);
    }
    Ok(rules)
}

fn filter(rules: Rules, action: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()?)
}

/// Calls that match, and what they come to.
type Answered = BTreeMap<i64, (Vec<SeccompRule>, SeccompAction)>;

fn coming_to(rules: Rules, action: &SeccompAction) -> Answered {
    rules.into_iter().map(|(call, rules)| (call, (rules, action.clone()))).collect()
}

/// An error, or success where it is 0.
fn answered(rules: Rules, errno: i32) -> Answered {
    coming_to(rules, &SeccompAction::Errno(errno.unsigned_abs()))
}

/// `seccompiler` has no action that asks the listener: one that it has, and that stands nowhere else, is
/// exchanged for it.
const STAND_IN: u32 = 0x504f;

/// To be asked of the listener: see [`notifying`].
fn notified(rules: Rules) -> Answered {
    coming_to(rules, &SeccompAction::Trace(STAND_IN))
}

fn notifying(mut program: BpfProgram) -> BpfProgram {
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE | STAND_IN {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    program
}

const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// One program for calls that come to different things. It kills whoever makes a call of a foreign
/// architecture, or by the x32 numbers, which carry x86-64's architecture and would pass a comparison of
/// plain ones.
///
/// Where a filter is installed the kernel follows each call's number through it, to know which are always
/// allowed: in a list of comparisons that is the greater part of what a sandboxed process costs. So the
/// numbers are searched for in a tree, whose leaves are what `seccompiler` makes of a few calls.
fn guarded(table: Answered) -> Result<BpfProgram, seccompiler::Error> {
    const LEAF: usize = 4;
    const X32_BIT: u32 = 0x4000_0000;
    let mut leaves: Vec<(Rules, SeccompAction)> = Vec::new();
    for (call, (rules, action)) in table {
        match leaves.last_mut() {
            Some((leaf, same)) if *same == action && leaf.len() < LEAF => drop(leaf.insert(call, rules)),
            _ => leaves.push((BTreeMap::from([(call, rules)]), action)),
        }
    }
    // It compares the architecture, and allows all.
    let mut begin = filter(Rules::new(), SeccompAction::KillProcess)?;
    begin.pop();
    begin.push(sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 }); // seccomp_data.nr
    let mut bodies = Vec::new();
    for (leaf, action) in leaves {
        let first = leaf.keys().next().copied().and_then(|call| call.try_into().ok()).unwrap_or_default();
        let program = filter(leaf, action)?;
        bodies.push((first, tightened(program.strip_prefix(&*begin).unwrap_or(&program))));
    }
    let mut program = begin;
    if std::env::consts::ARCH == "x86_64" {
        program.push(sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT });
        program.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS });
    }
    program.extend(search(&bodies));
    Ok(program)
}

/// Finds the last of some programs whose first call is not above the loaded one.
fn search(leaves: &[(u32, BpfProgram)]) -> BpfProgram {
    let (below, from) = leaves.split_at(leaves.len() / 2);
    let Some((first, leaf)) = from.first() else { return Vec::new() };
    if below.is_empty() {
        return leaf.clone();
    }
    let left = search(below);
    let over = match u8::try_from(left.len()) {
        Ok(jt) => vec![sock_filter { code: JUMP_IF_AT_LEAST, jt, jf: 0, k: *first }],
        // Farther than a comparison can jump.
        Err(_) => vec![
            sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: *first },
            sock_filter { code: JUMP, jt: 0, jf: 0, k: left.len() as u32 },
        ],
    };
    [over, left, search(from)].concat()
}

/// What `seccompiler` says in five instructions of a call without rules, in two.
fn tightened(program: &[sock_filter]) -> BpfProgram {
    let is = |one: &sock_filter, code, k| one.code == code && one.k == k;
    let mut left = program;
    let mut tight = Vec::new();
    while let [one, rest @ ..] = left {
        tight.push(one.clone());
        left = match rest {
            // To the error or past it.
            [to, past, error, allow, rest @ ..]
                if (one.code, one.jt, one.jf) == (JUMP_IF, 0, 1)
                    && is(to, JUMP, 1)
                    && is(past, JUMP, 2)
                    && (error.code, allow.code) == (RETURN, RETURN) =>
            {
                tight.push(error.clone());
                rest
            }
            rest => rest,
        };
    }
    tight
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{landlock, process};

    /// Arguments for which an entry refuses its call, and which do no harm where it is not refused.
    fn arguments(when: &When) -> [u64; 6] {
        const NONE: u64 = u64::MAX;
        let mut arguments = [NONE; 6];
        let mut set = |at: u8, value| arguments[usize::from(at)] = value;
        match *when {
            When::Always | When::NotZero(_) => {}
            When::Bits(at, bits) => {
                arguments = [0; 6];
                arguments[usize::from(at)] = bits;
            }
            When::Masked(at, _, value) => set(at, value),
            When::Unlike(at, _) => set(at, 0x7f),
            When::IsUnlike(first, at, value) => {
                set(0, first);
                set(at, value + 1);
            }
            When::IsMasked(first, at, _, value) => {
                set(0, first);
                set(at, value);
            }
        }
        arguments
    }

    /// What each entry's call comes to without privileges: by Landlock and the kernel's own rules,
    /// and by the filter besides.
    #[test]
    fn every_entry_refuses_and_which_ones_do_so_alone_is_known() {
        let none = Calls {
            network: false,
            unix: false,
            connecting: Connecting::Refused,
            served: false,
            modes: false,
            names: false,
        };
        let network = Calls { network: true, connecting: Connecting::Allowed, ..none };
        // What the server would answer is refused here, where nobody listens: only refusals are installed.
        let served = Calls { served: true, modes: true, ..none };
        let unix = Calls { unix: true, connecting: Connecting::Served, ..served };
        for calls in [none, network, served, unix, Calls { network: true, ..unix }] {
            let table: Vec<Entry> = refused(calls).into_iter().chain(refused_last()).collect();
            let programs = Programs::compile(calls, false).unwrap();
            let made: Vec<_> = table.iter().map(|entry| (entry.call, arguments(&entry.when))).collect();
            // All this is a thread's own.
            let found = std::thread::spawn(move || {
                let attempt =
                    || made.iter().map(|(call, arguments)| process::attempt(*call, *arguments)).collect();
                super::super::apply::renounce().unwrap();
                let abi = landlock::abi();
                landlock::restrict(landlock::ruleset(abi, calls.network).unwrap()).unwrap();
                let before: Vec<_> = attempt();
                process::seccomp(&programs.refused).unwrap();
                let last = guarded(answered(rules(refused_last()).unwrap(), libc::EPERM)).unwrap();
                process::seccomp(&last).unwrap();
                let after: Vec<_> = attempt();
                before.into_iter().zip(after).collect::<Vec<_>>()
            });
            let found = found.join().unwrap();
            for (entry, errnos) in table.iter().zip(found) {
                let (before, after) = errnos;
                let what = format!("{} {:?}: errno {before}", entry.name, arguments(&entry.when));
                assert_eq!(after, libc::EPERM, "{what}, and the filter lets it pass");
                match entry.besides {
                    Besides::Nothing => assert_ne!(before, libc::EPERM, "{what}: the entry is a second line"),
                    Besides::Kernel => assert_eq!(before, libc::EPERM, "{what}: the entry is the only line"),
                    Besides::Settings => {}
                }
            }
        }
    }

    /// What a program makes of a call, of the architecture that it was compiled for or another.
    fn run(program: &BpfProgram, foreign: bool, call: u32, arguments: [u64; 6]) -> u32 {
        const AND: u16 = 0x54;
        const JUMP_IF_ABOVE: u16 = 0x25;
        const JUMP_IF_ANY: u16 = 0x45;
        const ARCHITECTURE: u32 = 4;
        let (mut at, mut value) = (0, 0u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let jump = |to: bool| usize::from(if to { jt } else { jf });
            at += 1;
            match code {
                LOAD_WORD if k == 0 => value = call,
                LOAD_WORD if k == ARCHITECTURE => value = program[1].k.wrapping_add(foreign.into()),
                LOAD_WORD => {
                    let argument = arguments[(k as usize - 16) / 8];
                    value = (if k % 8 == 0 { argument } else { argument >> 32 }) as u32;
                }
                AND => value &= k,
                JUMP => at += k as usize,
                JUMP_IF => at += jump(value == k),
                JUMP_IF_AT_LEAST => at += jump(value >= k),
                JUMP_IF_ABOVE => at += jump(value > k),
                JUMP_IF_ANY => at += jump(value & k != 0),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// Each that a sandbox can have, but for names.
    fn all_calls() -> Vec<Calls> {
        let mut all = Vec::new();
        for bits in 0..16 {
            let [network, unix, served, modes] = [0, 1, 2, 3].map(|bit| bits & 1 << bit != 0);
            for connecting in [Connecting::Refused, Connecting::Served, Connecting::Allowed] {
                all.push(Calls { network, unix, connecting, served, modes, names: false });
            }
        }
        all
    }

    #[test]
    fn a_searched_table_decides_as_a_list_of_comparisons() {
        const X32: u32 = 0x4000_0000;
        for calls in all_calls() {
            let tree = Programs::compile(calls, true).unwrap().refused;
            let table = refused(calls);
            let others = [0, 1, u64::from(u32::MAX), u64::MAX, 1 << 32].map(|argument| [argument; 6]);
            let flags = (0..64).map(|bit| [1 << bit, 1, 0, 0, 0, 0]);
            let entries = table.iter().map(|entry| arguments(&entry.when));
            let tried: Vec<_> = others.into_iter().chain(flags).chain(entries).collect();
            let list = filter(rules(table).unwrap(), SeccompAction::Errno(libc::EPERM as u32)).unwrap();
            assert!(tree.len() < list.len() && list[0].k == 4 && tree[..3] == list[..3]);
            let mut refused = 0;
            for call in (0..600).chain([X32, X32 | 1, u32::MAX]) {
                for arguments in &tried {
                    let found = run(&tree, false, call, *arguments);
                    let expected = match i64::from(call) {
                        _ if cfg!(target_arch = "x86_64") && call >= X32 => libc::SECCOMP_RET_KILL_PROCESS,
                        libc::SYS_clone3 => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                        libc::SYS_setgroups => libc::SECCOMP_RET_ERRNO,
                        _ => run(&list, false, call, *arguments),
                    };
                    refused += u32::from(found == libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
                    assert_eq!(found, expected, "{call} {arguments:?}");
                    assert_eq!(run(&tree, true, call, *arguments), libc::SECCOMP_RET_KILL_PROCESS);
                }
            }
            assert!(refused > 1000);
        }
    }

    #[test]
    fn the_last_program_refuses_siblings_and_asks_for_what_is_served() {
        const CLONE: u32 = libc::SYS_clone as u32;
        for calls in all_calls() {
            for names in [false, true] {
                let calls = Calls { names, ..calls };
                let last = Programs::compile(calls, true).unwrap().last;
                let sibling = [(libc::CLONE_PARENT | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0];
                assert_eq!(run(&last, false, CLONE, sibling), libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
                assert_eq!(run(&last, false, CLONE, [libc::SIGCHLD as u64; 6]), libc::SECCOMP_RET_ALLOW);
                assert_eq!(run(&last, true, CLONE, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
                let entries = served(calls);
                assert!(entries.iter().all(|entry| entry.call != libc::SYS_clone));
                for entry in entries {
                    let found = run(&last, false, entry.call as u32, arguments(&entry.when));
                    assert_eq!(found, libc::SECCOMP_RET_USER_NOTIF, "{}", entry.name);
                }
            }
        }
    }

    #[test]
    fn a_search_jumps_as_far_as_it_has_to() {
        let is = |errno: u32| sock_filter { code: RETURN, jt: 0, jf: 0, k: errno };
        let leaf = |first: u32, length: usize| (first, vec![is(first); length]);
        for length in [1, 100, 300] {
            let leaves: Vec<_> = (0..9).map(|at| leaf(10 * at, length)).collect();
            let load = sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 };
            let program = [vec![load], search(&leaves)].concat();
            for call in 0..100 {
                assert_eq!(run(&program, false, call, [0; 6]), (call / 10 * 10).min(80), "{call} {length}");
            }
        }
    }

    #[test]
    fn every_table_compiles_and_fits() {
        for calls in all_calls() {
            let programs = Programs::compile(calls, true).unwrap();
            assert!([&programs.refused, &programs.last].iter().all(|program| program.len() < 4096));
            let asks = |program: &BpfProgram| {
                program.iter().any(|one| one.code == RETURN && one.k == libc::SECCOMP_RET_USER_NOTIF)
            };
            assert_eq!((asks(&programs.last), programs.listens), (calls.served, calls.served));
            let programs = Programs::compile(Calls { names: true, ..calls }, true).unwrap();
            assert!(asks(&programs.last) && programs.listens && !asks(&programs.refused));
        }
    }
}
