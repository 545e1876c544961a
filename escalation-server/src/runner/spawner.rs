//! The spawner: one thread, in the shell's session, the only process that forks. It starts the
//! shell and every rerun, passes on signals, and tells the server and the front what became of them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, getpgrp};
use postern_shim::wire::Bytes;

use super::child::{self, Rerun, Sandbox, Shell};
use super::message::{Channel, ChildReport, Cwd, FrontOrder, FrontReport, Order, Report, Start, Target};
use super::tree::kill_descendants;
use crate::profile::Resolved;
use crate::sandbox::{Abilities, Confinement, Facts, Placeholder, Plan, place, plan};
use crate::sys::process::{self, Change, Fork, Limits, Usage};

/// The shell's number among the commands.
const SHELL: u64 = 0;
/// How long a hang-up may take before the kill.
const GRACE: Duration = Duration::from_secs(1);
/// How long a signal to a whole group may take to reach each of its members.
const WITNESS: Duration = Duration::from_millis(5);

/// What sandboxes are made of.
#[derive(Debug, Clone)]
pub(crate) struct Profiles {
    pub(crate) abilities: Abilities,
    /// Postern's directories.
    pub(crate) hidden: Vec<PathBuf>,
    /// None: the turn is not restricted.
    pub(crate) turn: Option<Plan>,
    pub(crate) named: BTreeMap<String, Resolved>,
}

/// How the login shell starts.
#[derive(Debug)]
pub(crate) struct ShellStart {
    pub(crate) program: PathBuf,
    pub(crate) argv: Vec<Bytes>,
    pub(crate) env: Vec<Bytes>,
    /// Number and socket of the gate.
    pub(crate) gate: (i32, OwnedFd),
    pub(crate) cwd: Cwd,
    pub(crate) terminal: Option<PathBuf>,
    pub(crate) ignored: u64,
    pub(crate) blocked: u64,
    pub(crate) open_files: libc::rlimit,
    /// Says a byte when the server is ready.
    pub(crate) go: OwnedFd,
}

#[derive(Debug, Default)]
struct Command {
    pid: Option<i32>,
    /// The first process of a PID namespace of its own.
    init: Option<i32>,
    /// Keeps that one alive.
    control: Option<OwnedFd>,
    report: Option<Channel>,
    fds: Vec<(u32, String)>,
    ready: bool,
    started: bool,
    /// Refused or failed: what comes after is no news.
    over: bool,
    /// To be killed as soon as it is known which process it is.
    doomed: bool,
    stops: u32,
    stopped: bool,
    in_turn: bool,
    placeholders: Vec<Placeholder>,
}

/// The spawner's state; [`Spawner::run`] is its life.
#[derive(Debug)]
pub(crate) struct Spawner {
    server: Channel,
    front: Channel,
    signals: OwnedFd,
    profiles: Profiles,
    turn: Option<Confinement>,
    turn_init: Option<OwnedFd>,
    session_limits: Limits,
    own: [i32; 2],
    /// The caller's.
    terminal: Option<PathBuf>,
    commands: HashMap<u64, Command>,
    by_pid: HashMap<i32, u64>,
    /// Changes of children whose number is not known yet.
    early: HashMap<i32, Vec<(i32, Usage)>>,
    /// When a signal last reached this process itself.
    witnessed: HashMap<i32, Instant>,
    /// Signals that wait for the witness.
    delayed: Vec<(Instant, u64, i32)>,
    shell_ended: bool,
    ending: Option<Instant>,
}

