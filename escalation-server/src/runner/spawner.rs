//! The spawner: one thread, in the shell's session, the parent of every process that becomes a command. It
//! starts the shell and every rerun, passes on signals, and tells the server and the front what became of them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_shim::wire::Bytes;
use serde::{Deserialize, Serialize};

use super::begin::BUILD;
use super::channel::Channel;
use super::commands::{Command, Commands, Kept, Lifeline, SHELL, Stage};
use super::enter::{Entrance, Sandbox, enter, readable};
use super::message::{
    Become, ChildReport, Cwd, FromInit, FrontOrder, FrontReport, Order, Report, Start, Target,
};
use super::shell::{Shell, become_shell};
use super::signals::{Witness, join_job, send, shares_group};
use super::standby::{Named, Standbys};
use super::tree::{hang_up_stopped, kill_descendants};
use crate::profile::packed;
use crate::sandbox::{Abilities, Own, Plan, Premade};
use crate::sys::process::{self, Fork};
use crate::sys::socket::Message;

/// What the kernel calls a spawner, by which whoever descends from a session is known.
pub(crate) const SPAWNER: &str = "postern-spawner";
const SPAWNER_NAME: &std::ffi::CStr = c"postern-spawner";

/// How long a hang-up may take before the kill.
const GRACE: Duration = Duration::from_secs(1);

/// What a shell leaves behind mostly ends with it: so long after it the rest is looked for.
pub(super) const LEFT: Duration = Duration::from_millis(20);
/// And so long after that again.
const LOOK: Duration = Duration::from_secs(1);

/// So long a command that starts is not kept waiting. One whose asker hands nothing over may take longer.
pub(super) const STARTING: Duration = Duration::from_millis(20);

/// What sandboxes are made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Profiles {
    pub(crate) abilities: Abilities,
    pub(crate) own: Own,
    /// None: the turn is not restricted.
    pub(crate) turn: Option<Plan>,
    pub(crate) named: Named,
}

/// How the login shell starts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShellStart {
    #[serde(with = "packed")]
    pub(crate) program: PathBuf,
    pub(crate) argv: Vec<Bytes>,
    pub(crate) env: Vec<Bytes>,
    /// The number that the request socket gets.
    pub(crate) gate: i32,
    pub(crate) cwd: Cwd,
    pub(crate) ignored: u64,
    pub(crate) blocked: u64,
    /// How many files the caller may open, soft and hard.
    pub(crate) open_files: (u64, u64),
    /// The caller's, besides 0 to 2.
    pub(crate) pass_fds: Vec<i32>,
}

/// All that a spawner is told when it begins, by the front. With it come the request socket's end that
/// goes inside, and a pipe that says a byte when the server is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) profiles: Profiles,
    pub(crate) shell: ShellStart,
}

/// The spawner's state.
#[derive(Debug)]
pub(super) struct Spawner {
    pub(super) server: Channel,
    pub(super) front: Channel,
    pub(super) witness: Witness,
    pub(super) standbys: Standbys,
    pub(super) commands: Commands,
    pub(super) shell_ended: bool,
    /// When it is looked next for what is stopped, once the shell has ended.
    pub(super) hang_up: Option<Instant>,
    pub(super) ending: Option<Instant>,
    /// Numbers each time that sandboxes were asked to cover what is not covered any more.
    pub(super) recoveries: u32,
}

