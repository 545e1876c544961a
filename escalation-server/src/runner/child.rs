//! What a forked child does until it is the command: one straight line, and a report if it breaks.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use postern_shim::wire::{self, Bytes, Handover, Kind};

use super::message::{Channel, ChildReport, Cwd, Image, Start, Target};
use crate::sandbox::{Confinement, Plan, build_view, confine, split_off};
use crate::sys::process::{self, Fork, Limits};
use crate::sys::socket;

/// Why a child did not become the command.
pub(super) enum Stop {
    Refused(io::Error),
    Failed(String),
}

type Step<T> = Result<T, Stop>;

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Stop {
    move |error| Stop::Failed(format!("{what}: {error}"))
}

/// A sandbox that exists, or is to be made.
pub(super) enum Sandbox<'a> {
    None,
    /// Enter the one whose first process this pidfd names.
    Enter {
        init: &'a OwnedFd,
        plan: &'a Plan,
        confinement: &'a Confinement,
    },
    /// Make one; it lives as long as the control pipe or a process in it.
    Make {
        control: &'a OwnedFd,
        plan: &'a Plan,
        confinement: &'a Confinement,
        terminal: Option<&'a Path>,
    },
}

/// Forks the command into its sandbox. Runs in a child of the spawner, and ends it.
///
/// The first process of a new PID namespace and the command are both made as siblings of this one,
/// so that the spawner, their parent, sees them stop and end; this one then leaves.
pub(super) fn split(
    mut report: Channel,
    sandbox: &Sandbox<'_>,
    command: impl FnOnce(&mut Channel) -> Stop,
) -> ! {
    let stop = match sandbox {
        Sandbox::None => {
            let _told =
                report.send(&ChildReport::Pids { init: 0, command: std::process::id().cast_signed() }, &[]);
            command(&mut report)
        }
        Sandbox::Enter { init, plan, .. } => enter(&mut report, init, plan, command),
        Sandbox::Make { control, plan, terminal, .. } => make(&mut report, control, plan, *terminal, command),
    };
    let message = match stop {
        Stop::Refused(error) => ChildReport::Refused { errno: error.raw_os_error().unwrap_or(libc::EACCES) },
        Stop::Failed(what) => ChildReport::Failed { what },
    };
    let _told = report.send(&message, &[]);
    process::exit_now(126)
}

fn sibling() -> Step<Fork> {
    process::fork_sibling().map_err(failed("fork"))
}

fn enter(
    report: &mut Channel,
    init: &OwnedFd,
    plan: &Plan,
    command: impl FnOnce(&mut Channel) -> Stop,
) -> Stop {
    if let Err(error) = process::enter_namespaces(init, plan.user_namespace(), !plan.network()) {
        return Stop::Failed(format!("enter the turn's sandbox: {error}"));
    }
    match sibling() {
        Ok(Fork::Child) => command(report),
        Ok(Fork::Parent(pid)) => leave(report, 0, pid),
        Err(stop) => stop,
    }
}

fn make(
    report: &mut Channel,
    control: &OwnedFd,
    plan: &Plan,
    terminal: Option<&Path>,
    command: impl FnOnce(&mut Channel) -> Stop,
) -> Stop {
    let result = (|| {
        let (ready, built) = Channel::pair().map_err(failed("create a socket"))?;
        split_off(plan).map_err(|error| Stop::Failed(error.to_string()))?;
        let init = match sibling()? {
            Fork::Child => be_first(control, plan, terminal, &built),
            Fork::Parent(pid) => pid,
        };
        drop(built);
        match sibling()? {
            Fork::Child => {
                await_view(&ready)?;
                Ok(None)
            }
            Fork::Parent(pid) => Ok(Some((init, pid))),
        }
    })();
    match result {
        Ok(None) => command(report),
        Ok(Some((init, pid))) => leave(report, init, pid),
        Err(stop) => stop,
    }
}

fn leave(report: &Channel, init: i32, command: i32) -> ! {
    let _told = report.send(&ChildReport::Pids { init, command }, &[]);
    process::exit_now(0)
}

/// The command's side of the first process's work.
fn await_view(ready: &Channel) -> Step<()> {
    wait_readable(ready, Duration::from_secs(20)).map_err(failed("wait for the sandbox's mounts"))?;
    match ready.receive::<Result<(), String>>() {
        Ok(Some((Ok(()), _))) => Ok(()),
        Ok(Some((Err(what), _))) => Err(Stop::Failed(what)),
        Ok(None) => Err(Stop::Failed("the sandbox's first process ended early".to_owned())),
        Err(error) => Err(Stop::Failed(format!("wait for the sandbox's mounts: {error}"))),
    }
}

