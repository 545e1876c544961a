//! Applies a plan, in three processes: the splitter leaves the namespaces of its parent, the
//! sandbox's first process builds what will be seen, and the command confines itself.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

use super::plan::{Mount, Plan};
use super::seccomp::Programs;
use crate::profile::Access;
use crate::sys::process::Fork;
use crate::sys::{landlock, mount, process, socket};

/// A step that failed, named for people.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub(crate) struct StepError {
    pub(crate) what: String,
    pub(crate) error: io::Error,
}

trait Named<T> {
    fn named(self, what: impl Into<String>) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, what: impl Into<String>) -> Result<T, StepError> {
        self.map_err(|error| StepError { what: what.into(), error: error.into() })
    }
}

/// What can be made once and used by every command of a plan.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    programs: Programs,
}

/// This process has refused its calls ([`Confinement::refuse`]). What else cannot be undone comes after that.
#[derive(Debug)]
#[must_use]
pub(crate) struct Refused(());

impl Confinement {
    /// # Errors
    /// As [`Programs::compile`].
    pub(crate) fn prepare(plan: &Plan) -> Result<Self, StepError> {
        let programs = Programs::compile(plan.calls, nix::unistd::geteuid().is_root());
        let programs = programs.map_err(io::Error::other).named("compile the seccomp filter")?;
        Ok(Self { programs })
    }

    /// Refuses the calls that the command does not get, and that nobody makes who only becomes it. For that
    /// an exec gives no privilege any more, and no capability.
    ///
    /// # Errors
    /// As prctl(2) and seccomp(2).
    pub(crate) fn refuse(&self) -> Result<Refused, StepError> {
        process::no_new_privileges().named("set no_new_privs")?;
        process::empty_bounding_set().named("empty the bounding set")?;
        process::seccomp(&self.programs.refused).named("install the seccomp filter").map(|()| Refused(()))
    }

    /// Refuses the last calls, of a process that everything else confines already. What is returned listens
    /// to those that the server answers; none if there are none.
    ///
    /// # Errors
    /// If the kernel refuses it, as where another one listens to this process.
    pub(crate) fn refuse_last(&self) -> Result<Option<OwnedFd>, StepError> {
        let last = &self.programs.last;
        if self.programs.listens {
            process::seccomp_listener(last)
                .map(Some)
                .named("install the seccomp filter for what the server answers")
        } else {
            process::seccomp(last).map(|()| None).named("install the last seccomp filter")
        }
    }
}

/// As [`Confinement::refuse_last`], for a process that nothing confines, so that the server answers how files
/// are found by their names. Without `CAP_SYS_ADMIN` a filter costs the right to become somebody else by an
/// exec (seccomp(2)).
///
/// # Errors
/// As there.
pub(crate) fn listen_to_names(no_new_privileges: bool) -> Result<OwnedFd, StepError> {
    let what = "install the seccomp filter for what the server answers";
    if no_new_privileges {
        process::no_new_privileges().named("set no_new_privs")?;
    }
    let programs = Programs::names().map_err(io::Error::other).named("compile the seccomp filter")?;
    process::seccomp(&programs.refused).named(what)?;
    process::seccomp_listener(&programs.last).named(what)
}

/// A user namespace and an empty network namespace that exist before the sandbox that enters them. Nothing
/// can be done with either: no process in one has a capability, no socket in the other leads anywhere, and
/// Landlock keeps abstract sockets apart.
#[derive(Debug)]
pub(crate) struct Premade {
    user: Option<OwnedFd>,
    net: OwnedFd,
}