impl Spawner {
    /// # Errors
    /// What keeps this process from being a spawner.
    pub(crate) fn new(
        server: Channel,
        front: Channel,
        profiles: Profiles,
        own: [i32; 2],
    ) -> Result<Self, String> {
        let text = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        process::become_subreaper().map_err(text("become a subreaper"))?;
        let caught: Vec<i32> =
            (1..32).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)).collect();
        let signals = process::signals_as_messages(&caught).map_err(text("listen to signals"))?;
        let session_limits = process::limits(0).map_err(text("read limits"))?;
        let turn = profiles
            .turn
            .as_ref()
            .map(Confinement::prepare)
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            server,
            front,
            signals,
            profiles,
            turn,
            turn_init: None,
            session_limits,
            own,
            terminal: None,
            commands: HashMap::new(),
            by_pid: HashMap::new(),
            early: HashMap::new(),
            witnessed: HashMap::new(),
            delayed: Vec::new(),
            shell_ended: false,
            ending: None,
        })
    }

    /// Starts the shell and serves until no process of the session is left.
    pub(crate) fn run(mut self, shell: ShellStart) {
        process::set_name(c"postern-spawner");
        self.terminal.clone_from(&shell.terminal);
        let own = [self.server.as_raw_fd(), self.front.as_raw_fd(), self.signals.as_raw_fd()];
        if let Err(what) = self.start_shell(&shell) {
            let _told = self.front.send(&FrontReport::Failed { what }, &[]);
            return;
        }
        // Whoever waits for the end of the caller's descriptors is not to wait for us.
        self.leave_caller(&own);
        // Its descriptors were closed just now.
        std::mem::forget(shell);
        loop {
            let ready = self.wait();
            if ready.signals {
                self.take_signals();
            }
            for id in ready.reports {
                self.take_report(id);
            }
            self.reap();
            if ready.front {
                self.take_front();
            }
            if ready.server {
                self.take_orders();
            }
            self.deliver_delayed();
            if self.ending.is_some_and(|since| since.elapsed() > GRACE) {
                self.kill_all();
            }
            if (self.commands.is_empty() || self.ending.is_some()) && self.childless() {
                return;
            }
        }
    }

    fn leave_caller(&self, own: &[i32]) {
        let reports =
            self.commands.values().filter_map(|command| command.report.as_ref()).map(AsRawFd::as_raw_fd);
        let controls =
            self.commands.values().filter_map(|command| command.control.as_ref()).map(AsRawFd::as_raw_fd);
        let keep: Vec<i32> = own.iter().copied().chain(reports).chain(controls).collect();
        let _closed = process::close_others(&keep);
        for number in 0..=2 {
            if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
                // Opened in order, each takes the number that was just closed.
                if null.as_raw_fd() == number {
                    std::mem::forget(null);
                }
            }
        }
    }

    /// No child, and nothing that could become one: a lingering session ends here.
    fn childless(&mut self) -> bool {
        match process::wait_any(true) {
            Err(error) => error.raw_os_error() == Some(libc::ECHILD),
            Ok(None) => false,
            Ok(Some((pid, status, usage))) => {
                self.changed(pid, status, usage);
                false
            }
        }
    }
}

struct Ready {
    server: bool,
    front: bool,
    signals: bool,
    reports: Vec<u64>,
}

// Waiting and receiving.
impl Spawner {
    fn wait(&self) -> Ready {
        let ids: Vec<u64> =
            self.commands.iter().filter(|(_, command)| command.report.is_some()).map(|(id, _)| *id).collect();
        // A peer that has gone is always ready, and tells nothing.
        let over = self.ending.is_some();
        let server = (!over).then_some(self.server.as_fd());
        let front = (!over && !self.shell_ended).then_some(self.front.as_fd());
        let absent = self.signals.as_fd();
        let fixed = [server.unwrap_or(absent), front.unwrap_or(absent), absent];
        let reports = ids.iter().filter_map(|id| self.commands.get(id)?.report.as_ref()).map(AsFd::as_fd);
        let mut polls: Vec<PollFd<'_>> =
            fixed.into_iter().chain(reports).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = if !self.delayed.is_empty() {
            PollTimeout::from(2u8)
        } else if self.ending.is_some() {
            PollTimeout::from(50u8)
        } else {
            PollTimeout::NONE
        };
        let _interrupted = poll(&mut polls, timeout);
        let readable = |at: usize| polls.get(at).and_then(PollFd::any).unwrap_or(false);
        Ready {
            server: server.is_some() && readable(0),
            front: front.is_some() && readable(1),
            signals: readable(2),
            reports: ids.iter().enumerate().filter(|(at, _)| readable(at + 3)).map(|(_, id)| *id).collect(),
        }
    }

