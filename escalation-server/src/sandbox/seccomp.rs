//! System calls that no sandboxed process gets, as data with a reason each, compiled to BPF by
//! `seccompiler`. Everything else is allowed: the filesystem, signals and TCP are Landlock's.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, sock_filter,
};

/// When a call is refused.
enum When {
    Always,
    /// An argument has all these bits.
    Bits(u8, u64),
    /// An argument, under a mask, equals a value.
    Masked(u8, u64, u64),
    /// An argument is none of these, and another is this if given.
    Unlike(u8, &'static [u64]),
    /// The first argument is this, and another is not zero.
    IsWithout(u64, u8),
}

struct Entry {
    call: libc::c_long,
    name: &'static str,
    when: When,
    why: &'static str,
}

/// An entry for a call by the name of its number in `libc`.
macro_rules! refuse {
    ($call:ident, $why:expr) => {
        refuse!($call, When::Always, $why)
    };
    ($call:ident, $when:expr, $why:expr) => {
        Entry { call: libc::$call, name: stringify!($call), when: $when, why: $why }
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
const NETLINK: u64 = libc::AF_NETLINK as u64;
/// With the network on: TCP and UDP, and what getaddrinfo(3) asks the routing tables by.
const NETWORK: &[u64] = &[libc::AF_INET as u64, libc::AF_INET6 as u64, NETLINK];

fn table(network: bool) -> Vec<Entry> {
    let mut table = vec![
        refuse!(SYS_ptrace, "takes over other processes of the sandbox, waiters among them"),
        refuse!(SYS_process_vm_readv, "as ptrace"),
        refuse!(SYS_process_vm_writev, "as ptrace"),
        refuse!(SYS_pidfd_getfd, "as ptrace, for descriptors"),
        refuse!(SYS_kcmp, "tells kernel pointers apart"),
        refuse!(SYS_io_uring_setup, "its operations pass no filter"),
        refuse!(SYS_io_uring_enter, "its operations pass no filter"),
        refuse!(SYS_io_uring_register, "its operations pass no filter"),
        refuse!(SYS_userfaultfd, "holds the kernel in the middle of a copy"),
        refuse!(SYS_bpf, "kernel attack surface"),
        refuse!(SYS_perf_event_open, "kernel attack surface"),
        refuse!(SYS_add_key, "keyrings are shared by all processes of the user"),
        refuse!(SYS_request_key, "keyrings are shared by all processes of the user"),
        refuse!(SYS_keyctl, "keyrings are shared by all processes of the user"),
        refuse!(SYS_mount, "changes what paths mean"),
        refuse!(SYS_umount2, "uncovers what is masked"),
        refuse!(SYS_move_mount, "changes what paths mean"),
        refuse!(SYS_open_tree, "changes what paths mean"),
        refuse!(SYS_fsopen, "changes what paths mean"),
        refuse!(SYS_fsconfig, "changes what paths mean"),
        refuse!(SYS_fsmount, "changes what paths mean"),
        refuse!(SYS_fspick, "changes what paths mean"),
        refuse!(SYS_mount_setattr, "makes writable what is read-only"),
        refuse!(SYS_pivot_root, "changes what paths mean"),
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
        refuse!(SYS_reboot, "the machine"),
        refuse!(SYS_swapon, "the machine"),
        refuse!(SYS_swapoff, "the machine"),
        refuse!(SYS_acct, "the machine"),
        refuse!(SYS_quotactl, "the machine"),
        refuse!(SYS_syslog, "the kernel's log"),
        refuse!(SYS_sethostname, "the machine"),
        refuse!(SYS_setdomainname, "the machine"),
        refuse!(SYS_vhangup, "the operator's terminal"),
        refuse!(SYS_fanotify_init, "watches or holds other processes' file accesses"),
        refuse!(
            SYS_prlimit64,
            When::Unlike(0, &[0]),
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
            When::Masked(1, 0xf, libc::SOCK_DGRAM as u64),
            "can be aimed at another address later"
        ),
        refuse!(
            SYS_socketpair,
            When::Masked(1, 0xf, libc::SOCK_RAW as u64),
            "a datagram socket under another name"
        ),
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([refuse!(SYS_iopl, "hardware"), refuse!(SYS_ioperm, "hardware")]);
    for flag in NAMESPACES {
        let (bits, why) = (flag as u64, "a namespace of one's own brings capabilities, and lifts masks");
        table.push(refuse!(SYS_clone, When::Bits(0, bits), why));
        table.push(refuse!(SYS_unshare, When::Bits(0, bits), why));
    }
    if network {
        table.push(refuse!(
            SYS_socket,
            When::Unlike(0, NETWORK),
            "other families reach daemons of the machine (docker, D-Bus, X11, vsock) or its wires"
        ));
        table.push(refuse!(
            SYS_socket,
            When::IsWithout(NETLINK, 2),
            "only the routing tables, not the kernel's other netlink families"
        ));
    } else {
        table.push(refuse!(SYS_socket, "the network is off, and AF_UNIX reaches daemons of the machine"));
    }
    table
}

/// What is refused and why, one line an entry, for people.
pub(super) fn describe(network: bool) -> Vec<String> {
    let mut lines: Vec<String> = table(network)
        .iter()
        .map(|Entry { name, when, why, .. }| {
            let condition = match when {
                When::Always => String::new(),
                When::Bits(at, bits) => format!(" with the bits {bits:#x} in argument {at}"),
                When::Masked(at, mask, value) => format!(" where argument {at} & {mask:#x} is {value:#x}"),
                When::Unlike(at, values) => format!(" unless argument {at} is one of {values:?}"),
                When::IsWithout(first, at) => format!(" where argument 0 is {first} and {at} is not 0"),
            };
            format!("{}{condition}: {why}", name.trim_start_matches("SYS_"))
        })
        .collect();
    lines.push("clone3: its flags cannot be seen; absent, so that clone is used".to_owned());
    lines.push("every call of a foreign architecture or x32: killed".to_owned());
    lines
}

/// The programs to install, in this order.
#[derive(Debug, Clone)]
pub(crate) struct Programs(pub(super) Vec<BpfProgram>);

impl Programs {
    /// # Errors
    /// A table that does not compile, which is a mistake in this file.
    pub(crate) fn compile(network: bool, root: bool) -> Result<Self, seccompiler::Error> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for Entry { call, when, .. } in table(network) {
            let slot = rules.entry(call).or_default();
            let one = |at, op, value| Condition::new(at, Len::Dword, op, value);
            let conditions = match when {
                When::Always => {
                    slot.clear();
                    continue;
                }
                When::Bits(at, bits) => vec![one(at, Op::MaskedEq(bits), bits)?],
                When::Masked(at, mask, value) => vec![one(at, Op::MaskedEq(mask), value)?],
                When::Unlike(at, values) => {
                    values.iter().map(|value| one(at, Op::Ne, *value)).collect::<Result<_, _>>()?
                }
                When::IsWithout(first, at) => vec![one(0, Op::Eq, first)?, one(at, Op::Ne, 0)?],
            };
            slot.push(SeccompRule::new(conditions)?);
        }
        let refused = filter(rules, SeccompAction::Errno(libc::EPERM as u32))?;
        // A filter cannot see clone3's flags; without the call the C library uses clone, whose it can.
        let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let absent = filter(absent, SeccompAction::Errno(libc::ENOSYS as u32))?;
        let mut programs = vec![absent, [x32_guard(), refused].concat()];
        if root {
            // Shells and tools that run as root shed groups and call it an error if they cannot;
            // here root has no capability that could, and no group that gives it more than its user.
            let pretended = BTreeMap::from([(libc::SYS_setgroups, Vec::new())]);
            programs.push(filter(pretended, SeccompAction::Errno(0))?);
        }
        Ok(Self(programs))
    }
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()?)
}

/// Kills whoever uses the x32 numbers, which carry x86-64's architecture and would pass a filter
/// that compares plain ones. Foreign architectures are killed by the filters themselves.
fn x32_guard() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    if std::env::consts::ARCH != "x86_64" {
        return Vec::new();
    }
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 }, // seccomp_data.nr
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_compile_and_fit() {
        for network in [false, true] {
            for program in Programs::compile(network, true).unwrap().0 {
                assert!(program.len() < 4096);
            }
        }
    }
}
