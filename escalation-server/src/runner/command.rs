//! The last steps of a process that becomes a rerun: one straight line, and a report if it breaks.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use postern_shim::wire::Bytes;

use super::channel::Channel;
use super::enter::{Place, Step, Stop, failed, readable, withdraw};
use super::handover::{Attributes, kind_of, passes, receive_handover};
use super::message::{Become, ChildReport, Cwd, Go, Image, Inherited};
use crate::sys::process::{self, Limits};

/// Waits, confined and where the command will run, for the order to become it.
pub(super) fn stand_by(session_limits: &Limits, place: &Place<'_>, report: &mut Channel) -> Stop {
    let ordered = (|| {
        let listener = place.confine()?;
        withdraw()?;
        readable(report, None).map_err(failed("wait for the order"))?;
        match report.receive::<Become>() {
            Ok(Some((order, fds))) => Ok((order, fds, listener)),
            // Nobody needs it any more.
            Ok(None) => process::exit_now(0),
            Err(error) => Err(Stop::Failed(format!("receive the order: {error}"))),
        }
    })();
    match ordered {
        Ok((order, fds, listener)) => become_command(&order, fds, listener, session_limits, place, report),
        Err(stop) => stop,
    }
}

fn become_command(
    order: &Become,
    fds: Vec<OwnedFd>,
    listener: Option<OwnedFd>,
    session_limits: &Limits,
    place: &Place<'_>,
    report: &mut Channel,
) -> Stop {
    let start = &order.start;
    let ready =
        make_ready(order, fds, listener, place, report).and_then(|(executable, go, own, mut ready)| {
            let Go { env, inherited } = await_go(&go)?;
            inherit(&inherited, own.umask, start.wider, session_limits)?;
            match start.names {
                // Last: from here on nothing is found by its name until somebody answers.
                Some(names) => ready.served.insert(0, place.listen_to_names(names.no_new_privileges)?),
                None if place.serves_names() => {
                    return Err(Stop::Failed("nobody was to answer for its files".to_owned()));
                }
                None => {}
            }
            Ok((executable, env, (own.ignored, own.blocked), ready))
        });
    match ready {
        Err(stop) => stop,
        Ok((executable, env, signals, ready)) => {
            let run = |image: process::Image<'_>| exec(report, &image, &start.argv, &env, signals, &ready);
            match &start.image {
                Image::Script { path, .. } => match c_string(path.as_slice()) {
                    Ok(path) => run(process::Image::Path(&path)),
                    Err(stop) => stop,
                },
                _ => run(process::Image::File(executable.as_fd())),
            }
        }
    }
}

/// Waits until the decision is on record; what is returned comes with that.
fn await_go(go: &Channel) -> Step<Go> {
    readable(go, None).map_err(failed("wait for the record"))?;
    match go.receive::<Go>() {
        Ok(Some((go, _))) => Ok(go),
        Ok(None) => Err(Stop::Failed("it is not on record".to_owned())),
        Err(error) => Err(failed("wait for the record")(error)),
    }
}

/// What a process tells before its exec.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Numbers and kinds of the descriptors that the command starts with.
    kinds: Vec<(u32, String)>,
    /// The listener to the calls that the server answers, and its context's request socket, if any.
    served: Vec<OwnedFd>,
}

impl Ready {
    /// # Errors
    /// If the socket cannot be kept for the server.
    pub(super) fn serving(listener: Option<OwnedFd>, gate: impl AsFd) -> Step<Self> {
        let Some(listener) = listener else { return Ok(Self::default()) };
        let gate = gate.as_fd().try_clone_to_owned().map_err(failed("keep the request socket"))?;
        Ok(Self { served: vec![listener, gate], ..Self::default() })
    }
}