    fn take_signals(&mut self) {
        while let Some(came) = process::next_signal(&self.signals) {
            self.witnessed.insert(came.signal, Instant::now());
        }
    }

    fn take_front(&mut self) {
        loop {
            match self.front.receive::<FrontOrder>() {
                Ok(Some((FrontOrder::Signal { signal, by_kernel }, _))) => {
                    // The terminal's signals reach the shell by its group, if that is ours.
                    let shares = self.shares_group(SHELL);
                    if by_kernel && shares {
                        continue;
                    }
                    self.signal(SHELL, signal, shares);
                }
                Ok(Some((FrontOrder::Continue, _))) => self.signal(SHELL, libc::SIGCONT, false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.end(),
            }
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.server.receive::<Order>() {
                Ok(Some((Order::Start(start), fds))) => self.start(&start, fds),
                Ok(Some((Order::Signal { id, signal, from_outside }, _))) => {
                    self.signal(id, signal, from_outside && self.shares_group(id));
                }
                Ok(Some((Order::Kill { id }, _))) => self.kill_command(id),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Some((Order::End, _))) => return self.end(),
                Ok(None) | Err(_) => {
                    let what = "the session's server died, and the session with it".to_owned();
                    self.tell_front(&FrontReport::Failed { what });
                    return self.end();
                }
            }
        }
    }

    fn take_report(&mut self, id: u64) {
        loop {
            let Some(report) = self.commands.get(&id).and_then(|command| command.report.as_ref()) else {
                return;
            };
            match report.receive::<ChildReport>() {
                Ok(Some((ChildReport::Pids { init, command }, _))) => self.learn(id, init, command),
                Ok(Some((ChildReport::Ready { fds }, _))) => {
                    if let Some(command) = self.commands.get_mut(&id) {
                        command.ready = true;
                        command.fds = fds;
                    }
                }
                Ok(Some((ChildReport::Refused { errno }, _))) => self.fail(id, Report::Refused { id, errno }),
                Ok(Some((ChildReport::Failed { what }, _))) => self.fail(id, Report::Failed { id, what }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Close-on-exec: the command runs, or its process died on the way.
                Ok(None) | Err(_) => return self.reported(id),
            }
        }
    }

    fn learn(&mut self, id: u64, init: i32, pid: i32) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        command.pid = Some(pid);
        self.by_pid.insert(pid, id);
        if init > 0 {
            command.init = Some(init);
            if id == SHELL {
                self.turn_init = process::pidfd_open(init).ok();
            }
        }
        let doomed = command.doomed;
        if doomed {
            self.kill_command(id);
        }
        let early = self.early.remove(&pid).unwrap_or_default();
        if self.commands.values().all(|command| command.pid.is_some()) {
            self.early.clear();
        }
        for (status, usage) in early {
            self.changed(pid, status, usage);
        }
    }

    fn fail(&mut self, id: u64, report: Report) {
        if let Some(command) = self.commands.get_mut(&id) {
            command.over = true;
        }
        if id == SHELL {
            let what = match &report {
                Report::Failed { what, .. } => what.clone(),
                Report::Refused { errno, .. } => {
                    let error = io::Error::from_raw_os_error(*errno);
                    format!("execute the patched zsh: {error}; run `make`, or reinstall")
                }
                _ => String::new(),
            };
            self.tell_front(&FrontReport::Failed { what });
            self.end();
        } else {
            self.tell_server(&report);
        }
    }

