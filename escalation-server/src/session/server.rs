//! The server's process: one runtime, one thread for requests, one for records.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postern_shim::wire::Bytes;
use serde_json::json;

use super::asker::Asker;
use super::control::{Control, prompt_id};
use super::grants::{Grants, Named};
use super::grounds::Grounds;
use super::held::{HeldSkills, Opened};
use super::rerun::Live;
use super::review::Reviewers;
use super::scripts::Script;
use super::{environ, intake, pipeline, sockets};
use crate::approval::{Chain, Desk, State};
use crate::flow::text::printable;
use crate::flow::{ContextId, Executable, Execution, Request, Skill};
use crate::policy::{self, Policy, Stance};
use crate::profile::{Reach, Resolved};
use crate::record::Recorder;
use crate::runner::{Channel, FrontReport, Link, Report, kill_descendants};
use crate::sandbox::{Abilities, Facts, Own, plan};
use crate::sys::{process, socket};

/// Requests of one session that may be under way at once.
const MOST_REQUESTS: usize = 4096;

/// What stays the same as long as nobody has written a file: device, inode, size, mtime, ctime.
type Unchanged = (u64, u64, u64, (i64, i64), (i64, i64));

/// All that a request is judged by and carried out with.
#[derive(Debug)]
pub(super) struct Session {
    policy: RefCell<Rc<Policy>>,
    /// The file that approvals are written to as rules.
    amended: PathBuf,
    pub(super) default_execution: Execution,
    pub(super) stance: Stance,
    pub(super) skills: Vec<Skill>,
    pub(super) grants: Grants,
    /// Those of the project.
    pub(super) project: Option<HeldSkills>,
    pub(super) opened: Opened,
    /// The caller's environment.
    pub(super) baseline: Vec<Bytes>,
    /// What of it the shell was given.
    pub(super) given: Vec<Bytes>,
    pub(super) tmpdir: PathBuf,
    /// The number that the request socket has inside.
    pub(super) gate: i32,
    pub(super) recorder: Recorder,
    /// Where questions wait for answers.
    pub(super) desk: Desk,
    pub(super) chain: Chain,
    pub(super) link: Link,
    /// Commands that run outside the turn's sandbox, for when the spawner dies.
    pub(super) live: RefCell<HashMap<u64, Live>>,
    pub(super) id: String,
    cwd: PathBuf,
    turn: Rc<Resolved>,
    pub(super) abilities: Abilities,
    pub(super) own: Own,
    /// The turn's request socket, the end that goes inside.
    turn_gate: OwnedFd,
    /// Profile and request socket of each context but the turn's.
    contexts: RefCell<HashMap<ContextId, (Rc<Resolved>, u64)>>,
    next_context: Cell<u32>,
    next_command: Cell<u64>,
    accept: tokio::sync::mpsc::UnboundedSender<(ContextId, OwnedFd)>,
    /// Scripts that commands are held to, until the calls of their commands are answered.
    pub(super) scripts: RefCell<HashMap<u64, Arc<Script>>>,
    /// Connections that are made for commands.
    pub(super) connections: Arc<tokio::sync::Semaphore>,
    requests: Cell<usize>,
    malformed: Cell<u64>,
    /// The login shell, while it lives.
    shell: Cell<Option<i32>>,
    spawner: i32,
    hashes: RefCell<HashMap<Unchanged, String>>,
    /// How many questions are asked now.
    pub(super) asking: Cell<u32>,
    /// Commands that failed and that somebody did not let run a second time.
    declined: RefCell<HashSet<blake3::Hash>>,
    /// Bytes of copies that wait to be run.
    pub(super) copied: Rc<Cell<u64>>,
}

