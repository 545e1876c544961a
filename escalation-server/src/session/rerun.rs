//! What an escalation needs besides its decision: the image and the environment. All of it before the
//! decision is recorded.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use postern_shim::wire::Bytes;

use super::environ;
use super::grants::GRANTED;
use super::intake::{self, Handles};
use super::scripts::{self, Script};
use super::server::Session;
use crate::flow::text::summary;
use crate::flow::{EnvironmentChanges, Execution, Judgement, Request, Shape, Source};
use crate::policy::ApprovalPolicy;
use crate::profile::EVERYTHING;
use crate::runner::{Cwd, Image, Start, Target, terminated};
use crate::sys::socket;

/// The largest file that is copied before it runs.
pub(super) const SNAPSHOT_MOST: u64 = 256 << 20;
/// The most that copies of one session may take while they wait to be run.
const SNAPSHOTS_MOST: u64 = 512 << 20;

/// The room that a copy takes.
#[derive(Debug)]
pub(super) struct Room(Rc<Cell<u64>>, u64);

impl Room {
    fn take(taken: &Rc<Cell<u64>>, bytes: u64) -> Option<Self> {
        let sum = taken.get().checked_add(bytes).filter(|sum| *sum <= SNAPSHOTS_MOST)?;
        taken.set(sum);
        Some(Self(Rc::clone(taken), bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(self.1));
    }
}

/// A command that runs outside the turn's sandbox, or is about to.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) pid: Option<i32>,
    pub(super) summary: String,
    /// It gets more than its asker has.
    pub(super) wider: bool,
}

/// A command, ready to be ordered.
#[derive(Debug)]
pub(super) struct Rerun {
    pub(super) live: Live,
    pub(super) start: Start,
    pub(super) argv: Vec<Bytes>,
    execution: Execution,
    /// Where it is known already, since somebody is asked: what is shown is what will run.
    pub(super) environment: Option<Environment>,
    pub(super) executable: OwnedFd,
    /// BLAKE3 of the bytes that will run, where they were copied or hashed.
    pub(super) blake3: Option<String>,
    /// The script that it is, if the sandbox could write that.
    pub(super) script: Option<Arc<Script>>,
    room: Option<Room>,
}

impl Rerun {
    /// The room of a copy that is needed until the command has ended, and not just until it runs.
    pub(super) fn keep_room(&mut self) -> Option<Room> {
        if self.script.is_some() { self.room.take() } else { None }
    }

    /// The environment that it would have now.
    pub(super) fn environment(
        &self,
        session: &Session,
        request: &Request,
        judgement: &Judgement,
    ) -> Environment {
        let (mut env, changes) = if self.start.wider {
            let reach = session.grants.reach();
            let keep = &judgement.allowed.env_keep;
            // Without a sandbox a command is the user; `everything` is all of that that is to be had.
            let user = match &self.execution {
                Execution::Unsandboxed => true,
                Execution::Permissions(name) => name == EVERYTHING,
                Execution::TurnDefault => false,
            };
            let within = || environ::within_a_sandbox(&session.baseline, &session.given, keep);
            let baseline = if user { session.baseline.clone() } else { within() };
            environ::compute(&baseline, &session.given, &request.env, keep, intake::changeable(&reach))
        } else {
            (request.env.clone(), EnvironmentChanges::default())
        };
        env.retain(|variable| !variable.as_slice().starts_with(b"POSTERN_SOCKET="));
        if self.start.wider
            && let Some(cwd) = &request.attested.cwd
        {
            // The session's own are from where it started.
            let stale = |variable: &Bytes| {
                [&b"PWD="[..], b"OLDPWD="].iter().any(|name| variable.as_slice().starts_with(name))
            };
            env.retain(|variable| !stale(variable));
            env.push(Bytes([b"PWD=", cwd.path.as_os_str().as_bytes()].concat()));
        }
        if !matches!(self.execution, Execution::Unsandboxed) {
            let gate = format!("{}={}", postern_shim::SOCKET_VARIABLE, session.gate);
            env.push(Bytes(gate.into_bytes()));
            let own_temporary =
                matches!(self.execution, Execution::Permissions(_)) && !of_turn(&self.execution);
            env.retain(|variable| !variable.as_slice().starts_with(b"TMPDIR=") || !own_temporary);
            if own_temporary {
                env.push(Bytes([b"TMPDIR=", session.tmpdir.as_os_str().as_bytes()].concat()));
            }
        }
        Environment { variables: env, changes }
    }
}