/// The spawner's life, as its executable: is told by the front what to begin with, starts the shell and
/// serves until no process of the session is left. Its arguments are the front's build and the numbers of
/// its two sockets, the front's and the server's.
#[expect(clippy::print_stderr, reason = "executed by hand there is nobody else to be told")]
pub fn main() -> i32 {
    const NOT_STARTED: i32 = 125;
    process::set_name(SPAWNER_NAME);
    // For all that descend from here. This process gets its signals as messages.
    process::default_signals();
    let inherited = |argument: Option<OsString>| {
        Channel::inherited(argument.and_then(|number| number.to_str()?.parse().ok())?)
    };
    let mut arguments = std::env::args_os().skip(1);
    let of_this_build = arguments.next().is_some_and(|build| build == BUILD);
    let (Some(front), Some(server)) = (inherited(arguments.next()), inherited(arguments.next())) else {
        eprintln!("postern-spawner: `postern` starts it, for a session");
        return NOT_STARTED;
    };
    if !of_this_build {
        let what =
            "bin/postern and libexec/postern/postern-spawner are of different builds: reinstall".to_owned();
        let _told = front.send(&FrontReport::Failed { what }, &[]);
        return NOT_STARTED;
    }
    // While the front prepares the session: to make a network namespace takes a third of a millisecond.
    let early = Premade::make();
    // One that could not prepare a session has ended, or said why.
    let Some((begin, gate, go)) = await_begin(&front) else { return 0 };
    let started = Spawner::new(server, front, begin.profiles, &begin.shell, (&gate, &go), early);
    // They were closed in favour of whoever waits for their end.
    std::mem::forget((gate, go));
    if let Some(spawner) = started {
        spawner.serve();
    }
    0
}

/// What the front has to say, and both descriptors; none if it has nothing.
fn await_begin(front: &Channel) -> Option<(Begin, OwnedFd, OwnedFd)> {
    readable(front, None).ok()?;
    match front.receive::<Begin>() {
        Ok(Some((begin, fds))) => {
            let mut fds = fds.into_iter();
            Some((begin, fds.next()?, fds.next()?))
        }
        Ok(None) => None,
        Err(error) => {
            let what = format!("the spawner cannot read what it is told: {error}; reinstall");
            let _told = front.send(&FrontReport::Failed { what }, &[]);
            None
        }
    }
}

impl Spawner {
    /// A spawner whose shell starts; none, and the front told why, if that cannot be.
    fn new(
        server: Channel,
        front: Channel,
        profiles: Profiles,
        shell: &ShellStart,
        handles: (&OwnedFd, &OwnedFd),
        early: Option<Premade>,
    ) -> Option<Self> {
        let made = (|| {
            process::become_subreaper().map_err(|error| format!("become a subreaper: {error}"))?;
            let witness = Witness::new().map_err(|error| format!("listen to signals: {error}"))?;
            let standbys = Standbys::new(profiles)?;
            Ok::<_, String>((witness, standbys))
        })();
        let (witness, standbys) = match made {
            Ok(made) => made,
            Err(what) => {
                let _told = front.send(&FrontReport::Failed { what }, &[]);
                return None;
            }
        };
        let commands = Commands::default();
        let mut spawner = Self {
            server,
            front,
            witness,
            standbys,
            commands,
            shell_ended: false,
            hang_up: None,
            ending: None,
            recoveries: 0,
        };
        if let Err(what) = spawner.start_shell(shell, handles, early) {
            spawner.tell_front(&FrontReport::Failed { what });
            return None;
        }
        spawner.leave_caller();
        Some(spawner)
    }

    fn serve(mut self) {
        loop {
            let ready = self.wait();
            if ready.signals {
                self.witness.look();
            }
            for id in ready.reports {
                self.take_report(id);
            }
            for init in ready.sandboxes {
                self.take_news(init);
            }
            self.reap();
            if ready.front {
                self.take_front();
            }
            if ready.server {
                self.take_orders();
                // That may have looked for signals, and the end of a child is not told twice.
                self.reap();
            }
            for (id, signal) in self.witness.due() {
                self.signal(id, signal);
            }
            if self.ending.is_some_and(|since| since.elapsed() > GRACE) {
                // First processes take their namespaces along; the rest goes by descent, orphans
                // included.
                kill_descendants(std::process::id().cast_signed(), false);
            }
            let over = self.commands.is_empty() || self.ending.is_some();
            if over {
                self.let_kept_go();
                if self.childless() {
                    return;
                }
            } else if !self.commands.are_starting(STARTING) || self.standbys.are_due(STARTING) {
                // While the last ones run, or once they have ended: a fork before that would keep them waiting.
                self.standbys.replenish(&self.commands);
            }
            for id in self.commands.news() {
                self.tell_started(id);
            }
            if self.hang_up.is_some_and(|when| when <= Instant::now()) {
                // Nobody is left who could continue them.
                hang_up_stopped(std::process::id().cast_signed());
                self.hang_up = Some(Instant::now() + LOOK);
            }
        }
    }