/// What the server's process is given at its fork.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) id: String,
    pub(super) policy: Policy,
    /// See [`Session::amended`].
    pub(super) amended: PathBuf,
    pub(super) default_execution: Execution,
    pub(super) stance: Stance,
    pub(super) skills: Vec<Skill>,
    pub(super) grounds: Grounds,
    pub(super) project: Option<HeldSkills>,
    pub(super) named: Named,
    pub(super) baseline: Vec<Bytes>,
    pub(super) given: Vec<Bytes>,
    pub(super) state: PathBuf,
    pub(super) own: Own,
    pub(super) unversioned: Vec<PathBuf>,
    pub(super) log_max_bytes: u64,
    /// How long a question waits; none: nobody is asked.
    pub(super) patience: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) reviewers: Reviewers,
    pub(super) tmpdir: PathBuf,
    pub(super) reach: Reach,
    pub(super) turn: Resolved,
    pub(super) abilities: Abilities,
    pub(super) notes: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) argv: Vec<Bytes>,
    /// Number and both ends of the turn's request socket.
    pub(super) gate: (i32, OwnedFd, OwnedFd),
    pub(super) spawner: (i32, Channel),
    pub(super) front: Channel,
    /// Gets a byte when requests can be served.
    pub(super) ready: OwnedFd,
}

/// The server's life. Returns when the session is over.
pub(super) fn serve(setup: Setup) {
    process::set_name(c"postern-server");
    // A limit of the caller's on the size of files is an error where a record meets it.
    process::ignore_signal(libc::SIGXFSZ);
    keep_a_log(&setup.state);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&setup.front, &format!("start the server: {error}")),
    };
    tokio::task::LocalSet::new().block_on(&runtime, serve_async(setup));
    // A connection to a daemon that does not accept would be waited for.
    runtime.shutdown_background();
}

/// What goes wrong in the server itself has nobody to be told to but a file.
fn keep_a_log(state: &Path) {
    let file = std::fs::File::options().create(true).append(true).open(state.join("server.log"));
    if let Ok(file) = file {
        let _already = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::WARN)
            .with_writer(std::sync::Mutex::new(file))
            .try_init();
    }
}

fn fail(front: &Channel, what: &str) {
    let _gone = front.send(&FrontReport::Failed { what: what.to_owned() }, &[]);
}

/// The session's own temporary directory: gone when the server is.
struct TemporaryDirectory(PathBuf);

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