/// # Errors
/// Why it cannot be run elsewhere, for the asker's stderr.
pub(super) fn prepare(
    session: &Session,
    request: &Request,
    handles: &Handles,
    execution: &Execution,
    judgement: &Judgement,
    wider: bool,
) -> Result<Rerun, String> {
    let exe = request.attested.exe.as_ref().ok_or("its file is not seen outside the sandbox")?;
    let target = match execution {
        Execution::Unsandboxed => Target::Outside,
        Execution::TurnDefault => Target::Turn,
        Execution::Permissions(name) => Target::Profile(name.clone()),
    };
    let reach = session.grants.reach();
    let of_turn = of_turn(execution);
    let gate = match target {
        // Outside nobody listens to a request socket: an unsandboxed command is the user.
        Target::Outside => None,
        Target::Turn | Target::Profile(_) => Some(session.gate),
    };

    let path = Bytes(exe.path.as_os_str().as_bytes().to_vec());
    let (dev, ino) = (exe.file.dev, exe.file.ino);
    let mut argv = request.argv.clone();
    if wider && let Some(zeroth) = argv.first_mut().filter(|zeroth| zeroth.as_slice().contains(&b'/')) {
        // Programs look for their libraries beside it: it says where the file is, not where the
        // asker wants it to be.
        *zeroth = Bytes(request.given_path().as_os_str().as_bytes().to_vec());
    }
    let (mut blake3, mut room, mut script) = (None, None, None);
    let mut executable = handles.outside_executable(exe)?;
    let mut copied = |file: &OwnedFd| {
        room = Some(
            Room::take(&session.copied, exe.file.size.min(SNAPSHOT_MOST))
                .ok_or("too many copies of executables wait to be run")?,
        );
        let (copy, hash) = snapshot(file, &exe.path)?;
        blake3 = Some(hash);
        Ok::<_, String>(copy)
    };
    let image = match (&exe.shape, &target) {
        (Shape::Script { .. }, Target::Turn) => Image::Script { path, dev, ino },
        (Shape::Script { .. }, _) if exe.agent_writable && !of_turn => {
            let names = scripts::names(&session.abilities, session.confines(execution))?;
            let copy = copied(&executable)?;
            let (held, started) = Script::of(request, exe, copy, &reach, names)?;
            script = Some(Arc::new(held));
            argv = started.argv;
            started.image
        }
        (Shape::Script { interpreter, named }, _) if !handles.begins_with_interpreter => {
            let interpreter = interpreter.as_ref().unwrap_or(named);
            // No `#!`: what a shell does then is to run it with sh, and so do we.
            argv.splice(..argv.len().min(1), [Bytes(b"sh".to_vec()), path]);
            executable = crate::sys::process::open_exactly(&c_path(interpreter)?)
                .map_err(|error| format!("{}: {error}", interpreter.display()))?;
            Image::Descriptor
        }
        (Shape::Script { .. }, _) => {
            blake3 = session.hash(&executable, exe);
            Image::Script { path, dev, ino }
        }
        (Shape::Binary, Target::Turn) => {
            executable = handles.executable.try_clone().map_err(|error| error.to_string())?;
            Image::Descriptor
        }
        (Shape::Binary, _) if exe.agent_writable && !of_turn => {
            executable = copied(&executable)?;
            Image::Descriptor
        }
        (Shape::Binary, Target::Outside) => {
            blake3 = session.hash(&executable, exe);
            Image::Descriptor
        }
        (Shape::Binary, Target::Profile(_)) => {
            blake3 = session.hash(&executable, exe);
            Image::Exact { path, dev, ino }
        }
    };
    let cwd = match (&request.attested.cwd, &target) {
        (_, Target::Turn) => Cwd::Descriptor,
        (Some(cwd), _) => {
            Cwd::Exact { path: Bytes(cwd.path.as_os_str().as_bytes().to_vec()), dev: cwd.dev, ino: cwd.ino }
        }
        (None, _) => return Err("its working directory is not the same outside the sandbox".to_owned()),
    };
    let text = |error: io::Error| error.to_string();
    let start = Start {
        id: 0,
        target,
        approval: match &judgement.source {
            Source::Rule(rule) => format!("{}:{}", rule.file, rule.line),
            Source::Skill(skill) => format!("skill:{}", skill.directory.display()),
            Source::Failure { .. } => "failed".to_owned(),
            Source::Heuristic { .. } if of_turn => "granted".to_owned(),
            Source::Heuristic { .. } => format!("requested {}", super::server::command(request)),
        },
        image,
        names: script.as_ref().map(|script| script.process),
        cwd,
        argv: terminated(&argv).map_err(text)?,
        waiter: request.attested.pid,
        wider,
        gate,
        gates: Vec::new(),
        tells_end: !watches(session, judgement),
    };
    let live = Live { pid: None, summary: summary(&request.argv), wider };
    let execution = execution.clone();
    Ok(Rerun { live, start, argv, execution, environment: None, executable, blake3, script, room })
}

/// Whether somebody may be asked to let a command run a second time once it has failed.
pub(super) fn watches(session: &Session, judgement: &Judgement) -> bool {
    session.stance.policy == ApprovalPolicy::OnFailure && matches!(judgement.source, Source::Heuristic { .. })
}

/// What the turn was given it was given for whatever it runs.
fn of_turn(execution: &Execution) -> bool {
    matches!(execution, Execution::Permissions(name) if name.starts_with(GRANTED))
}

/// The environment of a command, and what became of the asker's.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub(super) variables: Vec<Bytes>,
    pub(super) changes: EnvironmentChanges,
}

fn c_path(path: &Path) -> Result<std::ffi::CString, String> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())
}

/// A copy that nobody can change any more, and its hash.
fn snapshot(file: &OwnedFd, path: &Path) -> Result<(OwnedFd, String), String> {
    let text = |error: io::Error| format!("copy the executable: {error}");
    let from = reopen(file).map_err(text)?;
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    let name =
        std::ffi::CString::new(name.get(..name.len().min(200)).unwrap_or_default()).unwrap_or_default();
    let memory = socket::memfd(&name).map_err(text)?;
    let mut to = std::fs::File::from(memory.try_clone().map_err(text)?);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let got = from.read_at(&mut buffer, at).map_err(text)?;
        let chunk = buffer.get(..got).unwrap_or_default();
        if chunk.is_empty() {
            break;
        }
        at += got as u64;
        if at > SNAPSHOT_MOST {
            return Err(format!(
                "it is larger than {} MiB, too large to be copied before it runs",
                SNAPSHOT_MOST >> 20
            ));
        }
        hasher.update(chunk);
        io::Write::write_all(&mut to, chunk).map_err(text)?;
    }
    to.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(text)?;
    drop(to);
    socket::seal(&memory).map_err(text)?;
    Ok((memory, hasher.finalize().to_hex().to_string()))
}

/// Opens for reading what a handle names.
pub(super) fn reopen(handle: &OwnedFd) -> io::Result<std::fs::File> {
    std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(handle)))
}