fn make_ready(
    order: &Become,
    fds: Vec<OwnedFd>,
    listener: Option<OwnedFd>,
    place: &Place<'_>,
    report: &mut Channel,
) -> Step<(OwnedFd, Channel, Attributes, Ready)> {
    let start = &order.start;
    if let Some(processors) = &order.processors {
        process::run_on(processors).map_err(failed("go back to all processors"))?;
    }
    if order.own_session {
        let _leader = nix::unistd::setsid();
    }
    if order.covered {
        place.await_view()?;
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| Stop::Failed("a descriptor is missing".to_owned()));
    let (connection, executable, go) = (next()?, next()?, next()?);
    let cwd = if start.cwd == Cwd::Descriptor { Some(next()?) } else { None };
    let gate = start.gate.map(|number| next().map(|gate| (number, gate))).transpose()?;
    let (handed, own) = receive_handover(&connection)?;
    drop(connection);

    // Out of the way of the numbers that are to be filled.
    let highest = handed.iter().map(|(number, _)| *number).chain(start.gate).max().unwrap_or(0);
    let least = highest.max(2) + 1;
    let up = |fd| process::move_up(fd, least).map_err(failed("move a descriptor"));
    let (executable, go) = (up(executable)?, up(go)?);
    let cwd = cwd.map(up).transpose()?;
    let gate = gate.map(|(number, gate)| Ok((number, up(gate)?))).transpose()?;
    let listener = listener.map(up).transpose()?;
    report.move_up(least).map_err(failed("move a descriptor"))?;
    let handed = handed.into_iter().map(|(number, fd)| Ok((number, up(fd)?))).collect::<Step<Vec<_>>>()?;

    enter_directory(&start.cwd, cwd.as_ref())?;
    // Before its number is another's.
    drop(cwd);
    let executable = match &start.image {
        Image::Descriptor => executable,
        Image::Exact { path, dev, ino } | Image::Script { path, dev, ino } => {
            drop(executable);
            // It too, or a descriptor of the asker's would take its number.
            up(exactly(path, *dev, *ino, "the executable")?)?
        }
    };

    let passing = handed.iter().map(|(number, fd)| (*number, fd, kind_of(fd)));
    let placed: Vec<_> = passing.filter(|(_, fd, kind)| passes(fd, kind, start)).collect();
    let mut keep = vec![report.as_raw_fd(), executable.as_raw_fd(), go.as_raw_fd()];
    keep.extend(handed.iter().map(|(_, fd)| fd.as_raw_fd()));
    keep.extend(gate.iter().map(|(_, gate)| gate).chain(&listener).map(AsRawFd::as_raw_fd));
    process::close_others(&keep).map_err(failed("close descriptors"))?;
    for (number, fd, _) in &placed {
        process::place(fd, *number).map_err(failed("place a descriptor"))?;
    }
    if let Some((number, gate)) = &gate {
        process::place(gate, *number).map_err(failed("place the request socket"))?;
    }
    if start.wider {
        process::fill_standard().map_err(failed("open /dev/null"))?;
    }
    let mut ready = match gate {
        Some((_, gate)) if start.names.is_some() => Ready { served: vec![gate], ..Ready::default() },
        Some((_, gate)) => Ready::serving(listener, gate)?,
        None => Ready::default(),
    };
    ready.kinds =
        placed.iter().map(|(number, _, kind)| (number.unsigned_abs(), (*kind).to_owned())).collect();
    Ok((executable, go.into(), own, ready))
}

pub(super) fn exec(
    report: &Channel,
    image: &process::Image<'_>,
    argv: &Bytes,
    env: &Bytes,
    (ignored, blocked): (u64, u64),
    ready: &Ready,
) -> Stop {
    let served: Vec<_> = ready.served.iter().map(AsFd::as_fd).collect();
    if let Err(error) = report.send(&ChildReport::Ready { fds: ready.kinds.clone() }, &served) {
        return Stop::Failed(format!("report: {error}"));
    }
    // Last: a signal that came before ends what is known to run.
    process::set_signals(ignored, blocked);
    Stop::Refused(process::execute(image, argv.as_slice(), env.as_slice()))
}

pub(super) fn c_string(bytes: &[u8]) -> Step<CString> {
    CString::new(bytes).map_err(failed("a string with a NUL byte in it"))
}

pub(super) fn enter_directory(cwd: &Cwd, handle: Option<&OwnedFd>) -> Step<()> {
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

/// Takes over what a plain exec would have kept of the asker's process, clamped where the command is wider than that.
fn inherit(inherited: &Inherited, umask: u32, wider: bool, session: &Limits) -> Step<()> {
    for (resource, (&(rlim_cur, rlim_max), session)) in (0..).zip(inherited.limits.iter().zip(session)) {
        let mut limit = libc::rlimit { rlim_cur, rlim_max };
        if wider {
            match resource {
                libc::RLIMIT_CORE => limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 },
                libc::RLIMIT_FSIZE | libc::RLIMIT_NPROC => {
                    limit.rlim_cur = limit.rlim_cur.max(session.rlim_cur);
                    limit.rlim_max = limit.rlim_max.max(session.rlim_max);
                }
                _ => {}
            }
        }
        if (limit.rlim_cur, limit.rlim_max) == (session.rlim_cur, session.rlim_max) {
            continue;
        }
        process::set_limit(resource, limit).map_err(failed("set limits"))?;
    }
    let umask = if wider { umask | 0o002 } else { umask };
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    if inherited.nice > process::nice(0) {
        process::set_nice(inherited.nice);
    }
    Ok(())
}
