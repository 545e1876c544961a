//! What this machine offers to this process: settings are read, and where they may not tell the
//! truth (in a container, inside another sandbox, under AppArmor) it is tried.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::apply::{own, renounce, split};
use super::facts::Refusal;
use super::mounted::Mounts;
use super::seccomp::Programs;
use crate::sys::process::{self, Change, Fork};
use crate::sys::{landlock, mount, socket};

/// How a process gets namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Namespaces {
    /// Within a user namespace of its own.
    ByUser,
    /// By capabilities that it has.
    ByCapability,
    /// Not at all: Landlock and seccomp alone hold what they can.
    None(Obstacle),
}

/// Why namespaces are not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Obstacle {
    NoneAllowed,
    Privileged,
    AppArmor,
    Filter,
    Unknown,
}

impl Obstacle {
    /// What it is, and what to do about it.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::NoneAllowed => "set the sysctl user.max_user_namespaces above 0",
            Self::Privileged => "set the sysctl kernel.unprivileged_userns_clone to 1",
            Self::AppArmor => {
                "AppArmor refuses them to programs without a profile: copy share/postern/apparmor.profile of the \
                 installation to /etc/apparmor.d/postern and load it (apparmor_parser -r /etc/apparmor.d/postern), or set \
                 the sysctl kernel.apparmor_restrict_unprivileged_userns to 0"
            }
            Self::Filter => {
                "a seccomp filter around this process refuses them, or mounts in them, as containers and other sandboxes \
                 do: allow both there (Docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
            }
            Self::Unknown => {
                "something around this process refuses them, or mounts in them: allow both there, or start outside"
            }
        }
    }
}

/// What the kernel offers to this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Abilities {
    /// 0: no Landlock.
    pub(crate) landlock_abi: u32,
    /// Whether a socket tells safely who made its other end.
    pub(crate) peers: bool,
    pub(crate) namespaces: Namespaces,
    /// Whether calls can be answered by the server.
    pub(crate) listener: bool,
    /// Whether connect(2) can, which needs a look into the caller.
    pub(crate) connects: bool,
    /// Whether the server can look into a command that nothing confines (ptrace(2)).
    pub(crate) looks: bool,
    /// Whether filters can be installed without no_new_privs.
    pub(crate) privileged: bool,
    /// What the operator allows not to be held.
    pub(crate) allowed: Vec<String>,
}

impl Abilities {
    pub(crate) fn probe(allowed: Vec<String>) -> Self {
        let status = process::status("self").unwrap_or_default();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
        let filtered = field("Seccomp:") != "0";
        let capabilities = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
        let capable = capabilities & SYS_ADMIN != 0;
        let first = fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
        let armoured = setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
        let certain = first && !filtered && !armoured && is_all_there();
        let peers = socket::pair().and_then(|(one, _other)| socket::peer_pidfd(&one)).is_ok();
        let namespaces = namespaces(capable, filtered, armoured, certain);
        let listener = !filtered || tried(can_listen);
        // Over what is in a user namespace of its own the server has every capability.
        let scope = setting("/proc/sys/kernel/yama/ptrace_scope").unwrap_or(0);
        let kept_out = scope > 0 && matches!(namespaces, Namespaces::None(_));
        let connects = listener && !kept_out;
        let looks = may_look(scope, capabilities);
        Self {
            landlock_abi: landlock::abi(),
            peers,
            namespaces,
            listener,
            connects,
            looks,
            privileged: capable,
            allowed,
        }
    }

    /// Whether something can be held read-only below what is writable.
    pub(crate) fn hold_below_writable(&self) -> bool {
        !matches!(self.namespaces, Namespaces::None(_))
    }

    /// # Errors
    /// What no sandbox can do without, and this kernel does not have.
    pub(crate) fn suffice(&self) -> Result<(), Refusal> {
        if self.landlock_abi == 0 {
            return Err(Refusal::NoLandlock);
        }
        if !self.peers {
            return Err(Refusal::NoPeers);
        }
        Ok(())
    }
}

const SYS_ADMIN: u64 = 1 << 21; // CAP_SYS_ADMIN
const SYS_PTRACE: u64 = 1 << 19; // CAP_SYS_PTRACE

/// Whether Yama (ptrace(2), `ptrace_scope`) lets a process with these capabilities look into one of its
/// user's that does not descend from it.
fn may_look(scope: i64, capabilities: u64) -> bool {
    match scope {
        ..=0 => true,
        1 | 2 => capabilities & SYS_PTRACE != 0,
        _ => false,
    }
}

fn setting(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
}

fn namespaces(capable: bool, filtered: bool, armoured: bool, certain: bool) -> Namespaces {
    let none = setting("/proc/sys/user/max_user_namespaces") == Some(0);
    let privileged = setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) && !capable;
    if !none && !privileged && (certain || tried(|| try_out(true))) {
        return Namespaces::ByUser;
    }
    if capable && (certain || tried(|| try_out(false))) {
        return Namespaces::ByCapability;
    }
    Namespaces::None(if none {
        Obstacle::NoneAllowed
    } else if privileged {
        Obstacle::Privileged
    } else if armoured {
        Obstacle::AppArmor
    } else if filtered {
        Obstacle::Filter
    } else {
        Obstacle::Unknown
    })
}

/// Whether nothing covers a part of `/proc`: else the kernel lets no user namespace mount another one. What systemd
/// puts there covers an empty directory, which is no matter. And whether `/` is a mount: in a chroot(2) there are no
/// user namespaces.
fn is_all_there() -> bool {
    let harmless = Path::new("/proc/sys/fs/binfmt_misc");
    Mounts::now().is_ok_and(|mounts| {
        mounts.below(Path::new("/proc")).all(|at| at == harmless) && mounts.is_mount(Path::new("/"))
    })
}

/// Whether something works, in a process of its own.
fn tried(attempt: impl FnOnce() -> io::Result<()>) -> bool {
    match process::fork() {
        Ok(Fork::Child) => process::exit_now(i32::from(attempt().is_err())),
        Ok(Fork::Parent(child)) => process::wait_for(child) == Some(Change::Exited(0)),
        Err(_) => false,
    }
}

/// Makes namespaces, a mount, and a `/proc` in them.
fn try_out(user: bool) -> io::Result<()> {
    split(own(user, true)).map_err(|failed| failed.error)?;
    mount::make_private()?;
    let works = tried(|| {
        mount::make_private()?;
        mount::fresh(c"proc", c"/proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, c"")
    });
    if works { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn can_listen() -> io::Result<()> {
    let programs = Programs::listening().map_err(io::Error::other)?;
    renounce().map_err(|failed| failed.error)?;
    process::seccomp_listener(&programs).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yama_keeps_out_who_is_no_ancestor() {
        for (scope, capabilities, looks) in [
            (0, 0, true),
            (1, 0, false),
            (1, SYS_ADMIN, false),
            (1, SYS_PTRACE, true),
            (2, SYS_PTRACE, true),
            (3, SYS_PTRACE, false),
        ] {
            assert_eq!(may_look(scope, capabilities), looks, "{scope} {capabilities:#x}");
        }
    }
}