    /// Keeps no sandbox any longer for commands to come.
    pub(super) fn let_kept_go(&mut self) {
        self.standbys.dismiss();
        self.commands.release(|_| true);
    }

    /// Whoever waits for the end of the caller's descriptors is not to wait for us.
    fn leave_caller(&self) {
        let own = [self.server.as_raw_fd(), self.front.as_raw_fd(), self.witness.as_fd().as_raw_fd()];
        let keep: Vec<i32> = own.into_iter().chain(self.commands.fds()).collect();
        let _closed = process::close_others(&keep);
        let _left_closed = process::fill_standard();
        // Nothing here is relative to where the caller was.
        let _elsewhere = std::env::set_current_dir("/");
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
    sandboxes: Vec<i32>,
}

// Waiting and receiving.
impl Spawner {
    fn wait(&self) -> Ready {
        // One clock: between two a command could be neither listened to nor waited for.
        let now = Instant::now();
        let (ids, reports): (Vec<u64>, Vec<&Channel>) = self.commands.listened_to(now).unzip();
        // A peer that has gone is always ready, and tells nothing.
        let over = self.ending.is_some();
        let server = (!over).then_some(self.server.as_fd());
        let front = (!over && !self.shell_ended).then_some(self.front.as_fd());
        let absent = self.witness.as_fd();
        let fixed = [server.unwrap_or(absent), front.unwrap_or(absent), absent];
        let (inits, controls): (Vec<i32>, Vec<&Channel>) = self.commands.sandboxes().unzip();
        let all = fixed.into_iter().chain(reports.into_iter().chain(controls).map(AsFd::as_fd));
        let mut polls: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Rounded up, or it would be looked too early over and over.
        let until = |when: Instant| when.saturating_duration_since(now) + Duration::from_millis(1);
        let left = [
            self.witness.waits().then_some(Duration::from_millis(2)),
            over.then_some(Duration::from_millis(50)),
            self.hang_up.map(until),
            self.commands.next_heard(now).map(until),
        ];
        let timeout = left
            .into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let _interrupted = poll(&mut polls, timeout);
        let readable = |at: usize| polls.get(at).and_then(PollFd::any).unwrap_or(false);
        Ready {
            server: server.is_some() && readable(0),
            front: front.is_some() && readable(1),
            signals: readable(2),
            reports: ids.iter().enumerate().filter(|(at, _)| readable(at + 3)).map(|(_, id)| *id).collect(),
            sandboxes: inits
                .iter()
                .enumerate()
                .filter(|(at, _)| readable(at + 3 + ids.len()))
                .map(|(_, init)| *init)
                .collect(),
        }
    }

    fn take_front(&mut self) {
        loop {
            match self.front.receive::<FrontOrder>() {
                Ok(Some((FrontOrder::Signal { signal, by_kernel }, _))) => {
                    // The terminal's signals reach the shell by its group, if that is ours.
                    match self.in_our_group(SHELL) {
                        true if by_kernel => {}
                        true => self.witness.delay(SHELL, signal),
                        false => self.signal(SHELL, signal),
                    }
                }
                Ok(Some((FrontOrder::Continue, _))) => self.signal(SHELL, libc::SIGCONT),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.end(),
            }
        }
    }

    fn take_orders(&mut self) {
        loop {
            let what = match self.server.receive::<Order>() {
                Ok(Some((Order::Start(start), fds))) => {
                    let id = start.id;
                    if let Err(what) = self.start(*start, fds) {
                        self.tell_server(&Report::Failed { id, what });
                    }
                    continue;
                }
                Ok(Some((Order::Define(profile), _))) => {
                    self.standbys.define(*profile);
                    continue;
                }
                Ok(Some((Order::Lapse { profiles }, _))) => {
                    self.lapse(&profiles);
                    continue;
                }
                Ok(Some((Order::Signal { id, signal, from_outside }, _))) => {
                    // Whoever sent it may have sent it to the whole group, in which we stand too.
                    if from_outside && self.in_our_group(id) {
                        self.witness.delay(id, signal);
                    } else if !self.has_had(id, signal) {
                        self.signal(id, signal);
                    }
                    continue;
                }
                Ok(Some((Order::Kill { id }, _))) => {
                    self.kill(id);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Some((Order::End, _))) => return self.end(),
                Ok(None) => "the session's server died, and the session with it".to_owned(),
                Err(error) => format!("the session ends: an order of its server cannot be read: {error}"),
            };
            self.tell_front(&FrontReport::Failed { what });
            return self.end();
        }
    }