impl Premade {
    /// Makes both while there is time, for who may want them; none if they are not to be had.
    pub(crate) fn make() -> Option<Self> {
        let (ours, theirs) = socket::pair().ok()?;
        let child = match process::fork().ok()? {
            Fork::Parent(child) => child,
            Fork::Child => {
                drop(ours);
                let made = split(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
                if made.is_ok() && nix::unistd::write(&theirs, b"1").is_ok() {
                    // Until they are held by others.
                    let _end = nix::unistd::read(&theirs, &mut [0]);
                }
                process::exit_now(0)
            }
        };
        drop(theirs);
        let made = nix::unistd::read(&ours, &mut [0]) == Ok(1);
        let shared = made.then(|| Self::of(child, true)).flatten();
        drop(ours);
        let _ended = process::wait_for(child);
        shared
    }

    /// Those of a sandbox's first process, which must be alive.
    pub(crate) fn of(init: i32, user_namespace: bool) -> Option<Self> {
        let open = |kind: &str| fs::File::open(format!("/proc/{init}/ns/{kind}")).map(OwnedFd::from).ok();
        let user = if user_namespace { Some(open("user")?) } else { None };
        Some(Self { user, net: open("net")? })
    }

    /// The descriptors that it is.
    pub(crate) fn fds(&self) -> impl Iterator<Item = i32> {
        self.user.iter().chain([&self.net]).map(AsRawFd::as_raw_fd)
    }
}

/// Of mounts, processes and IPC: each sandbox's own.
const OWN: CloneFlags =
    CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWPID).union(CloneFlags::CLONE_NEWIPC);

/// The namespaces of a sandbox that shares none.
pub(super) fn own(user: bool, net: bool) -> CloneFlags {
    let mut flags = OWN;
    flags.set(CloneFlags::CLONE_NEWUSER, user);
    flags.set(CloneFlags::CLONE_NEWNET, net);
    flags
}

/// First: new namespaces for this process and its children, with its own user and group in them,
/// but for those that are shared. The next child is the first process of the new PID namespace.
pub(crate) fn split_off(plan: &Plan, shared: Option<&Premade>) -> Result<(), StepError> {
    let Some(shared) = shared else { return split(own(plan.user_namespace(), !plan.network())) };
    if let Some(user) = &shared.user {
        setns(user, CloneFlags::CLONE_NEWUSER).named("enter the user namespace")?;
    }
    setns(&shared.net, CloneFlags::CLONE_NEWNET).named("enter the network namespace")?;
    unshare(OWN).named("create namespaces")
}

/// New namespaces for this process and its children; in a new one of users, the same user and group.
pub(super) fn split(flags: CloneFlags) -> Result<(), StepError> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(flags).map_err(io::Error::from).map_err(|error| StepError {
        what: match error.raw_os_error() {
            Some(libc::EPERM) => {
                "create namespaces (a container's seccomp profile or AppArmor refuses them: \
                                  allow user namespaces there)"
                    .to_owned()
            }
            _ => "create namespaces".to_owned(),
        },
        error,
    })?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        // Group membership cannot be given up, so that a group's `deny` in a mode holds.
        fs::write("/proc/self/setgroups", "deny").named("deny setgroups in the user namespace")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).named("map the user")?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).named("map the group")?;
    }
    Ok(())
}

/// Second, in the first process of the PID namespace: the mounts. What is returned keeps the
/// caller's terminal where its name says, and must live as long as the sandbox.
pub(crate) fn build_view(plan: &Plan, terminal: Option<&Path>) -> Result<Option<OwnedFd>, StepError> {
    let mut kept = None;
    mount::make_private().named("make mounts private")?;
    // A node that lies in a directory would be the device, past every other mount and rule.
    mount::refuse_devices().named("refuse device nodes")?;
    for step in &plan.mounts {
        match step {
            Mount::ReadOnlyWorld => {
                mount::set_read_only(c"/", true, true).named("make / read-only")?;
            }
            Mount::Devices(names) => kept = devices(names, terminal)?,
            Mount::Writable(path) => {
                remount(path, false).named(format!("make {} writable", path.display()))?;
            }
            Mount::ReadOnly(_) | Mount::Mask(..) => cover(step)?,
            Mount::Processes => processes()?,
        }
    }
    Ok(kept)
}