    fn reported(&mut self, id: u64) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        command.report = None;
        if command.over {
            return;
        }
        let (ready, pid) = (command.ready, command.pid);
        command.started = ready;
        match pid {
            Some(pid) if ready => {
                let fds = std::mem::take(&mut command.fds);
                self.tell_server(&if id == SHELL {
                    Report::ShellStarted { pid }
                } else {
                    Report::Started { id, pid, fds }
                });
            }
            _ => self.fail(id, Report::Failed { id, what: "the process died before its exec".to_owned() }),
        }
        if pid.is_none()
            && let Some(mut command) = self.commands.remove(&id)
        {
            self.take_away(&mut command);
        }
    }
}

// Starting.
impl Spawner {
    fn start_shell(&mut self, shell: &ShellStart) -> Result<(), String> {
        let (ours, theirs) = Channel::pair().map_err(|error| error.to_string())?;
        let (held, control) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
        match process::fork().map_err(|error| format!("fork: {error}"))? {
            Fork::Parent(_) => {}
            Fork::Child => {
                drop((ours, control));
                let sandbox = match (&self.profiles.turn, &self.turn) {
                    (Some(plan), Some(confinement)) => Sandbox::Make {
                        control: &held,
                        plan,
                        confinement,
                        terminal: shell.terminal.as_deref(),
                    },
                    _ => Sandbox::None,
                };
                let shell = Shell {
                    program: &shell.program,
                    argv: &shell.argv,
                    env: &shell.env,
                    gate: (shell.gate.0, &shell.gate.1),
                    cwd: &shell.cwd,
                    open_files: shell.open_files,
                    ignored: shell.ignored,
                    blocked: shell.blocked,
                    go: &shell.go,
                };
                child::split(theirs, &sandbox, |report| child::become_shell(&shell, &sandbox, report));
            }
        }
        let sandboxed = self.turn.is_some();
        self.commands.insert(
            SHELL,
            Command {
                report: Some(ours),
                control: sandboxed.then_some(control),
                in_turn: true,
                ..Command::default()
            },
        );
        Ok(())
    }

    fn start(&mut self, start: &Start, fds: Vec<OwnedFd>) {
        if let Err(what) = self.try_start(start, fds) {
            self.tell_server(&Report::Failed { id: start.id, what });
        }
    }