async fn serve_async(setup: Setup) {
    let _temporary = TemporaryDirectory(setup.tmpdir.clone());
    // Before there is a second thread, which would take them by default.
    let signals = process::signals_as_messages(&[libc::SIGTERM, libc::SIGINT]).and_then(socket::watch);
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return fail(&setup.front, &format!("listen to signals: {error}")),
    };
    let recorder = match Recorder::open(&setup.state, &setup.id, setup.log_max_bytes) {
        Ok(opened) => opened,
        Err(error) => return fail(&setup.front, &error.to_string()),
    };
    let (strength, missing) = match &setup.turn {
        turn if turn.unrestricted => ("none".to_owned(), Vec::new()),
        turn => (setup.abilities.strength(turn.network), setup.abilities.missing(turn, &setup.own)),
    };
    let started = json!({
        "server": std::process::id(),
        "spawner": setup.spawner.0,
        "profile": setup.turn.name,
        "cwd": crate::flow::text::to_json(setup.cwd.as_os_str().as_encoded_bytes()),
        "argv": crate::record::shell_arguments(&setup.argv),
        "sandbox": {
            "strength": strength,
            "missing": missing,
        },
        "notes": setup.notes,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let Err(error) = recorder.session_event("started", &started) {
        return fail(&setup.front, &error.to_string());
    }
    let (link, mut reports) = match Link::new(setup.spawner.1) {
        Ok(link) => link,
        Err(error) => return fail(&setup.front, &error.to_string()),
    };
    let (control, patience) = attend(&setup.state, &setup.id, setup.patience, &recorder);
    let chain = Chain::new(setup.reviewers.mode, setup.reviewers.approvers);
    let (accept, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    let (number, ours, theirs) = setup.gate;
    let _queued = accept.send((ContextId::TURN, ours));
    let turn = Rc::new(setup.turn);
    let session = Rc::new(Session {
        policy: RefCell::new(Rc::new(setup.policy)),
        amended: setup.amended,
        default_execution: setup.default_execution,
        stance: setup.stance,
        skills: setup.skills,
        grants: Grants::new(setup.grounds, Rc::clone(&turn), setup.named, setup.reach),
        project: setup.project,
        opened: Opened::of(&setup.state, &setup.id),
        baseline: setup.baseline,
        given: setup.given,
        tmpdir: setup.tmpdir.clone(),
        gate: number,
        recorder: recorder.clone(),
        desk: Desk::new(patience, prompt_id),
        chain,
        id: setup.id,
        cwd: setup.cwd,
        link: link.clone(),
        live: RefCell::default(),
        turn,
        abilities: setup.abilities,
        own: setup.own,
        turn_gate: theirs,
        contexts: RefCell::default(),
        next_context: Cell::new(1),
        next_command: Cell::new(1),
        accept,
        scripts: RefCell::default(),
        connections: Arc::new(tokio::sync::Semaphore::new(sockets::CONNECTIONS)),
        requests: Cell::new(0),
        malformed: Cell::new(0),
        shell: Cell::new(None),
        spawner: setup.spawner.0,
        hashes: RefCell::default(),
        asking: Cell::default(),
        declined: RefCell::default(),
        copied: Rc::default(),
    });
    session.chain.runs_in(|| session.reviewers_environment());
    if let Some(control) = control {
        tokio::task::spawn_local(control.serve(Rc::clone(&session)));
    }
    if nix::unistd::write(&setup.ready, &[1]).is_err() {
        return;
    }
    drop(setup.ready);
    match setup.timeout {
        Some(limit) => drop(tokio::task::spawn_local(expire(Rc::clone(&session), limit, setup.front))),
        None => drop(setup.front),
    }

    let mut ended = json!({ "reason": "the spawner ended" });
    let mut orderly = false;
    loop {
        tokio::select! {
            Some((context, socket)) = accepted.recv() => {
                tokio::task::spawn_local(listen(Rc::clone(&session), context, socket));
            }
            report = reports.recv() => match report {
                Some((Report::Served { id }, fds)) => {
                    let mut fds = fds.into_iter();
                    let script = session.scripts.borrow_mut().remove(&id);
                    if let Some(listener) = fds.next() {
                        let served = sockets::serve(Rc::clone(&session), listener, fds.next(), script);
                        tokio::task::spawn_local(served);
                    }
                }
                Some((Report::ShellStarted { pid }, _)) => session.shell.set(Some(pid)),
                Some((Report::Covered { path, gap_us }, _)) => {
                    session.uncovered(path.as_slice());
                    let path = crate::flow::text::to_json(path.as_slice());
                    let body = json!({ "path": path, "gap_us": gap_us });
                    let _unrecorded = recorder.session_event("re-masked", &body);
                }
                Some((Report::Uncovered { path, what }, _)) => {
                    session.uncovered(path.as_slice());
                    let path = crate::flow::text::to_json(path.as_slice());
                    let body = json!({ "path": path, "reason": what });
                    let _unrecorded = recorder.session_event("unmasked", &body);
                }
                Some((Report::ShellEnded { status }, _)) => {
                    session.shell.set(None);
                    orderly = true;
                    ended = json!({ "reason": "the last process ended", "status": status });
                    // Whoever looks at the log after the prompt is back wants to see it all.
                    let _unrecorded = recorder.session_event("shell_ended", &json!({ "status": status }));
                }
                Some(_) => {}
                None => break,
            },
            _ = signals.readable() => {
                orderly = true;
                ended = json!({ "reason": "ended on request" });
                link.end().await;
                while reports.recv().await.is_some() {}
                break;
            }
        }
    }
    if !orderly {
        // The spawner died: its sandboxes died with it, what ran outside has to be ended here.
        for pid in session.live.borrow().values().filter_map(|command| command.pid) {
            kill_descendants(pid, true);
        }
    }
    // Outcomes that are on their way are waited for, but not for ever.
    for _ in 0..100 {
        if session.requests.get() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // What a spawner that was killed has left.
    session.own.leases.sweep();
    for root in setup.unversioned.iter().filter(|root| root.join(".git").symlink_metadata().is_ok()) {
        let body = json!({ "path": crate::flow::text::to_json(root.as_os_str().as_encoded_bytes()) });
        let _unrecorded = recorder.session_event("repository_created", &body);
    }
    ended["malformed"] = session.malformed.get().into();
    ended["unrecorded_runs"] = recorder.uncounted().into();
    let _unrecorded = recorder.session_event("ended", &ended);
}

/// Ends the session after so long, if its shell has not ended. While somebody is asked the clock stands
/// still.
async fn expire(session: Rc<Session>, limit: Duration, front: Channel) {
    const TICK: Duration = Duration::from_millis(20);
    let (mut left, mut started) = (limit, false);
    while !left.is_zero() {
        started |= session.shell.get().is_some();
        if started && session.shell.get().is_none() {
            return;
        }
        let began = std::time::Instant::now();
        tokio::time::sleep(TICK.min(left)).await;
        if session.asking.get() == 0 {
            left = left.saturating_sub(began.elapsed());
        }
    }
    let _unrecorded = session.recorder.session_event("timed_out", &json!({ "seconds": limit.as_secs() }));
    let _gone = front.send(&FrontReport::TimedOut, &[]);
    session.link.end().await;
}

/// Opens the session's control socket; without one, inside somebody else's sandbox, nobody can be
/// asked, and that is on record.
fn attend(
    state: &Path,
    id: &str,
    patience: Option<Duration>,
    recorder: &Recorder,
) -> (Option<Control>, Result<Duration, String>) {
    let Some(patience) = patience else { return (None, Err("on_prompt is `deny`".to_owned())) };
    match Control::open(state, id) {
        Ok(control) => (Some(control), Ok(patience)),
        Err(error) => {
            let why = format!("the control socket cannot be opened: {error}");
            let _unrecorded = recorder.session_event("unattended", &json!({ "reason": why }));
            (None, Err(why))
        }
    }
}

/// Takes connections from one context's socket until everybody inside has closed it.
async fn listen(session: Rc<Session>, context: ContextId, socket: OwnedFd) {
    let Ok(socket) = socket::watch(socket) else { return };
    let mut byte = Vec::with_capacity(16);
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        loop {
            match socket::receive(socket.get_ref(), &mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An empty message looks like the end, and is none while anybody holds the socket.
                Ok(message) if !byte.is_empty() || !socket::hung_up(socket.get_ref()) => {
                    for connection in message.fds {
                        session.admit(context, connection);
                    }
                }
                Ok(_) | Err(_) => {
                    if context == ContextId::TURN {
                        let body = json!({ "reason": "the turn's request socket was shut down from inside" });
                        let _unrecorded = session.recorder.session_event("gate_closed", &body);
                    }
                    session.contexts.borrow_mut().remove(&context);
                    return;
                }
            }
        }
        ready.clear_ready();
    }
}

/// A command by its path, its arguments and its directory.
pub(super) fn command(request: &Request) -> blake3::Hash {
    let text = format!("{:?} {:?} {:?}", request.path, request.argv, request.attested.cwd);
    blake3::hash(text.as_bytes())
}

pub(super) fn inode(socket: &OwnedFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(socket)?.st_ino)
}

/// Completes when the process that a pidfd names has ended.
pub(super) async fn has_ended(pidfd: &OwnedFd) {
    let Ok(watched) = pidfd.try_clone().and_then(socket::watch) else { return };
    let _ended = watched.readable().await;
}

impl Session {
    /// A connection that came from a context: served, if it is one and there are not too many.
    fn admit(self: &Rc<Self>, context: ContextId, connection: OwnedFd) {
        if !socket::is_seqpacket(&connection) || self.requests.get() >= MOST_REQUESTS {
            return;
        }
        let asker = Asker::new(connection);
        let session = Rc::clone(self);
        self.requests.set(self.requests.get() + 1);
        tokio::task::spawn_local(async move {
            pipeline::run(&session, context, asker).await;
            session.requests.set(session.requests.get() - 1);
        });
    }

    /// A number for a command that is ordered.
    pub(super) fn next_command(&self) -> u64 {
        self.next_command.replace(self.next_command.get() + 1)
    }

    /// Whether one more malformed request gets a record of its own: the first ones do, the rest are
    /// counted when the session ends.
    pub(super) fn notes_malformed(&self) -> bool {
        const MOST: u64 = 200;
        self.malformed.set(self.malformed.get() + 1);
        self.malformed.get() <= MOST
    }

    /// What a context may touch. One that is not known any more may touch nothing.
    pub(super) fn profile_of(&self, context: ContextId) -> Rc<Resolved> {
        if context == ContextId::TURN {
            return Rc::clone(&self.turn);
        }
        self.contexts
            .borrow()
            .get(&context)
            .map(|(profile, _)| Rc::clone(profile))
            .unwrap_or_else(|| Rc::new(Resolved::default()))
    }

    /// The profile of the context whose request socket has this inode.
    pub(super) fn profile_by_gate(&self, gate: u64) -> Option<Rc<Resolved>> {
        if inode(&self.turn_gate).ok() == Some(gate) {
            return Some(Rc::clone(&self.turn));
        }
        let contexts = self.contexts.borrow();
        contexts.values().find(|(_, inode)| *inode == gate).map(|(profile, _)| Rc::clone(profile))
    }

    /// The parent of a process that descends from the spawner; none for any other.
    pub(super) fn descends(&self, pid: i32, pidfd: &OwnedFd) -> Option<i32> {
        const DEEPEST: usize = 4096;
        let parent = process::pidfd_parent(pidfd).or_else(|| crate::runner::parent_of(pid))?;
        let mut at = parent;
        for _ in 0..DEEPEST {
            if at == self.spawner || Some(at) == self.shell.get() {
                return Some(parent);
            }
            if at <= 1 {
                return None;
            }
            at = crate::runner::parent_of(at)?;
        }
        None
    }

    /// A new context under a profile; the socket's end that goes inside.
    pub(super) fn open_context(&self, profile: &str) -> io::Result<OwnedFd> {
        let resolved = self.grants.profile(profile).ok_or(io::ErrorKind::NotFound)?;
        let (ours, theirs) = socket::pair()?;
        let id = ContextId(self.next_context.get());
        self.next_context.set(id.0 + 1);
        self.contexts.borrow_mut().insert(id, (resolved, inode(&theirs)?));
        let _queued = self.accept.send((id, ours));
        Ok(theirs)
    }

    /// Inodes of every context's request socket.
    pub(super) fn gates(&self) -> io::Result<Vec<u64>> {
        let turn = inode(&self.turn_gate)?;
        Ok(self.contexts.borrow().values().map(|(_, inode)| *inode).chain([turn]).collect())
    }

    /// The turn's own socket, for a command that runs in the turn.
    pub(super) fn turn_gate(&self) -> io::Result<OwnedFd> {
        self.turn_gate.try_clone()
    }

    /// Whether the turn takes anything that every other execution must take too.
    pub(super) fn turn_denies(&self) -> bool {
        self.turn.denies()
    }

    /// Whether what runs so gets a sandbox.
    pub(super) fn confines(&self, execution: &Execution) -> bool {
        match execution {
            Execution::Unsandboxed => false,
            Execution::TurnDefault => !self.turn.unrestricted,
            Execution::Permissions(name) => {
                self.grants.profile(name).is_some_and(|profile| !profile.unrestricted)
            }
        }
    }

    /// How the place of an execution is enforced, and what that does not hold. None is in place.
    pub(super) fn strength(&self, execution: Option<&Execution>) -> (String, Vec<&'static str>) {
        let profile = match execution {
            None | Some(Execution::TurnDefault) => Some(Rc::clone(&self.turn)),
            Some(Execution::Unsandboxed) => None,
            Some(Execution::Permissions(name)) => self.grants.profile(name),
        };
        match profile.filter(|profile| !profile.unrestricted) {
            Some(profile) => {
                (self.abilities.strength(profile.network), self.abilities.missing(&profile, &self.own))
            }
            None => ("none".to_owned(), Vec::new()),
        }
    }

    /// A profile with what protects in it, as it would be enforced now.
    pub(super) fn enforced(&self, profile: &Resolved) -> Resolved {
        match Facts::gather(profile, &self.own, &self.abilities) {
            Ok(facts) => plan(profile, &facts, &self.abilities).profile,
            // It will be refused by name.
            Err(_) => profile.clone(),
        }
    }

    /// Its rules, as they are now.
    pub(super) fn policy(&self) -> Rc<Policy> {
        Rc::clone(&self.policy.borrow())
    }

    /// Whether somebody has not let this command run a second time.
    pub(super) fn has_declined(&self, request: &Request) -> bool {
        self.declined.borrow().contains(&command(request))
    }

    /// Notes that somebody has not.
    pub(super) fn decline(&self, request: &Request) {
        const MOST: usize = 4096;
        let mut declined = self.declined.borrow_mut();
        if declined.len() < MOST {
            declined.insert(command(request));
        }
    }

    /// The file that approvals are written to as rules, if no sandbox can write it.
    pub(super) fn amended(&self) -> Option<PathBuf> {
        Some(self.amended.clone()).filter(|path| intake::leads(path, &self.grants.reach()).is_some())
    }

    /// What programs that review get: the caller's environment, without what leads to a sandbox's files.
    pub(super) fn reviewers_environment(&self) -> Vec<(OsString, OsString)> {
        let reach = self.grants.reach();
        let (environment, _) = environ::compute(&self.baseline, &[], &[], &[], intake::changeable(&reach));
        let parts = |variable: &Bytes| {
            let at = variable.as_slice().iter().position(|&byte| byte == b'=')?;
            let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
            Some((part(variable.as_slice().get(..at)?), part(variable.as_slice().get(at + 1..)?)))
        };
        environment.iter().filter_map(parts).collect()
    }

    /// Writes what a prompt offers as a rule, for every session from now on and for this one at once.
    pub(super) fn amend(&self, prompt: &str, by: &str) -> Result<(), String> {
        let line = self.desk.rule(prompt)?;
        let path = self.amended().ok_or("no file of rules is out of every sandbox's reach")?;
        // On record before it is there: what follows may fail, and then allows nothing.
        let body = json!({ "file": path, "rule": line, "by": by, "approval": prompt });
        self.recorder.session_event("amended", &body).map_err(|error| error.to_string())?;
        let (number, _) = super::rule_files::append(&path, &line)?;
        // With the place that it has there.
        let text = format!("{}{line}", "\n".repeat(number - 1));
        let rule = policy::load("/", [(&*path.to_string_lossy(), &*text)]);
        let rule = rule.map_err(|error| error.to_string())?;
        let amended = Rc::new(self.policy().and(rule));
        *self.policy.borrow_mut() = amended;
        Ok(())
    }

    /// What a door shows of this session.
    pub(super) fn state(&self) -> State {
        self.desk.state(&self.id, &printable(self.cwd.as_os_str().as_encoded_bytes()))
    }

    /// Ctrl-C for the shell.
    pub(super) fn interrupt_shell(&self) {
        if let Some(shell) = self.shell.get() {
            process::kill_by_number(shell, libc::SIGINT);
        }
    }

    /// What is known of files may not be so any more.
    pub(super) fn forget_hashes(&self) {
        self.hashes.borrow_mut().clear();
    }

    /// BLAKE3 of a file; remembered for one that no sandbox can write, as long as it looks the same.
    pub(super) fn hash(&self, file: &OwnedFd, exe: &Executable) -> Option<String> {
        let stat = nix::sys::stat::fstat(file).ok()?;
        let written = (stat.st_mtime, stat.st_mtime_nsec);
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        let key = (exe.file.dev, exe.file.ino, exe.file.size, written, changed);
        if let Some(known) = self.hashes.borrow().get(&key) {
            return Some(known.clone());
        }
        if exe.file.size > super::rerun::SNAPSHOT_MOST {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        let bytes = super::rerun::reopen(file).ok()?;
        io::copy(&mut io::Read::take(bytes, super::rerun::SNAPSHOT_MOST), &mut hasher).ok()?;
        let hash = hasher.finalize().to_hex().to_string();
        if !exe.agent_writable {
            self.hashes.borrow_mut().insert(key, hash.clone());
        }
        Some(hash)
    }
}
