//! How a new process gets to where its command will run.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::Channel;
use super::init::be_first;
use super::message::ChildReport;
use crate::sandbox::{
    Confinement, Plan, Premade, Refused, StepError, confine, listen_to_names, ruleset, split_off,
};
use crate::sys::process::{self, Fork};

/// Why a process did not become the command.
pub(super) enum Stop {
    Refused(io::Error),
    Failed(String),
}

pub(super) type Step<T> = Result<T, Stop>;

pub(super) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Stop {
    move |error| Stop::Failed(format!("{what}: {error}"))
}

/// A sandbox that exists, or is to be made.
#[derive(Clone, Copy)]
pub(super) enum Sandbox<'a> {
    None,
    /// Without namespaces: where this process is, confined.
    Confine {
        plan: &'a Plan,
        confinement: &'a Confinement,
    },
    /// Enter one, and be copied there for each message in `copies`.
    Enter {
        entrance: &'a Entrance,
        copies: &'a Channel,
        plan: &'a Plan,
        confinement: &'a Confinement,
    },
    /// Make one; it lives as long as the other end of `control` or a process in it.
    Make {
        control: &'a Channel,
        plan: &'a Plan,
        confinement: &'a Confinement,
        terminal: Option<&'a Path>,
        shared: Option<&'a Premade>,
    },
}

impl<'a> Sandbox<'a> {
    /// What confines who is in it, if anything does.
    fn confinement(self) -> Option<(&'a Plan, &'a Confinement)> {
        match self {
            Sandbox::None => None,
            Sandbox::Confine { plan, confinement }
            | Sandbox::Enter { plan, confinement, .. }
            | Sandbox::Make { plan, confinement, .. } => Some((plan, confinement)),
        }
    }
}

/// The way into a sandbox that exists. Who goes there first becomes its zygote: it stays before the
/// command's last steps, and whoever becomes a command there is its copy, which needs no more than these.
#[derive(Debug)]
pub(super) struct Entrance {
    /// Of the sandbox's first process.
    init: OwnedFd,
    /// Where the zygote is told to make a copy, while there is one.
    zygote: RefCell<Option<Channel>>,
}

impl Entrance {
    /// By a pidfd of a sandbox's first process.
    pub(super) fn by(init: OwnedFd) -> Self {
        Self { init, zygote: RefCell::default() }
    }

    /// Has the zygote make a process that reports there; false where there is no zygote.
    pub(super) fn copy(&self, report: &Channel) -> bool {
        let sent = |zygote: &Channel| zygote.send(&(), &[report.as_fd()]).is_ok();
        self.zygote.borrow().as_ref().is_some_and(sent)
    }

    /// From now on there is a zygote, which is told by this.
    pub(super) fn zygote_is(&self, zygote: Channel) {
        self.zygote.replace(Some(zygote));
    }

    /// Lets the zygote end.
    pub(super) fn dismiss(&self) {
        self.zygote.replace(None);
    }
}

/// What a process has of its place, where all calls but the last are refused that the command does not get.
pub(super) struct Place<'a> {
    /// Where the first process of a new sandbox says that it has mounted what it was told to.
    view: Option<Channel>,
    confined: Option<(&'a Plan, &'a Confinement, Refused)>,
    /// What Landlock allows there, where that was made before.
    ruleset: Option<OwnedFd>,
}

impl<'a> Place<'a> {
    /// Refuses calls, before the mounts of a new sandbox are waited for: both take a while, and neither needs
    /// the other.
    fn reached(sandbox: Sandbox<'a>, view: Option<Channel>) -> Step<Self> {
        let confined = sandbox.confinement().map(|(plan, confinement)| {
            confinement.refuse().map(|refused| (plan, confinement, refused)).map_err(told)
        });
        Ok(Self { view, confined: confined.transpose()?, ruleset: None })
    }

    /// Waits for the first process of a new sandbox.
    pub(super) fn await_view(&self) -> Step<()> {
        let Some(view) = &self.view else { return Ok(()) };
        if !readable(view, Some(Duration::from_secs(20))).map_err(failed("wait for the sandbox's mounts"))? {
            return Err(Stop::Failed("the sandbox's mounts take too long".to_owned()));
        }
        match view.receive::<Result<(), String>>() {
            Ok(Some((Ok(()), _))) => Ok(()),
            Ok(Some((Err(what), _))) => Err(Stop::Failed(what)),
            Ok(None) => Err(Stop::Failed("the sandbox's first process ended early".to_owned())),
            Err(error) => Err(Stop::Failed(format!("wait for the sandbox's mounts: {error}"))),
        }
    }

    /// The rest of what cannot be undone. See [`confine`] for what is returned.
    pub(super) fn confine(&self) -> Step<Option<OwnedFd>> {
        let Some((plan, confinement, refused)) = &self.confined else { return Ok(None) };
        let made;
        let ruleset = match &self.ruleset {
            Some(before) => before,
            None => {
                made = ruleset(plan).map_err(told)?;
                &made
            }
        };
        confine(plan, confinement, ruleset, refused).map_err(told)
    }

    /// Whether [`Self::listen_to_names`] is still to refuse the last calls.
    pub(super) fn serves_names(&self) -> bool {
        self.confined.as_ref().is_some_and(|(plan, ..)| plan.calls().names)
    }

    /// From now on the server answers how files are found by their names. What is returned listens.
    pub(super) fn listen_to_names(&self, no_new_privileges: bool) -> Step<OwnedFd> {
        let listener = match &self.confined {
            None => listen_to_names(no_new_privileges).map(Some),
            Some((_, confinement, _)) => confinement.refuse_last(),
        };
        listener.map_err(told)?.ok_or_else(|| Stop::Failed("nobody would answer for its files".to_owned()))
    }
}