    fn try_start(&mut self, start: &Start, fds: Vec<OwnedFd>) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| "a descriptor is missing".to_owned());
        let (connection, executable) = (next()?, next()?);
        let cwd = if start.cwd == Cwd::Descriptor { Some(next()?) } else { None };
        let gate = start.gate.map(|_| next()).transpose()?;
        // Kernel-given, while the waiter holds still: it waits for our answer.
        let limits = process::limits(start.waiter).map_err(text)?;
        let nice = process::nice(start.waiter);
        let (ours, theirs) = Channel::pair().map_err(text)?;
        let (held, control) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
        let in_turn = start.target == Target::Turn;
        let (made, placeholders) = match &start.target {
            Target::Profile(name) => self.profile(name)?,
            Target::Turn | Target::Outside => (None, Vec::new()),
        };
        if let Fork::Child = process::fork().map_err(text)? {
            drop((ours, control));
            child::join_job(start.waiter);
            let sandbox = match (&start.target, &made) {
                (Target::Turn, _) => self.turn_sandbox(),
                (Target::Profile(_), Some((plan, confinement))) => {
                    let terminal = self.terminal.as_deref();
                    Ok(Sandbox::Make { control: &held, plan, confinement, terminal })
                }
                (Target::Profile(_), None) | (Target::Outside, _) => Ok(Sandbox::None),
            };
            let sandbox = match sandbox {
                Ok(sandbox) => sandbox,
                Err(what) => child::split(theirs, &Sandbox::None, |_| child::Stop::Failed(what)),
            };
            let rerun = Rerun {
                start,
                connection,
                executable,
                cwd,
                gate,
                limits,
                session_limits: &self.session_limits,
                nice,
                own: [self.own[0], self.own[1], start.server],
            };
            child::split(theirs, &sandbox, |report| child::become_command(rerun, &sandbox, report));
        }
        let own_namespace = made.is_some();
        self.commands.insert(
            start.id,
            Command {
                report: Some(ours),
                control: own_namespace.then_some(control),
                in_turn,
                placeholders,
                ..Command::default()
            },
        );
        Ok(())
    }

    fn turn_sandbox(&self) -> Result<Sandbox<'_>, String> {
        match (&self.turn_init, &self.profiles.turn, &self.turn) {
            (Some(init), Some(plan), Some(confinement)) => Ok(Sandbox::Enter { init, plan, confinement }),
            (None, None, _) => Ok(Sandbox::None),
            _ => Err("the turn's sandbox is gone".to_owned()),
        }
    }

    /// A sandbox for a profile, and what had to be put in place for it.
    #[expect(clippy::type_complexity, reason = "a pair that is taken apart at once")]
    fn profile(&self, name: &str) -> Result<(Option<(Plan, Confinement)>, Vec<Placeholder>), String> {
        let profile = self.profiles.named.get(name).ok_or_else(|| format!("there is no profile {name}"))?;
        if profile.unrestricted {
            return Ok((None, Vec::new()));
        }
        // What git must not find has to exist before it can be covered. Looking first refuses links.
        Facts::look_for_links(profile).map_err(|error| error.to_string())?;
        let placeholders =
            place(profile).map_err(|error| format!("protect names that do not exist: {error}"))?;
        let facts = Facts::gather(profile, &self.profiles.hidden).map_err(|error| error.to_string())?;
        let plan = plan(profile, &facts, &self.profiles.abilities);
        let confinement = Confinement::prepare(&plan).map_err(|error| error.to_string())?;
        Ok((Some((plan, confinement)), placeholders))
    }
}

// Changes of children.
impl Spawner {
    fn reap(&mut self) {
        // A child may end before it is known which it was.
        let ids: Vec<u64> = self.commands.keys().copied().collect();
        for id in ids {
            self.take_report(id);
        }
        while let Ok(Some((pid, status, usage))) = process::wait_any(true) {
            self.changed(pid, status, usage);
        }
    }

    fn changed(&mut self, pid: i32, status: i32, usage: Usage) {
        let Some(&id) = self.by_pid.get(&pid) else {
            let unknown = self.commands.values().any(|command| command.pid.is_none());
            if unknown && self.early.len() < 1024 {
                self.early.entry(pid).or_default().push((status, usage));
            }
            return;
        };
        // The exec may have happened and its report not been read.
        self.take_report(id);
        let Some(change) = process::change(status) else { return };
        let Some(command) = self.commands.get_mut(&id) else { return };
        match change {
            Change::Stopped(signal) => {
                command.stopped = true;
                command.stops += 1;
                let number = command.stops;
                if id == SHELL {
                    self.tell_front(&FrontReport::Stopped);
                } else {
                    self.tell_server(&Report::Stopped { id, number, signal });
                }
            }
            Change::Continued => {
                command.stopped = false;
                let number = command.stops;
                if id != SHELL {
                    self.tell_server(&Report::Continued { id, number });
                }
            }
            Change::Exited(_) | Change::Signaled(_) => self.ended(id, pid, status, usage),
        }
    }

    fn ended(&mut self, id: u64, pid: i32, status: i32, usage: Usage) {
        self.by_pid.remove(&pid);
        // Dropping it closes the control pipe: its first process ends when it has no child left.
        let Some(mut command) = self.commands.remove(&id) else { return };
        self.take_away(&mut command);
        if id == SHELL {
            self.shell_ended = true;
            if !command.over {
                self.tell_server(&Report::ShellEnded { status });
                self.tell_front(&FrontReport::Ended { status });
            }
            let lingers = self.commands.values().any(|other| other.in_turn);
            if let (true, Some(control)) = (lingers, command.control.take()) {
                // Reruns in the turn's sandbox are not its first process's children.
                let heir = self.commands.values_mut().find(|other| other.in_turn);
                if let Some(heir) = heir {
                    heir.control = Some(control);
                }
            }
            return;
        }
        if let Some(control) = command.control.take().filter(|_| command.in_turn)
            && let Some(heir) = self.commands.values_mut().find(|other| other.in_turn)
        {
            heir.control = Some(control);
        }
        if !command.over {
            let Usage { user_us, sys_us, maxrss_kb } = usage;
            self.tell_server(&Report::Ended { id, status, user_us, sys_us, maxrss_kb });
        }
    }
}