/// Makes a subtree read-only, or masks it.
pub(super) fn cover(step: &Mount) -> Result<(), StepError> {
    match step {
        Mount::ReadOnly(path) => remount(path, true).named(format!("make {} read-only", path.display())),
        Mount::Mask(path, open) => mask(path, open).named(format!("deny {}", path.display())),
        _ => Ok(()),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Mounts a copy of what lies at a path over it. The path must lead there without a symlink, or
/// somebody has changed it since it was resolved.
fn remount(path: &Path, read_only: bool) -> io::Result<()> {
    let at = process::open_exactly(&c_path(path)?)?;
    let copy = mount::copy(&at)?;
    mount::set_read_only_copy(&copy, read_only)?;
    mount::attach(&copy, &at)
}

/// Puts something over a path that nobody without a capability can read, list or change, and what
/// stays open below it back in its place.
fn mask(path: &Path, open: &[(PathBuf, Access)]) -> io::Result<()> {
    let at = process::open_exactly(&c_path(path)?)?;
    if nix::sys::stat::fstat(&at)?.st_mode & libc::S_IFMT != libc::S_IFDIR {
        let nothing = mount::copy(&process::open_exactly(&c_path(Path::new(NOTHING))?)?)?;
        mount::set_read_only_copy(&nothing, true)?;
        return mount::attach(&nothing, &at);
    }
    let mut kept = Vec::new();
    for (below, access) in open {
        let from = match process::open_exactly(&c_path(below)?) {
            // Somebody outside took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let directory = nix::sys::stat::fstat(&from)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        kept.push((below, mount::copy(&from)?, *access, directory));
    }
    let target = CString::new(format!("/proc/self/fd/{}", at.as_raw_fd()))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // Passed through, but not listed, where something below stays open.
    let mode = if kept.is_empty() { c"mode=000,size=64k" } else { c"mode=111,size=64k" };
    mount::fresh(c"tmpfs", &target, flags, mode)?;
    for (below, copy, access, directory) in kept {
        let parent = if directory { Some(below.as_path()) } else { below.parent() };
        if let Some(parent) = parent {
            fs::DirBuilder::new().recursive(true).mode(0o111).create(parent)?;
        }
        if !directory {
            fs::File::create_new(below)?;
        }
        // What is mounted below it stays as it was made.
        if access != Access::Write {
            mount::set_read_only_top(&copy)?;
        }
        mount::attach(&copy, &process::open_exactly(&c_path(below)?)?)?;
    }
    mount::set_read_only(&c_path(path)?, true, false)
}

/// An empty file that nobody may read, in the sandbox's own `/dev`.
const NOTHING: &str = "/dev/.nothing";

fn devices(names: &[String], terminal: Option<&Path>) -> Result<Option<OwnedFd>, StepError> {
    let copy_of = |path: &Path| {
        let copy = mount::copy(&process::open_exactly(&c_path(path)?)?)?;
        mount::allow_device(&copy).map(|()| copy)
    };
    let dev = Path::new("/dev");
    let copies = names
        .iter()
        .map(|name| copy_of(&dev.join(name)).map(|copy| (name, copy)).named(format!("copy /dev/{name}")))
        .collect::<Result<Vec<_>, _>>()?;
    let terminal = match terminal {
        Some(path) => Some((path, copy_of(path).named("copy the terminal")?)),
        None => None,
    };
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount::fresh(c"tmpfs", c"/dev", flags, c"mode=755,size=64k").named("mount /dev")?;
    let attach = |copy: &OwnedFd, path: &Path| mount::attach(copy, &process::open_exactly(&c_path(path)?)?);
    for (name, copy) in copies {
        let path = dev.join(name);
        fs::File::create(&path).and_then(|_| attach(&copy, &path)).named(format!("provide /dev/{name}"))?;
    }
    let nothing = fs::File::options().write(true).create_new(true).mode(0o000).open(NOTHING);
    nothing.named(format!("create {NOTHING}"))?;
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(link)).named(format!("link /dev/{link}"))?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name)).named(format!("create /dev/{name}"))?;
    }
    mount::fresh(c"devpts", c"/dev/pts", flags, c"newinstance,ptmxmode=0666,mode=620")
        .named("mount /dev/pts")?;
    mount::fresh(c"tmpfs", c"/dev/shm", libc::MS_NOSUID | libc::MS_NODEV, c"mode=1777")
        .named("mount /dev/shm")?;
    let kept = match terminal {
        Some((path, copy)) => place_terminal(path, &copy).named("provide the terminal")?,
        None => None,
    };
    mount::set_read_only(c"/dev", true, false).named("make /dev read-only")?;
    Ok(kept)
}