    pub(super) fn take_report(&mut self, id: u64) {
        loop {
            let Some(report) = self.commands.get(id).and_then(|command| command.report.as_ref()) else {
                return;
            };
            match report.receive_message::<ChildReport>() {
                Ok(Some((ChildReport::Here, Message { sender: Some(pid), .. }))) => {
                    self.learn(id, None, pid);
                }
                Ok(Some((ChildReport::Here, _))) => {
                    let what = "the kernel does not say which process it is".to_owned();
                    self.fail(id, Report::Failed { id, what });
                }
                Ok(Some((ChildReport::Made { init, command }, _))) => self.learn(id, Some(init), command),
                Ok(Some((ChildReport::Ready { fds }, Message { fds: served, .. }))) => {
                    if let Some(command) = self.commands.get_mut(id) {
                        command.stage = Stage::Ready;
                        command.fds = fds;
                        command.rest();
                    }
                    // At once: its exec may be the first call that waits for an answer.
                    if !served.is_empty() {
                        self.tell_server_with(&Report::Served { id }, &served);
                    }
                }
                Ok(Some((ChildReport::Refused { errno }, _))) => {
                    self.fail(id, Report::Refused { id, errno });
                }
                Ok(Some((ChildReport::Failed { what }, _))) => self.fail(id, Report::Failed { id, what }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Close-on-exec: the command runs, or its process died on the way.
                Ok(None) | Err(_) => return self.reported(id),
            }
        }
    }

    /// What a sandbox's first process has to say.
    fn take_news(&mut self, init: i32) {
        loop {
            let Some((_, control)) = self.commands.sandboxes().find(|(known, _)| *known == init) else {
                return;
            };
            match control.receive::<FromInit>() {
                Ok(Some((FromInit::Empty, _))) => return drop(self.commands.sandbox_ended(init)),
                Ok(Some((news, _))) => self.pass_on(news),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Killed. What lives in it lives until this process is reaped.
                Ok(None) | Err(_) => return self.commands.hear_no_more(init),
            }
        }
    }

    /// Tells the server what it wants to know of that.
    pub(super) fn pass_on(&self, news: FromInit) {
        match news {
            FromInit::Covered { path, gap_us } => self.tell_server(&Report::Covered { path, gap_us }),
            FromInit::Uncovered { path, what } => self.tell_server(&Report::Uncovered { path, what }),
            FromInit::Lingers | FromInit::Recovered(_) | FromInit::Empty => {}
        }
    }

    fn learn(&mut self, id: u64, init: Option<i32>, pid: i32) {
        let early = self.commands.learn(id, init, pid);
        if id == SHELL
            && let Some(pidfd) = init.and_then(|init| process::pidfd_open(init).ok())
        {
            self.standbys.turn_is(Entrance::by(pidfd));
        }
        let offers = self.commands.get(id).and_then(|command| command.offers);
        if let (Some(init), Some(user_namespace)) = (init, offers) {
            self.standbys.share(init, user_namespace);
        }
        self.release(id, pid);
        let Some(command) = self.commands.get_mut(id) else { return };
        let (doomed, signals) = (command.doomed, std::mem::take(&mut command.signals));
        for signal in signals {
            send(pid, signal);
        }
        if doomed {
            self.kill(id);
        }
        for (status, usage) in early {
            self.changed(pid, status, usage);
        }
    }

    /// Lets a process that stands by become the command that it is for.
    fn release(&mut self, id: u64, pid: i32) {
        let Some(command) = self.commands.get_mut(id) else { return };
        let Some((mut order, fds)) = command.order.take() else { return };
        // Nothing runs there any more that could still change it.
        if command.entered && process::scheduling(pid).ok() != process::scheduling(0).ok() {
            let what = "a command that ran there before has changed how its process is scheduled".to_owned();
            self.fail(id, Report::Failed { id, what });
            return self.kill(id);
        }
        order.own_session = !join_job(pid, order.start.waiter);
        if shares_group(pid) {
            // What came before that did not reach it.
            self.witness.look();
            command.joined = Some(Instant::now());
            // None of its calls will wait for an answer.
            if order.start.target == Target::Outside && order.start.names.is_none() {
                command.rest();
            }
        }
        // The kernel mostly wakes a process where the one runs that wakes it. There it would wait until this one and
        // the server sleep, while another processor idles.
        order.processors = process::keep_off(pid).ok().flatten();
        let Some(report) = &command.report else { return };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = report.tell_no_senders().and_then(|()| report.send(&*order, &borrowed));
        command.waiter = fds.into_iter().next().filter(|_| order.start.tells_end);
        // One that has gone has said something before that, which is still to be read.
        if let Err(error) = sent
            && !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        {
            self.fail(id, Report::Failed { id, what: format!("order the command: {error}") });
            self.kill(id);
        }
    }

    fn fail(&mut self, id: u64, report: Report) {
        if let Some(command) = self.commands.get_mut(id) {
            command.stage = Stage::Over;
        }
        if id == SHELL {
            let what = match &report {
                Report::Failed { what, .. } => what.clone(),
                Report::Refused { errno, .. } => {
                    let error = io::Error::from_raw_os_error(*errno);
                    let remedy = match *errno {
                        libc::EACCES => {
                            "the profile has to let it, its libraries and what leads there be read: give `:root` or \
                             `:minimal` and the installation, and look for misspelt names in `postern sandbox explain`"
                        }
                        _ => "run `make`, or reinstall",
                    };
                    format!("execute the patched zsh: {error}; {remedy}")
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
        let Some(command) = self.commands.get_mut(id) else { return };
        command.report = None;
        let pid = command.pid;
        if command.stage != Stage::Over {
            match pid {
                Some(_) if command.stage == Stage::Ready => {
                    command.stage = Stage::Runs;
                    let keeps = command.keeps.take().zip(command.init).filter(|_| !self.shell_ended);
                    if let Some((purpose, init)) = keeps
                        && self.commands.kept(&purpose).is_none()
                        && let Ok(pidfd) = process::pidfd_open(init)
                    {
                        self.commands.keep(init, Kept { purpose, entrance: Entrance::by(pidfd) });
                    }
                }
                _ => {
                    self.fail(id, Report::Failed { id, what: "the process died before its exec".to_owned() })
                }
            }
        }
        if pid.is_none() {
            let _gone = self.commands.forget(id);
        }
    }

    /// Tells that a command runs, if that is news.
    pub(super) fn tell_started(&mut self, id: u64) {
        let Some(command) = self.commands.get_mut(id) else { return };
        let (Stage::Runs, Some(pid)) = (command.stage, command.pid) else { return };
        command.stage = Stage::Told;
        self.tell_server(&match id {
            SHELL => Report::ShellStarted { pid },
            _ => Report::Started { id, pid },
        });
    }
}

// Starting.
impl Spawner {
    fn start_shell(
        &mut self,
        shell: &ShellStart,
        (gate, go): (&OwnedFd, &OwnedFd),
        early: Option<Premade>,
    ) -> Result<(), String> {
        let (report, theirs) = Channel::pair_telling_senders().map_err(|error| error.to_string())?;
        let (control, held) = Channel::pair().map_err(|error| error.to_string())?;
        let turn = self.standbys.turn_plan()?;
        let wanted = |plan: &Plan| plan.user_namespace() && !plan.network();
        let early = early.filter(|_| turn.as_ref().is_some_and(|(plan, _)| wanted(plan)));
        let (sandbox, absent) = match &turn {
            Some((plan, confinement)) if plan.is_alone() => (Sandbox::Confine { plan, confinement }, &[][..]),
            Some((plan, confinement)) => {
                let terminal = self.standbys.terminal();
                // The shell's alone: what a command shares is another sandbox's.
                let shared = early.as_ref();
                let sandbox = Sandbox::Make { control: &held, plan, confinement, terminal, shared };
                (sandbox, &*plan.absent)
            }
            None => (Sandbox::None, &[][..]),
        };
        let covered = !absent.is_empty();
        if let Fork::Child = process::fork().map_err(|error| format!("fork: {error}"))? {
            drop((report, control));
            let shell = Shell {
                program: &shell.program,
                argv: &shell.argv,
                env: &shell.env,
                gate: (shell.gate, gate),
                cwd: &shell.cwd,
                open_files: libc::rlimit { rlim_cur: shell.open_files.0, rlim_max: shell.open_files.1 },
                ignored: shell.ignored,
                blocked: shell.blocked,
                go,
                pass_fds: &shell.pass_fds,
                covered,
            };
            enter(theirs, sandbox, |report, place| become_shell(&shell, place, report));
        }
        // While the sandbox is built; the shell waits until these are covered in it.
        let placeholders = self.standbys.protect(&control, absent)?;
        let made = matches!(sandbox, Sandbox::Make { .. });
        let covers = turn.as_ref().map(|(plan, _)| plan.covers()).unwrap_or_default();
        let control = made.then_some(control);
        let lifeline = Lifeline { control, placeholders, covers, ..Lifeline::default() };
        let command = Command { report: Some(report), lifeline, in_turn: true, ..Command::default() };
        self.commands.add(SHELL, command);
        Ok(())
    }

    /// Waits until it is known which process is the first one of the turn's sandbox. Its shell may
    /// have asked for something before whoever made both has told.
    fn await_turn(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + PATIENCE;
        while !self.standbys.knows_turn() {
            let Some(report) = self.commands.get(SHELL).and_then(|shell| shell.report.as_ref()) else {
                return;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(report, Some(left)).unwrap_or(false) {
                return;
            }
            self.take_report(SHELL);
        }
    }

    fn start(&mut self, start: Start, fds: Vec<OwnedFd>) -> Result<(), String> {
        if start.target == Target::Turn {
            self.await_turn();
        }
        let standby = match start.names {
            None => self.standbys.take(&start.target, &start.approval, &self.commands)?,
            Some(_) => self.standbys.make_serving_names(&start.target, &start.approval)?,
        };
        let placeholders = match &standby.control {
            Some(control) => self.standbys.protect(control, &standby.absent)?,
            None => Vec::new(),
        };
        let covered = standby.control.is_some() && !standby.absent.is_empty();
        if standby.within.is_some() {
            // What was changed since the last run in there was changed before this one.
            self.recover(standby.within);
        }
        let (id, asker, in_turn) = (start.id, start.waiter, start.target == Target::Turn);
        let profile = match &start.target {
            Target::Profile(name) => Some(name.clone()),
            Target::Outside | Target::Turn => None,
        };
        let order = Become { processors: None, own_session: false, covered, start };
        let command = Command {
            report: Some(standby.report),
            profile: profile.clone(),
            lifeline: Lifeline {
                profile,
                control: standby.control,
                placeholders,
                covers: standby.covers,
                ..Lifeline::default()
            },
            init: standby.within,
            entered: standby.within.is_some(),
            keeps: standby.purpose.filter(|_| standby.keepable),
            offers: standby.offers,
            order: Some((Box::new(order), fds)),
            in_turn,
            asker,
            since: Some(Instant::now()),
            ..Command::default()
        };
        self.commands.add(id, command);
        self.take_report(id);
        Ok(())
    }
}

// Telling.
impl Spawner {
    pub(super) fn tell_server(&self, report: &Report) {
        self.tell_server_with(report, &[]);
    }

    fn tell_server_with(&self, report: &Report, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        tell(&self.server, report, &fds);
    }

    pub(super) fn tell_front(&self, report: &FrontReport) {
        tell(&self.front, report, &[]);
    }
}

/// Waits for a slow peer; one that is gone will be noticed by its end.
fn tell(channel: &Channel, report: &impl serde::Serialize, fds: &[BorrowedFd<'_>]) {
    while let Err(error) = channel.send(report, fds) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return;
        }
        let mut polls = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
        let _ready = poll(&mut polls, PollTimeout::from(1000u16));
    }
}