// Signals and ends.
impl Spawner {
    /// Removes a command's placeholders, unless another of this session stands on them.
    fn take_away(&mut self, command: &mut Command) {
        let placeholders = std::mem::take(&mut command.placeholders);
        if let Some(heir) = self.commands.values_mut().find(|other| other.control.is_some() && !other.in_turn)
        {
            heir.placeholders.extend(placeholders);
        }
    }

    fn shares_group(&self, id: u64) -> bool {
        let pid = self.commands.get(&id).and_then(|command| command.pid);
        pid.is_some_and(|pid| getpgid(Some(Pid::from_raw(pid))).is_ok_and(|group| group == getpgrp()))
    }

    /// Sends a signal to a command. `witnessed`: whoever sent it may have sent it to the command's
    /// whole group, in which this process stands too; then it is not delivered twice.
    fn signal(&mut self, id: u64, signal: i32, witnessed: bool) {
        if witnessed {
            self.delayed.push((Instant::now() + WITNESS, id, signal));
            return;
        }
        let Some(command) = self.commands.get(&id) else { return };
        let Some(pid) = command.pid else { return };
        if signal == libc::SIGCONT && command.stopped && id != SHELL {
            // What the terminal stopped was the whole job; the asker's shell reaches its own part.
            if let Ok(group) = getpgid(Some(Pid::from_raw(pid))) {
                let _reached = nix::sys::signal::killpg(group, Signal::SIGCONT);
                return;
            }
        }
        send(pid, signal);
    }

    fn deliver_delayed(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.delayed).into_iter().partition(|(when, ..)| *when <= now);
        self.delayed = later;
        for (when, id, signal) in due {
            let seen = self.witnessed.get(&signal).is_some_and(|at| when - *at < 4 * WITNESS);
            if !seen {
                self.signal(id, signal, false);
            }
        }
    }

    fn kill_command(&mut self, id: u64) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        match (command.init, command.pid) {
            (Some(init), _) => send(init, libc::SIGKILL),
            (None, Some(pid)) => kill_descendants(pid, true),
            (None, None) => command.doomed = true,
        }
    }

    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now());
        for command in self.commands.values() {
            if let Some(pid) = command.pid {
                send(pid, libc::SIGHUP);
                send(pid, libc::SIGCONT);
            }
        }
    }

    fn kill_all(&mut self) {
        // First processes take their namespaces along; the rest goes by descent, orphans included.
        kill_descendants(std::process::id().cast_signed(), false);
    }

    fn tell_server(&self, report: &Report) {
        self.tell(&self.server, report);
    }

    fn tell_front(&self, report: &FrontReport) {
        self.tell(&self.front, report);
    }

    /// Waits for a slow peer; one that is gone will be noticed by its end.
    fn tell(&self, channel: &Channel, report: &impl serde::Serialize) {
        while let Err(error) = channel.send(report, &[]) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return;
            }
            let mut polls = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
            let _ready = poll(&mut polls, PollTimeout::from(1000u16));
        }
    }
}

/// kill(2) of a child that is not reaped yet, so that its number is its own.
fn send(pid: i32, signal: i32) {
    match Signal::try_from(signal) {
        Ok(signal) => drop(kill(Pid::from_raw(pid), signal)),
        // Real-time signals have no name here.
        Err(_) => process::kill_by_number(pid, signal),
    }
}