/// Puts the caller's terminal where ttyname(3) looks for it. The new devpts has only numbers that
/// were allocated, so the number is allocated, covered, and held.
fn place_terminal(path: &Path, copy: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    const MOST: usize = 512;
    let mut masters = Vec::new();
    while masters.len() < MOST && path.symlink_metadata().is_err() {
        let master = fs::OpenOptions::new().read(true).write(true).open("/dev/pts/ptmx")?;
        masters.push(OwnedFd::from(master));
    }
    let Some(master) = masters.pop().filter(|_| path.symlink_metadata().is_ok()) else {
        return Ok(None);
    };
    mount::attach(copy, &process::open_exactly(&c_path(path)?)?)?;
    Ok(Some(master))
}

fn processes() -> Result<(), StepError> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount::fresh(c"proc", c"/proc", flags, c"").named("mount /proc")?;
    // Some of its files act on the machine, and root may write them without any capability.
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"] {
        if Path::new(path).exists() {
            remount(Path::new(path), true).named(format!("make {path} read-only"))?;
        }
    }
    Ok(())
}

/// Gives up every privilege, and that an exec gives any.
pub(super) fn renounce() -> Result<(), StepError> {
    process::no_new_privileges().named("set no_new_privs")?;
    process::empty_bounding_set().named("empty the bounding set")?;
    process::drop_capabilities().named("drop capabilities")
}

/// What Landlock allows in a sandbox. Its rules name what the mounts have put there, so it is made after them.
pub(crate) fn ruleset(plan: &Plan) -> Result<OwnedFd, StepError> {
    let ruleset = landlock::ruleset(plan.landlock_abi, plan.network()).named("create a Landlock ruleset")?;
    for (path, access) in &plan.landlock {
        let what = || format!("allow {} by Landlock", path.display());
        let at = match c_path(path).and_then(|path| process::open_exactly(&path)) {
            // Something beside a hole that has gone meanwhile.
            Err(error) if plan.is_alone() && error.kind() == io::ErrorKind::NotFound => continue,
            other => other.named(what())?,
        };
        let directory = nix::sys::stat::fstat(&at).named(what())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let access = if directory { *access } else { access & landlock::fs::OF_FILES };
        landlock::allow(&ruleset, &at, access).named(what())?;
    }
    Ok(ruleset)
}

/// Third, in the command's own process, after [`Confinement::refuse`]: the rest of what cannot be undone.
/// What is returned listens to the calls that the server answers, unless that is for
/// [`Confinement::refuse_last`] to do, as where these are calls that this process still makes itself.
pub(crate) fn confine(
    plan: &Plan,
    confinement: &Confinement,
    ruleset: &OwnedFd,
    _before: &Refused,
) -> Result<Option<OwnedFd>, StepError> {
    process::drop_capabilities().named("drop capabilities")?;
    landlock::restrict(ruleset).named("restrict by Landlock")?;
    if plan.calls.names { Ok(None) } else { confinement.refuse_last() }
}