/// Pid 1 of a sandbox: builds what will be seen, then reaps. Ends when its control pipe is closed
/// and no process is left; dies with the spawner, and takes everything in the namespace along.
fn be_first(control: &OwnedFd, plan: &Plan, terminal: Option<&Path>, built: &Channel) -> ! {
    process::set_name(c"postern-init");
    let _if_parent_dies = process::die_with_parent(libc::SIGKILL);
    let view = build_view(plan, terminal);
    let mut keep = vec![control.as_raw_fd(), built.as_raw_fd()];
    let said = match &view {
        Ok(terminal) => {
            keep.extend(terminal.as_ref().map(AsRawFd::as_raw_fd));
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    let closed = process::close_others(&keep);
    let said = said.and(closed.map_err(|error| format!("close descriptors: {error}")));
    let told = built.send(&said, &[]);
    if said.is_err() || told.is_err() {
        process::exit_now(1);
    }
    // Left open, it would tell the command nothing more and keep one descriptor too many.
    let _closed = nix::unistd::close(built.as_raw_fd());
    process::set_signals(0, 0);
    let _end = wait_readable(control, Duration::MAX);
    while process::reap_blocking().is_ok() {}
    process::exit_now(0)
}

/// Waits until something can be read, reaping meanwhile if there is no deadline.
fn wait_readable(fd: &impl AsFd, deadline: Duration) -> io::Result<()> {
    // Without a deadline this is pid 1, whose orphans must not pile up.
    let forever = deadline == Duration::MAX;
    let turn = PollTimeout::try_from(if forever { Duration::from_millis(500) } else { deadline })
        .unwrap_or(PollTimeout::MAX);
    loop {
        let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polls, turn) {
            Ok(0) if forever => while matches!(process::wait_any(false), Ok(Some(_))) {},
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The login shell's own last steps.
pub(super) struct Shell<'a> {
    pub(super) program: &'a Path,
    pub(super) argv: &'a [Bytes],
    pub(super) env: &'a [Bytes],
    /// Number and socket of the gate.
    pub(super) gate: (i32, &'a OwnedFd),
    pub(super) cwd: &'a Cwd,
    pub(super) open_files: libc::rlimit,
    pub(super) ignored: u64,
    pub(super) blocked: u64,
    /// Says a byte when the server is ready.
    pub(super) go: &'a OwnedFd,
}

pub(super) fn become_shell(shell: &Shell<'_>, sandbox: &Sandbox<'_>, report: &mut Channel) -> Stop {
    let result = (|| {
        process::place(shell.gate.1, shell.gate.0).map_err(failed("place the request socket"))?;
        let program = process::open_exactly(&c_string(shell.program.as_os_str().as_bytes())?)
            .or_else(|_| open_following(shell.program))
            .map_err(|error| Stop::Failed(format!("{}: {error}", shell.program.display())))?;
        // Inherited, it would lead through the mounts that were there before the sandbox's.
        enter_directory(shell.cwd, None)?;
        confine_in(sandbox)?;
        await_server(shell.go)?;
        // A directory would lead past the sandbox's mounts, which cover paths and not descriptors.
        for number in 0..=2 {
            let fd = process::standard(number);
            if matches!(kind_of(&fd), "directory" | "path") {
                let null = std::fs::File::options().read(true).write(true).open("/dev/null");
                process::place(null.map_err(failed("open /dev/null"))?, number)
                    .map_err(failed("place /dev/null"))?;
            }
        }
        let keep = [0, 1, 2, shell.gate.0, report.as_raw_fd(), program.as_raw_fd()];
        process::close_others(&keep).map_err(failed("close descriptors"))?;
        process::set_limit(libc::RLIMIT_NOFILE, shell.open_files).map_err(failed("set limits"))?;
        process::set_signals(shell.ignored, shell.blocked);
        Ok(program)
    })();
    match result {
        Err(stop) => stop,
        Ok(program) => {
            exec(report, &process::Image::File(program.as_fd()), shell.argv, shell.env, Vec::new())
        }
    }
}

fn await_server(go: &OwnedFd) -> Step<()> {
    wait_readable(go, Duration::from_secs(30)).map_err(failed("wait for the server"))?;
    match nix::unistd::read(go, &mut [0]) {
        Ok(1) => Ok(()),
        _ => Err(Stop::Failed("the server did not start".to_owned())),
    }
}

fn open_following(path: &Path) -> io::Result<OwnedFd> {
    process::open_exactly(&CString::new(path.canonicalize()?.as_os_str().as_bytes())?)
}

/// A rerun's last steps.
pub(super) struct Rerun<'a> {
    pub(super) start: &'a Start,
    pub(super) connection: OwnedFd,
    pub(super) executable: OwnedFd,
    pub(super) cwd: Option<OwnedFd>,
    pub(super) gate: Option<OwnedFd>,
    pub(super) limits: Limits,
    /// The session's own, below which a wider command does not fall.
    pub(super) session_limits: &'a Limits,
    pub(super) nice: i32,
    /// Sockets whose other end these processes made are ours, and not the command's.
    pub(super) own: [i32; 3],
}

pub(super) fn become_command(rerun: Rerun<'_>, sandbox: &Sandbox<'_>, report: &mut Channel) -> Stop {
    let start = rerun.start;
    let result = (|| {
        let handed = receive_handover(&rerun.connection)?;
        drop(rerun.connection);
        let least =
            handed.iter().map(|(number, _)| *number).max().unwrap_or(0).max(start.gate.unwrap_or(0)).max(2)
                + 1;
        let up = |fd| process::move_up(fd, least).map_err(failed("move a descriptor"));
        let executable = up(rerun.executable)?;
        let cwd = rerun.cwd.map(up).transpose()?;
        let gate = rerun.gate.map(up).transpose()?;
        // Out of the way of the numbers that are to be filled.
        *report = Channel::adopt(up(report.duplicate().map_err(failed("duplicate a descriptor"))?)?);
        let handed =
            handed.into_iter().map(|(number, fd)| Ok((number, up(fd)?))).collect::<Step<Vec<_>>>()?;

        enter_directory(&start.cwd, cwd.as_ref())?;
        let executable = match &start.image {
            Image::Descriptor => executable,
            Image::Exact { path, dev, ino } | Image::Script { path, dev, ino } => {
                exactly(path, *dev, *ino, "the executable")?
            }
        };

        let mut placed = Vec::new();
        for (number, fd) in &handed {
            let kind = kind_of(fd);
            if passes(fd, kind, start, &rerun.own) {
                placed.push((*number, fd, kind));
            }
        }
        let mut keep = vec![report.as_raw_fd(), executable.as_raw_fd()];
        keep.extend(handed.iter().map(|(_, fd)| fd.as_raw_fd()));
        keep.extend(gate.as_ref().map(AsRawFd::as_raw_fd));
        confine_in(sandbox)?;
        process::close_others(&keep).map_err(failed("close descriptors"))?;
        for (number, fd, _) in &placed {
            process::place(fd, *number).map_err(failed("place a descriptor"))?;
        }
        if let (Some(number), Some(gate)) = (start.gate, &gate) {
            process::place(gate, number).map_err(failed("place the request socket"))?;
        }
        if start.wider {
            fill_standard(&placed.iter().map(|(number, ..)| *number).collect::<Vec<_>>())?;
        }
        inherit(&rerun.limits, rerun.session_limits, start, rerun.nice)?;
        let fds =
            placed.iter().map(|(number, _, kind)| (number.unsigned_abs(), (*kind).to_owned())).collect();
        Ok((executable, fds))
    })();
    let (executable, fds) = match result {
        Ok(ready) => ready,
        Err(stop) => return stop,
    };
    match &start.image {
        Image::Script { path, .. } => match c_string(path.as_slice()) {
            Ok(path) => exec(report, &process::Image::Path(&path), &start.argv, &start.env, fds),
            Err(stop) => stop,
        },
        _ => exec(report, &process::Image::File(executable.as_fd()), &start.argv, &start.env, fds),
    }
}

fn confine_in(sandbox: &Sandbox<'_>) -> Step<()> {
    match sandbox {
        Sandbox::None => Ok(()),
        Sandbox::Enter { plan, confinement, .. } | Sandbox::Make { plan, confinement, .. } => {
            confine(plan, confinement).map_err(|error| Stop::Failed(error.to_string()))
        }
    }
}

fn exec(
    report: &Channel,
    image: &process::Image<'_>,
    argv: &[Bytes],
    env: &[Bytes],
    fds: Vec<(u32, String)>,
) -> Stop {
    let strings =
        |list: &[Bytes]| list.iter().map(|bytes| c_string(bytes.as_slice())).collect::<Step<Vec<_>>>();
    let (argv, env) = match (strings(argv), strings(env)) {
        (Ok(argv), Ok(env)) => (argv, env),
        (Err(stop), _) | (_, Err(stop)) => return stop,
    };
    if let Err(error) = report.send(&ChildReport::Ready { fds }, &[]) {
        return Stop::Failed(format!("report: {error}"));
    }
    Stop::Refused(process::execute(image, &argv, &env))
}

fn c_string(bytes: &[u8]) -> Step<CString> {
    CString::new(bytes).map_err(failed("a string with a NUL byte in it"))
}

/// The waiter's descriptors, read here so that the spawner never holds what is not its own.
fn receive_handover(connection: &OwnedFd) -> Step<Vec<(i32, OwnedFd)>> {
    let mut handed = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        wait_readable(connection, Duration::from_secs(10)).map_err(failed("wait for the descriptors"))?;
        let message = socket::receive(connection, &mut buffer).map_err(failed("receive descriptors"))?;
        let frame = buffer.get(..message.length).unwrap_or_default();
        let part: Handover = wire::decode(Kind::Handover, frame).map_err(failed("descriptors"))?;
        let idle = part.numbers.is_empty() && !part.last;
        if idle || message.truncated || part.numbers.len() != message.fds.len() {
            return Err(Stop::Failed("not all descriptors arrived".to_owned()));
        }
        for (number, fd) in part.numbers.into_iter().zip(message.fds) {
            let number = i32::try_from(number).map_err(failed("a descriptor's number"))?;
            if number >= 1 << 20 || handed.len() >= wire::MAX_HANDOVER {
                return Err(Stop::Failed("too many descriptors, or too high a number".to_owned()));
            }
            handed.push((number, fd));
        }
        if part.last {
            return Ok(handed);
        }
    }
}

fn kind_of(fd: &impl AsFd) -> &'static str {
    if process::open_flags(fd).is_ok_and(|flags| flags & libc::O_PATH != 0) {
        return "path";
    }
    let mode = nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    match mode {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFCHR if nix::unistd::isatty(fd).unwrap_or(false) => "terminal",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        libc::S_IFIFO => "pipe",
        libc::S_IFSOCK => "socket",
        _ => "other",
    }
}

/// A directory of the asker's leads a wider command through the asker's mounts, and a socket of
/// ours would let it speak for another context.
fn passes(fd: &OwnedFd, kind: &str, start: &Start, own: &[i32; 3]) -> bool {
    match kind {
        "directory" | "path" => start.target == Target::Turn,
        "socket" => !socket::peer(fd).is_ok_and(|peer| own.contains(&peer.pid)),
        _ => true,
    }
}

fn fill_standard(placed: &[i32]) -> Step<()> {
    for number in (0..=2).filter(|number| !placed.contains(number)) {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(failed("open /dev/null"))?;
        process::place(&null, number).map_err(failed("place /dev/null"))?;
        if null.as_raw_fd() == number {
            std::mem::forget(null);
        }
    }
    Ok(())
}

fn enter_directory(cwd: &Cwd, handle: Option<&OwnedFd>) -> Step<()> {
    let opened;
    let at = match (cwd, handle) {
        (Cwd::Descriptor, Some(handle)) => handle,
        (Cwd::Descriptor, None) => return Err(Stop::Failed("the working directory is missing".to_owned())),
        (Cwd::Exact { path, dev, ino }, _) => {
            opened = exactly(path, *dev, *ino, "the working directory")?;
            &opened
        }
    };
    nix::unistd::fchdir(at).map_err(failed("enter the working directory"))
}

/// Opens a path that must lead, without a symlink, to the very file that was judged.
fn exactly(path: &Bytes, dev: u64, ino: u64, what: &str) -> Step<OwnedFd> {
    let changed = || Stop::Failed(format!("{what} is not what it was when it was judged"));
    let fd = process::open_exactly(&c_string(path.as_slice())?).map_err(|_| changed())?;
    let stat = nix::sys::stat::fstat(&fd).map_err(|_| changed())?;
    if (stat.st_dev, stat.st_ino) == (dev, ino) { Ok(fd) } else { Err(changed()) }
}

/// Takes over what a plain exec would have kept, clamped where the command is wider than its asker.
fn inherit(limits: &Limits, session: &Limits, start: &Start, nice: i32) -> Step<()> {
    for (resource, (limit, session)) in (0..).zip(limits.iter().zip(session)) {
        let mut limit = *limit;
        if start.wider {
            match resource {
                libc::RLIMIT_CORE => limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 },
                libc::RLIMIT_FSIZE | libc::RLIMIT_NPROC => {
                    limit.rlim_cur = limit.rlim_cur.max(session.rlim_cur);
                    limit.rlim_max = limit.rlim_max.max(session.rlim_max);
                }
                _ => {}
            }
        }
        process::set_limit(resource, limit).map_err(failed("set limits"))?;
    }
    let umask = if start.wider { start.umask | 0o002 } else { start.umask };
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    if nice > process::nice(0) {
        process::set_nice(nice);
    }
    process::set_signals(start.ignored, start.blocked);
    Ok(())
}

/// Puts this process where the asking job is: its process group, or a session of its own if the
/// asker has left ours.
pub(super) fn join_job(waiter: i32) {
    let ours = nix::unistd::getsid(None);
    let waiter = Pid::from_raw(waiter);
    let joined = nix::unistd::getsid(Some(waiter)) == ours
        && nix::unistd::getpgid(Some(waiter))
            .and_then(|group| nix::unistd::setpgid(Pid::from_raw(0), group))
            .is_ok();
    if !joined {
        let _own_session = nix::unistd::setsid();
    }
}