fn told(error: StepError) -> Stop {
    Stop::Failed(error.to_string())
}

/// Brings a process to its place, where it becomes the command. Runs in a child of the spawner, and
/// ends it.
///
/// The first process of a new PID namespace and the command are both made as siblings of this one,
/// so that the spawner, their parent, sees them stop and end; this one then leaves. In a sandbox that exists
/// the sibling is its zygote, and `command` is for its copies.
pub(super) fn enter(
    report: Channel,
    sandbox: Sandbox<'_>,
    command: impl FnOnce(&mut Channel, &Place<'_>) -> Stop,
) -> ! {
    let (mut report, entered) = match sandbox {
        Sandbox::None | Sandbox::Confine { .. } => {
            let _told = report.send(&ChildReport::Here, &[]);
            (report, Place::reached(sandbox, None))
        }
        Sandbox::Enter { entrance, copies, plan, .. } => {
            match enter_existing(&entrance.init, plan, sandbox) {
                Ok(place) => be_copied(report, copies, place),
                Err(stop) => (report, Err(stop)),
            }
        }
        Sandbox::Make { control, plan, terminal, shared, .. } => {
            let made = make(&report, control, plan, terminal, shared, sandbox);
            (report, made)
        }
    };
    let arrived = entered.and_then(|place| {
        place.await_view()?;
        Ok(place)
    });
    let stop = match arrived {
        Ok(place) => command(&mut report, &place),
        Err(stop) => stop,
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

fn leave(report: &Channel, init: i32, command: i32) -> ! {
    let _told = report.send(&ChildReport::Made { init, command }, &[]);
    process::exit_now(0)
}

fn enter_existing<'a>(init: &OwnedFd, plan: &'a Plan, sandbox: Sandbox<'a>) -> Step<Place<'a>> {
    process::enter_namespaces(init, plan.user_namespace(), !plan.network())
        .map_err(failed("enter the sandbox"))?;
    match sibling()? {
        Fork::Child => {
            let place = Place::reached(sandbox, None)?;
            Ok(Place { ruleset: Some(ruleset(plan).map_err(told)?), ..place })
        }
        Fork::Parent(_) => process::exit_now(0),
    }
}

/// Until its exec nobody sees into this process, and signals wait: what it remembers is none of its neighbours'
/// business, and what is sent to its job is the command's, which it becomes.
pub(super) fn withdraw() -> Step<()> {
    process::set_signals(0, u64::MAX);
    process::hide_memory().map_err(failed("hide this process's memory"))
}

/// The zygote's life. Returns in each of its copies, with what that reports by; they are its siblings, so the
/// spawner's children. In itself it returns only to say that there can be no copy, and end.
///
/// It stays outside the Landlock domain of its sandbox's commands, so that they cannot signal it, and keeps
/// its capabilities, so that they cannot slow it down.
fn be_copied<'a>(report: Channel, copies: &Channel, place: Place<'a>) -> (Channel, Step<Place<'a>>) {
    if let Err(stop) = withdraw() {
        return (report, Err(stop));
    }
    let mut next = Some(report);
    loop {
        // Held here it would not end with the copy.
        if let Some(report) = next.take() {
            match sibling() {
                Ok(Fork::Child) => {
                    let keep = place.ruleset.iter().map(AsRawFd::as_raw_fd);
                    let keep: Vec<_> = [0, 1, 2, report.as_raw_fd()].into_iter().chain(keep).collect();
                    let closed = process::close_others(&keep).map_err(failed("close descriptors"));
                    let _told = report.send(&ChildReport::Here, &[]);
                    return (report, closed.map(|()| place));
                }
                Ok(Fork::Parent(_)) => {}
                Err(stop) => return (report, Err(stop)),
            }
        }
        let _ready = readable(copies, None);
        match copies.receive::<()>() {
            Ok(Some(((), fds))) => next = fds.into_iter().next().map(Channel::from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => process::exit_now(0),
        }
    }
}

fn make<'a>(
    report: &Channel,
    control: &Channel,
    plan: &Plan,
    terminal: Option<&Path>,
    shared: Option<&Premade>,
    sandbox: Sandbox<'a>,
) -> Step<Place<'a>> {
    let (view, built) = Channel::pair().map_err(failed("create a socket"))?;
    split_off(plan, shared).map_err(|error| Stop::Failed(error.to_string()))?;
    let init = match sibling()? {
        Fork::Child => be_first(control, plan, terminal, &built),
        Fork::Parent(pid) => pid,
    };
    drop(built);
    match sibling()? {
        Fork::Child => Place::reached(sandbox, Some(view)),
        Fork::Parent(pid) => leave(report, init, pid),
    }
}

/// Waits until something can be read; false if that takes too long.
pub(super) fn readable(fd: &impl AsFd, patience: Option<Duration>) -> io::Result<bool> {
    let patience = patience.and_then(|time| PollTimeout::try_from(time).ok()).unwrap_or(PollTimeout::NONE);
    loop {
        let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polls, patience) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The descriptors that a process which stands by or becomes a zygote needs; every other is closed at once,
/// since as long as it stands nobody else would see their end.
pub(super) fn keep_only(report: &Channel, sandbox: Sandbox<'_>) -> io::Result<()> {
    let mut keep = vec![0, 1, 2, report.as_raw_fd()];
    match sandbox {
        Sandbox::None | Sandbox::Confine { .. } => {}
        Sandbox::Enter { entrance, copies, .. } => {
            keep.extend([entrance.init.as_raw_fd(), copies.as_raw_fd()]);
        }
        Sandbox::Make { control, shared, .. } => {
            keep.push(control.as_raw_fd());
            keep.extend(shared.into_iter().flat_map(Premade::fds));
        }
    }
    process::close_others(&keep)
}
