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
    when: When,
    #[allow(dead_code, reason = "for the reader; the plan prints it")]
    why: &'static str,
}

const fn always(call: libc::c_long, why: &'static str) -> Entry {
    Entry { call, when: When::Always, why }
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
        always(libc::SYS_ptrace, "takes over other processes of the sandbox, waiters among them"),
        always(libc::SYS_process_vm_readv, "as ptrace"),
        always(libc::SYS_process_vm_writev, "as ptrace"),
        always(libc::SYS_pidfd_getfd, "as ptrace, for descriptors"),
        always(libc::SYS_kcmp, "tells kernel pointers apart"),
        always(libc::SYS_io_uring_setup, "its operations pass no filter"),
        always(libc::SYS_io_uring_enter, "its operations pass no filter"),
        always(libc::SYS_io_uring_register, "its operations pass no filter"),
        always(libc::SYS_userfaultfd, "holds the kernel in the middle of a copy"),
        always(libc::SYS_bpf, "kernel attack surface"),
        always(libc::SYS_perf_event_open, "kernel attack surface"),
        always(libc::SYS_add_key, "keyrings are shared by all processes of the user"),
        always(libc::SYS_request_key, "keyrings are shared by all processes of the user"),
        always(libc::SYS_keyctl, "keyrings are shared by all processes of the user"),
        always(libc::SYS_mount, "changes what paths mean"),
        always(libc::SYS_umount2, "uncovers what is masked"),
        always(libc::SYS_move_mount, "changes what paths mean"),
        always(libc::SYS_open_tree, "changes what paths mean"),
        always(libc::SYS_fsopen, "changes what paths mean"),
        always(libc::SYS_fsconfig, "changes what paths mean"),
        always(libc::SYS_fsmount, "changes what paths mean"),
        always(libc::SYS_fspick, "changes what paths mean"),
        always(libc::SYS_mount_setattr, "makes writable what is read-only"),
        always(libc::SYS_pivot_root, "changes what paths mean"),
        always(libc::SYS_chroot, "changes what paths mean"),
        always(libc::SYS_setns, "leaves the sandbox's namespaces"),
        always(libc::SYS_open_by_handle_at, "opens files by number, past every path rule"),
        always(libc::SYS_kexec_load, "replaces the kernel"),
        always(libc::SYS_kexec_file_load, "replaces the kernel"),
        always(libc::SYS_init_module, "kernel code"),
        always(libc::SYS_finit_module, "kernel code"),
        always(libc::SYS_delete_module, "kernel code"),
        always(libc::SYS_settimeofday, "the machine's clock"),
        always(libc::SYS_clock_settime, "the machine's clock"),
        always(libc::SYS_clock_adjtime, "the machine's clock"),
        always(libc::SYS_adjtimex, "the machine's clock"),
        always(libc::SYS_reboot, "the machine"),
        always(libc::SYS_swapon, "the machine"),
        always(libc::SYS_swapoff, "the machine"),
        always(libc::SYS_acct, "the machine"),
        always(libc::SYS_quotactl, "the machine"),
        always(libc::SYS_syslog, "the kernel's log"),
        always(libc::SYS_sethostname, "the machine"),
        always(libc::SYS_setdomainname, "the machine"),
        always(libc::SYS_vhangup, "the operator's terminal"),
        always(libc::SYS_fanotify_init, "watches or holds other processes' file accesses"),
        Entry {
            call: libc::SYS_prlimit64,
            when: When::Unlike(0, &[0]),
            why: "limits of others, pid 1 among them; its own are a process's own",
        },
        Entry {
            call: libc::SYS_setpriority,
            when: When::Unlike(0, &[libc::PRIO_PROCESS as u64]),
            why: "a group or a user has processes outside",
        },
        Entry {
            call: libc::SYS_ioprio_set,
            when: When::Unlike(0, &[1]), // IOPRIO_WHO_PROCESS
            why: "a group or a user has processes outside",
        },
        Entry {
            call: libc::SYS_ioctl,
            when: When::Masked(1, 0xffff_ffff, libc::TIOCSTI),
            why: "types into the terminal",
        },
        Entry {
            call: libc::SYS_ioctl,
            when: When::Masked(1, 0xffff_ffff, libc::TIOCLINUX),
            why: "pastes into the console",
        },
        Entry {
            call: libc::SYS_socketpair,
            when: When::Unlike(0, &[UNIX]),
            why: "no other family has any use",
        },
        Entry {
            call: libc::SYS_socketpair,
            when: When::Masked(1, 0xf, libc::SOCK_DGRAM as u64),
            why: "can be aimed at another address later",
        },
        Entry {
            call: libc::SYS_socketpair,
            when: When::Masked(1, 0xf, libc::SOCK_RAW as u64),
            why: "a datagram socket under another name",
        },
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([always(libc::SYS_iopl, "hardware"), always(libc::SYS_ioperm, "hardware")]);
    for flag in NAMESPACES {
        let (bits, why) = (flag as u64, "a namespace of one's own brings capabilities, and lifts masks");
        table.push(Entry { call: libc::SYS_clone, when: When::Bits(0, bits), why });
        table.push(Entry { call: libc::SYS_unshare, when: When::Bits(0, bits), why });
    }
    if network {
        table.push(Entry {
            call: libc::SYS_socket,
            when: When::Unlike(0, NETWORK),
            why: "other families reach daemons of the machine (docker, D-Bus, X11, vsock) or its wires",
        });
        table.push(Entry {
            call: libc::SYS_socket,
            when: When::IsWithout(NETLINK, 2),
            why: "only the routing tables, not the kernel's other netlink families",
        });
    } else {
        table
            .push(always(libc::SYS_socket, "the network is off, and AF_UNIX reaches daemons of the machine"));
    }
    table
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
